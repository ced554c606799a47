// Rows as they are stored against packed queries. For many queries a register tile in which documents are broadcast and queries lie along
// the lanes: rows need no transposing and scores no shuffles. For few, rows against rows.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kLanes = Simd<float>::kLanes;

// 24 accumulators, 3 vectors of queries and a broadcast fill 28 of 32 registers; 12, 3 and 1 fill all of 16. SSE2 has no fused form and
// needs one more.
constexpr int kBlockRows = kVectorRegisters == 32 ? 8 : 4;
constexpr int kBlockVectors = kVectorRegisters == 32 || kVectorBytes == 32 ? 3 : 2;
// Products that are summed at a time: three vectors of queries by this depth are 24 KiB of L1 at 64 bytes a vector.
constexpr int64_t kRowDepth = 128;

// out[rows][vectors * kLanes] (+)= rows of `a` times `depth` vectors of each of b, b + b_stride, ... Sums start from zero: short chains
// round less.
template <int rows, int vectors>
__attribute__((noinline)) void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                                             int64_t depth, bool accumulate, float* out) {
  Vector<float> acc[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) acc[i][v] = Vector<float>{};
  // Four rows are reached from one pointer.
  const float* quarter[(rows + 3) / 4];
#pragma GCC unroll 2
  for (int i = 0; i < (rows + 3) / 4; i++) quarter[i] = a + 4 * i * a_stride;
  for (int64_t k = 0; k < depth; k++) {
    Vector<float> column[vectors];
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) column[v] = load<float>(b + v * b_stride);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      const Vector<float> x = broadcast<float>(quarter[i / 4][i % 4 * a_stride]);
#pragma GCC unroll 3
      for (int v = 0; v < vectors; v++) acc[i][v] = fused(acc[i][v], x, column[v]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < (rows + 3) / 4; i++) quarter[i]++;
    b += kLanes;
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
      float* p = out + (i * vectors + v) * kLanes;
      store<float>(p, accumulate ? load<float>(p) + acc[i][v] : acc[i][v]);
    }
}

// A vector of floats from any element type; doubles are rounded.
template <typename Source>
SIMTILE_INLINE Vector<float> load_floats(const Source* p) {
  return load_widened(p);
}
SIMTILE_INLINE Vector<float> load_floats(const double* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(p))),
                                           _mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)), 1);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p)));
#elif defined(__x86_64__)
  return (Vector<float>)_mm_movelh_ps(_mm_cvtpd_ps(_mm_loadu_pd(p)), _mm_cvtpd_ps(_mm_loadu_pd(p + 2)));
#else
  return (Vector<float>)vcvt_high_f32_f64(vcvt_f32_f64(vld1q_f64(p)), vld1q_f64(p + 2));
#endif
}

// The first `count` of a vector, and zeros.
template <typename Source>
SIMTILE_INLINE Vector<float> load_first_floats(const Source* p, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; i++) lanes[i] = static_cast<float>(widen(p[i]));
  return load<float>(lanes);
}
#if defined(__AVX512F__)
SIMTILE_INLINE Vector<float> load_first_floats(const float* p, int64_t count) {
  return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
SIMTILE_INLINE Vector<float> load_first_floats(const f16* p, int64_t count) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
}
SIMTILE_INLINE Vector<float> load_first_floats(const bf16* p, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
#endif

SIMTILE_INLINE float sum_lanes(Vector<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return reduce_add<float>(v);
#endif
}

// ||row||^2, and the row as floats to `out` unless that is null.
template <typename Source>
SIMTILE_INLINE float widen_row(const Source* row, int64_t count, float* out) {
  Vector<float> sum[4] = {};
  int64_t at = 0;
  for (; at + 4 * kLanes <= count; at += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const Vector<float> x = load_floats(row + at + i * kLanes);
      sum[i] = fused(sum[i], x, x);
      if (out) store<float>(out + at + i * kLanes, x);
    }
  for (; at < count; at += kLanes) {
    const Vector<float> x = at + kLanes <= count ? load_floats(row + at) : load_first_floats(row + at, count - at);
    sum[0] = fused(sum[0], x, x);
    if (out) store<float>(out + at, x);
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// The dot product of a row and a packed query, which has zeros up to a whole vector.
template <typename Source>
SIMTILE_INLINE float dot_row(const Source* row, const float* query, int64_t count) {
  Vector<float> sum[4] = {};
  int64_t at = 0;
  for (; at + 4 * kLanes <= count; at += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      sum[i] = fused(sum[i], load_floats(row + at + i * kLanes), load<float>(query + at + i * kLanes));
  for (; at < count; at += kLanes) {
    const Vector<float> x = at + kLanes <= count ? load_floats(row + at) : load_first_floats(row + at, count - at);
    sum[0] = fused(sum[0], x, load<float>(query + at));
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Dot products of `rows` rows, stride bytes apart, with `queries` packed ones, and the rows' squared norms, in one reading of the rows. The
// rows `ahead` bytes further are on their way. Queries have zeros up to a whole vector.
template <int rows, int queries, typename Source>
SIMTILE_INLINE void dot_rows(const char* first, int64_t stride, const float* query, int64_t query_pitch, int64_t count,
                             int64_t ahead, float (&products)[rows][queries], float (&squares)[rows]) {
  Vector<float> sum[rows][queries], square[rows];
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
    square[i] = Vector<float>{};
#pragma GCC unroll 2
    for (int q = 0; q < queries; q++) sum[i][q] = Vector<float>{};
  }
  for (int64_t at = 0; at < count; at += kLanes) {
    Vector<float> y[queries];
#pragma GCC unroll 2
    for (int q = 0; q < queries; q++) y[q] = load<float>(query + q * query_pitch + at);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
      const Source* p = reinterpret_cast<const Source*>(first + i * stride) + at;
      prefetch(reinterpret_cast<const char*>(p) + ahead);
      const Vector<float> x = at + kLanes <= count ? load_floats(p) : load_first_floats(p, count - at);
      square[i] = fused(square[i], x, x);
#pragma GCC unroll 2
      for (int q = 0; q < queries; q++) sum[i][q] = fused(sum[i][q], x, y[q]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
    squares[i] = sum_lanes(square[i]);
#pragma GCC unroll 2
    for (int q = 0; q < queries; q++) products[i][q] = sum_lanes(sum[i][q]);
  }
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
