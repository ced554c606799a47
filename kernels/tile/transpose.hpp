// Vectors of 32-bit words: their transpose, and the sums of all lanes of several.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int kWords = kVectorBytes / 4;

// Lanes of two vectors, by number. GCC 11 has it under an older name, with the numbers in a vector.
#if defined(__clang__) || __GNUC__ >= 12
#define SIMTILE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SIMTILE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// With i the lane: x[i] = a[i] where bit `apart` of i is clear, else b[i - apart]; y[i] = a[i + apart] where it is clear, else b[i].
template <int apart>
SIMTILE_INLINE void interleave(Words a, Words b, Words& x, Words& y) {
#if defined(__AVX512F__)
  if constexpr (apart == 8) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    y = SIMTILE_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  } else if constexpr (apart == 4) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    y = SIMTILE_SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  } else if constexpr (apart == 2) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    y = SIMTILE_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  } else {
    x = SIMTILE_SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    y = SIMTILE_SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
#elif defined(__AVX2__)
  if constexpr (apart == 4) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    y = SIMTILE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  } else if constexpr (apart == 2) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    y = SIMTILE_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  } else {
    x = SIMTILE_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    y = SIMTILE_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
#else
  if constexpr (apart == 2) {
    x = SIMTILE_SHUFFLE(a, b, 0, 1, 4, 5);
    y = SIMTILE_SHUFFLE(a, b, 2, 3, 6, 7);
  } else {
    x = SIMTILE_SHUFFLE(a, b, 0, 4, 2, 6);
    y = SIMTILE_SHUFFLE(a, b, 1, 5, 3, 7);
  }
#endif
}

// rows[i][j] and rows[j][i] change places.
template <int apart = kWords / 2>
SIMTILE_INLINE void transpose(Words (&rows)[kWords]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWords; i++)
    if (!(i & apart)) {
      Words x, y;
      interleave<apart>(rows[i], rows[i + apart], x, y);
      rows[i] = x;
      rows[i + apart] = y;
    }
  if constexpr (apart > 1) transpose<apart / 2>(rows);
}

// Lane i: the sum of all lanes of rows[i].
template <int apart = kWords / 2>
SIMTILE_INLINE Words transposed_sum(Words (&rows)[kWords]) {
#pragma GCC unroll 16
  for (int i = 0; i < apart; i++) {
    Words x, y;
    interleave<apart>(rows[i], rows[i + apart], x, y);
    rows[i] = x + y;
  }
  if constexpr (apart > 1)
    return transposed_sum<apart / 2>(rows);
  else
    return rows[0];
}

// Words of rows `stride` bytes apart, transposed: out[word][lane], kWords lanes, the words of `row_bytes` and zeros after the last byte.
// Rows beyond `count` are zeros. Nothing beyond a row's end is read.
SIMTILE_INLINE void transpose_rows(const char* first, int64_t stride, int64_t count, int64_t row_bytes, uint32_t* out) {
  const int64_t words = (row_bytes + 3) / 4;
  Words rows[kWords];
  int64_t at = 0;
  if (count == kWords) {
    for (; at + kVectorBytes <= row_bytes; at += kVectorBytes, out += kWords * kWords) {
#pragma GCC unroll 16
      for (int i = 0; i < kWords; i++) __builtin_memcpy(&rows[i], first + i * stride + at, kVectorBytes);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWords; i++) __builtin_memcpy(out + i * kWords, &rows[i], kVectorBytes);
    }
  }
  for (; at < row_bytes; at += kVectorBytes) {
    const int64_t bytes = least<int64_t>(row_bytes - at, kVectorBytes);
    for (int i = 0; i < kWords; i++) {
      char row[kVectorBytes] = {};
      if (i < count) __builtin_memcpy(row, first + i * stride + at, static_cast<size_t>(bytes));
      __builtin_memcpy(&rows[i], row, kVectorBytes);
    }
    transpose(rows);
    for (int i = 0; i < kWords && at / 4 + i < words; i++, out += kWords) __builtin_memcpy(out, &rows[i], kVectorBytes);
  }
}

// A bit for each lane.
SIMTILE_INLINE uint32_t lanes_at_most(Words x, uint32_t bar) {
#if defined(__AVX512F__)
  return _mm512_cmple_epu32_mask((__m512i)x, _mm512_set1_epi32(static_cast<int>(bar)));
#elif defined(__AVX2__)
  const __m256i bars = _mm256_set1_epi32(static_cast<int>(bar));
  const __m256i within = _mm256_cmpeq_epi32(_mm256_min_epu32((__m256i)x, bars), (__m256i)x);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(within)));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kWords; i++) mask |= static_cast<uint32_t>(x[i] <= bar) << i;
  return mask;
#endif
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
