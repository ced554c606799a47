// From products to logits: the epilogue of info_nce's scores.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// For products that are looked at afterwards.
struct Plain {
  template <int rows, typename T>
  SIMTILE_INLINE void tile(int64_t, int64_t, T*) {}
};

// What statistics need of every row, by lanes; null: none are wanted.
template <typename T>
struct RowTally {
  T* similarity = nullptr;  // sums of the logits of negatives in the loss, without hardness
  T* kept = nullptr;        // how many there are
  T* peak = nullptr;        // the largest of them and of those that only the threshold leaves out
  int64_t twice = 0;        // columns up to this one are negatives in two directions
};

// Scores of one tile as they leave the product: to logits, masked, hardened, with the running row maximum. Columns count from the first
// panel on.
template <typename Engine>
struct LogitEpilogue {
  using T = typename Engine::Scalar;
  static constexpr int kColumns = Engine::kColumns;
  static constexpr int kVectors = Engine::kVectors;
  static constexpr int kLanes = Engine::kLanes;

  // A product becomes a similarity by both scales, multiplied first: the same whichever of two vectors is the row.
  const T* row_scale;       // per row of the chunk
  const T* column_scale;    // per column
  const T* column_penalty;  // 0, or -inf where a panel has no candidate
  T* row_max;               // [rows][lanes]
  T inverse_temperature;

  // Logits go to this panel, [panel][row][kColumns], and the products stay; null: in place.
  char* out = nullptr;
  int64_t out_stride = 0;

  const int64_t* row_ids = nullptr;     // per row of the chunk, or null
  const int64_t* column_ids = nullptr;  // of `columns` columns
  int64_t columns = 0;

  // What belongs to a row's own pair, `own_count` columns from own[row] on: left out, or hardened by another factor. `single` says that
  // this block has them to look for.
  const int64_t* own = nullptr;
  int64_t own_count = 0;
  bool single = false;
  bool leave_own_out = false;
  T factor = 1, own_factor = 1;  // of logits: 1 + temperature * strength

  const T* threshold = nullptr;  // per row: logits above are left out; or null

  // Cosines by the guide, as products [panel][row][kColumns]; or null.
  const char* guide = nullptr;
  int64_t guide_stride = 0;
  const T* guide_row_scale = nullptr;
  const T* guide_column_scale = nullptr;
  const T* guide_threshold = nullptr;

  RowTally<T> tally;
  bool own_is_negative = false;

