// Products of codes on the AMX unit: bytes of documents times the two bytes of a query's whole numbers.
#pragma once

#if defined(__AMX_INT8__)

#include "maxsim/codes.hpp"
#include "tile/amx_unit.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kByteRows = 16, kByteDepth = 64;

// 64 codes from their bytes, of which `left` are there.
template <int bits>
SIMTILE_INLINE __m512i expand_codes(const uint8_t* bytes, int64_t left) {
  if constexpr (bits == 1) {
    uint64_t word = 0;
    if (left >= 8)  // of a size that is known: no call
      __builtin_memcpy(&word, bytes, 8);
    else
      __builtin_memcpy(&word, bytes, static_cast<size_t>(left));
    alignas(64) static const uint8_t places[64] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2,
                                                   2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5,
                                                   5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7};
    const __m512i repeated =
        _mm512_shuffle_epi8(_mm512_set1_epi64(static_cast<int64_t>(word)), _mm512_load_si512(places));
    const __m512i bit = _mm512_set1_epi64(0x0102040810204080);
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(repeated, bit), _mm512_set1_epi8(1));
  } else if constexpr (bits == 2) {
    const __mmask16 there = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __m512i x = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, bytes));
    const __m512i first = _mm512_srli_epi32(x, 6);
    const __m512i second = _mm512_and_si512(_mm512_slli_epi32(x, 4), _mm512_set1_epi32(0x300));
    const __m512i third = _mm512_and_si512(_mm512_slli_epi32(x, 14), _mm512_set1_epi32(0x30000));
    const __m512i fourth = _mm512_and_si512(_mm512_slli_epi32(x, 24), _mm512_set1_epi32(0x3000000));
    return _mm512_or_si512(_mm512_or_si512(first, second), _mm512_or_si512(third, fourth));
  } else {
    const __mmask32 there = left >= 32 ? 0xffffffff : static_cast<__mmask32>((1u << left) - 1);
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, bytes));
    const __m512i second = _mm512_and_si512(_mm512_slli_epi16(x, 8), _mm512_set1_epi16(0xf00));
    return _mm512_or_si512(_mm512_srli_epi16(x, 4), second);
  }
}

template <MaxsimKind kind>
struct ByteProducts {
  typedef ByteProducts Plain;
  typedef CodeTraits<kind> Traits;
  typedef int16_t Query;
  typedef uint8_t Row;
  typedef typename Traits::Values Values;
  static constexpr bool kCodes = true;
  static constexpr bool kChecked = false;
  static constexpr int kRows = kByteRows;
  static constexpr int kRowUnit = kByteRows;
  static constexpr int kColumns = Tile<float>::kColumns;
  typedef TileScope Scope;

  static int64_t tiles(int64_t dimensions) { return (dimensions + kByteDepth - 1) / kByteDepth; }
  static bool in_place(int64_t dimensions) { return Traits::kBits == 8 && dimensions % kByteDepth == 0; }
  // [tile of K][low, high][strip of 16 columns][4 of K][column][4]
  static int64_t panel_bytes(int64_t dimensions) { return tiles(dimensions) * 4 * kTileBytes; }
  // [high, low][K] of residuals, otherwise one plane
  static int64_t plane_pitch(int64_t dimensions) { return tiles(dimensions) * kByteDepth; }
  static int64_t row_pitch(int64_t dimensions) { return Traits::kPlanes * plane_pitch(dimensions); }

  static PackedToken put(void* panel, int64_t dimensions, int64_t column, const int16_t* row, double) {
    PackedToken token = {1, 1};
    int8_t* const to = static_cast<int8_t*>(panel);
    for (int64_t k = 0; k < dimensions; k++) {
      int8_t* const at =
          to + (k / kByteDepth * 4 + column / 16) * kTileBytes + k % kByteDepth / 4 * 64 + column % 16 * 4 + k % 4;
      at[0] = static_cast<int8_t>(low_byte(row[k]));
      at[2 * kTileBytes] = static_cast<int8_t>(high_byte(row[k]));
      if (at[2 * kTileBytes]) token.planes = 2;
    }
    return token;
  }

