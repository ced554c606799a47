// The register tile of float32 and float64: acc[rows][columns] += A (broadcast) * B (along the lanes).
#pragma once

#include "tile/pack.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename T>
struct Tile {
  // Two vectors of columns: 2 loads of B serve kRows multiply-adds each, and with kRows = 12 the 24 accumulators, 2 columns and a
  // broadcast fill 27 of 32 registers. With 16 registers 6 x 2 does the same; SSE2 has no fused form and needs one more temporary.
  static constexpr int kColumnVectors = 2;
  static constexpr int kColumns = kColumnVectors * Simd<T>::kLanes;
  static constexpr int kRows = kVectorRegisters == 32 ? 12 : kVectorBytes == 32 ? 6 : 4;
  // The depth of one pass: a B panel of kDepth * kColumns elements is at most 24 KiB, half of a 48 KiB or three quarters of a 32 KiB L1.
  // Narrow vectors would have longer passes, and those round more.
  static constexpr int64_t kPanel = 24576 / (kColumns * static_cast<int64_t>(sizeof(T)));
  static constexpr int64_t kDepth = kPanel < 384 ? kPanel : 384;
};

// A step along K, of one value: what lies in A and in B's panel, and how their product is added.
template <typename T>
struct ValueStep {
  typedef T Left;
  typedef T Right;
  typedef T Sum;
  typedef Vector<T> Sums;
  static SIMTILE_INLINE Vector<T> spread(const T* a) { return broadcast<T>(*a); }
  static SIMTILE_INLINE Vector<T> lanes(const T* b) { return load<T>(b); }
  static SIMTILE_INLINE Sums add(Sums sums, Vector<T> x, Vector<T> y) { return sums + x * y; }
  static SIMTILE_INLINE Sums load_sums(const T* p) { return load<T>(p); }
  static SIMTILE_INLINE void store_sums(T* p, Sums sums) { store<T>(p, sums); }
};

// out (+)= A * B. Element (row, k) of A is a[row * a_row + k * a_k]; B is [depth][kColumns]. Not inlined: on its own the loop keeps all
// accumulators in registers, among other loops GCC spills them.
template <int rows, class Step>
__attribute__((noinline)) void multiply(const typename Step::Left* a, int64_t a_row, int64_t a_k,
                                        const typename Step::Right* b, int64_t depth, bool accumulate,
                                        typename Step::Sum* out) {
  typedef typename Step::Sum Sum;
  typedef typename Step::Sums Sums;
  constexpr int kLanes = static_cast<int>(sizeof(Sums) / sizeof(Sum));
  constexpr int kVectors = Tile<float>::kColumnVectors, kColumns = kVectors * kLanes;
  Sums acc[rows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) acc[i][v] = Sums{};
  for (int64_t k = 0; k < depth; k++) {
    decltype(Step::lanes(b)) column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) column[v] = Step::lanes(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const auto x = Step::spread(a + i * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) acc[i][v] = Step::add(acc[i][v], x, column[v]);
    }
    a += a_k;
    b += kColumns;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      // Every pass sums from zero: shorter chains of additions round less.
      Sum* p = out + i * kColumns + v * kLanes;
      Step::store_sums(p, accumulate ? Step::load_sums(p) + acc[i][v] : acc[i][v]);
    }
}

template <typename T>
SIMTILE_INLINE void write_tile_row(const T* tile, T* out, int64_t columns, bool accumulate) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    store<T>(out + c, accumulate ? load<T>(out + c) + load<T>(tile + c) : load<T>(tile + c));
  for (; c < columns; c++) out[c] = accumulate ? out[c] + tile[c] : tile[c];
}

// out[stored, columns] (+)= tile[.., kColumns], columns <= kColumns.
template <typename T>
SIMTILE_INLINE void write_tile(const T* tile, T* out, int64_t stride, int stored, int64_t columns, bool accumulate) {
  for (int i = 0; i < stored; i++)
    write_tile_row<T>(tile + i * Tile<T>::kColumns, out + i * stride, columns, accumulate);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