  template <int rows>
  SIMTILE_INLINE void tile(int64_t panel, int64_t r, T* products) {
    const T* scale = column_scale + panel * kColumns;
    const T* penalty = column_penalty + panel * kColumns;
    T* to = out ? reinterpret_cast<T*>(out + panel * out_stride) + r * kColumns : products;
    for (int i = 0; i < rows; i++, products += kColumns, to += kColumns) {
      Vector<T> peak = load<T>(row_max + (r + i) * kLanes);
      Vector<T> logits[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++)
        logits[v] =
            load<T>(products + v * kLanes) * (load<T>(scale + v * kLanes) * row_scale[r + i]) * inverse_temperature +
            load<T>(penalty + v * kLanes);
      if (tally.kept) count(r + i, panel, logits);
      if (threshold) leave_out_similar(r + i, logits);
      if (guide) leave_out_by_guide(r + i, panel, logits);
      if (row_ids || (single && meets_own(r + i, panel))) {
        column_by_column(r + i, panel * kColumns, logits, leave_own_out, factor, own_factor);
      } else if (factor != 1) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) logits[v] = logits[v] * factor;
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        peak = maximum(peak, logits[v]);
        store<T>(to + v * kLanes, logits[v]);
      }
      store<T>(row_max + (r + i) * kLanes, peak);
    }
  }

  SIMTILE_INLINE bool meets_own(int64_t row, int64_t panel) const {
    return own[row] < (panel + 1) * kColumns && own[row] + own_count > panel * kColumns;
  }

  SIMTILE_INLINE void leave_out_similar(int64_t row, Vector<T> (&logits)[kVectors]) const {
    const Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) logits[v] = logits[v] > threshold[row] ? lowest : logits[v];
  }

  // Where the guide has NaN nobody knows whether this is a negative: NaN.
  SIMTILE_INLINE void leave_out_by_guide(int64_t row, int64_t panel, Vector<T> (&logits)[kVectors]) const {
    const Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      const Vector<T> cosine = guide_cosines(row, panel, v);
      const Vector<T> known = cosine <= guide_threshold[row] ? logits[v] : cosine - guide_threshold[row] + logits[v];
      const Vector<T> kept = cosine > guide_threshold[row] ? lowest : known;
      logits[v] = logits[v] == lowest ? lowest : kept;
    }
  }

  SIMTILE_INLINE Vector<T> guide_cosines(int64_t row, int64_t panel, int v) const {
    const T* cosines = reinterpret_cast<const T*>(guide + panel * guide_stride) + row * kColumns;
    const T* scale = guide_column_scale + panel * kColumns;
    return load<T>(cosines + v * kLanes) * (load<T>(scale + v * kLanes) * guide_row_scale[row]);
  }

  // Before anything else is done to the logits.
  __attribute__((noinline)) void count(int64_t row, int64_t panel, const Vector<T> (&all)[kVectors]) const {
    const Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inf()));
    Vector<T> logits[kVectors];
    // A panel's end holds no candidate, although NaN in the row hides that.
    const T* penalty = column_penalty + panel * kColumns;
    for (int v = 0; v < kVectors; v++) logits[v] = load<T>(penalty + v * kLanes) == lowest ? lowest : all[v];
    if (guide)
      for (int v = 0; v < kVectors; v++)
        logits[v] = guide_cosines(row, panel, v) > guide_threshold[row] ? lowest : logits[v];
    if (row_ids || meets_own(row, panel)) column_by_column(row, panel * kColumns, logits, !own_is_negative, 1, 1);
    T* const sums[] = {tally.similarity + row * kLanes, tally.kept + row * kLanes, tally.peak + row * kLanes};
    Vector<T> similarity = load<T>(sums[0]), kept = load<T>(sums[1]), peak = load<T>(sums[2]);
    for (int v = 0; v < kVectors; v++) {
      peak = maximum(peak, logits[v]);
      if (threshold) logits[v] = logits[v] > threshold[row] ? lowest : logits[v];
      const Vector<T> zero = broadcast<T>(0), copies = copies_of(panel * kColumns + v * kLanes);
      similarity += logits[v] == lowest ? zero : logits[v] * copies;
      kept += logits[v] == lowest ? zero : copies;
    }
    store<T>(sums[0], similarity);
    store<T>(sums[1], kept);
    store<T>(sums[2], peak);
  }

  // In how many directions columns are negatives.
  SIMTILE_INLINE Vector<T> copies_of(int64_t column) const {
    if (column >= tally.twice) return broadcast<T>(1);
    if (column + kLanes <= tally.twice) return broadcast<T>(2);
    T lanes[kLanes];
    for (int j = 0; j < kLanes; j++) lanes[j] = column + j < tally.twice ? 2 : 1;
    return load<T>(lanes);
  }

  __attribute__((noinline)) void column_by_column(int64_t row, int64_t first, Vector<T> (&logits)[kVectors],
                                                  bool own_out, T others, T mine) const {
    const T lowest = -static_cast<T>(__builtin_inf());
    T lanes[kColumns];
    for (int v = 0; v < kVectors; v++) store<T>(lanes + v * kLanes, logits[v]);
    for (int j = 0; j < kColumns; j++) {
      const int64_t column = first + j;
      if (column >= own[row] && column < own[row] + own_count) {
        lanes[j] = own_out ? lowest : lanes[j] * mine;
      } else if (row_ids && column < columns && column_ids[column] == row_ids[row]) {
        lanes[j] = lowest;
      } else {
        lanes[j] *= others;
      }
    }
    for (int v = 0; v < kVectors; v++) logits[v] = load<T>(lanes + v * kLanes);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
