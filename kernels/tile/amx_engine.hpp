// The matrix engine behind the interface of float_engine.hpp: planes = 1 for bfloat16 rows, 3 for float32 rows split exactly.
//
// Scores and coefficients are float32 panels as everywhere; coefficients are rounded (or split) to bfloat16 just before their product,
// with their scale, so the rows themselves enter every product exactly.
#pragma once

#if defined(__AMX_BF16__)

#include "tile/amx.hpp"
#include "tile/panel.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <int planes, typename SourceElement>
struct AmxEngine : ScorePanel<float> {
  using Scalar = float;
  using Source = SourceElement;
  using Rows = ScaledRows<float, Source>;
  static constexpr int kRows = 32;
  static_assert(kColumns == 32, "a panel is two strips");
  // Tiles of K per pass: the operands of one pass, 4 strips, are 32 KiB with one plane and 48 KiB (half of them streamed) with three.
  static constexpr int64_t kDepthSteps = planes == 1 ? 8 : 4;
  static constexpr int64_t kPacked = kDepthSteps * kTileDepth;
  // Query rows per chunk and panels per group. Measured on Sapphire Rapids (2 MiB L2) at N=4096, D=768: 384 to 768 rows and 8 to 16
  // panels are within 3 % of each other, 4 panels 4 % slower; one plane does less per byte and wants more rows.
  static constexpr int64_t kChunkRows = planes == 1 ? 768 : 512;
  static constexpr int64_t kGroup = 8;

  using Layout = StripLayout<planes>;

  static int64_t round_rows(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }
  static int64_t slices(int64_t dimensions) { return (dimensions + kColumns - 1) / kColumns; }
  // `extent` rows or columns of an operand with `depth` values along K.
  static Layout layout(int64_t extent, int64_t depth) {
    return {round_rows(extent) / 16, (depth + kTileDepth - 1) / kTileDepth, kDepthSteps};
  }

  static int64_t panel_bytes(int64_t dimensions) { return layout(kColumns, dimensions).bytes(); }
  static int64_t queries_bytes(int64_t rows, int64_t dimensions) { return layout(rows, dimensions).bytes(); }
  static int64_t scores_bytes(int64_t rows) { return round_rows(rows) * kColumns * sizeof(float); }
  static int64_t slice_bytes(int64_t rows) { return layout(kColumns, rows).bytes(); }
  static int64_t scratch_bytes(int64_t, int64_t, int64_t slices_per_task) {
    return layout((slices_per_task + 1) * kColumns, kPacked).bytes();
  }

  static void pack_panel(const Rows& documents, int64_t dimensions, void* out) {
    for (int64_t half = 0; half < 2; half++)
      pack_rows_strip<planes, true>(documents.data + 16 * half * documents.stride, documents.stride,
                                    documents.count - 16 * half, dimensions, documents.pack + 16 * half,
                                    layout(kColumns, dimensions), half, static_cast<char*>(out));
  }

  // A block of up to kRows rows of `rows`; `first` is a multiple of kRows.
  static void pack_queries(const Rows& queries, int64_t first, int64_t rows, int64_t dimensions, void* out) {
    for (int64_t half = 0; half < 2; half++)
      pack_rows_strip<planes, false>(queries.data + 16 * half * queries.stride, queries.stride,
                                     queries.count - 16 * half, dimensions, queries.pack + 16 * half,
                                     layout(rows, dimensions), first / 16 + half, static_cast<char*>(out));
  }

  // Panels side by side, pass by pass: one pass over K of all query strips stays in L2 while every panel of the group uses it.
  template <typename Epilogue>
  static void scores(const void* packed_queries, const void* packed_panels, int64_t packed_stride, int64_t panels,
                     int64_t rows, int64_t dimensions, char* out, int64_t out_stride, Epilogue& epilogue,
                     bool accumulate = false) {
    const TileScope scope;
    const Layout a_layout = layout(rows, dimensions), b_layout = layout(kColumns, dimensions);
    for (int64_t first = 0; first < panels; first += kGroup) {
      for (int64_t k = 0; k < a_layout.total; k += kDepthSteps) {
        const int64_t now = a_layout.steps(k);
        for (int64_t panel = first; panel < least(first + kGroup, panels); panel++) {
          const char* b = static_cast<const char*>(packed_panels) + panel * packed_stride + b_layout.at(0, k);
          float* s = reinterpret_cast<float*>(out + panel * out_stride);
          for (int64_t r = 0; r < rows; r += kRows) {
            const char* a = static_cast<const char*>(packed_queries) + a_layout.at(r / 16, k);
            multiply_strips<planes>(a, b, now, s + r * kColumns, kColumns, accumulate || k > 0);
            if (k + now == a_layout.total) epilogue.template tile<kRows>(panel, r, s + r * kColumns);
          }
        }
      }
    }
  }

  static void pack_query_slice(const Rows& queries, int64_t slice, int64_t dimensions, void* out) {
    pack_columns_strips<planes>(queries.data, queries.stride, queries.count, slice * kColumns, dimensions, queries.pack,
                                layout(kColumns, queries.count), static_cast<char*>(out));
  }

