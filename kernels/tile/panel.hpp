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

  // Of every column, the largest score and the sum of exp(s - that), carried on from earlier rows: [kColumns] each.
  static void add_columns(const void* panel_scores, int64_t rows, T* column_max, T* column_sum) {
    const T lowest = -static_cast<T>(__builtin_inf());
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      const T* s = static_cast<const T*>(panel_scores) + v * kLanes;
      const Vector<T> before = load<T>(column_max + v * kLanes);
      Vector<T> peak = before;
      for (int64_t r = 0; r < rows; r++) peak = maximum(peak, load<T>(s + r * kColumns));
      // Where nothing is above -inf yet, exponentials are those of -inf less 0.
      const Vector<T> shift = peak == lowest ? Vector<T>{} : peak;
      Vector<T> sum{};  // of these rows alone: a short chain of additions
      for (int64_t r = 0; r < rows; r++) sum += exp_nonpositive(load<T>(s + r * kColumns) - shift);
      store<T>(column_max + v * kLanes, peak);
      store<T>(column_sum + v * kLanes, load<T>(column_sum + v * kLanes) * exp_nonpositive(before - shift) + sum);
    }
  }

  // row_scale exp(s - row_max) + column_scale exp(s - column_max) in place; that times s is added to the lanes of `weighted`.
  static void combine(void* panel_scores, int64_t rows, const T* row_max, const T* row_scale, const T* column_max,
                      const T* column_scale, T* weighted) {
    T* s = static_cast<T*>(panel_scores);
    const Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
    for (int64_t r = 0; r < rows; r++, s += kColumns) {
      Vector<T> product = load<T>(weighted + r * kLanes);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const Vector<T> x = load<T>(s + v * kLanes);
        const Vector<T> c = exp_nonpositive(x - row_max[r]) * row_scale[r] +
                            exp_nonpositive(x - load<T>(column_max + v * kLanes)) * load<T>(column_scale + v * kLanes);
        product += c * (x == lowest ? Vector<T>{} : x);
        store<T>(s + v * kLanes, c);
      }
      store<T>(weighted + r * kLanes, product);
    }
  }

  // Logits by several widths, `width_stride` bytes apart, to the coefficients of the dimensions that each width has more than the one
  // before: in place of the logits of width k, the sum over k and all wider ones of row_scale exp(s - row_max) row_unit column_unit. Rows'
  // arrays are [widths][row_stride], those of columns [widths][column_stride]. The sums over the rows of row_scale exp(s - row_max) s are
  // added to `weighted`, [widths][kColumns].
  static void combine_widths(char* panel_scores, int64_t width_stride, int widths, int64_t rows, const T* row_max,
                             const T* row_scale, const T* row_unit, int64_t row_stride, const T* column_unit,
                             int64_t column_stride, T* weighted) {
    const Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
    for (int64_t r = 0; r < rows; r++) {
      Vector<T> sum[kVectors] = {};
      for (int k = widths - 1; k >= 0; k--) {
        T* s = reinterpret_cast<T*>(panel_scores + k * width_stride) + r * kColumns;
        const int64_t row = k * row_stride + r;
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) {
          const Vector<T> x = load<T>(s + v * kLanes);
          const Vector<T> c = exp_nonpositive(x - row_max[row]) * row_scale[row];
          T* of_column = weighted + k * kColumns + v * kLanes;
          store<T>(of_column, load<T>(of_column) + c * (x == lowest ? Vector<T>{} : x));
          sum[v] += c * (load<T>(column_unit + k * column_stride + v * kLanes) * row_unit[row]);
          store<T>(s + v * kLanes, sum[v]);
        }
      }
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
