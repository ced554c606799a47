// The matrix engine of AMX: tiles of bfloat16 with float32 accumulation, for bfloat16 rows as they are and for float32 rows split
// exactly into three bfloat16 planes, x = x0 + x1 + x2 (8 + 8 + 8 bits of mantissa).
//
// The product of two split rows keeps the six terms x_i y_j with i + j <= 2; what is dropped is below 2^-26 of |x||y|, under one
// float32 rounding.
// (G. Henry, P. Tang, A. Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations, 2019,
// arXiv:1904.06376.) Six tile products cost 6/16 of the time that float32 multiply-adds take for the same work.
//
// An operand is packed in strips: 16 rows (of A) or columns (of B) by K, in tiles of 32 values of K; see StripLayout.
#pragma once

#if defined(__AMX_BF16__)

#include "tile/amx_unit.hpp"
#include "tile/pack.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // bfloat16 values along K in one tile

// Where the tiles of an operand of several strips lie: [pass][strip][tile of K][planes][1 KiB], with `depth` tiles of K per pass, so that
// what one pass reads is contiguous.
template <int planes>
struct StripLayout {
  static constexpr int64_t kStep = planes * kTileBytes;
  int64_t strips;
  int64_t total;  // tiles of K
  int64_t depth;

  int64_t bytes() const { return strips * total * kStep; }
  int64_t steps(int64_t k) const {
    return least(depth, total - k / depth * depth);
  }  // of the pass that tile k belongs to
  int64_t at(int64_t strip, int64_t k) const {
    const int64_t first = k / depth * depth;
    return (first * strips + strip * steps(k) + (k - first)) * kStep;
  }
};

// 32 floats to 32 bfloat16 (round to nearest even), and what is left of them.
SIMTILE_INLINE __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
SIMTILE_INLINE __m512 from_bf16_low(__m512i v) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), 16);
}
SIMTILE_INLINE __m512 from_bf16_high(__m512i v) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 16);
}

// Plane p of x, destructively: the caller asks for planes 0, 1, 2 in turn.
SIMTILE_INLINE __m512i next_plane(__m512& low, __m512& high, bool more) {
  const __m512i plane = to_bf16(low, high);
  if (more) {
    low = _mm512_sub_ps(low, from_bf16_low(plane));
    high = _mm512_sub_ps(high, from_bf16_high(plane));
  }
  return plane;
}

SIMTILE_INLINE __m512 load_columns(const float* p, int64_t left) {
  return left >= 16 ? _mm512_loadu_ps(p) : left > 0 ? _mm512_maskz_loadu_ps((1u << left) - 1, p) : _mm512_setzero_ps();
}
SIMTILE_INLINE __m512 load_columns(const bf16* p, int64_t left) {
  if (left <= 0) return _mm512_setzero_ps();
  const __m256i bits =
      left >= 16 ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi16((1u << left) - 1, p);
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}

SIMTILE_INLINE __m512 load_columns(const f16* p, int64_t left) {
  if (left <= 0) return _mm512_setzero_ps();
  return _mm512_cvtph_ps(left >= 16 ? _mm256_loadu_si256((const __m256i*)p)
                                    : _mm256_maskz_loadu_epi16((1u << left) - 1, p));
}

// The words of (row, next row) interleaved: from [a0..a15 b0..b15] to [a0 b0 a1 b1 ..], the order of K pairs in a B tile.
SIMTILE_INLINE __m512i interleave_halves(__m512i v) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), v);
}

SIMTILE_INLINE void transpose_words(__m512i (&rows)[16]) {
  Vector<float> block[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) block[i] = (Vector<float>)rows[i];
  transpose_block<float>(block);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) rows[i] = (__m512i)block[i];
}

// A strip whose K runs along the source rows: 16 rows (`count` present) by `columns`, each row times scale[row].
// `transposed`: the layout of a B operand (K pairs down, rows across), else of an A operand (rows down, K across).
template <int planes, bool transposed, typename Source>
void pack_rows_strip(const Source* rows, int64_t stride, int64_t count, int64_t columns, const float* scale,
                     const StripLayout<planes>& layout, int64_t strip, char* packed) {
  for (int64_t c = 0; c < columns; c += kTileDepth) {
    char* out = packed + layout.at(strip, c / kTileDepth);
    __m512 low[16], high[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      low[i] = high[i] = _mm512_setzero_ps();
      if (i < count) {
        const Source* p = rows + i * stride + c;
        const __m512 factor = _mm512_set1_ps(scale[i]);
        low[i] = _mm512_mul_ps(load_columns(p, columns - c), factor);
        high[i] = _mm512_mul_ps(load_columns(p + 16, columns - c - 16), factor);
      }
    }
#pragma GCC unroll 3
    for (int plane = 0; plane < planes; plane++) {
      __m512i tile[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) tile[i] = next_plane(low[i], high[i], plane + 1 < planes);
      if (transposed) transpose_words(tile);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_si512(out + plane * kTileBytes + i * 64, tile[i]);
    }
  }
}

