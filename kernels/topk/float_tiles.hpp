// The products of a panel of documents with all queries: in float32, or on a matrix unit with rows rounded to bfloat16.
#pragma once

#include "tile/amx_rows.hpp"
#include "tile/rows.hpp"
#include "topk/float_bounds.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// A panel: rows as they are, or copies of them.
struct PanelRows {
  const void* data;
  int64_t stride;  // bytes
};

template <typename Document>
struct Float32Tiles {
  static constexpr int kRows = kBlockRows;        // documents of a tile
  static constexpr int kVectors = kBlockVectors;  // of queries, at most
  static constexpr int64_t kDepth = kRowDepth;
  static constexpr bool kRounded = false;
  static constexpr bool kCopied = sizeof(Document) != sizeof(float);
  struct Scope {};

  static int64_t roundings(int64_t dimensions) { return least<int64_t>(dimensions, kDepth) + dimensions / kDepth + 3; }

  // [vector of queries][dimension][lane]
  static int64_t query_bytes(int64_t dimensions) { return dimensions * static_cast<int64_t>(sizeof(float)); }
  template <class Element>
  SIMTILE_INLINE static void pack(void* packed, int64_t dimensions, int64_t query, Element element) {
    float* column = static_cast<float*>(packed) + query / kLanes * kLanes * dimensions + query % kLanes;
    for (int64_t i = 0; i < dimensions; i++) column[i * kLanes] = element(i);
  }

  static int64_t row_bytes(int64_t dimensions) {
    return kCopied ? (dimensions + kLanes - 1) / kLanes * kVectorBytes : 0;
  }
  SIMTILE_INLINE static float copy(const Document* row, int64_t dimensions, int64_t, void* out, float& rounded) {
    rounded = 0;
    return widen_row(row, dimensions, kCopied ? static_cast<float*>(out) : nullptr);
  }

  template <int vectors>
  SIMTILE_INLINE static void multiply(const PanelRows& rows, int64_t first, int64_t count, const void* packed,
                                      int64_t query, int64_t dimensions, int64_t k, float* out) {
    const int64_t stride = rows.stride / static_cast<int64_t>(sizeof(float));
    const float* a = static_cast<const float*>(rows.data) + first * stride + k;
    const float* b = static_cast<const float*>(packed) + query * dimensions + k * kLanes;
    const int64_t depth = least<int64_t>(kDepth, dimensions - k);
    if (count >= kRows)
      multiply_rows<kRows, vectors>(a, stride, b, kLanes * dimensions, depth, k > 0, out);
    else
      for (int64_t i = 0; i < count; i++)
        multiply_rows<1, vectors>(a + i * stride, stride, b, kLanes * dimensions, depth, k > 0,
                                  out + i * vectors * kLanes);
  }
};

#if defined(__AMX_BF16__)
template <typename Document>
struct RoundedTiles {
  static constexpr int kRows = 32;
  static constexpr int kVectors = 2;
  static constexpr int64_t kDepth = int64_t{1} << 40;
  static constexpr bool kRounded = true;
  static constexpr bool kCopied = true;
  typedef TileScope Scope;

  // In whatever order the unit adds.
  static int64_t roundings(int64_t dimensions) { return dimensions + kTileDepth; }

  static int64_t depth_tiles(int64_t dimensions) { return (dimensions + kTileDepth - 1) / kTileDepth; }

  static int64_t stored(int64_t dimensions) { return depth_tiles(dimensions) * kTileDepth; }
  // [strip of 16 queries][tile][pair of dimensions][query][2]
  static int64_t query_bytes(int64_t dimensions) { return stored(dimensions) * 2; }
  // Returns the squared norm of what rounding takes away.
  static double pack(void* packed, int64_t dimensions, int64_t query, const float* row) {
    uint16_t* strip = static_cast<uint16_t*>(packed) + query / 16 * depth_tiles(dimensions) * 512 + query % 16 * 2;
    double squared = 0;
    for (int64_t i = 0; i < stored(dimensions); i++) {
      const float x = i < dimensions ? row[i] : 0;
      uint32_t bits;
      __builtin_memcpy(&bits, &x, 4);
      const bf16 half{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
      strip[i / 2 * 32 + i % 2] = half.bits;
      const double error = static_cast<double>(x) - widen(half);
      squared += error * error;
    }
    return squared;
  }

  // An odd number of lines: rows of a tile in different sets of L1.
  static int64_t row_bytes(int64_t dimensions) { return (depth_tiles(dimensions) | 1) * 64; }
  SIMTILE_INLINE static float copy(const Document* row, int64_t dimensions, int64_t ahead, void* out, float& rounded) {
    return round_row(row, dimensions, ahead, static_cast<uint16_t*>(out), rounded);
  }

  template <int vectors>
  SIMTILE_INLINE static void multiply(const PanelRows& rows, int64_t first, int64_t, const void* packed, int64_t query,
                                      int64_t dimensions, int64_t, float* out) {
    const int64_t tiles = depth_tiles(dimensions);
    multiply_rounded_rows<vectors>(static_cast<const char*>(rows.data) + first * rows.stride, rows.stride,
                                   static_cast<const char*>(packed) + query / 16 * tiles * kTileBytes,
                                   tiles * kTileBytes, tiles, out);
  }
};
#endif

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
