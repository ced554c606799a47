// Products of bytes: documents' codes times queries of int8, summed in int32.
//
// A row is read in chunks of one vector. Codes of fewer than 8 bits are unpacked in registers: part j of a chunk holds element j of each
// of its bytes. A query is laid out in that order once (plane_position), so nothing is interleaved again. The last chunk ends where the
// row ends and overlaps the one before it; the query is 0 where an element was already seen.
#pragma once

#include "tile/transpose.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef int32_t UnalignedInts __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

SIMTILE_INLINE Bytes load_bytes(const void* p) { return *static_cast<const UnalignedBytes*>(p); }
SIMTILE_INLINE Ints load_ints(const int32_t* p) { return *reinterpret_cast<const UnalignedInts*>(p); }
SIMTILE_INLINE void store_ints(int32_t* p, Ints v) { *reinterpret_cast<UnalignedInts*>(p) = v; }
SIMTILE_INLINE Ints broadcast_int(int32_t x) { return x - Ints{}; }
SIMTILE_INLINE int32_t sum_of(Ints v) {
  int32_t lanes[kWords];
  store_ints(lanes, v);
  for (int half = kWords / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Bit i: lane i of a is greater.
SIMTILE_INLINE uint32_t lanes_above(Ints a, Ints b) {
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a > b)));
#elif defined(__x86_64__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)(a > b)));
#else
  const Ints above = a > b;
  if (vmaxvq_u32((uint32x4_t)above) == 0) return 0;
  uint32_t lanes = 0;
  for (int i = 0; i < kWords; i++) lanes |= static_cast<uint32_t>(above[i] & 1) << i;
  return lanes;
#endif
}

// Codes as the product wants them: element j of each byte, plus kShift.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kStoredSign = 128;  // sdot: both signed
#else
constexpr int kStoredSign = 0;  // the unsigned operand of vpdpbusd, or widened from unsigned
#endif

struct SignedBytes {
  static constexpr int kPerByte = 1, kLeast = -128, kMost = 127, kShift = 128 - kStoredSign;
  SIMTILE_INLINE static Bytes unpack(Bytes x, int) { return kShift ? x ^ 0x80 : x; }
};
struct UnsignedBytes {
  static constexpr int kPerByte = 1, kLeast = 0, kMost = 255, kShift = -kStoredSign;
  SIMTILE_INLINE static Bytes unpack(Bytes x, int) { return kShift ? x ^ 0x80 : x; }
};
struct SignedNibbles {  // the first in the low half
  static constexpr int kPerByte = 2, kLeast = -8, kMost = 7, kShift = 8;
  SIMTILE_INLINE static Bytes unpack(Bytes x, int j) { return ((Bytes)((Halves)x >> 4 * j) & 15) ^ 8; }
};
struct SingleBits {  // the first in the highest
  static constexpr int kPerByte = 8, kLeast = 0, kMost = 1, kShift = 0;
  SIMTILE_INLINE static Bytes unpack(Bytes x, int j) { return (Bytes)((Halves)x >> (7 - j)) & 1; }
};

// Sums of products of neighbours.
#if !defined(__AVX512VNNI__) && !defined(__ARM_FEATURE_DOTPROD)
SIMTILE_INLINE Ints multiply_pairs(Shorts a, Shorts b) {
#if defined(__AVX512F__)
  return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#endif
}
#endif

// A vector of stored codes and one of a query's bytes, as the multiplication takes them.
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int kOperandInts = 1;
struct CodeVector {
  Bytes bytes;
};
typedef CodeVector QueryVector;
SIMTILE_INLINE CodeVector code_vector(Bytes codes) { return {codes}; }
SIMTILE_INLINE QueryVector query_vector(Bytes query) { return {query}; }
SIMTILE_INLINE void store_operand(int32_t* to, const int8_t* four) { __builtin_memcpy(to, four, 4); }
SIMTILE_INLINE QueryVector broadcast_operand(const int32_t* p) { return {(Bytes)broadcast_int(*p)}; }
SIMTILE_INLINE Ints multiply_add(Ints sum, const CodeVector& codes, const QueryVector& query) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes.bytes, (__m512i)query.bytes);
#else
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)codes.bytes, (int8x16_t)query.bytes);
#endif
}
#else
// Bytes widened to 16 bits, the even ones and the odd ones: a sum of two products of bytes does not fit 16 bits.
constexpr int kOperandInts = 2;
struct CodeVector {
  Shorts even, odd;
};
typedef CodeVector QueryVector;
SIMTILE_INLINE CodeVector code_vector(Bytes codes) {
  return {(Shorts)((Halves)codes & 0xff), (Shorts)((Halves)codes >> 8)};
}
SIMTILE_INLINE QueryVector query_vector(Bytes query) { return {(Shorts)((Halves)query << 8) >> 8, (Shorts)query >> 8}; }
SIMTILE_INLINE void store_operand(int32_t* to, const int8_t* four) {
  const int16_t pairs[4] = {four[0], four[2], four[1], four[3]};
  __builtin_memcpy(to, pairs, 8);
}
SIMTILE_INLINE QueryVector broadcast_operand(const int32_t* p) {
  return {(Shorts)broadcast_int(p[0]), (Shorts)broadcast_int(p[1])};
}
SIMTILE_INLINE Ints multiply_add(Ints sum, const CodeVector& codes, const QueryVector& query) {
  return sum + multiply_pairs(codes.even, query.even) + multiply_pairs(codes.odd, query.odd);
}
#endif