// Rows are read from memory once per chunk; the hardware's prefetcher does not follow from one to the next.
constexpr int64_t kRowsAhead = 8;

// A B operand whose K runs down the source rows: `count` rows by layout.strips x 16 columns from `first`. Row by row, because a row is contiguous in memory. Rows and columns past the end are zeros.
template <int planes, typename Source>
void pack_columns_strips(const Source* rows, int64_t stride, int64_t count, int64_t first, int64_t columns,
                         const float* scale, const StripLayout<planes>& layout, char* packed) {
  const int64_t padded = (count + kTileDepth - 1) / kTileDepth * kTileDepth;
  for (int64_t r = 0; r < padded; r += 2) {
    char* at = packed + layout.at(0, r / kTileDepth) + r % kTileDepth * 32;
    const int64_t strip_bytes = layout.steps(r / kTileDepth) * layout.kStep;
    const Source* ahead = rows + least(r + kRowsAhead, most<int64_t>(count - 2, 0)) * stride + first;
    for (int64_t strip = 0; strip < layout.strips; strip++, at += strip_bytes) {
      const int64_t column = first + 16 * strip;
      if (column < columns) {
        prefetch(ahead + 16 * strip);
        prefetch(ahead + stride + 16 * strip);
      }
      __m512 low = _mm512_setzero_ps(), high = low;
      if (r < count)
        low = _mm512_mul_ps(load_columns(rows + r * stride + column, columns - column), _mm512_set1_ps(scale[r]));
      if (r + 1 < count)
        high = _mm512_mul_ps(load_columns(rows + (r + 1) * stride + column, columns - column),
                             _mm512_set1_ps(scale[r + 1]));
#pragma GCC unroll 3
      for (int plane = 0; plane < planes; plane++)
        _mm512_store_si512(at + plane * kTileBytes, interleave_halves(next_plane(low, high, plane + 1 < planes)));
    }
  }
}

// out[32][32] (+)= two strips of A times two strips of B over the `steps` tiles of K of one pass.
template <int planes>
__attribute__((noinline)) void multiply_strips(const char* a0, const char* b0, int64_t steps, float* out,
                                               int64_t stride, bool accumulate) {
  constexpr int64_t kStep = planes * kTileBytes;
  const char *a1 = a0 + steps * kStep, *b1 = b0 + steps * kStep;
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
  tiles_touch_memory();
  if (accumulate) {
    _tile_loadd(0, out, row_bytes);
    _tile_loadd(1, out + 16, row_bytes);
    _tile_loadd(2, out + 16 * stride, row_bytes);
    _tile_loadd(3, out + 16 * stride + 16, row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
#define SIMTILE_LOAD_A(plane)                              \
  _tile_loadd(4, a0 + k * kStep + plane * kTileBytes, 64); \
  _tile_loadd(5, a1 + k * kStep + plane * kTileBytes, 64);
#define SIMTILE_LOAD_B(plane)                              \
  _tile_loadd(6, b0 + k * kStep + plane * kTileBytes, 64); \
  _tile_loadd(7, b1 + k * kStep + plane * kTileBytes, 64);
#define SIMTILE_MULTIPLY   \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7);
  for (int64_t k = 0; k < steps; k++) {
    SIMTILE_LOAD_B(0)
    if (planes == 3) {
      // (2,0) (1,0) (1,1) (0,1) (0,2) and (0,0) below: each step keeps one operand, 14 loads for 24 products.
      SIMTILE_LOAD_A(2)
      SIMTILE_MULTIPLY
      SIMTILE_LOAD_A(1)
      SIMTILE_MULTIPLY
      SIMTILE_LOAD_B(1)
      SIMTILE_MULTIPLY
    }
    SIMTILE_LOAD_A(0)
    SIMTILE_MULTIPLY
    if (planes == 3) {
      SIMTILE_LOAD_B(2)
      SIMTILE_MULTIPLY
      SIMTILE_LOAD_B(0)
      SIMTILE_MULTIPLY
    }
  }
#undef SIMTILE_LOAD_A
#undef SIMTILE_LOAD_B
#undef SIMTILE_MULTIPLY
  _tile_stored(0, out, row_bytes);
  _tile_stored(1, out + 16, row_bytes);
  _tile_stored(2, out + 16 * stride, row_bytes);
  _tile_stored(3, out + 16 * stride + 16, row_bytes);
  tiles_touch_memory();
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