  static void copy(const uint8_t* row, int64_t dimensions, [[maybe_unused]] const Values& values, Row* to) {
    if constexpr (Traits::kBits == 8) {
      __builtin_prefetch(row + kBytesAhead);
      __builtin_memcpy(to, row, static_cast<size_t>(dimensions));
      __builtin_memset(to + dimensions, 0, static_cast<size_t>(plane_pitch(dimensions) - dimensions));
    } else {
      constexpr int kBits = Traits::kBits;
      const int64_t bytes = (dimensions * kBits + 7) / 8;
      __m512i high = _mm512_setzero_si512(), low = high;
      if constexpr (Traits::kResidual) {
        high = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(values.high)));
        low = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(values.low)));
      }
      for (int64_t k = 0; k < dimensions; k += kByteDepth) {
        const int64_t at = k * kBits / 8;
        const __m512i codes = expand_codes<kBits>(row + at, bytes - at);
        if constexpr (Traits::kResidual) {
          _mm512_storeu_si512(to + k, _mm512_shuffle_epi8(high, codes));
          _mm512_storeu_si512(to + plane_pitch(dimensions) + k, _mm512_shuffle_epi8(low, codes));
        } else {
          _mm512_storeu_si512(to + k, codes);
        }
      }
    }
  }

  static void multiply(const Operands<Row>& o, float* out) {
    if constexpr (Traits::kResidual)
      multiply_residuals(o, out);
    else if (o.planes == 1)
      multiply_bytes<1>(o, out);
    else
      multiply_bytes<2>(o, out);
  }

 private:
  typedef int32_t Sums[kByteRows * kColumns];

  // Products with the query's low and high bytes, [planes][row][column].
  template <int planes>
  static void multiply_bytes(const Operands<Row>& o, float* out) {
    alignas(64) Sums sums[planes];
    multiply_byte_rows<planes>(o, sums[0]);
    similarities<false>(
        o,
        [&](int i, int c) __attribute__((always_inline)) {
          Ints dot = load_ints(sums[0] + i * kColumns + c);
          if constexpr (planes == 2) dot += load_ints(sums[1] + i * kColumns + c) << 8;
          return __builtin_convertvector(dot, Vector<float>);
        },
        out);
  }

  template <int planes>
  static __attribute__((noinline)) void multiply_byte_rows(const Operands<Row>& o, int32_t* sums) {
    const char* const panel = static_cast<const char*>(o.panel);
    const uint8_t* ahead = o.rows + kBytesAhead;
    const int64_t lines = in_place(o.dimensions) ? kByteRows : 0;
    tiles_touch_memory();
    _tile_zero(0);
    _tile_zero(1);
    if (planes == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < tiles(o.dimensions); k++) {
      const char* const column = panel + k * 4 * kTileBytes;
      _tile_loadd(4, o.rows + k * kByteDepth, o.stride);
      for (int64_t i = 0; i < lines; i++, ahead += 64) __builtin_prefetch(ahead);
#define SIMTILE_MULTIPLY(sum, b) \
  if (Traits::kSigned)           \
    _tile_dpbssd(sum, 4, b);     \
  else                           \
    _tile_dpbusd(sum, 4, b);
      _tile_loadd(5, column, 64);
      SIMTILE_MULTIPLY(0, 5)
      _tile_loadd(6, column + kTileBytes, 64);
      SIMTILE_MULTIPLY(1, 6)
      if (planes == 2) {
        _tile_loadd(5, column + 2 * kTileBytes, 64);
        SIMTILE_MULTIPLY(2, 5)
        _tile_loadd(6, column + 3 * kTileBytes, 64);
        SIMTILE_MULTIPLY(3, 6)
      }
#undef SIMTILE_MULTIPLY
    }
    _tile_stored(0, sums, kColumns * 4);
    _tile_stored(1, sums + 16, kColumns * 4);
    if (planes == 2) {
      _tile_stored(2, sums + kByteRows * kColumns, kColumns * 4);
      _tile_stored(3, sums + kByteRows * kColumns + 16, kColumns * 4);
    }
    tiles_touch_memory();
  }

  // Of a residual's high and low byte with a query's: high · high, high · low, low · high, low · low.
  static void multiply_residuals(const Operands<Row>& o, float* out) {
    alignas(64) Sums sums[4];
    multiply_residual_rows<0>(o, sums[0]);
    multiply_residual_rows<1>(o, sums[0]);
    similarities<true>(
        o,
        [&](int i, int c) __attribute__((always_inline)) {
          const int64_t at = i * kColumns + c;
          return dot_of_planes((load_ints(sums[0] + at) << 8) + load_ints(sums[1] + at),
                               (load_ints(sums[2] + at) << 8) + load_ints(sums[3] + at));
        },
        out);
  }

  // With the 16 columns of a strip.
  template <int strip>
  static __attribute__((noinline)) void multiply_residual_rows(const Operands<Row>& o, int32_t* sums) {
    const char* column = static_cast<const char*>(o.panel) + strip * kTileBytes;
    const uint8_t* row = o.rows;
    tiles_touch_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < tiles(o.dimensions); k++) {
      _tile_loadd(4, row, o.stride);
      _tile_loadd(5, column + 2 * kTileBytes, 64);
      _tile_dpbssd(0, 4, 5);
      _tile_loadd(6, column, 64);
      _tile_dpbssd(1, 4, 6);
      _tile_loadd(7, row + plane_pitch(o.dimensions), o.stride);
      _tile_dpbssd(2, 7, 5);
      _tile_dpbssd(3, 7, 6);
      row += kByteDepth;
      column += 4 * kTileBytes;
    }
    constexpr int64_t kSums = kByteRows * kColumns;
    _tile_stored(0, sums + strip * 16, kColumns * 4);
    _tile_stored(1, sums + strip * 16 + kSums, kColumns * 4);
    _tile_stored(2, sums + strip * 16 + 2 * kSums, kColumns * 4);
    _tile_stored(3, sums + strip * 16 + 3 * kSums, kColumns * 4);
    tiles_touch_memory();
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
