// The float engine: the three products of a contrastive step on the register tile of f32.hpp, for float and double.
//
// An engine names its operand formats and does
//   scores               S[rows, panel]  = queries * documents^T     (epilogue on each finished tile)
//   accumulate_documents dD[panel, D]   += C^T * queries
//   accumulate_queries   dQ[rows, slices] += C * documents
// where C are the coefficients the epilogues left in place of S. It knows nothing of losses.
#pragma once

#include "tile/panel.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename T, typename SourceElement>
struct FloatEngine : ScorePanel<T> {
  using Scalar = T;
  using Source = SourceElement;
  using Rows = ScaledRows<T, Source>;
  using ScorePanel<T>::kColumns;
  using ScorePanel<T>::kVectors;
  using ScorePanel<T>::kLanes;
  static constexpr int kRows = Tile<T>::kRows;
  // Rows of C^T are documents: a divisor of kColumns, so that a panel has no ragged tile.
  static constexpr int kDocumentRows = kRows >= 8 && kColumns >= 8 ? 8 : 4;
  static_assert(kColumns % kDocumentRows == 0);
  // Documents packed at a time for dQ: one slice of them stays in L1 while all row blocks pass.
  static constexpr int64_t kPacked = Tile<T>::kDepth / kColumns * kColumns;
  // Query rows per chunk. Measured on Sapphire Rapids (2 MiB L2) at N=4096, D=768: 192 to 768 rows are within 2 % of each other; few rows
  // keep the score panel near cores with less cache.
  static constexpr int64_t kChunkRows = 288;

  static constexpr int64_t kGroup = 8;

  static int64_t round_rows(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }
  static int64_t slices(int64_t dimensions) { return (dimensions + kColumns - 1) / kColumns; }

  static int64_t panel_bytes(int64_t dimensions) { return dimensions * kColumns * sizeof(T); }
  static int64_t queries_bytes(int64_t rows, int64_t dimensions) { return round_rows(rows) * dimensions * sizeof(T); }
  static int64_t scores_bytes(int64_t rows) { return round_rows(rows) * kColumns * sizeof(T); }
  static int64_t slice_bytes(int64_t rows) { return rows * kColumns * sizeof(T); }
  static int64_t scratch_bytes(int64_t, int64_t, int64_t slices_per_task) {
    return slices_per_task * kPacked * kColumns * sizeof(T);
  }

  static void pack_panel(const Rows& documents, int64_t dimensions, void* out) {
    pack_transposed<T>(documents.data, documents.stride, static_cast<int>(documents.count), dimensions, documents.pack,
                       kColumns, static_cast<T*>(out));
  }

  // A block of up to kRows rows; `first` is a multiple of kRows.
  static void pack_queries(const Rows& queries, int64_t first, int64_t, int64_t dimensions, void* out) {
    pack_transposed<T>(queries.data, queries.stride, static_cast<int>(queries.count), dimensions, queries.pack, kRows,
                       static_cast<T*>(out) + first * dimensions);
  }

  // Panels side by side, pass by pass: one pass over K of the packed queries stays in L2 while every panel of the group uses it.
  template <typename Epilogue>
  static void scores(const void* packed_queries, const void* packed_panels, int64_t packed_stride, int64_t panels,
                     int64_t rows, int64_t dimensions, char* out, int64_t out_stride, Epilogue& epilogue,
                     bool accumulate = false) {
    const T* queries = static_cast<const T*>(packed_queries);
    // Equal passes: 515 dimensions are 3 x 172, not 192 + 192 + 131.
    const int64_t passes = (dimensions + Tile<T>::kDepth - 1) / Tile<T>::kDepth;
    const int64_t depth = (dimensions + passes - 1) / passes;
    for (int64_t first = 0; first < panels; first += kGroup) {
      for (int64_t k = 0; k < dimensions; k += depth) {
        const int64_t now = least(depth, dimensions - k);
        for (int64_t panel = first; panel < least(first + kGroup, panels); panel++) {
          const T* b = reinterpret_cast<const T*>(static_cast<const char*>(packed_panels) + panel * packed_stride) +
                       k * kColumns;
          T* s = reinterpret_cast<T*>(out + panel * out_stride);
          for (int64_t r = 0; r < rows; r += kRows) {
            multiply<kRows, ValueStep<T>>(queries + r * dimensions + k * kRows, 1, kRows, b, now, accumulate || k > 0,
                                          s + r * kColumns);
            if (k + now == dimensions) epilogue.template tile<kRows>(panel, r, s + r * kColumns);
          }
        }
      }
    }
  }

