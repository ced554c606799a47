// Rows of each element type as operands of products: of floats planes of bfloat16 that add up to the elements, of codes int8.
//
// A step is what the four lanes that share a row read of it side by side, kWords words each; it feeds kProducts mma, two words of each
// plane a lane. That permutes the dimensions among the k of the mma, for queries and documents alike, which a sum does not see.
#pragma once

#include "maxsim/cuda_args.hpp"
#include "maxsim/cuda_residual.cuh"
#include "tile/ptx.cuh"

namespace simtile::cuda::maxsim {

constexpr int kMostPlanes = 3;  // of float32: 24 bits, 8 each

__device__ __forceinline__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// The first `planes` planes of two elements, the first in the lower halves. What is not finite makes NaN of the planes behind it.
template <int planes>
__device__ __forceinline__ void split(float x, float y, uint32_t (&words)[planes]) {
#pragma unroll
  for (int p = 0; p < planes; p++) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    words[p] = __bfloat16_as_ushort(both.x) | static_cast<uint32_t>(__bfloat16_as_ushort(both.y)) << 16;
    x -= low_half(words[p]);
    y -= high_half(words[p]);
  }
}

struct Float32 {
  static constexpr bool kIsCode = false;
  static constexpr int kBytes = 4, kWords = 4, kProducts = 1;
  static constexpr int kPlanes = 3;
  static constexpr int kMostEights = 2;  // of a document's rows that a warp multiplies at a time
  static constexpr uint32_t kMagnitude = 0x7fffffffu;

  static __device__ __forceinline__ float get(const void* row, int64_t k) { return static_cast<const float*>(row)[k]; }
  // What a lane has of a row in mma i of a step.
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int, uint32_t,
                                                  uint32_t (&b)[kPlanes][2]) {
    uint32_t first[kPlanes], second[kPlanes];
    split(__uint_as_float(words[0]), __uint_as_float(words[1]), first);
    split(__uint_as_float(words[2]), __uint_as_float(words[3]), second);
#pragma unroll
    for (int p = 0; p < kPlanes; p++) b[p][0] = first[p], b[p][1] = second[p];
  }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    return fmaf(__uint_as_float(word), __uint_as_float(word), sum);
  }
};

struct Float16 {  // 11 bits in two planes
  static constexpr bool kIsCode = false;
  static constexpr int kBytes = 2, kWords = 4, kProducts = 2;
  static constexpr int kPlanes = 2;
  static constexpr int kMostEights = 2;
  static constexpr uint32_t kMagnitude = 0x7fff7fffu;

  static __device__ __forceinline__ float low(uint32_t word) {
    return half_to_float(static_cast<unsigned short>(word & 0xffffu));
  }
  static __device__ __forceinline__ float high(uint32_t word) {
    return half_to_float(static_cast<unsigned short>(word >> 16));
  }
  static __device__ __forceinline__ float get(const void* row, int64_t k) {
    return half_to_float(static_cast<const unsigned short*>(row)[k]);
  }
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int i, uint32_t,
                                                  uint32_t (&b)[kPlanes][2]) {
    uint32_t first[kPlanes], second[kPlanes];
    split(low(words[2 * i]), high(words[2 * i]), first);
    split(low(words[2 * i + 1]), high(words[2 * i + 1]), second);
#pragma unroll
    for (int p = 0; p < kPlanes; p++) b[p][0] = first[p], b[p][1] = second[p];
  }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    return fmaf(high(word), high(word), fmaf(low(word), low(word), sum));
  }
};

struct BFloat16 {
  static constexpr bool kIsCode = false;
  static constexpr int kBytes = 2, kWords = 4, kProducts = 2;
  static constexpr int kPlanes = 1;
  static constexpr int kMostEights = 3;
  static constexpr uint32_t kMagnitude = 0x7fff7fffu;

  static __device__ __forceinline__ float get(const void* row, int64_t k) {
    return __bfloat162float(static_cast<const __nv_bfloat16*>(row)[k]);
  }
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int i, uint32_t,
                                                  uint32_t (&b)[kPlanes][2]) {
    b[0][0] = words[2 * i];
    b[0][1] = words[2 * i + 1];
  }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    return fmaf(high_half(word), high_half(word), fmaf(low_half(word), low_half(word), sum));
  }
};

// Codes as int8. Bytes without a sign become it by `flip`, 128 below.
struct Bytes {
  static constexpr bool kIsCode = true;
  static constexpr int kParts = 1;  // codes of a byte
  static constexpr int kBytes = 1, kWords = 4, kProducts = 2;
  static constexpr int kPlanes = 1;
  static constexpr int kMostEights = 2;
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int i, uint32_t flip,
                                                  uint32_t (&b)[kPlanes][2]) {
    b[0][0] = words[2 * i] ^ flip;
    b[0][1] = words[2 * i + 1] ^ flip;
  }
};

struct Bits {  // 0 and 1: of every byte one bit at a time, the highest first
  static constexpr bool kIsCode = true;
  static constexpr int kParts = 8;
  static constexpr int kBytes = 1, kWords = 1, kProducts = 4;
  static constexpr int kPlanes = 1;
  static constexpr int kMostEights = 2;
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int i, uint32_t,
                                                  uint32_t (&b)[kPlanes][2]) {
    b[0][0] = words[0] >> (7 - 2 * i) & 0x01010101u;
    b[0][1] = words[0] >> (6 - 2 * i) & 0x01010101u;
  }
};

template <class Format>
__host__ __device__ constexpr int64_t row_bytes(int64_t dimensions) {
  if constexpr (Format::kIsCode) return (dimensions + Format::kParts - 1) / Format::kParts;
  return dimensions * Format::kBytes;
}

// An element of a row whose type is known at run time only.
__device__ __forceinline__ float element(MaxsimKind kind, const void* row, int64_t k) {
  if (kind == MaxsimKind::float32) return Float32::get(row, k);
  return kind == MaxsimKind::float16 ? Float16::get(row, k) : BFloat16::get(row, k);
}

__device__ __forceinline__ int whole(MaxsimKind kind, const void* row, int64_t k) {
  return kind == MaxsimKind::int8 ? static_cast<const int8_t*>(row)[k] : static_cast<const int16_t*>(row)[k];
}

__device__ __forceinline__ const void* row_of(const MaxsimRuns& runs, int64_t row) {
  return static_cast<const char*>(runs.data) + row * runs.stride;
}

}  // namespace simtile::cuda::maxsim
