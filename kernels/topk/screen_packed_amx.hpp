// Hamming distances on the matrix unit. With a bit of a query as 1 - 2a and a document's as b, |a xor b| = |a| + sum of (1 - 2a) b: one
// product of bytes a bit is still less work than counting where the unit multiplies 1024 of them a cycle.
#pragma once

#include "tile/amx_i8.hpp"
#include "topk/screen_packed.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

#if defined(__AMX_INT8__)

struct PackedAmxScreen : PackedScores {
  typedef PackedScreen::Bar Bar;

  static constexpr int64_t kQueryGroup = 48;  // of both screens: 3 groups here, 4 tiles there
  // With fewer, transposed rows are counted in less time than it takes to unpack the documents.
  static constexpr int64_t kFewestForTiles = 16;

  const PackedScreen counted;  // for fewer queries
  const int64_t chunks;        // of 64 bits in a row

  explicit PackedAmxScreen(const TopkProblem& p) : PackedScores(p), counted(p), chunks((row_bytes + 7) / 8) {}

  bool tiles() const { return problem.queries >= kFewestForTiles; }
  int64_t groups() const { return (problem.queries + kTileQueries - 1) / kTileQueries; }

  // The numbers of bits in the queries, which the sums start with, then their groups, [chunk][16 words][16 queries][4 bytes].
  int64_t counts_bytes() const { return align_up(groups() * kTileQueries * static_cast<int64_t>(sizeof(int32_t))); }
  int64_t operand_bytes() const {
    return tiles() ? counts_bytes() + groups() * chunks * kTileBytes : counted.operand_bytes();
  }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    if (!tiles()) {
      for (int64_t q = begin; q < end; q += PackedScreen::kQueryGroup)
        counted.prepare(operands, q, least<int64_t>(q + PackedScreen::kQueryGroup, end));
      return;
    }
    // Lanes without a query are multiplied too.
    const int64_t padded = end == problem.queries ? groups() * kTileQueries : end;
    for (int64_t q = begin; q < padded; q++) {
      char* group = static_cast<char*>(operands) + counts_bytes() + q / kTileQueries * chunks * kTileBytes;
      int32_t count = 0;
      for (int64_t c = 0; c < chunks; c++) {
        const uint64_t bits = q < end ? load_bits(query_row(problem, q) + c * 8, row_bytes - c * 8) : 0;
        count += __builtin_popcountll(bits);
        for (int64_t i = 0; i < 64; i++)
          group[c * kTileBytes + i / 4 * 64 + q % kTileQueries * 4 + i % 4] = bits >> i & 1 ? -1 : 1;
      }
      static_cast<int32_t*>(operands)[q] = count;
    }
  }

  Bar bar(const void*, int64_t, uint32_t order) const { return order; }
  int64_t panel_documents() const { return tiles() ? 256 : counted.panel_documents(); }
  int64_t panel_bytes() const { return tiles() ? 2 * chunks * kTileBytes : counted.panel_bytes(); }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void* scratch, const Bar* bars, Found& found) const {
    if (!tiles()) {
      counted.scan(operands, begin, end, scratch, bars, found);
      return;
    }
    const TileScope scope;
    alignas(64) int32_t sums[kPairs * kPairSums];
    uint8_t* documents = static_cast<uint8_t*>(scratch);
    const int32_t* counts = static_cast<const int32_t*>(operands);
    const char* queries = static_cast<const char*>(operands) + counts_bytes();
    for (int64_t d = begin; d < end; d += kTileDocuments) {
      const int count = static_cast<int>(least<int64_t>(kTileDocuments, end - d));
      unpack_documents(d, count, documents);
      multiply_documents<false>(documents, chunks, reinterpret_cast<const int32_t*>(queries), groups(), counts, sums,
                                [&](int64_t first, const int32_t* of_group, int width) __attribute__((always_inline)) {
                                  report(d, count, first, of_group, width, bars, found);
                                });
    }
  }

 private:
  SIMTILE_INLINE static uint64_t load_bits(const char* row, int64_t left) {
    uint64_t bits = 0;
    if (left >= 8)
      __builtin_memcpy(&bits, row, 8);
    else
      for (int64_t i = 0; i < left; i++) bits |= static_cast<uint64_t>(static_cast<unsigned char>(row[i])) << 8 * i;
    return bits;
  }

  // [chunk][kTileDocuments][64 bytes of 0 and 1, the lowest bit first]; rows after `count` keep what they had, and are not reported.
  SIMTILE_INLINE void unpack_documents(int64_t first, int count, uint8_t* out) const {
    const int64_t whole = row_bytes / 8;
    for (int i = 0; i < count; i++) {
      const char* row = document_row(problem, first + i);
      uint8_t* to = out + i * 64;
      for (int64_t c = 0; c < whole; c++, to += kTileDocuments * 64) {
        uint64_t bits;
        __builtin_memcpy(&bits, row + c * 8, 8);
        prefetch(row + c * 8 + kBytesAhead);
        unpack(bits, to);
      }
      if (row_bytes % 8 != 0) unpack(load_bits(row + whole * 8, row_bytes % 8), to);
    }
  }
  SIMTILE_INLINE static void unpack(uint64_t bits, uint8_t* to) {
    _mm512_store_si512(to, _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(1)));
  }

  // Distances [document][width] of 16 queries. Few are wanted: a minimum over some rows says where there may be one.
  template <class Found>
  SIMTILE_INLINE void report(int64_t document, int count, int64_t first, const int32_t* sums, int width,
                             const Bar* bars, Found& found) const {
    constexpr int kRowsTogether = 8;
    const int64_t queries = least<int64_t>(kTileQueries, problem.queries - first);
    const __mmask16 present = static_cast<__mmask16>((1u << queries) - 1);
    for (int begin = 0; begin < count; begin += kRowsTogether) {
      const int stop = least(begin + kRowsTogether, count);
      __m512i smallest = _mm512_load_si512(sums + begin * width);
      for (int d = begin + 1; d < stop; d++) smallest = _mm512_min_epu32(smallest, _mm512_load_si512(sums + d * width));
      const __m512i wanted = _mm512_maskz_loadu_epi32(present, bars + first);
      if (__builtin_expect(_mm512_mask_cmple_epu32_mask(present, smallest, wanted) == 0, 1)) continue;
      // Four rows in one mask: a loop that ends is a branch that is not foreseen.
      for (int row = begin; row < stop; row += 4) {
        uint64_t hits = 0;
        for (int d = row; d < least(row + 4, stop); d++)
          hits |=
              static_cast<uint64_t>(_mm512_mask_cmple_epu32_mask(present, _mm512_load_si512(sums + d * width), wanted))
              << 16 * (d - row);
        for (; hits; hits &= hits - 1) {
          const int bit = __builtin_ctzll(hits), d = row + bit / 16, lane = bit % 16;
          found.exact(first + lane, document + d, static_cast<uint32_t>(sums[d * width + lane]));
        }
      }
    }
  }
};

typedef PackedAmxScreen BestPackedScreen;
#else
typedef PackedScreen BestPackedScreen;
#endif

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
