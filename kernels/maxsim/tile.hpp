// Tokens of documents as they are stored (broadcast) times a panel of query tokens (along the lanes), and the running maximum of the
// products: elementwise, so that nothing is reduced across lanes.
#pragma once

#include "tile/f32.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// out[rows][kColumns] (+)= rows of `a` times panel `b`, [depth][kColumns]; a step along K is `width` elements of `a`.
template <int rows, class Step, int width>
__attribute__((noinline)) void multiply_tokens(const typename Step::Left* a, int64_t stride,
                                               const typename Step::Right* b, int64_t depth, bool accumulate,
                                               typename Step::Sum* out) {
  typedef typename Step::Sums Sums;
  constexpr int kLanes = static_cast<int>(sizeof(Sums) / sizeof(typename Step::Sum));
  constexpr int kVectors = Tile<float>::kColumnVectors, kColumns = kVectors * kLanes;
  Sums acc[rows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) acc[i][v] = Sums{};
  // Four rows are reached from one pointer.
  const typename Step::Left* quarter[(rows + 3) / 4];
#pragma GCC unroll 4
  for (int i = 0; i < (rows + 3) / 4; i++) quarter[i] = a + 4 * i * stride;
  // Documents come from memory, in more streams than the hardware's prefetcher follows: it is told of the rows two tiles on, which
  // lie side by side in most calls.
  const typename Step::Left* ahead = a + 2 * rows * stride;
  for (int64_t k = 0; k < depth; k++) {
    __builtin_prefetch(ahead);
    ahead += rows * width;
    decltype(Step::lanes(b)) column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) column[v] = Step::lanes(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const auto x = Step::spread(quarter[i / 4] + i % 4 * stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) acc[i][v] = Step::add(acc[i][v], x, column[v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < (rows + 3) / 4; i++) quarter[i] += width;
    b += kColumns;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      typename Step::Sum* p = out + i * kColumns + v * kLanes;
      Step::store_sums(p, accumulate ? Step::load_sums(p) + acc[i][v] : acc[i][v]);
    }
}

// The same for any number of rows up to Tile<float>::kRows.
template <class Step, int width = 1, int rows = Tile<float>::kRows>
SIMTILE_INLINE void multiply_some_tokens(int count, const typename Step::Left* a, int64_t stride,
                                         const typename Step::Right* b, int64_t depth, bool accumulate,
                                         typename Step::Sum* out) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_some_tokens<Step, width, rows - 1>(count, a, stride, b, depth, accumulate, out);
  }
  multiply_tokens<rows, Step, width>(a, stride, b, depth, accumulate, out);
}

// Whether a lane is set; lanes are all ones or zeros.
template <typename T>
SIMTILE_INLINE bool any(typename Simd<T>::Integer lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)lanes, (__m256i)lanes);
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)lanes) != 0;
#else
  return vmaxvq_u32((uint32x4_t)lanes) != 0;
#endif
}

// What is kept of the products besides the largest.
enum class Keep {
  value,
  argmax,
  sums,  // and argmax: Σ exp((x - largest) / temperature), for the smooth maximum
};

template <typename T>
struct Best {
  typedef typename Simd<T>::Integer Integer;
  static constexpr int kColumns = Tile<T>::kColumns;
  static constexpr int kVectors = Tile<T>::kColumnVectors;

  T value[kColumns];         // of a panel's tokens
  T sum[kColumns];           // only with sums
  Integer argmax[kVectors];  // only with argmax

  void clear() {
    for (int c = 0; c < kColumns; c++) value[c] = -static_cast<T>(__builtin_inf());
    for (int c = 0; c < kColumns; c++) sum[c] = 0;
    for (int v = 0; v < kVectors; v++) argmax[v] = Integer{} - 1;
  }

  bool has_nan() const {
    Integer nan = {};
    for (int v = 0; v < kVectors; v++) {
      const Vector<T> x = load<T>(value + v * Simd<T>::kLanes);
      nan |= (Integer)(x != x);
    }
    for (int i = 0; i < Simd<T>::kLanes; i++)
      if (nan[i]) return true;
    return false;
  }

  void multiply(const T* units) {
    for (int c = 0; c < kColumns; c++) value[c] *= units[c];
  }

