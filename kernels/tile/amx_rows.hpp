// Rows against packed queries on the AMX unit, both rounded to bfloat16: 16 times the products of float32 multiply-adds in the same time.
// Tiles read rows as they lie, 32 dimensions at a time.
#pragma once

#if defined(__AMX_BF16__)

#include "tile/amx.hpp"
#include "tile/rows.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// 32 values as floats; those from `left` on are zeros.
template <typename Source>
SIMTILE_INLINE void load_pair(const Source* p, int64_t left, __m512& low, __m512& high) {
  low = left >= kLanes ? (__m512)load_floats(p) : (__m512)load_first_floats(p, left);
  high = _mm512_setzero_ps();
  if (left >= 2 * kLanes)
    high = (__m512)load_floats(p + kLanes);
  else if (left > kLanes)
    high = (__m512)load_first_floats(p + kLanes, left - kLanes);
}

// ||row||^2; the row as bfloat16 to `out`, zeros up to a whole tile, and the squared norm of what that rounds off. What lies `ahead` bytes
// further is asked for.
template <typename Source>
SIMTILE_INLINE float round_row(const Source* row, int64_t count, int64_t ahead, uint16_t* out, float& rounded) {
  __m512 square[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, error[2] = {square[0], square[0]};
  for (int64_t at = 0; at < count; at += kTileDepth) {
    for (int64_t i = 0; i < kTileDepth * static_cast<int64_t>(sizeof(Source)); i += 64)
      prefetch(reinterpret_cast<const char*>(row + at) + ahead + i);
    __m512 low, high;
    load_pair(row + at, count - at, low, high);
    const __m512i halves = to_bf16(low, high);
    _mm512_storeu_si512(out + at, halves);
    square[0] = _mm512_fmadd_ps(low, low, square[0]);
    square[1] = _mm512_fmadd_ps(high, high, square[1]);
    low = _mm512_sub_ps(low, from_bf16_low(halves));
    high = _mm512_sub_ps(high, from_bf16_high(halves));
    error[0] = _mm512_fmadd_ps(low, low, error[0]);
    error[1] = _mm512_fmadd_ps(high, high, error[1]);
  }
  rounded = _mm512_reduce_add_ps(_mm512_add_ps(error[0], error[1]));
  return _mm512_reduce_add_ps(_mm512_add_ps(square[0], square[1]));
}

// out[32][strips * 16] = 32 rows of `a`, `pitch` bytes apart, times `strips` strips of 16 queries, strip_bytes apart.
template <int strips>
__attribute__((noinline)) void multiply_rounded_rows(const char* a, int64_t pitch, const char* b, int64_t strip_bytes,
                                                     int64_t tiles, float* out) {
  constexpr int64_t kRowBytes = strips * 16 * static_cast<int64_t>(sizeof(float));
  tiles_touch_memory();
  _tile_zero(0);
  _tile_zero(2);
  if (strips == 2) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < tiles; k++) {
    _tile_loadd(6, b + k * kTileBytes, 64);
    _tile_loadd(4, a + k * 64, pitch);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + 16 * pitch + k * 64, pitch);
    _tile_dpbf16ps(2, 5, 6);
    if (strips == 2) {
      _tile_loadd(7, b + strip_bytes + k * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, kRowBytes);
  _tile_stored(2, out + 16 * strips * 16, kRowBytes);
  if (strips == 2) {
    _tile_stored(1, out + 16, kRowBytes);
    _tile_stored(3, out + 16 * strips * 16 + 16, kRowBytes);
  }
  tiles_touch_memory();
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
