// From float to the element types of half precision, to nearest even.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

SIMTILE_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

SIMTILE_INLINE void narrow(float x, float* out) { *out = x; }
SIMTILE_INLINE void narrow(double x, double* out) { *out = x; }
SIMTILE_INLINE void narrow(float x, bf16* out) {
  const uint32_t bits = bits_of(x);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out->bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
SIMTILE_INLINE void narrow(float x, f16* out) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520: halfway from the largest number to what would be the next
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // 2^-14, the smallest normal number
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  } else {  // the last bit of 1/2 is 2^-24, that of subnormal numbers
    float size;
    __builtin_memcpy(&size, &magnitude, 4);
    half = bits_of(size + 0.5f) - 0x3f000000;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

SIMTILE_INLINE void store_narrowed(float* out, Vector<float> v) { store<float>(out, v); }
SIMTILE_INLINE void store_narrowed(double* out, Vector<double> v) { store<double>(out, v); }
SIMTILE_INLINE void store_narrowed(bf16* out, Vector<float> v) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
  const Word bits = (Word)v;
  const Word rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Word word = ((Word)(v == v) & rounded) | ((Word)(v != v) & (bits >> 16 | 0x40));
  *reinterpret_cast<Unaligned*>(out) = __builtin_convertvector(word, Half);
}
SIMTILE_INLINE void store_narrowed(f16* out, Vector<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(reinterpret_cast<uint16_t*>(out), vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int lane = 0; lane < Simd<float>::kLanes; lane++) narrow(v[lane], out + lane);
#endif
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
