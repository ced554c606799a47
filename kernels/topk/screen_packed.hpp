// Hamming distances of packed bits. Nothing is estimated: the tile's counts are the scores.
#pragma once

#include "tile/b1.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

struct PackedScreen : PackedScores {
  typedef uint32_t Bar;  // the largest distance that is wanted

  // Queries of a tile: their counts, a vector of documents and two temporaries fill the registers.
  static constexpr int kTile = kVectorRegisters == 32 ? 12 : 8;
  static constexpr int64_t kQueryGroup = kTile;
  // Up to this many queries are faster against rows as they are than against transposed ones.
  static constexpr int64_t kFewQueries = 3;

  int64_t words;  // of 32 bits in a row
  int64_t panel;  // documents

  explicit PackedScreen(const TopkProblem& p) : PackedScores(p), words((row_bytes + 3) / 4) {
    // A transposed panel stays in L1 beside the queries of a tile: 24 KiB of 32 or 48.
    const int64_t fit = (24 << 10) / (words * 4) / 64 * 64;
    panel = least<int64_t>(most<int64_t>(fit, 64), 1024);
  }

  bool few() const { return problem.queries <= kFewQueries; }
  // [tile of queries][word][kTile]; for few queries [query][row_bytes padded to vectors].
  int64_t row_pitch() const { return (row_bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes; }
  int64_t operand_bytes() const {
    return few() ? problem.queries * row_pitch()
                 : (problem.queries + kTile - 1) / kTile * kTile * words * static_cast<int64_t>(sizeof(uint32_t));
  }
  void prepare(void* operands, int64_t begin, int64_t end) const {
    if (few()) {
      for (int64_t q = begin; q < end; q++) {
        char* row = static_cast<char*>(operands) + q * row_pitch();
        const int64_t whole = row_bytes / kVectorBytes * kVectorBytes;
        for (int64_t i = 0; i < whole; i++) row[i] = query_row(problem, q)[i];
        const Words last = last_bytes(query_row(problem, q), whole);
        if (whole < row_bytes) __builtin_memcpy(row + whole, &last, kVectorBytes);
      }
      return;
    }
    uint32_t* tile = static_cast<uint32_t*>(operands) + begin * words;
    for (int64_t w = 0; w < words; w++)
      for (int q = 0; q < kTile; q++) {
        uint32_t word = 0;
        if (begin + q < end)
          __builtin_memcpy(&word, query_row(problem, begin + q) + w * 4,
                           static_cast<size_t>(least<int64_t>(4, row_bytes - w * 4)));
        tile[w * kTile + q] = word;
      }
  }

  Bar bar(const void*, int64_t, uint32_t order) const { return order; }
  int64_t panel_documents() const { return panel; }
  int64_t panel_bytes() const { return few() ? 0 : panel * words * static_cast<int64_t>(sizeof(uint32_t)); }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void* scratch, const Bar* bars, Found& found) const {
    if (few()) {
      scan_rows(operands, begin, end, bars, found);
      return;
    }
    uint32_t* transposed = static_cast<uint32_t*>(scratch);
    for (int64_t d = begin; d < end; d += kWords)
      transpose_rows(document_row(problem, d), problem.documents_stride, least<int64_t>(kWords, end - d), row_bytes,
                     transposed + (d - begin) * words);
    for (int64_t q = 0; q < problem.queries; q += kTile) {
      const uint32_t* tile = static_cast<const uint32_t*>(operands) + q * words;
      const int queries = static_cast<int>(least<int64_t>(kTile, problem.queries - q));
      for (int64_t d = begin; d < end; d += kWords) {
        Words distances[kTile];
        count_differences<kTile>(tile, transposed + (d - begin) * words, words, distances);
        for (int i = 0; i < queries; i++) report(q + i, d, least<int64_t>(kWords, end - d), distances[i], bars, found);
      }
    }
  }

 private:
  template <class Found>
  SIMTILE_INLINE void report(int64_t query, int64_t document, int64_t documents, Words distances, const Bar* bars,
                             Found& found) const {
    uint32_t hits = lanes_at_most(distances, bars[query]);
    if (__builtin_expect(hits == 0, 1)) return;
    hits &= static_cast<uint32_t>((uint64_t{1} << documents) - 1);
    for (; hits; hits &= hits - 1) {
      const int lane = __builtin_ctz(hits);
      found.exact(query, document + lane, distances[lane]);
    }
  }

  // kWords rows at a time, each read once for all queries.
  template <class Found>
  void scan_rows(const void* operands, int64_t begin, int64_t end, const Bar* bars, Found& found) const {
    const int64_t whole = row_bytes / kVectorBytes * kVectorBytes;
    int64_t d = begin;
    for (; d + kWords <= end; d += kWords)
      for (int64_t q = 0; q < problem.queries; q++)
        report(q, d, kWords, row_distances(static_cast<const char*>(operands) + q * row_pitch(), d, whole), bars,
               found);
    for (; d < end; d++)
      for (int64_t q = 0; q < problem.queries; q++) {
        const uint32_t distance = order(operands, q, d);
        if (distance <= bars[q]) found.exact(q, d, distance);
      }
  }

  SIMTILE_INLINE Words row_distances(const char* query, int64_t document, int64_t whole) const {
    Words rows[kWords];
#pragma GCC unroll 16
    for (int i = 0; i < kWords; i++) {
      const char* row = document_row(problem, document + i);
      Words total = {};
      // Bytes of a lane's counts are tallied before they overflow.
      for (int64_t at = 0; at < whole;) {
        Words counts = {};
        const int64_t stop = least<int64_t>(whole, at + BitCount::kWordsPerTally * kVectorBytes);
        for (; at < stop; at += kVectorBytes) {
          prefetch(row + at + kBytesAhead);
          counts = BitCount::add(counts, differing(row + at, query + at));
        }
        total += BitCount::tally(counts);
      }
      if (whole < row_bytes) {
        Words of_query;
        __builtin_memcpy(&of_query, query + whole, kVectorBytes);
        total += BitCount::tally(BitCount::count(last_bytes(row, whole) ^ of_query));
      }
      rows[i] = total;
    }
    return transposed_sum(rows);
  }

  // The bytes of a row after its whole vectors, and zeros, in some order that is the same for all rows.
  SIMTILE_INLINE Words last_bytes(const char* row, int64_t whole) const {
    const int64_t left = row_bytes - whole;
#if defined(__AVX512BW__)
    return (Words)_mm512_maskz_loadu_epi8((uint64_t{1} << left) - 1, row + whole);
#else
    Words bytes;
    if (whole > 0) {  // the row's last vector, without what it has in common with the one before
      const Words ends[2] = {Words{}, ~Words{}};
      Words kept;
      __builtin_memcpy(&bytes, row + row_bytes - kVectorBytes, kVectorBytes);
      __builtin_memcpy(&kept, reinterpret_cast<const char*>(ends) + left, kVectorBytes);
      return bytes & kept;
    }
    char copy[kVectorBytes] = {};
    __builtin_memcpy(copy, row, static_cast<size_t>(left));
    __builtin_memcpy(&bytes, copy, kVectorBytes);
    return bytes;
#endif
  }

  SIMTILE_INLINE static Words differing(const char* a, const char* b) {
    Words x, y;
    __builtin_memcpy(&x, a, kVectorBytes);
    __builtin_memcpy(&y, b, kVectorBytes);
    return BitCount::count(x ^ y);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
