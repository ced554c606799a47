// Products of codes with queries of whole numbers: exact, and so the same at every level. What a token of a document is multiplied with
// is int16; a residual's value has 16 bits and is two of them, high * 256 + low.
#pragma once

#include "maxsim/products.hpp"
#include "tile/i8.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

SIMTILE_INLINE int32_t low_byte(int32_t x) { return ((x + 128) & 255) - 128; }
SIMTILE_INLINE int32_t high_byte(int32_t x) { return (x - low_byte(x)) / 256; }

// The values of a residual by its bits as they lie in a byte, first bit highest: the lowest bit of a code comes first.
template <int bits>
struct ResidualValues {
  alignas(16) int8_t high[16] = {};  // 16 of them, as a shuffle reads
  alignas(16) int8_t low[16] = {};
  explicit ResidualValues(const MaxsimCodes& codes) {
    const int16_t* const weights = codes.weights;
    for (int stored = 0; stored < 1 << bits; stored++) {
      int code = 0;
      for (int b = 0; b < bits; b++) code |= (stored >> (bits - 1 - b) & 1) << b;
      high[stored] = static_cast<int8_t>(high_byte(weights[code]));
      low[stored] = static_cast<int8_t>(low_byte(weights[code]));
    }
  }
};

struct NoValues {
  explicit NoValues(const MaxsimCodes&) {}
};
template <int bits, bool residual>
struct ValuesOf {
  typedef NoValues Type;
};
template <int bits>
struct ValuesOf<bits, true> {
  typedef ResidualValues<bits> Type;
};

// Bits of a code, and how many planes its value takes.
template <MaxsimKind kind>
struct CodeTraits {
  static constexpr int kBits = kind == MaxsimKind::int8 || kind == MaxsimKind::uint8       ? 8
                               : kind == MaxsimKind::bits || kind == MaxsimKind::residual1 ? 1
                               : kind == MaxsimKind::residual2                             ? 2
                                                                                           : 4;
  static constexpr bool kResidual = kind >= MaxsimKind::residual1;
  static constexpr int kPlanes = kResidual ? 2 : 1;
  static constexpr bool kSigned = kind == MaxsimKind::int8 || kResidual;
  typedef typename ValuesOf<kBits, kResidual>::Type Values;
};

// sum + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] of int16.
SIMTILE_INLINE Ints dot_shorts(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return sum + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return sum + (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#endif
}

// A step of multiply() of tile/f32.hpp, of two int16.
struct ShortsStep {
  typedef int16_t Left;
  typedef int32_t Right;
  typedef int32_t Sum;
  typedef Ints Sums;
  static SIMTILE_INLINE Ints spread(const int16_t* a) {
    int32_t two;
    __builtin_memcpy(&two, a, 4);
    return broadcast_int(two);
  }
  static SIMTILE_INLINE Ints lanes(const int32_t* b) { return load_ints(b); }
  static SIMTILE_INLINE Ints add(Ints sums, Ints x, Ints y) { return dot_shorts(sums, x, y); }
  static SIMTILE_INLINE Ints load_sums(const int32_t* p) { return load_ints(p); }
  static SIMTILE_INLINE void store_sums(int32_t* p, Ints sums) { store_ints(p, sums); }
};

// out[count][kColumns] = rows of pairs times a panel of pairs.
template <int rows = Tile<float>::kRows>
SIMTILE_INLINE void multiply_some_shorts(int count, const int16_t* a, int64_t stride, const int32_t* b, int64_t pairs,
                                         int32_t* out) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_some_shorts<rows - 1>(count, a, stride, b, pairs, out);
  }
  multiply<rows, ShortsStep>(a, stride, 2, b, pairs, false, out);
}

// From dot products to similarities in units of the query's token; MaxsimCodes says how. `Dots` gives the dot products of a row.
template <bool residual, typename Row, class Dots>
SIMTILE_INLINE void similarities(const Operands<Row>& o, const Dots& dots, float* out) {
  constexpr int kLanes = Simd<float>::kLanes, kColumns = Tile<float>::kColumns;
  for (int i = 0; i < o.height; i++) {
    const int64_t row = o.first + o.index[i];
    const Vector<float> factor = broadcast<float>(o.codes->factors ? o.codes->factors[row] : 1.0f);
    const float* const table = residual ? o.table + o.slots[o.codes->centroids[row]] * int64_t{kColumns} : nullptr;
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; c += kLanes) {
      const Vector<float> dot = dots(i, c), term = load<float>(o.terms + c);
      const Vector<float> sum = residual ? dot * term + load<float>(table + c) : dot + term;
      store<float>(out + i * kColumns + c, sum * factor);
    }
  }
}

// Of a residual: from the exact products with its values' high and low bytes.
SIMTILE_INLINE Vector<float> dot_of_planes(Ints high, Ints low) {
  return __builtin_convertvector(high, Vector<float>) * 256 + __builtin_convertvector(low, Vector<float>);
}

