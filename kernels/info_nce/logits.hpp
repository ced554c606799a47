// From products to logits: the epilogue of info_nce's scores.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Scores of one tile as they leave the product: to logits, masked, with the running row maximum.
template <typename Engine>
struct LogitEpilogue {
  using T = typename Engine::Scalar;
  static constexpr int kColumns = Engine::kColumns;
  static constexpr int kVectors = Engine::kVectors;
  static constexpr int kLanes = Engine::kLanes;

  const T* query_scale;         // per row of the chunk, 1 / temperature included
  const T* candidate_scale;     // per column, from the first panel on
  const T* candidate_penalty;   // 0, or -inf where a panel has no candidate
  T* row_max;                   // [rows][lanes]
  const int64_t* query_ids;     // per row of the chunk, or null
  const int64_t* document_ids;  // per column from the first panel on, `documents` of them
  int64_t documents;
  const int64_t* targets;  // per row of the chunk, as a column counted from the first panel

  template <int rows>
  SIMTILE_INLINE void tile(int64_t panel, int64_t r, T* products) {
    const T* scale = candidate_scale + panel * kColumns;
    const T* penalty = candidate_penalty + panel * kColumns;
    for (int i = 0; i < rows; i++, products += kColumns) {
      Vector<T> peak = load<T>(row_max + (r + i) * kLanes);
      Vector<T> logits[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++)
        logits[v] = load<T>(products + v * kLanes) * load<T>(scale + v * kLanes) * query_scale[r + i] +
                    load<T>(penalty + v * kLanes);
      if (query_ids) mask(r + i, panel * kColumns, logits);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        peak = maximum(peak, logits[v]);
        store<T>(products + v * kLanes, logits[v]);
      }
      store<T>(row_max + (r + i) * kLanes, peak);
    }
  }

  __attribute__((noinline)) void mask(int64_t row, int64_t first, Vector<T> (&logits)[kVectors]) const {
    T lanes[kColumns];
    for (int v = 0; v < kVectors; v++) store<T>(lanes + v * kLanes, logits[v]);
    for (int64_t j = first; j < least(first + kColumns, documents); j++)
      if (document_ids[j] == query_ids[row] && j != targets[row]) lanes[j - first] = -static_cast<T>(__builtin_inf());
    for (int v = 0; v < kVectors; v++) logits[v] = load<T>(lanes + v * kLanes);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
