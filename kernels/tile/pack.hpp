// Packing: from row-major [rows, D] of any source type to the two operand layouts of the tile, and row norms.
//   lanes layout      [D][kTileColumns]   one panel of rows along the lanes, zero rows past the end
//   broadcast layout  [D][kTileRows]      one block of rows, read one element at a time
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

#if defined(__clang__)
template <typename T>
SIMTILE_INLINE void transpose_block(Vector<T> (&rows)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> out[kLanes];
  for (int i = 0; i < kLanes; i++)
    for (int j = 0; j < kLanes; j++) out[j][i] = rows[i][j];
  for (int i = 0; i < kLanes; i++) rows[i] = out[i];
}
#else
// Eklundh's transpose: log2(lanes) rounds, each swapping the off-diagonal halves of 2x2 blocks of size `step`.
template <typename T, int step>
SIMTILE_INLINE void transpose_round(Vector<T> (&rows)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes;
  typename Simd<T>::Integer low{}, high{};
  for (int lane = 0; lane < kLanes; lane++) {
    low[lane] = lane & step ? kLanes + lane - step : lane;
    high[lane] = lane & step ? kLanes + lane : lane + step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i & step) continue;
    const Vector<T> a = rows[i], b = rows[i + step];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + step] = __builtin_shuffle(a, b, high);
  }
}

template <typename T>
SIMTILE_INLINE void transpose_block(Vector<T> (&rows)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes;
  transpose_round<T, 1>(rows);
  if constexpr (kLanes > 2) transpose_round<T, 2>(rows);
  if constexpr (kLanes > 4) transpose_round<T, 4>(rows);
  if constexpr (kLanes > 8) transpose_round<T, 8>(rows);
}
#endif

// `count` rows of `columns` elements, `stride` apart, multiplied by row_scale, to out[column * width + row].
// Rows up to `width` are filled with zeros. `width` needs not be a multiple of the vector length.
template <typename T, typename Source>
void pack_transposed(const Source* rows, int64_t stride, int count, int64_t columns, const T* row_scale, int width,
                     T* out) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int r0 = 0; r0 < width; r0 += kLanes) {
    const int present = least(kLanes, count - r0);
    const int written = least(kLanes, width - r0);
    for (int64_t c0 = 0; c0 < columns; c0 += kLanes) {
      const int wanted = static_cast<int>(least<int64_t>(kLanes, columns - c0));
      Vector<T> block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        block[i] = Vector<T>{};
        if (i < present) {
          const Source* p = rows + (r0 + i) * stride + c0;
          block[i] = wanted == kLanes ? load_widened(p) : load_widened_first<T>(p, wanted);
          if (row_scale) block[i] *= row_scale[r0 + i];
        }
      }
      transpose_block<T>(block);
      if (wanted == kLanes && written == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) store<T>(out + (c0 + i) * width + r0, block[i]);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++)
          if (i < wanted) store_first<T>(out + (c0 + i) * width + r0, block[i], written);
      }
    }
  }
}

// Columns [first, first + width) of one row, times pack, times coefficient; columns past the end are zeros. In this order, because the
// product of the two scales of a huge row may be too small for a float.
template <typename T, typename Source>
SIMTILE_INLINE void pack_slice(const Source* row, int64_t first, int64_t columns, T pack, T coefficient, int width,
                               T* out) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int lane = 0; lane < width; lane += kLanes) {
    const int64_t left = columns - first - lane;
    const Source* p = row + first + lane;
    Vector<T> v{};
    if (left >= kLanes) {
      v = load_widened(p);
    } else if (left > 0) {
      v = load_widened_first<T>(p, static_cast<int>(left));
    }
    store<T>(out + lane, v * pack * coefficient);
  }
}

// ||row||^2 in double, so that neither 1e30 nor 1e-30 leaves the range.
template <typename T, typename Source>
double squared_norm(const Source* row, int64_t columns) {
  constexpr int kLanes = Simd<double>::kLanes;
  typedef Vector<double> V;
  V sum[2] = {V{}, V{}};
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const __m512 x = (__m512)load_widened(row + c);
      const V low = (V)_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
              high = (V)_mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
      sum[0] += low * low;
      sum[1] += high * high;
      continue;
    }
#endif
    V low, high;
    for (int i = 0; i < kLanes; i++) {
      low[i] = widen(row[c + i]);
      high[i] = widen(row[c + kLanes + i]);
    }
    sum[0] += low * low;
    sum[1] += high * high;
  }
  double total = reduce_add<double>(sum[0] + sum[1]);
  for (; c < columns; c++) {
    const double x = widen(row[c]);
    total += x * x;
  }
  return total;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
