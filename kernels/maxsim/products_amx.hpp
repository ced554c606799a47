// Products on the AMX unit: values as sums of bfloat16 planes, x = x0 + x1 + x2 of 8 bits each, and of two of them the terms x_i y_j
// with i + j <= 2 (tile/amx.hpp says what that loses). bfloat16 documents are one plane, float16 two, float32 three.
//
// What is out of range for a query's planes, infinities and NaN, makes the product NaN.
#pragma once

#if defined(__AMX_BF16__)

#include "maxsim/planes.hpp"
#include "tile/amx.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Source>
struct PlanesOf;
template <>
struct PlanesOf<bf16> {
  static constexpr int kCount = 1;
};
template <>
struct PlanesOf<f16> {
  static constexpr int kCount = 2;
};
template <>
struct PlanesOf<float> {
  static constexpr int kCount = 3;
};

template <typename Document>
struct TileProducts {
  typedef FusedProducts<float, Document> Plain;
  typedef float Query;
  typedef bf16 Row;
  static constexpr bool kCodes = false;
  static constexpr int kRows = 2 * kTileRows;
  static constexpr int kRowUnit = kTileRows;
  static constexpr int kColumns = Tile<float>::kColumns;
  static constexpr bool kChecked = true;
  static constexpr int kPlanes = PlanesOf<Document>::kCount;
  typedef TileScope Scope;
  typedef typename Plain::Values Values;
  static_assert(kColumns == 2 * kTileRows, "a panel is two tiles wide");

  static int64_t tiles(int64_t dimensions) { return (dimensions + kTileDepth - 1) / kTileDepth; }
  static bool in_place(int64_t dimensions) { return kPlanes == 1 && dimensions % kTileDepth == 0; }
  // [tile of K][plane][strip of 16 columns][pair of K][column][2]
  static int64_t panel_bytes(int64_t dimensions) { return tiles(dimensions) * kQueryPlanes * 2 * kTileBytes; }
  // [plane][K]
  static int64_t plane_pitch(int64_t dimensions) { return tiles(dimensions) * kTileDepth; }
  static int64_t row_pitch(int64_t dimensions) { return kPlanes * plane_pitch(dimensions); }

  static PackedToken put(void* panel, int64_t dimensions, int64_t column, const float* row, double scale) {
    uint16_t* const to = static_cast<uint16_t*>(panel);
    return put_planes(row, dimensions, scale, [&](int plane, int64_t k, uint16_t bits) {
      const int64_t tile = (k / kTileDepth * kQueryPlanes + plane) * 2 + column / kTileRows;
      to[tile * (kTileBytes / 2) + k % kTileDepth / 2 * 32 + column % kTileRows * 2 + k % 2] = bits;
    });
  }

  static void copy(const Document* row, int64_t dimensions, double scale, Row* to) {
    const __m512 factor = _mm512_set1_ps(static_cast<float>(scale));
    for (int64_t c = 0; c < dimensions; c += kTileDepth) {
      __builtin_prefetch(reinterpret_cast<const char*>(row + c) + kBytesAhead);
      if (sizeof(Document) == 4) __builtin_prefetch(reinterpret_cast<const char*>(row + c) + kBytesAhead + 64);
      __m512 low = _mm512_mul_ps(load_columns(row + c, dimensions - c), factor);
      __m512 high = _mm512_mul_ps(load_columns(row + c + 16, dimensions - c - 16), factor);
#pragma GCC unroll 3
      for (int plane = 0; plane < kPlanes; plane++)
        _mm512_storeu_si512(to + plane * plane_pitch(dimensions) + c, next_plane(low, high, plane + 1 < kPlanes));
    }
  }

  // Reads all 16 rows of each tile that it begins.
  static void multiply(const Operands<Row>& o, float* out) {
    const char* const panel = static_cast<const char*>(o.panel);
    if (o.planes == 1)
      multiply_tiles<1>(o.rows, o.stride, o.height, panel, o.dimensions, out);
    else
      multiply_tiles<kQueryPlanes>(o.rows, o.stride, o.height, panel, o.dimensions, out);
  }

 private:
  template <int query_planes>
  static __attribute__((noinline)) void multiply_tiles(const Row* rows, int64_t stride, int height, const char* panel,
                                                       int64_t dimensions, float* out) {
    const int64_t row_bytes = stride * 2, plane_bytes = plane_pitch(dimensions) * 2;
    const char* upper = reinterpret_cast<const char*>(rows);
    const char* lower = upper + kTileRows * row_bytes;
    const bool both = height > kTileRows;
    const char* ahead = upper + height * row_bytes;
    const int64_t lines = in_place(dimensions) ? height / 2 : 0;  // of each tile of K: 64 bytes a row, in two halves
    tiles_touch_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < tiles(dimensions); k++) {
#pragma GCC unroll 3
      for (int b = query_planes - 1; b >= 0; b--) {
        const char* column = panel + b * 2 * kTileBytes;
        _tile_loadd(6, column, 64);
        _tile_loadd(7, column + kTileBytes, 64);
#pragma GCC unroll 3
        for (int a = least(kPlanes - 1, kQueryPlanes - 1 - b); a >= 0; a--) {
          _tile_loadd(4, upper + a * plane_bytes, row_bytes);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          if (both) {
            _tile_loadd(5, lower + a * plane_bytes, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
          }
        }
        if (b < 2)
          for (int64_t i = 0; i < (query_planes == 1 ? 2 * lines : lines); i++, ahead += 64) __builtin_prefetch(ahead);
      }
      panel += kQueryPlanes * 2 * kTileBytes;
      upper += 2 * kTileDepth;
      lower += 2 * kTileDepth;
    }
    _tile_stored(0, out, kColumns * 4);
    _tile_stored(1, out + 16, kColumns * 4);
    if (both) {
      _tile_stored(2, out + 16 * kColumns, kColumns * 4);
      _tile_stored(3, out + 16 * kColumns + 16, kColumns * 4);
    }
    tiles_touch_memory();
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
