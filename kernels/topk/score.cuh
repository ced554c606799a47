// From bytes to the upper half of a key: pieces of rows, what a piece adds to a product, scores and their order.
#pragma once

#include "tile/ptx.cuh"
#include "topk/cuda_args.hpp"
#include "topk/select.cuh"

namespace simtile::cuda::topk {

// BYTES bytes of a row as 32-bit words; a single byte is followed by zeros, which add nothing to any score.
template <int BYTES>
struct Piece {
  static constexpr int words = BYTES < 4 ? 1 : BYTES / 4;
  unsigned word[words];
};

__device__ inline void load(Piece<16>& piece, const uint8_t* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  piece.word[0] = v.x, piece.word[1] = v.y, piece.word[2] = v.z, piece.word[3] = v.w;
}
__device__ inline void load(Piece<4>& piece, const uint8_t* from) {
  piece.word[0] = *reinterpret_cast<const unsigned*>(from);
}
__device__ inline void load(Piece<2>& piece, const uint8_t* from) {
  piece.word[0] = *reinterpret_cast<const unsigned short*>(from);
}
__device__ inline void load(Piece<1>& piece, const uint8_t* from) { piece.word[0] = *from; }

__device__ inline void store(const Piece<16>& piece, uint8_t* to) {
  *reinterpret_cast<uint4*>(to) = make_uint4(piece.word[0], piece.word[1], piece.word[2], piece.word[3]);
}
__device__ inline void store(const Piece<4>& piece, uint8_t* to) { *reinterpret_cast<unsigned*>(to) = piece.word[0]; }
__device__ inline void store(const Piece<1>& piece, uint8_t* to) { *to = static_cast<uint8_t>(piece.word[0]); }

// Codes of a document, four at a time. A byte holds `parts` of them; `part` gives the same one of four bytes as int8, times `unit`. A
// folded query has a row for each part, in which byte i belongs to byte i of a document (fold.cuh).
struct Packed {
  static constexpr bool folded = false;
  static constexpr int parts = 1;
  static __device__ unsigned part(unsigned word, int) { return word; }
};

struct Int8 {
  static constexpr bool folded = true;
  static constexpr int parts = 1, unit = 1;
  static __device__ unsigned part(unsigned word, int) { return word; }
};

struct Uint8 {  // code - 128
  static constexpr bool folded = true;
  static constexpr int parts = 1, unit = 1;
  static __device__ unsigned part(unsigned word, int) { return word ^ 0x80808080u; }
};

struct Int4 {  // in the upper half of a byte, where the sign is the byte's
  static constexpr bool folded = true;
  static constexpr int parts = 2, unit = 16;
  static __device__ unsigned part(unsigned word, int part) { return word << 4 * (1 - part) & 0xf0f0f0f0u; }
};

struct Bits {
  static constexpr bool folded = true;
  static constexpr int parts = 8, unit = 1;
  static __device__ unsigned part(unsigned word, int part) { return word >> part & 0x01010101u; }
};

// A query for codes. Its score of a document with dot = Σ z code is ((slope dot + level) factor + addend) + constant in double.
struct Terms {
  double slope, level, constant;
  long long shift;  // dot = 256 hi + lo + shift of the sums of both planes, for codes that were moved
  // The same in float32, for a lower bound of the cost. Costs are scores turned so that smaller is better.
  float cost_slope, cost_level, cost_constant, cost_shift;
  float most_slope, most_level, most_constant;  // at least the magnitudes, and 2^-126
  float sign;                                   // of a score in its cost
};

__host__ __device__ inline bool is_ascending(TopkMetric metric) {
  return metric == TopkMetric::l2 || metric == TopkMetric::hamming;
}

// Unsigned integers in the order of costs; NaN, which is never found, is that of no_key.
__device__ inline unsigned order_cost(float cost) {
  if (cost != cost) return 0xffffffffu;
  const unsigned bits = __float_as_uint(cost + 0.0f);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Of what is no order of a cost: NaN, to which nothing compares.
__device__ inline float cost_of(unsigned ordered) {
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ inline unsigned order_score(double score, TopkMetric metric) {
  if (metric == TopkMetric::l2) return order_cost(__double2float_rn(score < 0 ? 0 : score));
  return order_cost(-__double2float_rn(score));
}

// The bits of the score that an ordered one came from, and what stands where nothing was found.
__device__ inline unsigned score_bits(unsigned ordered, TopkMetric metric) {
  if (metric == TopkMetric::hamming) return ordered;
  const float cost = cost_of(ordered);
  return __float_as_uint(metric == TopkMetric::l2 ? cost : 0.0f - cost);
}

__device__ inline unsigned missing_score_bits(TopkMetric metric) {
  return metric == TopkMetric::hamming ? 0x7fffffffu : metric == TopkMetric::l2 ? 0x7f800000u : 0xff800000u;
}

// What turns sums of products into scores: a document's own numbers.
struct Own {
  float factor, addend;
};

__device__ inline unsigned folded_order(const Terms& terms, int hi, int lo, Own own, TopkMetric metric) {
  const double dot = static_cast<double>(256ll * hi + lo + terms.shift);
  const double level = __dadd_rn(__dmul_rn(terms.slope, dot), terms.level);
  const double score = __dadd_rn(__dmul_rn(level, static_cast<double>(own.factor)), static_cast<double>(own.addend));
  return order_score(__dadd_rn(score, terms.constant), metric);
}

// No more than the cost, or NaN where float32 is not enough to say. With u = 2^-24, every term of the sum is rounded ten times at most,
// each time by u of what `most` bounds or by 2^-150 where that is below 2^-126; 32 u of it leaves room for its own rounding.
__device__ inline float least_cost(const Terms& terms, int hi, int lo, Own own) {
  const float high = static_cast<float>(hi), low = static_cast<float>(lo);
  const float dot = fmaf(256.0f, high, low) + terms.cost_shift;
  const float most_dot = fmaf(256.0f, fabsf(high), fabsf(low)) + fabsf(terms.cost_shift);
  const float cost = fmaf(fmaf(terms.cost_slope, dot, terms.cost_level), own.factor,
                          fmaf(terms.sign, own.addend, terms.cost_constant));
  const float most = fmaf(fmaf(terms.most_slope, most_dot, terms.most_level), fabsf(own.factor),
                          fabsf(own.addend) + terms.most_constant);
  return fmaf(-0x1p-19f, most, cost);
}

}  // namespace simtile::cuda::topk
