// Vectors of one ISA level: GCC/Clang vector extensions, so that one source serves every level; intrinsics only where the
// extensions have no word for it. Everything is in the level's own anonymous namespace: see "ODR" in CONTRIBUTING.md.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SIMTILE_INLINE inline __attribute__((always_inline))

namespace simtile {
namespace SIMTILE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

// Storage types of half precision: the bits, never arithmetic.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = kVectorBytes / 4;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Integer __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kVectorBytes / 8;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Integer __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T>
SIMTILE_INLINE T least(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
SIMTILE_INLINE T most(T a, T b) {
  return a < b ? b : a;
}

// How far ahead of rows that are read once memory is asked for.
constexpr int64_t kBytesAhead = 4096;
SIMTILE_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// What will be read next, asked for some lines at a time.
struct Ahead {
  const char* at;
  const char* end;
  SIMTILE_INLINE void lines(int64_t count) {
    for (; count > 0 && at < end; count--, at += 64) prefetch(at);
  }
};

// A block of rows; on the way to be read and written.
SIMTILE_INLINE void prefetch_block(const void* first, int64_t row_bytes, int64_t rows, int64_t bytes) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t at = 0; at < bytes; at += 64)
      __builtin_prefetch(static_cast<const char*>(first) + i * row_bytes + at, 1, 3);
}

template <typename T>
SIMTILE_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

template <typename T>
SIMTILE_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <typename T>
SIMTILE_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

template <typename T>
SIMTILE_INLINE Vector<T> load_first(const T* p, int count) {
  T lanes[Simd<T>::kLanes] = {};
  for (int i = 0; i < count; i++) lanes[i] = p[i];
  return load<T>(lanes);
}

template <typename T>
SIMTILE_INLINE void store_first(T* p, Vector<T> v, int count) {
  T lanes[Simd<T>::kLanes];
  store<T>(lanes, v);
  for (int i = 0; i < count; i++) p[i] = lanes[i];
}

// A NaN in `x` is dropped: callers let it through by another road (exp and the sums see it).
template <typename V>
SIMTILE_INLINE V maximum(V accumulator, V x) {
  return x > accumulator ? x : accumulator;
}

template <typename T>
SIMTILE_INLINE T reduce_max(Vector<T> v) {
  T m = v[0];
  for (int i = 1; i < Simd<T>::kLanes; i++) m = most<T>(m, v[i]);
  return m;
}

template <typename T>
SIMTILE_INLINE T reduce_add(Vector<T> v) {
  T lanes[Simd<T>::kLanes];
  store<T>(lanes, v);
  // Halving, so that the order of the sum does not depend on how the compiler vectorises this loop.
  for (int half = Simd<T>::kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// accumulator + x * y, rounded once where the level can: for sources that are compiled without contraction.
SIMTILE_INLINE Vector<float> fused(Vector<float> accumulator, Vector<float> x, Vector<float> y) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)accumulator);
#elif defined(__FMA__)
  return (Vector<float>)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)accumulator);
#elif defined(__aarch64__)
  return (Vector<float>)vfmaq_f32((float32x4_t)accumulator, (float32x4_t)x, (float32x4_t)y);
#else
  return accumulator + x * y;
#endif
}

// Bit i: not x[i] < y[i], which NaN is not either.
SIMTILE_INLINE uint32_t not_less(Vector<float> x, Vector<float> y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_NLT_UQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)y, _CMP_NLT_UQ)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpnlt_ps((__m128)x, (__m128)y)));
#else
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vbicq_u32(bits, vcltq_f32((float32x4_t)x, (float32x4_t)y)));
#endif
}

// exp for x <= 0 (the row maximum is subtracted first): under 2 ulp, exactly 0 below the smallest normal result, NaN stays NaN.
SIMTILE_INLINE Vector<float> exp_nonpositive(Vector<float> x) {
  typedef Simd<float>::Integer Integer;
  constexpr float kSmallest = -87.33654f;  // ln of the smallest normal float
  constexpr float kRound = 12582912.f;     // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
  const Vector<float> shifted = x * 1.44269504f + kRound;
  const Vector<float> n = shifted - kRound;
  Vector<float> f = x - n * 0.693359375f;  // ln 2 in two parts; the first has few bits, so n * part is exact
  f = f + n * 2.12194440e-4f;
  // Taylor coefficients adjusted to be minimax on [-ln2/2, ln2/2] (Cephes expf; S. Moshier).
  Vector<float> p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * (f * f) + (f + 1.0f);
  const Integer exponent = ((Integer)shifted - (Integer)(Vector<float>{} + kRound) + 127) << 23;
  const Vector<float> result = p * (Vector<float>)exponent;
  return x < kSmallest ? Vector<float>{} : result;
}

SIMTILE_INLINE Vector<double> exp_nonpositive(Vector<double> x) {
  Vector<double> result = x;
  for (int i = 0; i < Simd<double>::kLanes; i++) result[i] = x[i] < -708.0 ? 0.0 : __builtin_exp(x[i]);
  return result;
}

SIMTILE_INLINE float widen(float x) { return x; }
SIMTILE_INLINE double widen(double x) { return x; }
SIMTILE_INLINE int32_t widen(int16_t x) { return x; }
SIMTILE_INLINE int32_t widen(uint8_t x) { return x; }
SIMTILE_INLINE float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}
SIMTILE_INLINE float widen(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  uint32_t bits;
  float out;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x0400) {
    bits = sign | ((magnitude << 13) + 0x38000000);
  } else {  // zero and subnormals: magnitude * 2^-24 is exact
    out = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -out : out;
  }
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

// One vector of T from consecutive elements of the source type.
SIMTILE_INLINE Vector<float> load_widened(const float* p) { return load<float>(p); }
SIMTILE_INLINE Vector<double> load_widened(const double* p) { return load<double>(p); }
SIMTILE_INLINE Vector<float> load_widened(const bf16* p) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
  return (Vector<float>)(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Word) << 16);
}
SIMTILE_INLINE Vector<float> load_widened(const f16* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return (Vector<float>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
#else
  // As widen(), in lanes.
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef Simd<float>::Integer Word;
  const Word bits = __builtin_convertvector(*reinterpret_cast<const Half*>(p), Word);
  const Word magnitude = bits & 0x7fff, shifted = magnitude << 13;
  const Word small = (Word)(__builtin_convertvector(magnitude, Vector<float>) * 5.9604644775390625e-8f);
  const Word finite = magnitude < 0x0400 ? small : shifted + 0x38000000;
  return (Vector<float>)((magnitude < 0x7c00 ? finite : shifted | 0x7f800000) | (bits & 0x8000) << 16);
#endif
}

template <typename T, typename Source>
SIMTILE_INLINE Vector<T> load_widened_first(const Source* p, int count) {
  T lanes[Simd<T>::kLanes] = {};
  for (int i = 0; i < count; i++) lanes[i] = widen(p[i]);
  return load<T>(lanes);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