// The values of all codes of a byte, the first of them first, by plane.
template <MaxsimKind kind>
struct ByteValues {
  typedef CodeTraits<kind> Traits;
  static constexpr int kBits = Traits::kBits, kPerByte = 8 / kBits;
  int16_t of[Traits::kPlanes][256][kPerByte];

  explicit ByteValues(const MaxsimCodes& codes) {
    const typename Traits::Values values(codes);
    for (int byte = 0; byte < 256; byte++)
      for (int c = 0; c < kPerByte; c++) {
        const int stored = byte >> (8 - kBits * (c + 1)) & ((1 << kBits) - 1);
        if constexpr (Traits::kResidual) {
          of[0][byte][c] = static_cast<int16_t>(+values.high[stored]);
          of[1][byte][c] = static_cast<int16_t>(+values.low[stored]);
        } else {
          of[0][byte][c] = static_cast<int16_t>(stored);
        }
      }
  }

  void unpack(const uint8_t* row, int64_t bytes, int plane, int16_t* to) const {
    for (int64_t i = 0; i < bytes; i++) __builtin_memcpy(to + i * kPerByte, of[plane][row[i]], kPerByte * 2);
  }
};

template <MaxsimKind kind, bool whole_bytes = CodeTraits<kind>::kBits == 8>
struct UnpackingOf {
  typedef ByteValues<kind> Type;
};
template <MaxsimKind kind>
struct UnpackingOf<kind, true> {
  typedef NoValues Type;
};

template <MaxsimKind kind>
struct ShortProducts {
  typedef ShortProducts Plain;
  typedef CodeTraits<kind> Traits;
  typedef int16_t Query;
  typedef int16_t Row;
  typedef typename UnpackingOf<kind>::Type Values;
  static constexpr bool kCodes = true;
  static constexpr bool kChecked = false;
  static constexpr int kRows = Tile<float>::kRows;
  static constexpr int kRowUnit = 1;
  static constexpr int kColumns = Tile<float>::kColumns;
  struct Scope {
    Scope() {}
  };

  static bool in_place(int64_t) { return false; }
  static int64_t pairs(int64_t dimensions) { return (dimensions + 1) / 2; }
  static int64_t panel_bytes(int64_t dimensions) { return pairs(dimensions) * kColumns * 4; }
  // Whole bytes of codes are written.
  static int64_t plane_pitch(int64_t dimensions) { return round_to(dimensions, 32); }
  static int64_t row_pitch(int64_t dimensions) { return Traits::kPlanes * plane_pitch(dimensions); }

  static PackedToken put(void* panel, int64_t dimensions, int64_t column, const int16_t* row, double) {
    int16_t* const to = static_cast<int16_t*>(panel) + 2 * column;
    for (int64_t k = 0; k < dimensions; k++) to[k / 2 * 2 * kColumns + k % 2] = row[k];
    return {1, 1};
  }

  static void copy(const uint8_t* row, int64_t dimensions, [[maybe_unused]] const Values& values, Row* to) {
    const int64_t bytes = (dimensions * Traits::kBits + 7) / 8;
    for (int64_t i = 0; i < bytes; i += 64) prefetch(row + i + kBytesAhead);
    if constexpr (Traits::kBits == 8) {
      typedef int8_t Signed __attribute__((vector_size(kVectorBytes / 2), aligned(1), may_alias));
      typedef uint8_t Unsigned __attribute__((vector_size(kVectorBytes / 2), aligned(1), may_alias));
      typedef int16_t Shorts __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));
      int64_t k = 0;
      for (; k + kVectorBytes / 2 <= dimensions; k += kVectorBytes / 2) {
        Shorts& wide = *reinterpret_cast<Shorts*>(to + k);
        if constexpr (Traits::kSigned)
          wide = __builtin_convertvector(*reinterpret_cast<const Signed*>(row + k), Shorts);
        else
          wide = __builtin_convertvector(*reinterpret_cast<const Unsigned*>(row + k), Shorts);
      }
      for (; k < dimensions; k++) to[k] = Traits::kSigned ? static_cast<int8_t>(row[k]) : static_cast<int16_t>(row[k]);
      if (dimensions % 2) to[dimensions] = 0;
    } else {
      for (int plane = 0; plane < Traits::kPlanes; plane++)
        values.unpack(row, bytes, plane, to + plane * plane_pitch(dimensions));
    }
  }

  static void multiply(const Operands<Row>& o, float* out) {
    int32_t dots[Traits::kPlanes][kRows * kColumns];
    const int32_t* const panel = static_cast<const int32_t*>(o.panel);
    for (int p = 0; p < Traits::kPlanes; p++)
      multiply_some_shorts(o.height, o.rows + p * plane_pitch(o.dimensions), o.stride, panel, pairs(o.dimensions),
                           dots[p]);
    similarities<Traits::kResidual>(
        o,
        [&](int i, int c) __attribute__((always_inline)) {
          const int32_t* const first = dots[0] + i * kColumns + c;
          if constexpr (Traits::kPlanes == 2)
            return dot_of_planes(load_ints(first), load_ints(dots[1] + i * kColumns + c));
          else
            return __builtin_convertvector(load_ints(first), Vector<float>);
        },
        out);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
