// A query's token as a sum of bfloat16 planes of 8 bits each: x = x0 + x1 + x2.
#pragma once

#include "maxsim/products.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kQueryPlanes = 3;

SIMTILE_INLINE uint16_t nearest_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Calls put(plane, k, bits) for all of them. The token is multiplied with a power of two first, so that its planes stay in range.
template <class Put>
PackedToken put_planes(const float* row, int64_t dimensions, double scale, const Put& put) {
  float largest = 0;
  for (int64_t k = 0; k < dimensions; k++) largest = most(largest, __builtin_fabsf(row[k]));
  double pack = scale * largest;
  pack = pack > 0 && pack < __builtin_inf() ? __builtin_ldexp(1.0, -__builtin_ilogb(pack)) : 1;
  PackedToken token = {1 / pack, 1};
  for (int64_t k = 0; k < dimensions; k++) {
    float left = static_cast<float>(row[k] * scale * pack);
    for (int plane = 0; plane < kQueryPlanes; plane++) {
      const uint16_t bits = nearest_bf16(left);
      if ((bits & 0x7fff) != 0 && plane + 1 > token.planes) token.planes = plane + 1;
      put(plane, k, bits);
      left -= widen(bf16{bits});
    }
  }
  return token;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
