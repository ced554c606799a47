// CUDA's types: dim3, the vector types with their alignment, and bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define SIMTILE_CUDA_VECTOR2(T, name)  \
  struct alignas(2 * sizeof(T)) name { \
    T x, y;                            \
  };                                   \
  inline name make_##name(T x, T y) { return {x, y}; }
#define SIMTILE_CUDA_VECTOR4(T, name) \
  struct alignas(16) name {           \
    T x, y, z, w;                     \
  };                                  \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMTILE_CUDA_VECTOR2(int, int2)
SIMTILE_CUDA_VECTOR2(unsigned, uint2)
SIMTILE_CUDA_VECTOR2(float, float2)
SIMTILE_CUDA_VECTOR2(long long, longlong2)
SIMTILE_CUDA_VECTOR2(unsigned long long, ulonglong2)
SIMTILE_CUDA_VECTOR4(int, int4)
SIMTILE_CUDA_VECTOR4(unsigned, uint4)
SIMTILE_CUDA_VECTOR4(float, float4)

#undef SIMTILE_CUDA_VECTOR2
#undef SIMTILE_CUDA_VECTOR4

// Only the conversions: no constructor from float and no arithmetic, so that kernels say where they round.
struct alignas(2) __nv_bfloat16 {
  unsigned short bits;
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// To nearest, ties to even; every NaN becomes CUDA's canonical one.
inline __nv_bfloat16 __float2bfloat16(float value) {
  if (value != value) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __float2bfloat16(value); }
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
