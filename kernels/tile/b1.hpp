// Bits that differ between packed rows: in every 32-bit word, for several queries against a vector of documents.
#pragma once

#include "tile/transpose.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Counts of one or several words in every lane; added up without overflow for kWordsPerTally words, then `tally` has them in words.
#if defined(__AVX512VPOPCNTDQ__)
struct BitCount {
  static constexpr int64_t kWordsPerTally = int64_t{1} << 26;
  SIMTILE_INLINE static Words count(Words x) { return (Words)_mm512_popcnt_epi32((__m512i)x); }
  SIMTILE_INLINE static Words add(Words a, Words b) { return a + b; }
  SIMTILE_INLINE static Words tally(Words counts) { return counts; }
};
#else
// Counts in bytes, at most 8 more with every word.
struct BitCount {
  static constexpr int64_t kWordsPerTally = 31;
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));

  SIMTILE_INLINE static Words add(Words a, Words b) { return (Words)((Bytes)a + (Bytes)b); }

#if defined(__AVX512BW__)
  SIMTILE_INLINE static Words count(Words x) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_srli_epi16((__m512i)x, 4);
    return (Words)_mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512((__m512i)x, low)),
                                  _mm512_shuffle_epi8(table, _mm512_and_si512(high, low)));
  }
  SIMTILE_INLINE static Words tally(Words counts) {
    return (Words)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)counts, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
  }
#elif defined(__AVX2__)
  SIMTILE_INLINE static Words count(Words x) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_srli_epi16((__m256i)x, 4);
    return (Words)_mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256((__m256i)x, low)),
                                  _mm256_shuffle_epi8(table, _mm256_and_si256(high, low)));
  }
  SIMTILE_INLINE static Words tally(Words counts) {
    return (Words)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)counts, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }
#elif defined(__aarch64__)
  SIMTILE_INLINE static Words count(Words x) { return (Words)vcntq_u8((uint8x16_t)x); }
  SIMTILE_INLINE static Words tally(Words counts) { return (Words)vpaddlq_u16(vpaddlq_u8((uint8x16_t)counts)); }
#else
  SIMTILE_INLINE static Words count(Words x) {
    x -= x >> 1 & 0x55555555u;
    x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
    return (x + (x >> 4)) & 0x0f0f0f0fu;
  }
  SIMTILE_INLINE static Words tally(Words counts) {
    const Words pairs = (counts & 0x00ff00ffu) + (counts >> 8 & 0x00ff00ffu);
    return (pairs & 0xffffu) + (pairs >> 16);
  }
#endif
};
#endif

// distances[query][lane] of kWords documents. queries: [word][kQueries]; documents: [word][kWords]. Not inlined: on its own the loop
// keeps all counts in registers.
template <int kQueries>
__attribute__((noinline)) void count_differences(const uint32_t* queries, const uint32_t* documents, int64_t words,
                                                 Words* distances) {
  Words total[kQueries];
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; q++) total[q] = Words{};
  while (words > 0) {
    const int64_t part = least<int64_t>(words, BitCount::kWordsPerTally);
    Words counts[kQueries];
#pragma GCC unroll 16
    for (int q = 0; q < kQueries; q++) counts[q] = Words{};
    for (int64_t w = 0; w < part; w++) {
      Words document;
      __builtin_memcpy(&document, documents, kVectorBytes);
#pragma GCC unroll 16
      for (int q = 0; q < kQueries; q++)
        counts[q] = BitCount::add(counts[q], BitCount::count(document ^ (Words{} + queries[q])));
      documents += kWords;
      queries += kQueries;
    }
#pragma GCC unroll 16
    for (int q = 0; q < kQueries; q++) total[q] += BitCount::tally(counts[q]);
    words -= part;
  }
#pragma GCC unroll 16
  for (int q = 0; q < kQueries; q++) distances[q] = total[q];
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
