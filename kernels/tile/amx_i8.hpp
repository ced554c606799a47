// The matrix engine of AMX on bytes: exact int32 dot products of documents, rows as they lie in memory, with queries packed once.
#pragma once

#if defined(__AMX_INT8__)

#include "tile/amx.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int64_t kStepBytes = 64;  // of a row in one tile
constexpr int kBlock = 32;          // documents and queries of a block: four tiles of sums, two of each operand

// Queries come in groups of 16: [group][step][16 words][16 queries][4 bytes]; `bytes` of a row are a multiple of kStepBytes.
SIMTILE_INLINE int64_t query_group_bytes(int64_t bytes) { return bytes * kTileRows; }

enum class Bytes { are_unsigned, are_signed };

// sums[document][kBlock] of two tiles of documents, `stride` bytes a row, with one or two groups of queries. `ahead`: bytes that will be
// needed soon, `lines` of them a step; a row per document is no pattern that the hardware's prefetcher follows.
template <Bytes documents_are, int groups>
SIMTILE_INLINE void multiply_block(const char* documents, int64_t stride, const char* queries, int64_t steps,
                                   int32_t* sums, const char* ahead, int64_t lines) {
  const char* second = documents + kTileRows * stride;
  const int64_t group = query_group_bytes(steps * kStepBytes);
  _tile_zero(0);
  _tile_zero(1);
  if (groups == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; s++) {
    _tile_loadd(4, documents + s * kStepBytes, stride);
    _tile_loadd(5, second + s * kStepBytes, stride);
    _tile_loadd(6, queries + s * kTileBytes, 64);
    if (groups == 2) _tile_loadd(7, queries + group + s * kTileBytes, 64);
    for (int64_t i = 0; i < lines; i++, ahead += 64) prefetch(ahead);
    if (documents_are == Bytes::are_signed) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 5, 6);
      if (groups == 2) {
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
      }
    } else {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 5, 6);
      if (groups == 2) {
        _tile_dpbusd(2, 4, 7);
        _tile_dpbusd(3, 5, 7);
      }
    }
  }
  constexpr int64_t kRow = kBlock * static_cast<int64_t>(sizeof(int32_t));
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kTileRows * kBlock, kRow);
  if (groups == 2) {
    _tile_stored(2, sums + 16, kRow);
    _tile_stored(3, sums + kTileRows * kBlock + 16, kRow);
  }
  tiles_touch_memory();
}

// 64 bits to 64 bytes of 0 and 1, the lowest bit first.
SIMTILE_INLINE void unpack_bits(uint64_t bits, char* out) {
  _mm512_storeu_si512(out, _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(1)));
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
