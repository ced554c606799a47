// Residuals as operands of products: codes of 1, 2 or 4 bits become the two bytes of what they stand for, in registers.
#pragma once

#include "maxsim/cuda_args.hpp"
#include "tile/ptx.cuh"

namespace simtile::cuda::maxsim {

// What codes stand for, 256 high + low, four bytes a word, in the order of a code's bits as they are stored: its lowest bit first.
struct ResidualValues {
  uint32_t high[4];
  uint32_t low[4];
};

inline ResidualValues residual_values(const int16_t (&weights)[16], int bits) {
  ResidualValues values = {};
  for (int stored = 0; stored < 1 << bits; stored++) {
    int code = 0;
    for (int b = 0; b < bits; b++) code |= (stored >> (bits - 1 - b) & 1) << b;
    const int low = ((weights[code] + 128) & 255) - 128, high = (weights[code] - low) / 256;
    values.high[stored / 4] |= static_cast<uint32_t>(high & 255) << 8 * (stored % 4);
    values.low[stored / 4] |= static_cast<uint32_t>(low & 255) << 8 * (stored % 4);
  }
  return values;
}

// A step is 128 dimensions. Of a word, an operand takes the same bits of four half bytes that lie side by side: they are the selectors of
// a byte permutation, and permutations look values up.
template <int bits>
struct Residual {
  static constexpr bool kIsCode = true;
  static constexpr int kParts = 8 / bits;  // codes of a byte, and operands of a word
  static constexpr int kBytes = 1, kWords = bits, kProducts = 4;
  static constexpr int kPlanes = 2;  // the values' high bytes and their low ones
  static constexpr int kMostEights = 1;
  static constexpr int kOfHalfByte = 4 / bits;

  // Of four selectors the values.
  static __device__ __forceinline__ uint32_t look_up(const uint32_t (&values)[4], uint32_t selectors) {
    if constexpr (bits < 4) {
      return __byte_perm(values[0], 0, selectors);
    } else {
      const uint32_t within = selectors & 0x7777u;
      const uint32_t below = __byte_perm(values[0], values[1], within);
      const uint32_t above = __byte_perm(values[2], values[3], within);
      return __byte_perm(below, above, 0x3210u | (selectors & 0x8888u) >> 1);
    }
  }
  static __device__ __forceinline__ void operands(const uint32_t (&words)[kWords], int i, const ResidualValues& values,
                                                  uint32_t (&b)[kPlanes][2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = 2 * i + half, part = at % kParts;
      const int shift = part / kOfHalfByte * 16 + part % kOfHalfByte * bits;
      const uint32_t selectors = words[at / kParts] >> shift & 0x1111u * ((1u << bits) - 1);
      b[0][half] = look_up(values.high, selectors);
      b[1][half] = look_up(values.low, selectors);
    }
  }
  // Of what operands() makes for mma `step` of a row: the dimension of byte `byte` of b[..][half].
  static __device__ __forceinline__ int64_t dimension(int step, int lane, int half, int byte) {
    const int at = step % kProducts * 2 + half, part = at % kParts;
    const int64_t place =
        (step / kProducts * 4 + lane % 4) * (4 * kWords) + at / kParts * 4 + part / kOfHalfByte * 2 + byte / 2;
    return place * kParts + kParts - 1 - (byte % 2 * kOfHalfByte + part % kOfHalfByte);
  }
};

template <class Format>
constexpr bool is_residual = false;
template <int bits>
constexpr bool is_residual<Residual<bits>> = true;

// sums[value's byte] += products of a step's rows with the query's whole numbers, of which `fragment` has this lane's low bytes and, behind
// a plane, the high ones. Those of high bytes are 256 times as much, modulo 2^32 as all sums are.
template <class Format, int kRowTiles, int kTiles>
__device__ __forceinline__ void multiply_residuals(const uint32_t (&pieces)[kTiles][Format::kWords],
                                                   const ResidualValues& values, const uint4* fragment, int fragments,
                                                   int row_tiles,
                                                   int32_t (&sums)[Format::kPlanes][kRowTiles][kTiles][4]) {
  uint32_t b[Format::kProducts][kTiles][Format::kPlanes][2];
#pragma unroll
  for (int i = 0; i < Format::kProducts; i++)
#pragma unroll
    for (int n = 0; n < kTiles; n++) Format::operands(pieces[n], i, values, b[i][n]);
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
    if (m >= row_tiles) continue;
    int32_t high[Format::kPlanes][kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < Format::kProducts; i++)
#pragma unroll
      for (int p = 0; p < 2; p++) {
        const uint4 words = fragment[p * fragments + (i * kRowTiles + m) * 32];
        const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int d = 0; d < Format::kPlanes; d++) mma_m16n8k32_s8(p ? high[d][n] : sums[d][m][n], a, b[i][n][d]);
      }
#pragma unroll
    for (int d = 0; d < Format::kPlanes; d++)
#pragma unroll
      for (int n = 0; n < kTiles; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          sums[d][m][n][i] = static_cast<int32_t>(static_cast<uint32_t>(sums[d][m][n][i]) +
                                                  256u * static_cast<uint32_t>(high[d][n][i]));
  }
}

// The similarity to a token from the exact products with its values' high and low bytes: `weight` is of the query's token, `product` that
// with the centroid, `factor` one over the length.
__device__ __forceinline__ float residual_similarity(int32_t high, int32_t low, float weight, float product,
                                                     float factor) {
  const float dot = __fadd_rn(__fmul_rn(__int2float_rn(high), 256.0f), __int2float_rn(low));
  return __fmul_rn(__fadd_rn(__fmul_rn(dot, weight), product), factor);
}

}  // namespace simtile::cuda::maxsim
