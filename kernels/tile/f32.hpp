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
  static constexpr int64_t kDepth = 24576 / (kColumns * static_cast<int64_t>(sizeof(T)));
};

// acc (+)= A * B. Element (row, k) of A is a[row * a_row + k * a_k]; B is [depth][kColumns]. Not inlined: on its own the loop keeps all
// accumulators in registers, among other loops GCC spills them.
template <int rows, typename T>
__attribute__((noinline)) void multiply(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t depth,
                                        bool accumulate, T* out) {
  constexpr int kVectors = Tile<T>::kColumnVectors;
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> acc[rows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) acc[i][v] = Vector<T>{};
  for (int64_t k = 0; k < depth; k++) {
    Vector<T> column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) column[v] = load<T>(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const Vector<T> x = broadcast<T>(a[i * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) acc[i][v] += x * column[v];
    }
    a += a_k;
    b += Tile<T>::kColumns;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      // Every pass sums from zero: shorter chains of additions round less.
      T* p = out + i * Tile<T>::kColumns + v * kLanes;
      store<T>(p, accumulate ? load<T>(p) + acc[i][v] : acc[i][v]);
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
