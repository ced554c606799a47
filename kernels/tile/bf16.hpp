// The bfloat16 engine of levels with a dot-product instruction (vdpbf16ps, bfdot): the interface and loops of float_engine.hpp over pairs
// of values along K, accumulated in float32. Rows enter as they are; coefficients are rounded to bfloat16, with their scale, just before
// their product.
//
// Which two values of K share a pair is free as long as both operands agree: packing pairs lane l of one vector with lane l of the next,
// so that no shuffle is needed.
#pragma once

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

#include "tile/panel.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

typedef uint32_t Pairs __attribute__((vector_size(kVectorBytes)));

// Two vectors rounded to nearest even, one pair a lane: the first in the low half.
SIMTILE_INLINE Pairs pair(Vector<float> first, Vector<float> second) {
  const Pairs a = (Pairs)first, b = (Pairs)second;
  const Pairs low = (a + 0x7fff + ((a >> 16) & 1)) >> 16;
  const Pairs high = (b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000;
  return low | high;
}

SIMTILE_INLINE Vector<float> dot_pairs(Vector<float> sum, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  return (Vector<float>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
}

SIMTILE_INLINE Pairs load_pairs(const uint32_t* p) { return (Pairs)load<float>(reinterpret_cast<const float*>(p)); }
SIMTILE_INLINE void store_pairs(uint32_t* p, Pairs v) { store<float>(reinterpret_cast<float*>(p), (Vector<float>)v); }

template <typename Source>
SIMTILE_INLINE Vector<float> load_present(const Source* p, int64_t left) {
  if (left >= Simd<float>::kLanes) return load_widened(p);
  return left > 0 ? load_widened_first<float>(p, static_cast<int>(left)) : Vector<float>{};
}

// A step of multiply() of f32.hpp, of a pair.
struct PairStep {
  typedef uint32_t Left;
  typedef uint32_t Right;
  typedef float Sum;
  typedef Vector<float> Sums;
  static SIMTILE_INLINE Pairs spread(const uint32_t* a) { return Pairs{} + *a; }
  static SIMTILE_INLINE Pairs lanes(const uint32_t* b) { return load_pairs(b); }
  static SIMTILE_INLINE Sums add(Sums sums, Pairs x, Pairs y) { return dot_pairs(sums, x, y); }
  static SIMTILE_INLINE Sums load_sums(const float* p) { return load<float>(p); }
  static SIMTILE_INLINE void store_sums(float* p, Sums sums) { store<float>(p, sums); }
};

template <typename SourceElement>
struct Bf16Engine : ScorePanel<float> {
  using Scalar = float;
  using Source = SourceElement;
  using Rows = ScaledRows<float, Source>;
  static constexpr int kRows = Tile<float>::kRows;
  static constexpr int kDocumentRows = 8;
  static constexpr int kHalf = kColumns / 2;  // pairs in a panel: document j with document j + kHalf
  static_assert(kVectors == 2, "the two vectors of a panel form its pairs");
  static constexpr int64_t kDepth = Tile<float>::kDepth;  // pairs per pass
  static constexpr int64_t kPacked = 2 * kDepth / kColumns * kColumns;
  static constexpr int64_t kChunkRows = 576;  // half the bytes of float32: twice its rows
  static constexpr int64_t kGroup = 8;

  static int64_t round_rows(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }
  static int64_t slices(int64_t dimensions) { return (dimensions + kColumns - 1) / kColumns; }
  static int64_t row_pairs(int64_t rows) { return (rows + 1) / 2; }
  static int64_t dimension_pairs(int64_t dimensions) { return (dimensions + 2 * kLanes - 1) / (2 * kLanes) * kLanes; }

  static int64_t panel_bytes(int64_t dimensions) { return dimension_pairs(dimensions) * kColumns * 4; }
  static int64_t queries_bytes(int64_t rows, int64_t dimensions) {
    return round_rows(rows) * dimension_pairs(dimensions) * 4;
  }
  static int64_t scores_bytes(int64_t rows) { return round_rows(rows) * kColumns * 4; }
  static int64_t slice_bytes(int64_t rows) { return row_pairs(rows) * kColumns * 4; }
  static int64_t scratch_bytes(int64_t rows, int64_t, int64_t slices_per_task) {
    return most(row_pairs(rows) * kColumns, (slices_per_task * kColumns + kRows) * kPacked / 2) * 4;
  }

  // Pairs along the columns of up to `width` rows: out[pair * width + row].
  static void pack_pairs(const Rows& rows, int64_t dimensions, int width, uint32_t* out) {
    for (int r0 = 0; r0 < width; r0 += kLanes) {
      const int written = least(kLanes, width - r0);
      for (int64_t c = 0; c < dimensions; c += 2 * kLanes) {
        Vector<float> block[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) {
          block[i] = Vector<float>{};
          if (r0 + i >= rows.count) continue;
          const Source* p = rows.data + (r0 + i) * rows.stride + c;
          block[i] = (Vector<float>)pair(load_present(p, dimensions - c) * rows.pack[r0 + i],
                                         load_present(p + kLanes, dimensions - c - kLanes) * rows.pack[r0 + i]);
        }
        transpose_block<float>(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++)
          store_first<float>(reinterpret_cast<float*>(out + (c / 2 + i) * width + r0), block[i], written);
      }
    }
  }

  // Pairs of rows first and second, columns of one slice; a row that is not there is zero.
  static Pairs row_pair(const Rows& rows, int64_t first, int64_t second, int64_t column, int64_t dimensions) {
    Vector<float> a{}, b{};
    if (first < rows.count)
      a = load_present(rows.data + first * rows.stride + column, dimensions - column) * rows.pack[first];
    if (second < rows.count)
      b = load_present(rows.data + second * rows.stride + column, dimensions - column) * rows.pack[second];
    return pair(a, b);
  }

  static void pack_panel(const Rows& documents, int64_t dimensions, void* out) {
    pack_pairs(documents, dimensions, kColumns, static_cast<uint32_t*>(out));
  }

  static void pack_queries(const Rows& queries, int64_t first, int64_t, int64_t dimensions, void* out) {
    pack_pairs(queries, dimensions, kRows, static_cast<uint32_t*>(out) + first * dimension_pairs(dimensions));
  }

  template <typename Epilogue>
  static void scores(const void* packed_queries, const void* packed_panels, int64_t packed_stride, int64_t panels,
                     int64_t rows, int64_t dimensions, char* out, int64_t out_stride, Epilogue& epilogue,
                     bool accumulate = false) {
    const uint32_t* queries = static_cast<const uint32_t*>(packed_queries);
    const int64_t pairs = dimension_pairs(dimensions);
    for (int64_t first = 0; first < panels; first += kGroup) {
      for (int64_t k = 0; k < pairs; k += kDepth) {
        const int64_t now = least(kDepth, pairs - k);
        for (int64_t panel = first; panel < least(first + kGroup, panels); panel++) {
          const uint32_t* b =
              reinterpret_cast<const uint32_t*>(static_cast<const char*>(packed_panels) + panel * packed_stride) +
              k * kColumns;
          float* s = reinterpret_cast<float*>(out + panel * out_stride);
          for (int64_t r = 0; r < rows; r += kRows) {
            multiply<kRows, PairStep>(queries + r * pairs + k * kRows, 1, kRows, b, now, accumulate || k > 0,
                                      s + r * kColumns);
            if (k + now == pairs) epilogue.template tile<kRows>(panel, r, s + r * kColumns);
          }
        }
      }
    }
  }

  static void pack_query_slice(const Rows& queries, int64_t slice, int64_t dimensions, void* out) {
    uint32_t* packed = static_cast<uint32_t*>(out);
    for (int64_t r = 0; r < queries.count; r += 2, packed += kColumns)
      for (int v = 0; v < kVectors; v++)
        store_pairs(packed + v * kLanes, row_pair(queries, r, r + 1, slice * kColumns + v * kLanes, dimensions));
  }

  static void accumulate_documents(const char* coefficients, int64_t panel_stride, const void* query_slices,
                                   int64_t slice_stride, const Rows& queries, int64_t count, int64_t dimensions,
                                   void* scratch, float* out, int64_t stride, bool accumulate) {
    uint32_t* a = static_cast<uint32_t*>(scratch);
    for (int64_t first = 0; first < count; first += kColumns, coefficients += panel_stride) {
      const float* c = reinterpret_cast<const float*>(coefficients);
      for (int64_t r = 0; r < queries.count; r += 2) {
        for (int v = 0; v < kVectors; v++) {
          Vector<float> low = load<float>(c + r * kColumns + v * kLanes) * queries.coefficient[r], high{};
          if (r + 1 < queries.count)
            high = load<float>(c + (r + 1) * kColumns + v * kLanes) * queries.coefficient[r + 1];
          store_pairs(a + r / 2 * kColumns + v * kLanes, pair(low, high));
        }
      }
      const char* slice = static_cast<const char*>(query_slices);
      for (int64_t d = 0; d < dimensions; d += kColumns, slice += slice_stride) {
        const int64_t columns = least<int64_t>(kColumns, dimensions - d);
        for (int64_t m = 0; m < least<int64_t>(kColumns, count - first); m += kDocumentRows) {
          float* at = out + (first + m) * stride + d;
          const int stored = static_cast<int>(least<int64_t>(kDocumentRows, count - first - m));
          if (accumulate) prefetch_block(at, stride * 4, stored, columns * 4);
          alignas(64) float tile[kDocumentRows * kColumns];
          multiply<kDocumentRows, PairStep>(a + m, 1, kColumns, reinterpret_cast<const uint32_t*>(slice),
                                            row_pairs(queries.count), false, tile);
          write_tile<float>(tile, at, stride, stored, columns, accumulate);
        }
      }
    }
  }

  static void accumulate_queries(const void* coefficients, int64_t panel_stride, const Rows& documents, int64_t rows,
                                 int64_t first_slice, int64_t last_slice, int64_t dimensions, void* scratch, float* out,
                                 int64_t stride, bool accumulate) {
    const int64_t panels = (documents.count + kColumns - 1) / kColumns, pairs = panels * kHalf;
    uint32_t* a = static_cast<uint32_t*>(scratch);
    uint32_t* packed = a + kRows * kPacked / 2;
    for (int64_t k = 0; k < pairs; k++) {
      const int64_t document = k / kHalf * kColumns + k % kHalf;
      for (int64_t slice = first_slice; slice < last_slice; slice++)
        for (int v = 0; v < kVectors; v++)
          store_pairs(packed + ((slice - first_slice) * kPacked / 2 + k) * kColumns + v * kLanes,
                      row_pair(documents, document, document + kHalf, slice * kColumns + v * kLanes, dimensions));
    }
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t present = least<int64_t>(kRows, rows - r);
      for (int64_t panel = 0; panel < panels; panel++) {
        const float* c = reinterpret_cast<const float*>(static_cast<const char*>(coefficients) + panel * panel_stride) +
                         r * kColumns;
        const float* scale = documents.coefficient + panel * kColumns;
        for (int64_t i = 0; i < present; i++)
          store_pairs(a + i * pairs + panel * kHalf,
                      pair(load<float>(c + i * kColumns) * load<float>(scale),
                           load<float>(c + i * kColumns + kLanes) * load<float>(scale + kLanes)));
      }
      for (int64_t i = present; i < kRows; i++)
        for (int64_t k = 0; k < pairs; k++) a[i * pairs + k] = 0;
      for (int64_t slice = first_slice; slice < last_slice; slice++) {
        const int64_t d = slice * kColumns;
        alignas(64) float tile[kRows * kColumns];
        multiply<kRows, PairStep>(a, pairs, 1, packed + (slice - first_slice) * kPacked / 2 * kColumns, pairs, false,
                                  tile);
        write_tile<float>(tile, out + r * stride + d, stride, static_cast<int>(present),
                          least<int64_t>(kColumns, dimensions - d), accumulate);
      }
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