  // Rows of products; row i is row index[i] of the document, in ascending order. The first of equals stays, and the first NaN.
  template <Keep keep>
  SIMTILE_INLINE void take(const T* products, int rows, const int32_t* index, T inverse_temperature) {
    Vector<T> before[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) before[v] = load<T>(value + v * Simd<T>::kLanes);
    if (__builtin_expect(!take_finite<keep>(products, rows, index, before), 0))
      take_any<keep>(products, rows, index, before);
    if (keep != Keep::sums) return;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      T* const p = sum + v * Simd<T>::kLanes;
      const Vector<T> best = load<T>(value + v * Simd<T>::kLanes);
      Vector<T> total = load<T>(p) * below(before[v], best, inverse_temperature);
      for (int i = 0; i < rows; i++)
        total += below(load<T>(products + v * Simd<T>::kLanes + i * kColumns), best, inverse_temperature);
      store<T>(p, total);
    }
  }

 private:
  // The largest of finite products first: where none is better than what was, no row has to be found. Whether all are finite.
  template <Keep keep>
  SIMTILE_INLINE bool take_finite(const T* products, int rows, const int32_t* index,
                                  const Vector<T> (&before)[kVectors]) {
    Vector<T> best[kVectors], zero[kVectors], odd_best[kVectors], odd_zero[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      best[v] = odd_best[v] = before[v];
      zero[v] = before[v] == -static_cast<T>(__builtin_inf()) ? Vector<T>{} : before[v] * 0;
      odd_zero[v] = Vector<T>{};
    }
    // Every second row apart: each chain waits for itself.
    int i = 0;
    for (; i + 2 <= rows; i += 2)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const T* const p = products + i * kColumns + v * Simd<T>::kLanes;
        const Vector<T> x = load<T>(p), y = load<T>(p + kColumns);
        best[v] = maximum(best[v], x);
        odd_best[v] = maximum(odd_best[v], y);
        zero[v] += x * 0;  // NaN of what is not finite
        odd_zero[v] += y * 0;
      }
    if (i < rows)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const Vector<T> x = load<T>(products + i * kColumns + v * Simd<T>::kLanes);
        best[v] = maximum(best[v], x);
        zero[v] += x * 0;
      }
    Vector<T> zeros{};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      best[v] = maximum(best[v], odd_best[v]);
      zeros += zero[v] + odd_zero[v];
    }
    if (any<T>(zeros != 0)) return false;
    Integer better = {};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      better |= best[v] > before[v];
      store<T>(value + v * Simd<T>::kLanes, best[v]);
    }
    if (keep == Keep::value || !any<T>(better)) return true;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      Integer at = argmax[v];
      for (int row = rows - 1; row >= 0; row--) {
        const Vector<T> x = load<T>(products + row * kColumns + v * Simd<T>::kLanes);
        at = x == best[v] ? Integer{} + index[row] : at;
      }
      argmax[v] = best[v] > before[v] ? at : argmax[v];
    }
    return true;
  }

  template <Keep keep>
  __attribute__((noinline)) void take_any(const T* products, int rows, const int32_t* index,
                                          const Vector<T> (&before)[kVectors]) {
    for (int v = 0; v < kVectors; v++) {
      Vector<T> best = before[v];
      Integer at = argmax[v];
      for (int i = 0; i < rows; i++) {
        const Vector<T> x = load<T>(products + v * Simd<T>::kLanes + i * kColumns);
        Integer better = ~(Integer)(x <= best) & (Integer)(best == best);
        if (keep != Keep::value) {
          better |= at < 0;  // -infinity is better than nothing
          at = better ? Integer{} + index[i] : at;
        }
        best = better ? x : best;
      }
      store<T>(value + v * Simd<T>::kLanes, best);
      argmax[v] = at;
    }
  }

  // exp((x - best) / temperature); of equals 1, infinities too.
  static SIMTILE_INLINE Vector<T> below(Vector<T> x, Vector<T> best, T inverse_temperature) {
    const Vector<T> e = exp_nonpositive((x - best) * inverse_temperature);
    return x == best ? Vector<T>{} + 1 : e;
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