// The chunks of a row.
struct Chunks {
  int64_t row_bytes;
  SIMTILE_INLINE int64_t count() const { return (row_bytes + kVectorBytes - 1) / kVectorBytes; }
  SIMTILE_INLINE int64_t start(int64_t chunk) const {
    return most<int64_t>(least<int64_t>(chunk * kVectorBytes, row_bytes - kVectorBytes), 0);
  }
};

template <class Codes>
struct ByteRows {
  static constexpr int kPerByte = Codes::kPerByte;

  SIMTILE_INLINE static int64_t row_bytes(int64_t elements) { return (elements + kPerByte - 1) / kPerByte; }
  SIMTILE_INLINE static Chunks chunks(int64_t elements) { return {row_bytes(elements)}; }
  SIMTILE_INLINE static int64_t plane_bytes(int64_t elements) {
    return chunks(elements).count() * kPerByte * kVectorBytes;
  }
  // Where element i of a query is put.
  SIMTILE_INLINE static int64_t plane_position(const Chunks& chunks, int64_t i) {
    const int64_t byte = i / kPerByte, chunk = byte / kVectorBytes;
    return (chunk * kPerByte + i % kPerByte) * kVectorBytes + byte - chunks.start(chunk);
  }
};

// Rows as the functions below take them: at least one vector long, `count` of them; where they are not they are copied.
struct ByteBlock {
  const char* rows;
  int64_t stride;
  Chunks chunks;
  SIMTILE_INLINE const char* row(int64_t i) const { return rows + i * stride; }
};

template <int count>
struct ShortRows {
  alignas(64) char bytes[count][kVectorBytes];

  SIMTILE_INLINE ByteBlock block(const char* rows, int64_t stride, int present, const Chunks& chunks) {
    if (chunks.row_bytes >= kVectorBytes) return {rows, stride, chunks};
    for (int i = 0; i < count; i++) {
      const char* row = rows + least(i, present - 1) * stride;
      for (int64_t at = 0; at < kVectorBytes; at++) bytes[i][at] = at < chunks.row_bytes ? row[at] : 0;
    }
    return {bytes[0], kVectorBytes, {kVectorBytes}};
  }
};

// Rows that will be multiplied next: asked for while others are.
struct NextRows {
  const char* rows;
  int64_t stride;
  int count;
  int64_t steps;  // of the tile for a chunk of a row
  SIMTILE_INLINE void prefetch_chunk(int64_t at) const {
    for (int i = 0; i < count; i++) prefetch(rows + i * stride + at);
  }
};

// Sums of `rows` rows, from `first` on and none after `last`, with two planes of a query; memory is asked for `ahead` bytes ahead.
template <class Codes, int rows>
SIMTILE_INLINE void multiply_code_rows(const ByteBlock& block, int first, int last, const int8_t* high,
                                       const int8_t* low, int64_t ahead, Ints (&high_sums)[rows],
                                       Ints (&low_sums)[rows]) {
  const char* row[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    row[r] = block.row(least(first + r, last));
    high_sums[r] = low_sums[r] = Ints{};
  }
  const int64_t chunks = block.chunks.count();
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t at = block.chunks.start(c);
    Bytes bytes[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      if (ahead) prefetch(row[r] + at + ahead);
      bytes[r] = load_bytes(row[r] + at);
    }
#pragma GCC unroll 8
    for (int j = 0; j < Codes::kPerByte; j++) {
      const QueryVector high_query = query_vector(load_bytes(high)), low_query = query_vector(load_bytes(low));
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        const CodeVector codes = code_vector(Codes::unpack(bytes[r], j));
        high_sums[r] = multiply_add(high_sums[r], codes, high_query);
        low_sums[r] = multiply_add(low_sums[r], codes, low_query);
      }
      high += kVectorBytes;
      low += kVectorBytes;
    }
  }
}