  // One slice of columns of the queries, coefficients included, for accumulate_documents.
  static void pack_query_slice(const Rows& queries, int64_t slice, int64_t dimensions, void* out) {
    T* packed = static_cast<T*>(out);
    for (int64_t r = 0; r < queries.count; r++)
      pack_slice<T>(queries.data + r * queries.stride, slice * kColumns, dimensions, queries.pack[r],
                    queries.coefficient[r], kColumns, packed + r * kColumns);
  }

  // `out` is [count, D], the rows of consecutive panels, `stride` elements apart.
  static void accumulate_documents(const char* coefficients, int64_t panel_stride, const void* query_slices,
                                   int64_t slice_stride, const Rows& queries, int64_t count, int64_t dimensions, void*,
                                   T* out, int64_t stride, bool accumulate) {
    for (int64_t first = 0; first < count; first += kColumns, coefficients += panel_stride) {
      const T* c = reinterpret_cast<const T*>(coefficients);
      const char* slice = static_cast<const char*>(query_slices);
      for (int64_t d = 0; d < dimensions; d += kColumns, slice += slice_stride) {
        const int64_t columns = least<int64_t>(kColumns, dimensions - d);
        for (int64_t m = 0; m < least<int64_t>(kColumns, count - first); m += kDocumentRows) {
          T* at = out + (first + m) * stride + d;
          const int stored = static_cast<int>(least<int64_t>(kDocumentRows, count - first - m));
          if (accumulate) prefetch_block(at, stride * sizeof(T), stored, columns * sizeof(T));
          alignas(64) T tile[kDocumentRows * kColumns];
          multiply<kDocumentRows, ValueStep<T>>(c + m, 1, kColumns, reinterpret_cast<const T*>(slice), queries.count,
                                                false, tile);
          write_tile<T>(tile, at, stride, stored, columns, accumulate);
        }
      }
    }
  }

  // dQ[rows, slices] += C[rows, panels] * documents for up to kPacked documents; coefficients of the next panel are panel_stride bytes on.
  static void accumulate_queries(const void* coefficients, int64_t panel_stride, const Rows& documents, int64_t rows,
                                 int64_t first_slice, int64_t last_slice, int64_t dimensions, void* scratch, T* out,
                                 int64_t stride, bool accumulate) {
    const char* c = static_cast<const char*>(coefficients);
    T* packed = static_cast<T*>(scratch);
    // Row by row, because a row is contiguous in memory and a slice of it is not.
    for (int64_t k = 0; k < documents.count; k++)
      for (int64_t slice = first_slice; slice < last_slice; slice++)
        pack_slice<T>(documents.data + k * documents.stride, slice * kColumns, dimensions, documents.pack[k],
                      documents.coefficient[k], kColumns, packed + ((slice - first_slice) * kPacked + k) * kColumns);
    for (int64_t slice = first_slice; slice < last_slice; slice++, packed += kPacked * kColumns) {
      const int64_t d = slice * kColumns, columns = least<int64_t>(kColumns, dimensions - d);
      for (int64_t r = 0; r < rows; r += kRows) {
        alignas(64) T tile[kRows * kColumns];
        for (int64_t k = 0; k < documents.count; k += kColumns)
          multiply<kRows, ValueStep<T>>(reinterpret_cast<const T*>(c + k / kColumns * panel_stride) + r * kColumns,
                                        kColumns, 1, packed + k * kColumns,
                                        least<int64_t>(kColumns, documents.count - k), k > 0, tile);
        write_tile<T>(tile, out + r * stride + d, stride, static_cast<int>(least<int64_t>(kRows, rows - r)), columns,
                      accumulate);
      }
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
