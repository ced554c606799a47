// Sums in one order for every ISA level and for GPUs: element i goes to partial sum i % 32, in ascending order, and then halves are added.
// Compiled without contraction to fused multiply-adds (csrc/level_topk.cpp), because those round once less.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kSums = 32;

struct LaneSums {
  // In parts that are one register of avx512, two of avx2, four of SSE2 and NEON.
  typedef double Part __attribute__((vector_size(64)));
  static constexpr int kParts = 4;
  static constexpr int kLanes = 8;
  Part part[kParts];

  SIMTILE_INLINE LaneSums() {
    for (int p = 0; p < kParts; p++) part[p] = Part{};
  }

  SIMTILE_INLINE double total() {
    double lanes[kSums];
    __builtin_memcpy(lanes, part, sizeof lanes);
    for (int half = kSums / 2; half > 0; half /= 2)
      for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
  }
};

// Eight elements as doubles, exactly.
SIMTILE_INLINE void load_doubles(LaneSums::Part& out, const double* p) { __builtin_memcpy(&out, p, sizeof out); }
SIMTILE_INLINE void load_doubles(LaneSums::Part& out, const float* p) {
#if defined(__AVX512F__)
  out = (LaneSums::Part)_mm512_cvtps_pd(_mm256_loadu_ps(p));  // GCC 12 makes two halves of the conversion below
#else
  typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
  out = __builtin_convertvector(*reinterpret_cast<const Floats*>(p), LaneSums::Part);
#endif
}
SIMTILE_INLINE void load_halves(float* out, const bf16* p) {
#if defined(__AVX512F__)
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  _mm256_storeu_ps(out, (__m256)_mm256_slli_epi32(words, 16));
#else
  for (int i = 0; i < LaneSums::kLanes; i += Simd<float>::kLanes) store<float>(out + i, load_widened(p + i));
#endif
}
SIMTILE_INLINE void load_halves(float* out, const f16* p) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  for (int i = 0; i < LaneSums::kLanes; i += Simd<float>::kLanes) store<float>(out + i, load_widened(p + i));
#endif
}
template <typename Half>
SIMTILE_INLINE void load_doubles(LaneSums::Part& out, const Half* p) {
  float widened[LaneSums::kLanes];
  load_halves(widened, p);
  load_doubles(out, widened);
}

SIMTILE_INLINE double as_double(double x) { return x; }
SIMTILE_INLINE double as_double(float x) { return x; }
SIMTILE_INLINE double as_double(bf16 x) { return widen(x); }
SIMTILE_INLINE double as_double(f16 x) { return widen(x); }

// Calls term(sum, a, b) for eight elements of both rows at a time, and with zeros after the last.
template <typename A, typename B, typename Term>
SIMTILE_INLINE double lane_sum(const A* a, const B* b, int64_t count, Term term) {
  LaneSums sums;
  LaneSums::Part x, y;
  int64_t at = 0;
  for (; at + kSums <= count; at += kSums)
    for (int p = 0; p < LaneSums::kParts; p++) {
      load_doubles(x, a + at + p * LaneSums::kLanes);
      load_doubles(y, b + at + p * LaneSums::kLanes);
      term(sums.part[p], x, y);
    }
  if (at < count) {
    double last_a[kSums] = {}, last_b[kSums] = {};
    for (int64_t i = at; i < count; i++) {
      last_a[i - at] = as_double(a[i]);
      last_b[i - at] = as_double(b[i]);
    }
    for (int p = 0; p < LaneSums::kParts; p++) {
      load_doubles(x, last_a + p * LaneSums::kLanes);
      load_doubles(y, last_b + p * LaneSums::kLanes);
      term(sums.part[p], x, y);  // adds 0 where there is no element
    }
  }
  return sums.total();
}

template <typename A, typename B>
SIMTILE_INLINE double dot(const A* a, const B* b, int64_t count) {
  return lane_sum(a, b, count,
                  [](LaneSums::Part& sum, const LaneSums::Part& x, const LaneSums::Part& y)
                      __attribute__((always_inline)) { sum += x * y; });
}

// a . b and, in the same reading, b . b.
template <typename A, typename B>
SIMTILE_INLINE double dot_and_square(const A* a, const B* b, int64_t count, double& square) {
  LaneSums products, squares;
  LaneSums::Part x, y;
  int64_t at = 0;
  for (; at + kSums <= count; at += kSums)
    for (int p = 0; p < LaneSums::kParts; p++) {
      load_doubles(x, a + at + p * LaneSums::kLanes);
      load_doubles(y, b + at + p * LaneSums::kLanes);
      products.part[p] += x * y;
      squares.part[p] += y * y;
    }
  if (at < count) {
    double last_a[kSums] = {}, last_b[kSums] = {};
    for (int64_t i = at; i < count; i++) {
      last_a[i - at] = as_double(a[i]);
      last_b[i - at] = as_double(b[i]);
    }
    for (int p = 0; p < LaneSums::kParts; p++) {
      load_doubles(x, last_a + p * LaneSums::kLanes);
      load_doubles(y, last_b + p * LaneSums::kLanes);
      products.part[p] += x * y;
      squares.part[p] += y * y;
    }
  }
  square = squares.total();
  return products.total();
}

template <typename A, typename B>
SIMTILE_INLINE double squared_distance(const A* a, const B* b, int64_t count) {
  return lane_sum(a, b, count,
                  [](LaneSums::Part& sum, const LaneSums::Part& x, const LaneSums::Part& y)
                      __attribute__((always_inline)) {
                        const LaneSums::Part difference = x - y;
                        sum += difference * difference;
                      });
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
