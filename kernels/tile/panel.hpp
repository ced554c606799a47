// The scores of one panel of documents, [rows][kColumns]: what every engine writes and every epilogue reads.
#pragma once

#include "tile/f32.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename T>
struct ScorePanel {
  static constexpr int kColumns = Tile<T>::kColumns;
  static constexpr int kVectors = Tile<T>::kColumnVectors;
  static constexpr int kLanes = Simd<T>::kLanes;

  // The score of one pair, replaced.
  static T exchange_score(void* panel_scores, int64_t row, int column, T value) {
    T& at = static_cast<T*>(panel_scores)[row * kColumns + column];
    const T old = at;
    at = value;
    return old;
  }

  // exp(s - row maximum) in place (kept only if `keep`), adding each row's e and e (s - m) to the lanes of `sums` and `weighted`.
  static void exponentiate(void* panel_scores, int64_t rows, const T* row_max, bool keep, T* sums, T* weighted) {
    T* s = static_cast<T*>(panel_scores);
    const T floor = static_cast<T>(sizeof(T) == 4 ? -88 : -709);  // keeps 0 * -inf out of the weighted sum
    for (int64_t r = 0; r < rows; r++, s += kColumns) {
      Vector<T> sum = load<T>(sums + r * kLanes), product = load<T>(weighted + r * kLanes);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const Vector<T> x = load<T>(s + v * kLanes) - row_max[r];
        const Vector<T> e = exp_nonpositive(x);
        sum += e;
        product += e * (x < floor ? broadcast<T>(floor) : x);
        if (keep) store<T>(s + v * kLanes, e);
      }
      store<T>(sums + r * kLanes, sum);
      store<T>(weighted + r * kLanes, product);
    }
  }

  static void set_coefficient(void* panel_scores, int64_t row, int column, T value) {
    static_cast<T*>(panel_scores)[row * kColumns + column] = value;
  }
};

// Rows that take part in a product, and what multiplies them: the normalised (and, for queries, weighted) row is
// coefficient * pack * row. `pack` is an exact power of two.
template <typename T, typename Source>
struct ScaledRows {
  const Source* data;
  int64_t stride;
  int64_t count;
  const T* pack;
  const T* coefficient;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
