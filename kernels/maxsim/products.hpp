// What multiplies rows of a document with a panel of query tokens: out[row][kColumns] = row · token.
//
// A `Products` says how a panel and a row are stored, and multiplies up to kRows rows with a panel:
//   Query, Row              elements of the queries as they are given, and of stored rows
//   kRowUnit                a chunk that is read where it lies has a multiple of so many rows
//   kChecked                where it meets what it cannot multiply a product is NaN, and Plain computes it again
//   in_place(dimensions)    rows may be read where they lie
//   put(panel, column, row) a query's token into a panel that was zeros
#pragma once

#include "maxsim/args.hpp"
#include "maxsim/tile.hpp"
#include "tile/pieces.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// A token of a query in its panel.
struct PackedToken {
  double unit;  // what its products are multiplied with
  int planes;   // that are not zeros
};

// Some rows of a chunk and a panel.
template <typename Row>
struct Operands {
  const Row* rows;
  int64_t stride;  // elements
  int height;
  const void* panel;
  int planes;  // of the panel's group
  int64_t dimensions;
  // Only of codes.
  const MaxsimCodes* codes;
  int64_t first;         // row of the document's first token
  const int32_t* index;  // of the rows, from there
  const float* terms;    // of the panel's columns
  const int32_t* slots;  // of centroids
  const float* table;    // [slots][kColumns]
};

template <typename Compute, typename Document>
struct FusedProducts {
  typedef FusedProducts Plain;
  typedef Compute Query;
  typedef Compute Row;
  static constexpr bool kCodes = false;
  static constexpr int kRows = Tile<Compute>::kRows;
  static constexpr int kRowUnit = 1;
  static constexpr int kColumns = Tile<Compute>::kColumns;
  static constexpr bool kChecked = false;
  struct Scope {
    Scope() {}
  };
  struct Values {
    explicit Values(const MaxsimCodes&) {}
  };

  static bool in_place(int64_t) { return sizeof(Document) == sizeof(Compute); }
  static int64_t panel_bytes(int64_t dimensions) {
    return dimensions * kColumns * static_cast<int64_t>(sizeof(Compute));
  }
  static int64_t row_pitch(int64_t dimensions) { return round_to(dimensions, Simd<Compute>::kLanes); }

  static PackedToken put(void* panel, int64_t dimensions, int64_t column, const Compute* row, double scale) {
    Compute* const to = static_cast<Compute*>(panel) + column;
    for (int64_t k = 0; k < dimensions; k++) to[k * kColumns] = static_cast<Compute>(row[k] * scale);
    return {1, 1};
  }

  static void copy(const Document* row, int64_t dimensions, double scale, Row* to) {
    if (scale != 1) {
      for (int64_t k = 0; k < dimensions; k++) to[k] = static_cast<Compute>(widen(row[k]) * scale);
      return;
    }
    constexpr int kLanes = Simd<Compute>::kLanes;
    int64_t k = 0;
    for (; k + kLanes <= dimensions; k += kLanes) {
      prefetch(reinterpret_cast<const char*>(row + k) + kBytesAhead);
      store<Compute>(to + k, load_widened(row + k));
    }
    for (; k < dimensions; k++) to[k] = static_cast<Compute>(widen(row[k]));
  }

  static void multiply(const Operands<Row>& o, Compute* out) {
    constexpr int64_t kDepth = Tile<Compute>::kDepth;
    const Compute* const b = static_cast<const Compute*>(o.panel);
    for (int64_t k = 0; k < o.dimensions; k += kDepth)
      multiply_some_tokens<ValueStep<Compute>>(o.height, o.rows + k, o.stride, b + k * kColumns,
                                               least(kDepth, o.dimensions - k), k > 0, out);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
