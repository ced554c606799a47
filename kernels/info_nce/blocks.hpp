// The similarity matrix of a contrastive loss as blocks: some vectors as rows, a chunk of them at a time, times others as columns.
//
//   direction         rows                    columns
//   query_to_doc      queries                 documents; hard negatives, unless each row sees only its own
//   query_to_query    queries                 queries
//   doc_to_query      documents of queries    queries
//   doc_to_doc        documents of queries    documents; hard negatives, if they are everybody's
#pragma once

#include "info_nce/args.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

enum OperandName { kQueries, kDocuments, kNegatives, kOperands };

// Queries, documents or hard negatives.
template <typename Engine>
struct Operand {
  using T = typename Engine::Scalar;
  using Source = typename Engine::Source;

  const Source* data;
  int64_t stride;
  int64_t count;
  T* gradient;  // [count, D] or null
  const int64_t* ids;
  const Source* guide;
  int64_t guide_stride;

  bool is_row = false, is_column = false;  // in any block
  bool in_columns = false;                 // in a block of this group
  bool touched = false;                    // the gradient has values in every row
  int last_group = 0;                      // that it takes part in
  int64_t panels = 0;
  char* packed = nullptr;  // as columns; also `guide_packed`
  char* guide_packed = nullptr;
  // Per row, up to whole panels; `tile`, `unit` and what Matryoshka projects by for every width.
  T *pack = nullptr, *tile = nullptr, *unit = nullptr, *penalty = nullptr, *projection = nullptr;
  T *guide_pack = nullptr, *guide_tile = nullptr;

  const Source* row(int64_t i) const { return data + i * stride; }
  int64_t at(int k, int64_t i) const { return k * panels * Engine::kColumns + i; }
};

// Rows of the chunk: queries, or their documents.
template <typename Engine>
struct Side {
  using T = typename Engine::Scalar;

  int operand;
  bool present;
  char* packed;
  char* guide_packed;
  char* slices;  // for the gradient of columns
  T* scale;      // for every width
  T* guide_scale;
  T* coefficient;
  T* gradient;  // [chunk, D]: without the rows' scales
  int64_t* ids;
};

enum class Own { negative, positive, excluded };

struct Block {
  int side;
  int operand;
  Own own;        // what the columns of the row's own pair are
  bool hardened;  // of query_to_doc
  int64_t panels = 0;
  int64_t first_panel = 0;
  int64_t first_task = 0;
  int64_t tasks = 0;
};

constexpr int kMostBlocks = 6;

// The directions of one log-sum-exp. `both`: two of them, doc_to_query read off the columns of query_to_doc.
struct Group {
  unsigned directions;
  bool both;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