  // `out` is [count, D], the rows of consecutive panels, `stride` elements apart.
  // Pass by pass as in scores: the query slices of one pass stay in L2 for a group of
  // panels, the coefficients of one panel in L1 for all slices.
  static void accumulate_documents(const char* coefficients, int64_t panel_stride, const void* query_slices,
                                   int64_t slice_stride, const Rows& queries, int64_t count, int64_t dimensions,
                                   void* scratch, float* out, int64_t stride, bool accumulate) {
    const TileScope scope;
    const Layout b_layout = layout(kColumns, queries.count);
    char* a = static_cast<char*>(scratch);
    for (int64_t first = 0; first < count; first += kGroup * kColumns) {
      for (int64_t k = 0; k < b_layout.total; k += kDepthSteps) {
        for (int64_t row = first; row < least(first + kGroup * kColumns, count); row += kColumns) {
          const char* c = coefficients + row / kColumns * panel_stride;
          pack_transposed_coefficients(reinterpret_cast<const float*>(c), queries, k * kTileDepth, b_layout.steps(k),
                                       a);
          for (int64_t d = 0; d < dimensions; d += kColumns) {
            const char* b = static_cast<const char*>(query_slices) + d / kColumns * slice_stride + b_layout.at(0, k);
            multiply_into(a, b, b_layout.steps(k), out + row * stride + d, count - row, dimensions - d, stride,
                          accumulate || k > 0);
          }
        }
      }
    }
  }

  static void accumulate_queries(const void* coefficients, int64_t panel_stride, const Rows& documents, int64_t rows,
                                 int64_t first_slice, int64_t last_slice, int64_t dimensions, void* scratch, float* out,
                                 int64_t stride, bool accumulate) {
    const TileScope scope;
    const Layout a_layout = layout(kRows, documents.count),
                 b_layout = layout((last_slice - first_slice) * kColumns, documents.count);
    char* a = static_cast<char*>(scratch);
    char* b = a + a_layout.bytes();
    pack_columns_strips<planes>(documents.data, documents.stride, documents.count, first_slice * kColumns, dimensions,
                                documents.pack, b_layout, b);
    for (int64_t r = 0; r < rows; r += kRows) {
      for (int64_t k = 0; k < a_layout.total; k++)
        pack_coefficients(
            reinterpret_cast<const float*>(static_cast<const char*>(coefficients) + k * panel_stride) + r * kColumns,
            documents.coefficient + k * kColumns, documents.count - k * kColumns, a + a_layout.at(0, k),
            a + a_layout.at(1, k));
      for (int64_t slice = first_slice; slice < last_slice; slice++) {
        const char* columns = b + b_layout.at(2 * (slice - first_slice), 0);
        multiply_into(a, columns, a_layout.total, out + r * stride + slice * kColumns, rows - r,
                      dimensions - slice * kColumns, stride, accumulate);
      }
    }
  }

 private:
  // 32 x 32 products added to a corner of out; only `rows` and `columns` of it exist.
  static void multiply_into(const char* a, const char* b, int64_t steps, float* out, int64_t rows, int64_t columns,
                            int64_t stride, bool accumulate) {
    if (rows >= kRows && columns >= kColumns) {
      multiply_strips<planes>(a, b, steps, out, stride, accumulate);
    } else {
      alignas(64) float edge[kRows * kColumns];
      multiply_strips<planes>(a, b, steps, edge, kColumns, false);
      write_tile<float>(edge, out, stride, static_cast<int>(least<int64_t>(kRows, rows)),
                        least<int64_t>(kColumns, columns), accumulate);
    }
  }

  // 32 rows x one panel of coefficients to one tile of K in each of two A strips.
  static void pack_coefficients(const float* c, const float* scale, int64_t columns, char* a0, char* a1) {
    const __m512 scale_low = load_columns(scale, columns), scale_high = load_columns(scale + 16, columns - 16);
    for (int i = 0; i < kRows; i++, c += kColumns) {
      __m512 low = _mm512_mul_ps(_mm512_loadu_ps(c), scale_low),
             high = _mm512_mul_ps(_mm512_loadu_ps(c + 16), scale_high);
      char* at = (i < 16 ? a0 : a1) + i % 16 * 64;
#pragma GCC unroll 3
      for (int plane = 0; plane < planes; plane++)
        _mm512_store_si512(at + plane * kTileBytes, next_plane(low, high, plane + 1 < planes));
    }
  }

  // One pass of one panel's coefficients, transposed (rows are K), to two A strips of 16 documents.
  static void pack_transposed_coefficients(const float* c, const Rows& queries, int64_t first, int64_t steps, char* a) {
    for (int64_t step = 0; step < steps; step++) {
      const int64_t r = first + step * kTileDepth;
      for (int64_t half = 0; half < 2; half++) {
        __m512i tile[planes][16];
#pragma GCC unroll 16
        for (int pair = 0; pair < 16; pair++) {
          const int64_t at = r + 2 * pair;
          __m512 low = _mm512_setzero_ps(), high = low;
          if (at < queries.count)
            low =
                _mm512_mul_ps(_mm512_loadu_ps(c + at * kColumns + 16 * half), _mm512_set1_ps(queries.coefficient[at]));
          if (at + 1 < queries.count)
            high = _mm512_mul_ps(_mm512_loadu_ps(c + (at + 1) * kColumns + 16 * half),
                                 _mm512_set1_ps(queries.coefficient[at + 1]));
#pragma GCC unroll 3
          for (int plane = 0; plane < planes; plane++)
            tile[plane][pair] = interleave_halves(next_plane(low, high, plane + 1 < planes));
        }
        for (int plane = 0; plane < planes; plane++) {
          transpose_words(tile[plane]);
          for (int i = 0; i < 16; i++)
            _mm512_store_si512(a + ((half * steps + step) * planes + plane) * kTileBytes + i * 64, tile[plane][i]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
