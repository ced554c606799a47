// Rows against packed queries in small integers, both rounded to a step of their own: what decides that two vectors are far apart needs no
// more, and bytes multiply several times as fast as floats.
//
// A document's codes lie in [0, 2 * kDocumentCodes], the middle standing for 0; a query's in [-kQueryCodes, kQueryCodes].
#pragma once

#if defined(__AVX2__)

#include "tile/i8.hpp"
#include "tile/rows.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// vpdpbusd adds four products to 32 bits and takes all bytes. vpmaddubsw saturates at 16 bits: these are the largest codes of which two sums
// of two products can be added there before they are widened. Four such sums, of codes up to 45, would be no faster on the whole: the
// coarser codes let more pairs through.
#if defined(__AVX512VNNI__)
constexpr int kDocumentCodes = 127, kQueryCodes = 127;
#else
constexpr int kDocumentCodes = 64, kQueryCodes = 63;
static_assert(4 * 2 * kDocumentCodes * kQueryCodes <= 32767, "sums of 16 bits");
#endif
constexpr int64_t kCodeGroup = 16;  // dimensions: rows and queries have whole ones

// Of a tile: 8 sums, 4 broadcasts, two temporary sums and ones are 15 of 16 registers. One Zen 3 core does some 100 products a nanosecond with
// them, where its multiply-adds of floats end at 48.
constexpr int kCodedRows = kVectorRegisters == 32 ? 4 : 2;
constexpr int kCodedVectors = kVectorRegisters == 32 ? 3 : 4;

SIMTILE_INLINE Bytes broadcast_four(const uint8_t* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return (Bytes)broadcast_int(x);
}

#if !defined(__AVX512VNNI__)
// Sums of two products each, of neighbours.
SIMTILE_INLINE Shorts multiply_neighbours(Bytes codes, Bytes query) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_maddubs_epi16((__m512i)codes, (__m512i)query);
#else
  return (Shorts)_mm256_maddubs_epi16((__m256i)codes, (__m256i)query);
#endif
}
#endif

// sum + the products of a group of dimensions: `document` holds its four broadcasts, the queries' vectors lie one after the other.
SIMTILE_INLINE Ints add_group(Ints sum, const Bytes (&document)[4], const char* query) {
#if defined(__AVX512VNNI__)
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    sum = multiply_add(sum, code_vector(document[i]), query_vector(load_bytes(query + i * kVectorBytes)));
#else
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2)
    sum += multiply_pairs(multiply_neighbours(document[i], load_bytes(query + i * kVectorBytes)) +
                              multiply_neighbours(document[i + 1], load_bytes(query + (i + 1) * kVectorBytes)),
                          Shorts{} + 1);
#endif
  return sum;
}

struct CodedRow {
  float step;
  float squared;  // ||row||^2
  float rounded;  // the squared norm of what rounding to codes took away
};

// Rounds a row to the whole numbers [-codes, codes] times a step. Calls store_codes(at, vector of them, as floats) for each vector of the
// row. What lies `ahead` bytes further is asked for.
template <typename Source, class Store>
SIMTILE_INLINE CodedRow code_row(const Source* row, int64_t count, int64_t ahead, float codes, Store store_codes) {
  const Vector<float> zero{};
  Vector<float> square[2] = {zero, zero}, largest = zero;
  for (int64_t at = 0, i = 0; at < count; at += kLanes, i ^= 1) {
    prefetch(reinterpret_cast<const char*>(row + at) + ahead);
    const Vector<float> x = at + kLanes <= count ? load_floats(row + at) : load_first_floats(row + at, count - at);
    square[i] = fused(square[i], x, x);
    largest = maximum(largest, x < zero ? -x : x);
  }
  const float peak = reduce_max<float>(largest);
  // Rows of zeros, and those whose squares leave the range of floats, which are not screened, have any codes.
  const float step = peak > 0 && peak < 1e38f ? peak / codes : 1;
  const float inverse = 1 / step < 1e38f ? 1 / step : 0;
  const Vector<float> per_step = broadcast<float>(inverse), less = broadcast<float>(-step);
  const Vector<float> limit = broadcast<float>(codes);
  const Vector<float> nearest = broadcast<float>(12582912);  // 1.5 * 2^23: adding it rounds to a whole number
  Vector<float> error[2] = {zero, zero};
  for (int64_t at = 0, i = 0; at < count; at += kLanes, i ^= 1) {
    const Vector<float> x = at + kLanes <= count ? load_floats(row + at) : load_first_floats(row + at, count - at);
    Vector<float> code = (x * per_step + nearest) - nearest;
    code = code > limit ? limit : code;
    code = code > -limit ? code : -limit;  // NaN too
    const Vector<float> left = fused(x, code, less);
    error[i] = fused(error[i], left, left);
    store_codes(at, code);
  }
  return {step, sum_lanes(square[0] + square[1]), sum_lanes(error[0] + error[1])};
}

// out[rows][vectors * kLanes] = sums of products of the codes, as whole numbers, of `rows` rows, `pitch` bytes apart, with `vectors`
// vectors of queries, block_bytes apart. `start` of each block, what its sums begin with, lies behind its codes.
template <int rows, int vectors>
__attribute__((noinline)) void multiply_coded_rows(const uint8_t* a, int64_t pitch, const char* b, int64_t block_bytes,
                                                   int64_t groups, Ints* out) {
  constexpr int64_t kGroupBytes = 4 * kVectorBytes;
  Ints acc[rows][vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; v++) {
    const Ints start = (Ints)load_bytes(b + v * block_bytes + groups * kGroupBytes);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) acc[i][v] = start;
  }
  for (int64_t g = 0; g < groups; g++) {
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
      const uint8_t* four = a + i * pitch + g * kCodeGroup;
      const Bytes document[4] = {broadcast_four(four), broadcast_four(four + 4), broadcast_four(four + 8),
                                 broadcast_four(four + 12)};
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) acc[i][v] = add_group(acc[i][v], document, b + v * block_bytes);
    }
    b += kGroupBytes;
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) out[i * vectors + v] = acc[i][v];
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
