// Products of bytes on the AMX unit: 32 documents, a tile's rows as they lie in memory, against 16 or 32 queries.
#pragma once

#if defined(__AMX_INT8__)

#include "tile/amx_unit.hpp"
#include "tile/i8.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kTileDocuments = 32;
constexpr int kTileQueries = 16;

// Where a document's byte is an element, its row is an operand; other rows are unpacked first, and are unsigned.
template <class Codes>
struct TileRows {
  static constexpr bool kInPlace = Codes::kPerByte == 1;
  static constexpr bool kSigned = kInPlace && Codes::kLeast < 0;
  static constexpr bool kShifted = !kInPlace;  // by Codes::kShift

  // Rows after `present` repeat the last one. `out`: [kTileDocuments][plane_bytes].
  SIMTILE_INLINE static ByteBlock unpack(const ByteBlock& block, int present, uint8_t* out) {
    const int64_t chunks = block.chunks.count(), bytes = chunks * Codes::kPerByte * kVectorBytes;
    for (int i = 0; i < kTileDocuments; i++) {
      const char* row = block.row(least(i, present - 1));
      uint8_t* to = out + i * bytes;
      for (int64_t c = 0; c < chunks; c++) {
        const Bytes x = load_bytes(row + block.chunks.start(c));
#pragma GCC unroll 8
        for (int j = 0; j < Codes::kPerByte; j++, to += kVectorBytes)
          *reinterpret_cast<UnalignedBytes*>(to) = kInPlace ? x : Codes::unpack(x, j);
      }
    }
    return {reinterpret_cast<const char*>(out), bytes, {bytes}};
  }
};

// out[kTileDocuments][16 * groups] = start + documents * queries. Queries: groups of 16, [plane_bytes / 4][16][4], which is a B tile for
// each 64 bytes of a document.
template <bool is_signed, int groups>
__attribute__((noinline)) void multiply_byte_tiles(const ByteBlock& documents, const int32_t* queries,
                                                   const int32_t* start, int32_t* out) {
  const int64_t chunks = documents.chunks.count();
  const int64_t group_ints = chunks * (kTileBytes / 4);
  const int64_t row_bytes = groups * kTileQueries * 4;
  int32_t* lower = out + 16 * groups * kTileQueries;
  tiles_touch_memory();
  _tile_loadd(0, start, 0);  // the same row sixteen times
  _tile_loadd(2, start, 0);
  if (groups == 2) {
    _tile_loadd(1, start + kTileQueries, 0);
    _tile_loadd(3, start + kTileQueries, 0);
  }
#define SIMTILE_MULTIPLY(sum, a, b) \
  if (is_signed)                    \
    _tile_dpbssd(sum, a, b);        \
  else                              \
    _tile_dpbusd(sum, a, b);
  for (int64_t c = 0; c < chunks; c++) {
    const char* document = documents.rows + documents.chunks.start(c);
    const int32_t* query = queries + c * (kTileBytes / 4);
    _tile_loadd(6, query, 64);
    _tile_loadd(4, document, documents.stride);
    SIMTILE_MULTIPLY(0, 4, 6)
    _tile_loadd(5, document + 16 * documents.stride, documents.stride);
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

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
