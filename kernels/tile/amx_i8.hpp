// Products of bytes on the AMX unit: 32 documents against 16 or 32 queries.
#pragma once

#if defined(__AMX_INT8__)

#include "tile/amx_unit.hpp"
#include "tile/i8.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kTileDocuments = 32;
constexpr int kTileQueries = 16;

// Documents as A tiles. Where a byte is an element it stays as it is; other codes are unpacked, and unsigned.
template <class Codes>
struct DocumentTiles {
  static constexpr bool kSigned = Codes::kPerByte == 1 && Codes::kLeast < 0;
  static constexpr bool kShifted = Codes::kPerByte > 1;  // by Codes::kShift

  // [plane_bytes / 64][kTileDocuments][64]. Rows after `present` repeat the last one. Copied row by row, although tiles could be loaded
  // from rows: the memory's own prefetching wants to see rows from end to end.
  SIMTILE_INLINE static void pack(const ByteBlock& block, int present, uint8_t* panel) {
    const int64_t chunks = block.chunks.count();
    for (int i = 0; i < kTileDocuments; i++) {
      const char* row = block.row(least(i, present - 1));
      uint8_t* to = panel + i * kVectorBytes;
      for (int64_t c = 0; c < chunks; c++) {
        const Bytes x = load_bytes(row + block.chunks.start(c));
        prefetch(row + block.chunks.start(c) + kBytesAhead);
#pragma GCC unroll 8
        for (int j = 0; j < Codes::kPerByte; j++, to += kTileDocuments * kVectorBytes)
          *reinterpret_cast<Bytes*>(to) = Codes::kPerByte == 1 ? x : Codes::unpack(x, j);
      }
    }
  }
};

constexpr int64_t kChunkInts = kTileBytes / 4;

// out[kTileDocuments][16 * groups] = documents * queries, plus `start`, one row for all documents, or with `onwards` plus what out holds.
// Queries: groups of 16, group_ints apart, [chunks][16][16][4], a B tile for each chunk of the documents.
template <bool is_signed, int groups>
__attribute__((noinline)) void multiply_byte_tiles(const uint8_t* documents, const int32_t* queries, int64_t group_ints,
                                                   int64_t chunks, const int32_t* start, bool onwards, int32_t* out) {
  const int64_t row_bytes = groups * kTileQueries * 4;
  int32_t* lower = out + 16 * groups * kTileQueries;
  const int32_t *upper_start = onwards ? out : start, *lower_start = onwards ? lower : start;
  const int64_t start_stride = onwards ? row_bytes : 0;  // 0: the same row sixteen times
  tiles_touch_memory();
  _tile_loadd(0, upper_start, start_stride);
  _tile_loadd(2, lower_start, start_stride);
  if (groups == 2) {
    _tile_loadd(1, upper_start + kTileQueries, start_stride);
    _tile_loadd(3, lower_start + kTileQueries, start_stride);
  }
#define SIMTILE_MULTIPLY(sum, a, b) \
  if (is_signed)                    \
    _tile_dpbssd(sum, a, b);        \
  else                              \
    _tile_dpbusd(sum, a, b);
  for (int64_t c = 0; c < chunks; c++) {
    const uint8_t* document = documents + c * 2 * kTileBytes;
    const int32_t* query = queries + c * kChunkInts;
    _tile_loadd(6, query, 64);
    _tile_loadd(4, document, 64);
    SIMTILE_MULTIPLY(0, 4, 6)
    _tile_loadd(5, document + kTileBytes, 64);
    SIMTILE_MULTIPLY(2, 5, 6)
    if (groups == 2) {
      _tile_loadd(7, query + group_ints, 64);
      SIMTILE_MULTIPLY(1, 4, 7)
      SIMTILE_MULTIPLY(3, 5, 7)
    }
  }
#undef SIMTILE_MULTIPLY
  _tile_stored(0, out, row_bytes);
  _tile_stored(2, lower, row_bytes);
  if (groups == 2) {
    _tile_stored(1, out + kTileQueries, row_bytes);
    _tile_stored(3, lower + kTileQueries, row_bytes);
  }
  tiles_touch_memory();
}

// A part of the documents' dimensions, 16 KiB, stays in L1 while this many pairs of groups are multiplied, each of which brings as much
// from L2; all dimensions at once would drive each other out.
constexpr int64_t kPartChunks = 8;
constexpr int64_t kPairs = 4;
constexpr int64_t kPairSums = kTileDocuments * 2 * kTileQueries;

// Calls check(first query, its sums, queries in a row of them) for every group of queries, [groups][chunks][16][16][4]; `sums` has room for
// kPairs * kPairSums.
template <bool is_signed, class Check>
SIMTILE_INLINE void multiply_documents(const uint8_t* documents, int64_t chunks, const int32_t* queries, int64_t groups,
                                       const int32_t* starts, int32_t* sums, Check check) {
  const int64_t parts = (chunks + kPartChunks - 1) / kPartChunks, each = (chunks + parts - 1) / parts;
  for (int64_t begin = 0; begin < groups; begin += 2 * kPairs) {
    const int64_t end = least(begin + 2 * kPairs, groups);
    for (int64_t c = 0; c < chunks; c += each)
      for (int64_t group = begin; group < end; group += 2) {
        const auto multiply = group + 1 < end ? multiply_byte_tiles<is_signed, 2> : multiply_byte_tiles<is_signed, 1>;
        multiply(documents + c * 2 * kTileBytes, queries + (group * chunks + c) * kChunkInts, chunks * kChunkInts,
                 least(each, chunks - c), starts + group * kTileQueries, c > 0, sums + (group - begin) / 2 * kPairSums);
      }
    for (int64_t group = begin; group < end; group++) {
      const bool two = (group ^ 1) < end;
      check(group * kTileQueries, sums + (group - begin) / 2 * kPairSums + (group & 1) * kTileQueries,
            two ? 2 * kTileQueries : kTileQueries);
    }
  }
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
