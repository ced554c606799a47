// Hamming distances on the matrix unit. With a bit of a query as 1 - 2a and a document's as b, |a xor b| = |a| + sum of (1 - 2a) b: one
// product of bytes a bit is still less work than counting where the unit multiplies 1024 of them a cycle.
#pragma once

#include "tile/amx_i8.hpp"
#include "topk/screen_packed.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

#if defined(__AMX_INT8__)

struct PackedAmxScreen : PackedScreen {
  typedef int32_t Bar;  // the largest product that is wanted; of few queries the largest distance

  static constexpr int64_t kQueryGroup = 48;  // of both screens: 3 groups here, 4 tiles there
  // A group of 16 costs as much as this many queries against transposed rows.
  static constexpr int64_t kFewestForTiles = 8;

  int64_t bytes;  // of an unpacked row

  explicit PackedAmxScreen(const TopkProblem& p) : PackedScreen(p), bytes((row_bytes + 7) / 8 * kStepBytes) {
    if (tiles()) panel = 256;
  }

  bool tiles() const { return problem.queries >= kFewestForTiles; }
  int64_t groups() const { return (problem.queries + kTileRows - 1) / kTileRows; }

  // The numbers of bits in the queries, then their groups.
  int64_t counts_bytes() const { return align_up(problem.queries * static_cast<int64_t>(sizeof(int32_t))); }
  int64_t operand_bytes() const {
    return tiles() ? counts_bytes() + groups() * query_group_bytes(bytes) : PackedScreen::operand_bytes();
  }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    if (!tiles()) {
      for (int64_t q = begin; q < end; q += PackedScreen::kQueryGroup)
        PackedScreen::prepare(operands, q, least<int64_t>(q + PackedScreen::kQueryGroup, end));
      return;
    }
    for (int64_t q = begin; q < end; q++) {
      char* group = static_cast<char*>(operands) + counts_bytes() + q / kTileRows * query_group_bytes(bytes);
      int32_t count = 0;
      for (int64_t at = 0; at < row_bytes; at += 8) {
        const uint64_t bits = load_bits(query_row(problem, q) + at, row_bytes - at);
        count += __builtin_popcountll(bits);
        for (int i = 0; i < 64; i++) {
          const int64_t dimension = at * 8 + i;
          group[dimension / 4 * 64 + q % kTileRows * 4 + dimension % 4] = bits >> i & 1 ? -1 : 1;
        }
      }
      static_cast<int32_t*>(operands)[q] = count;
    }
    // Lanes without a query: no bar lets them through, but they are read.
    for (int64_t q = end; q % kTileRows != 0; q++) {
      char* group = static_cast<char*>(operands) + counts_bytes() + q / kTileRows * query_group_bytes(bytes);
      for (int64_t word = 0; word < bytes / 4; word++)
        for (int i = 0; i < 4; i++) group[word * 64 + q % kTileRows * 4 + i] = 0;
    }
  }

  Bar bar(const void* operands, int64_t query, uint32_t order) const {
    const int32_t distance = static_cast<int32_t>(least<uint32_t>(order, 1u << 30));
    return tiles() ? distance - static_cast<const int32_t*>(operands)[query] : distance;
  }

  int64_t panel_bytes() const {
    return tiles() ? kBlock * bytes + kBlock * kBlock * static_cast<int64_t>(sizeof(int32_t))
                   : PackedScreen::panel_bytes();
  }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void* scratch, const Bar* bars, Found& found) const {
    if (!tiles()) {
      PackedScreen::scan(operands, begin, end, scratch, reinterpret_cast<const uint32_t*>(bars), found);
      return;
    }
    const TileScope scope;
    int32_t* sums = static_cast<int32_t*>(scratch);
    char* documents = static_cast<char*>(scratch) + kBlock * kBlock * sizeof(int32_t);
    const char* queries = static_cast<const char*>(operands) + counts_bytes();
    const int64_t products = (groups() + 1) / 2 * (bytes / kStepBytes);
    const int64_t lines = (kBlock * problem.documents_stride / 64 + products - 1) / products;
    for (int64_t d = begin; d < end; d += kBlock) {
      const int64_t rows = least<int64_t>(kBlock, end - d);
      for (int64_t i = 0; i < rows; i++) unpack_row(document_row(problem, d + i), documents + i * bytes);
      __builtin_memset(documents + rows * bytes, 0, static_cast<size_t>((kBlock - rows) * bytes));
      const char* ahead = document_row(problem, d + kBlock);
      for (int64_t group = 0; group < groups(); group += 2, ahead += 64 * lines * (bytes / kStepBytes)) {
        const char* of_group = queries + group * query_group_bytes(bytes);
        if (group + 1 < groups()) {
          multiply_block<Bytes::are_unsigned, 2>(documents, bytes, of_group, bytes / kStepBytes, sums, ahead, lines);
          report(operands, d, end, group + 1, sums + 16, bars, found);
        } else {
          multiply_block<Bytes::are_unsigned, 1>(documents, bytes, of_group, bytes / kStepBytes, sums, ahead, lines);
        }
        report(operands, d, end, group, sums, bars, found);
      }
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

  SIMTILE_INLINE void unpack_row(const char* row, char* out) const {
    const int64_t whole = row_bytes / 8;
    for (int64_t word = 0; word < whole; word++) {
      uint64_t bits;
      __builtin_memcpy(&bits, row + word * 8, 8);
      unpack_bits(bits, out + word * 64);
    }
    if (row_bytes % 8 != 0) unpack_bits(load_bits(row + whole * 8, row_bytes % 8), out + whole * 64);
  }

  // Sums [document][kBlock] of one group.
  template <class Found>
  SIMTILE_INLINE void report(const void* operands, int64_t document, int64_t end, int64_t group, const int32_t* sums,
                             const Bar* bars, Found& found) const {
    const int64_t first = group * kTileRows;
    const int64_t queries = least<int64_t>(kTileRows, problem.queries - first);
    const __mmask16 present = static_cast<__mmask16>((1u << queries) - 1);
    const int64_t rows = least<int64_t>(kBlock, end - document);
    // Few products are wanted: a minimum over some rows says where there may be one.
    constexpr int64_t kRowsTogether = 8;
    for (int64_t begin = 0; begin < rows; begin += kRowsTogether) {
      const int64_t stop = least<int64_t>(begin + kRowsTogether, rows);
      __m512i smallest = _mm512_load_si512(sums + begin * kBlock);
      for (int64_t d = begin + 1; d < stop; d++)
        smallest = _mm512_min_epi32(smallest, _mm512_load_si512(sums + d * kBlock));
      const __m512i wanted = _mm512_maskz_loadu_epi32(present, bars + first);
      if (__builtin_expect(_mm512_mask_cmple_epi32_mask(present, smallest, wanted) == 0, 1)) continue;
      for (int64_t d = begin; d < stop; d++) {
        uint32_t hits = _mm512_mask_cmple_epi32_mask(present, _mm512_load_si512(sums + d * kBlock), wanted);
        for (; hits; hits &= hits - 1) {
          const int lane = __builtin_ctz(hits);
          const int32_t distance = sums[d * kBlock + lane] + static_cast<const int32_t*>(operands)[first + lane];
          found.exact(first + lane, document + d, static_cast<uint32_t>(distance));
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
