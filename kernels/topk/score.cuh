// From bytes to the upper half of a key: pieces of rows, what a piece adds to a score, and the scores' order.
#pragma once

#include "tile/ptx.cuh"
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
__device__ inline void load(Piece<1>& piece, const uint8_t* from) { piece.word[0] = *from; }

__device__ inline void store(const Piece<16>& piece, uint8_t* to) {
  *reinterpret_cast<uint4*>(to) = make_uint4(piece.word[0], piece.word[1], piece.word[2], piece.word[3]);
}
__device__ inline void store(const Piece<4>& piece, uint8_t* to) { *reinterpret_cast<unsigned*>(to) = piece.word[0]; }
__device__ inline void store(const Piece<1>& piece, uint8_t* to) { *to = static_cast<uint8_t>(piece.word[0]); }

struct Hamming {
  static constexpr bool ascending = true;

  static __device__ int add(unsigned query, unsigned document, int sum) { return sum + __popc(query ^ document); }
};

struct Int8Dot {
  static constexpr bool ascending = false;

  static __device__ int add(unsigned query, unsigned document, int sum) {
    return __dp4a(static_cast<int>(query), static_cast<int>(document), sum);
  }
};

enum class ScoreKind { distance, dot, scaled_dot };

// Smaller is better. float(dot) * (query_scale * document_scale) is the one expression for scaled scores: there is no
// sum in it that could be contracted.
__device__ inline unsigned order_distance(int distance) { return static_cast<unsigned>(distance); }

__device__ inline unsigned order_dot(int dot) { return 0x7fffffffu - static_cast<unsigned>(dot); }

__device__ inline unsigned order_scaled(int dot, float query_scale, float document_scale) {
  const float score = static_cast<float>(dot) * (query_scale * document_scale);
  if (score != score) return 0xffffffffu;  // that of no_key: NaN is never found
  unsigned bits = __float_as_uint(score);
  if (bits == 0x80000000u) bits = 0;  // -0 ties with 0
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

// The score that an ordered one came from, and what stands where nothing was found.
__device__ inline unsigned score_bits(unsigned ordered, ScoreKind kind) {
  if (kind == ScoreKind::distance) return ordered;
  if (kind == ScoreKind::dot) return 0x7fffffffu - ordered;
  return ordered & 0x80000000u ? ordered : 0x7fffffffu - ordered;
}

__device__ inline unsigned missing_score_bits(ScoreKind kind) {
  return kind == ScoreKind::distance ? 0x7fffffffu : kind == ScoreKind::dot ? 0x80000000u : 0xff800000u;
}

}  // namespace simtile::cuda::topk