// Lane i of the result: the sum of vector i.
SIMTILE_INLINE Ints sums_of(const int32_t* vectors) {
  Words rows[kWords];
#pragma GCC unroll 16
  for (int i = 0; i < kWords; i++) rows[i] = (Words)load_ints(vectors + i * kWords);
  return (Ints)transposed_sum(rows);
}

// A vector of rows, row i in lane i, with two planes of a query. Rows after `present` repeat the last one.
template <class Codes>
__attribute__((noinline)) void multiply_row_vector(const ByteBlock& block, int present, const int8_t* high,
                                                   const int8_t* low, Ints& high_sum, Ints& low_sum) {
  constexpr int kRows = 4;  // eight sums under way
  alignas(64) int32_t sums[2][kWords * kWords];
  for (int first = 0; first < kWords; first += kRows) {
    Ints high_sums[kRows], low_sums[kRows];
    multiply_code_rows<Codes, kRows>(block, first, present - 1, high, low, kBytesAhead, high_sums, low_sums);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      store_ints(sums[0] + (first + r) * kWords, high_sums[r]);
      store_ints(sums[1] + (first + r) * kWords, low_sums[r]);
    }
  }
  high_sum = sums_of(sums[0]);
  low_sum = sums_of(sums[1]);
}

// The register tile: queries are broadcast four bytes at a time, documents lie along the lanes.
struct ByteTile {
  static constexpr int kColumnVectors = 2;
  static constexpr int kColumns = kColumnVectors * kWords;
  // With 32 registers 24 sums, two documents and a query; where bytes are widened first, both halves of the documents and a product more.
  static constexpr int kRows = kVectorRegisters == 32 ? (kVectorBytes == 16 && kOperandInts == 2 ? 8 : 12) : 4;
};

// Documents of a panel: [plane_bytes / 4][kColumns][4]. Those after `present` repeat the last one.
template <class Codes>
__attribute__((noinline)) void pack_byte_panel(const ByteBlock& block, int present, uint8_t* panel) {
  constexpr int kColumns = ByteTile::kColumns;
  const int64_t chunks = block.chunks.count();
  for (int first = 0; first < kColumns; first += kWords) {
    int32_t* out = reinterpret_cast<int32_t*>(panel) + first;
    for (int64_t c = 0; c < chunks; c++) {
      Bytes bytes[kWords];
#pragma GCC unroll 16
      for (int i = 0; i < kWords; i++)
        bytes[i] = load_bytes(block.row(least(first + i, present - 1)) + block.chunks.start(c));
#pragma GCC unroll 8
      for (int j = 0; j < Codes::kPerByte; j++) {
        Words square[kWords];
#pragma GCC unroll 16
        for (int i = 0; i < kWords; i++) square[i] = (Words)Codes::unpack(bytes[i], j);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kWords; i++) store_ints(out + i * kColumns, (Ints)square[i]);
        out += kWords * kColumns;
      }
    }
  }
}

// out[rows][kColumns] = start + queries * documents. Queries [steps][rows][kOperandInts]. Not inlined, as in f32.hpp.
template <int rows>
__attribute__((noinline)) void multiply_bytes(const int32_t* queries, const uint8_t* documents, int64_t steps,
                                              const int32_t* start, const NextRows& next, int32_t* out) {
  constexpr int kVectors = ByteTile::kColumnVectors;
  Ints sums[rows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) sums[i][v] = broadcast_int(start[i]);
  int64_t next_at = 0, next_step = 0;
  for (int64_t step = 0; step < steps; step++) {
    if (step == next_step) {
      next.prefetch_chunk(next_at);
      next_at += kVectorBytes;
      next_step += next.steps;
    }
    CodeVector codes[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) codes[v] = code_vector(load_bytes(documents + v * kVectorBytes));
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const QueryVector query = broadcast_operand(queries + i * kOperandInts);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) sums[i][v] = multiply_add(sums[i][v], codes[v], query);
    }
    queries += rows * kOperandInts;
    documents += kVectors * kVectorBytes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) store_ints(out + i * ByteTile::kColumns + v * kWords, sums[i][v]);
}

template <int rows = ByteTile::kRows>
SIMTILE_INLINE void multiply_byte_tile(int wanted, const int32_t* queries, const uint8_t* documents, int64_t steps,
                                       const int32_t* start, const NextRows& next, int32_t* out) {
  if constexpr (rows > 1) {
    if (wanted < rows) return multiply_byte_tile<rows - 1>(wanted, queries, documents, steps, start, next, out);
  }
  multiply_bytes<rows>(queries, documents, steps, start, next, out);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
