// What one CUDA thread computes by itself.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll((unsigned long long)(value)) : 64; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }

// Four of the eight bytes of low and high, by the lowest three bits of each half byte of the selectors.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
  const unsigned long long bytes = (unsigned long long)(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= unsigned(bytes >> 8 * (selectors >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

// c + the products of the four signed bytes; wraps as on the device.
inline int __dp4a(int a, int b, int c) {
  unsigned sum = unsigned(c);
  for (int shift = 0; shift < 32; shift += 8) sum += unsigned(int(int8_t(a >> shift)) * int(int8_t(b >> shift)));
  return int(sum);
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

#define SIMTILE_CUDA_BITS(name, From, To)        \
  inline To name(From value) {                   \
    static_assert(sizeof(From) == sizeof(To));   \
    To result;                                   \
    std::memcpy(&result, &value, sizeof result); \
    return result;                               \
  }
SIMTILE_CUDA_BITS(__float_as_uint, float, unsigned)
SIMTILE_CUDA_BITS(__float_as_int, float, int)
SIMTILE_CUDA_BITS(__uint_as_float, unsigned, float)
SIMTILE_CUDA_BITS(__int_as_float, int, float)
SIMTILE_CUDA_BITS(__double_as_longlong, double, long long)
SIMTILE_CUDA_BITS(__longlong_as_double, long long, double)
#undef SIMTILE_CUDA_BITS

// The device's fast versions are off by an ulp or two; these are the accurate ones. __fmul_rn and __fadd_rn are never
// contracted on the device; here nothing is (-ffp-contract=off).
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double value) { return sqrt(value); }
inline int __double2int_rn(double value) { return int(rint(value)); }  // of what an int holds
inline float __double2float_rn(double value) { return float(value); }
inline float __int2float_rn(int value) { return float(value); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// Both of one type, as the device's overloads that need no conversion.
#define SIMTILE_CUDA_MIN_MAX(T)                    \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SIMTILE_CUDA_MIN_MAX(int)
SIMTILE_CUDA_MIN_MAX(unsigned)
SIMTILE_CUDA_MIN_MAX(long)
SIMTILE_CUDA_MIN_MAX(unsigned long)
SIMTILE_CUDA_MIN_MAX(long long)
SIMTILE_CUDA_MIN_MAX(unsigned long long)
#undef SIMTILE_CUDA_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
