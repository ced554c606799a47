// Products of bfloat16 documents by dot products of pairs (vdpbf16ps, bfdot), summed in float32. Queries are planes (planes.hpp): those
// that are bfloat16 themselves, one. A document's rows are multiplied where they lie.
//
// The instructions take subnormals for zeros, which is less than a rounding of the largest term; infinities and NaN make the product NaN.
#pragma once

#include "maxsim/planes.hpp"
#include "tile/bf16.hpp"

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// A step of multiply_tokens, of two values as they lie.
struct RowPairStep : PairStep {
  typedef uint16_t Left;
  static SIMTILE_INLINE Pairs spread(const uint16_t* a) {
    uint32_t two;
    __builtin_memcpy(&two, a, 4);
    return Pairs{} + two;
  }
};

struct PairProducts {
  typedef FusedProducts<float, bf16> Plain;
  typedef float Query;
  typedef uint16_t Row;
  static constexpr bool kCodes = false;
  static constexpr int kRows = Tile<float>::kRows;
  static constexpr int kRowUnit = 1;
  static constexpr int kColumns = Tile<float>::kColumns;
  static constexpr bool kChecked = true;
  typedef Plain::Scope Scope;
  typedef Plain::Values Values;

  static bool in_place(int64_t dimensions) { return dimensions % 2 == 0; }
  static int64_t pairs(int64_t dimensions) { return (dimensions + 1) / 2; }
  static int64_t panel_bytes(int64_t dimensions) { return kQueryPlanes * pairs(dimensions) * kColumns * 4; }
  static int64_t row_pitch(int64_t dimensions) { return 2 * pairs(dimensions); }

  // [plane][pair of K][column][2]
  static PackedToken put(void* panel, int64_t dimensions, int64_t column, const float* row, double scale) {
    uint16_t* const to = static_cast<uint16_t*>(panel) + 2 * column;
    const int64_t plane_size = pairs(dimensions) * kColumns * 2;
    return put_planes(row, dimensions, scale, [&](int plane, int64_t k, uint16_t bits) {
      to[plane * plane_size + k / 2 * kColumns * 2 + k % 2] = bits;
    });
  }

  // Rows that are divided by their lengths have more bits than these: they are not multiplied here.
  static void copy(const bf16* row, int64_t dimensions, double, Row* to) {
    for (int64_t k = 0; k < dimensions; k++) to[k] = row[k].bits;
    if (dimensions % 2) to[dimensions] = 0;
  }

  static void multiply(const Operands<Row>& o, float* out) {
    constexpr int64_t kDepth = Tile<float>::kDepth;
    const int64_t pairs = PairProducts::pairs(o.dimensions);
    const uint32_t* b = static_cast<const uint32_t*>(o.panel);
    for (int plane = 0; plane < o.planes; plane++, b += pairs * kColumns)
      for (int64_t k = 0; k < pairs; k += kDepth)
        multiply_some_tokens<RowPairStep, 2>(o.height, o.rows + 2 * k, o.stride, b + k * kColumns,
                                             least(kDepth, pairs - k), plane > 0 || k > 0, out);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
