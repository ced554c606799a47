// Gradients of the smooth maximum: each token takes part by its share P = exp((similarity - smooth) / temperature). Similarities are
// computed again, a tile in L1 at a time, once for the rows of queries and once for those of documents; two more products spread the
// gradients: dQ += Pᵀ D, dD += P Q.
#pragma once

#include "maxsim/backward_rows.hpp"
#include "tile/f32.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int64_t kSmoothTokens = 96;  // of a document at a time

// As multiply() with a full tile, for any number of rows up to that.
template <typename T, int rows = Tile<T>::kRows>
SIMTILE_INLINE void multiply_some(int64_t count, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t depth,
                                  bool accumulate, T* out) {
  if constexpr (rows > 1) {
    if (count < rows) return multiply_some<T, rows - 1>(count, a, a_row, a_k, b, depth, accumulate, out);
  }
  multiply<rows, ValueStep<T>>(a, a_row, a_k, b, depth, accumulate, out);
}

// out[count][kColumns] (+)= A B, for any count.
template <typename T>
void multiply_all(int64_t count, const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t depth, bool accumulate,
                  T* out) {
  constexpr int kRows = Tile<T>::kRows;
  for (int64_t i = 0; i < count; i += kRows)
    multiply_some<T>(least<int64_t>(kRows, count - i), a + i * a_row, a_row, a_k, b, depth, accumulate,
                     out + i * Tile<T>::kColumns);
}

template <typename Compute, typename Document>
struct SmoothBackward {
  static constexpr int kColumns = Tile<Compute>::kColumns;

  BackwardRows<Compute, Document> rows;
  int threads;
  int64_t slices;  // of kColumns dimensions

  // Every query has panels of its own.
  int64_t panels = 0;
  int64_t* panel_query;    // [panels]
  int64_t* first_panel;    // [Q + 1]
  int32_t* panel_row;      // [panels][kColumns] of its query, from the start; -1 past its tokens
  Compute* query_columns;  // [panels][D][kColumns tokens]
  Compute* query_slices;   // [panels][slices][kColumns tokens][kColumns dimensions]
  int64_t* first_block;    // [N + 1] of kSmoothTokens rows of a document

  struct Scratch {
    int32_t* index;     // [kSmoothTokens] from the document's start
    Compute* tokens;    // [kSmoothTokens][slices * kColumns]
    Compute* sliced;    // [slices][kSmoothTokens][kColumns]
    Compute* shares;    // [kSmoothTokens][kColumns]
    Compute* gradient;  // [slices][kSmoothTokens or kColumns tokens][kColumns]
  };
  char* scratch_start;
  int64_t scratch_bytes;

  SmoothBackward(const MaxsimBackwardArgs& args, int workers)
      : rows(args), threads(workers), slices((args.dimensions + kColumns - 1) / kColumns) {}

  Scratch scratch_at(Pieces& pieces) const {
    const int64_t width = slices * kColumns;
    Scratch s;
    s.index = pieces.take<int32_t>(kSmoothTokens);
    s.tokens = pieces.take<Compute>(kSmoothTokens * width);
    s.sliced = pieces.take<Compute>(kSmoothTokens * width);
    s.shares = pieces.take<Compute>(kSmoothTokens * kColumns);
    s.gradient = pieces.take<Compute>(most<int64_t>(kSmoothTokens, kColumns) * width);
    return s;
  }
  Scratch scratch_of(int worker) const {
    Pieces pieces(scratch_start + worker * scratch_bytes);
    return scratch_at(pieces);
  }

  int64_t lay_out(void* memory) {
    const MaxsimBackwardArgs& args = rows.args;
    Pieces pieces(memory);
    rows.lay_out(pieces);
    int64_t most_panels = 0;
    for (int64_t q = 0; q < args.queries.count; q++)
      most_panels += (args.queries.ends[q] - args.queries.starts[q] + kColumns - 1) / kColumns;
    panel_query = pieces.take<int64_t>(most_panels);
    first_panel = pieces.take<int64_t>(args.queries.count + 1);
    panel_row = pieces.take<int32_t>(most_panels * kColumns);
    query_columns = pieces.take<Compute>(most_panels * args.dimensions * kColumns);
    query_slices = pieces.take<Compute>(most_panels * slices * kColumns * kColumns);
    first_block = pieces.take<int64_t>(args.documents.count + 1);
    Pieces sizes(nullptr);
    scratch_at(sizes);
    scratch_bytes = sizes.used();
    scratch_start = pieces.take<char>(threads * scratch_bytes);
    return pieces.used();
  }

  void plan() {
    const MaxsimBackwardArgs& args = rows.args;
    const TokenRows<Compute> tokens = rows.query_tokens_of();
    for (int64_t q = 0; q < args.queries.count; q++) {
      first_panel[q] = panels;
      int64_t column = 0;
      for (int64_t r = args.queries.starts[q]; r < args.queries.ends[q]; r++) {
        if (!tokens.is_there(r)) continue;
        if (column % kColumns == 0) {
          panel_query[panels++] = q;
          for (int c = 0; c < kColumns; c++) panel_row[(panels - 1) * kColumns + c] = -1;
        }
        panel_row[(panels - 1) * kColumns + column++ % kColumns] = static_cast<int32_t>(r - args.queries.starts[q]);
      }
    }
    first_panel[args.queries.count] = panels;
    first_block[0] = 0;
    for (int64_t n = 0; n < args.documents.count; n++)
      first_block[n + 1] =
          first_block[n] + (args.documents.ends[n] - args.documents.starts[n] + kSmoothTokens - 1) / kSmoothTokens;
  }

  int64_t tokens_of_panel(int64_t panel) const {
    int64_t count = 0;
    while (count < kColumns && panel_row[panel * kColumns + count] >= 0) count++;
    return count;
  }

  void pack(int64_t panel) {
    const int64_t dimensions = rows.args.dimensions, start = rows.args.queries.starts[panel_query[panel]];
    Compute* const columns = query_columns + panel * dimensions * kColumns;
    Compute* const sliced = query_slices + panel * slices * kColumns * kColumns;
    __builtin_memset(columns, 0, static_cast<size_t>(dimensions * kColumns) * sizeof(Compute));
    __builtin_memset(sliced, 0, static_cast<size_t>(slices * kColumns * kColumns) * sizeof(Compute));
    for (int64_t t = 0; t < tokens_of_panel(panel); t++) {
      const int64_t row = start + panel_row[panel * kColumns + t];
      const Compute* const from = rows.query_row(row);
      const double scale = rows.query_inverse ? rows.query_inverse[row] : 1;
      for (int64_t k = 0; k < dimensions; k++) {
        const Compute x = static_cast<Compute>(from[k] * scale);
        columns[k * kColumns + t] = x;
        sliced[(k / kColumns * kColumns + t) * kColumns + k % kColumns] = x;
      }
    }
  }

  // The tokens of a block of a document's rows, as they are scored. Returns how many.
  int64_t copy_block(int64_t document, int64_t block, bool with_slices, const Scratch& s) {
    const MaxsimBackwardArgs& args = rows.args;
    const TokenRows<Document> tokens = rows.document_tokens_of();
    const int64_t start = args.documents.starts[document], width = slices * kColumns;
    const int64_t first = start + block * kSmoothTokens,
                  end = least(first + kSmoothTokens, args.documents.ends[document]);
    int64_t count = 0;
    for (int64_t r = first; r < end; r++) {
      if (!tokens.is_there(r)) continue;
      const Document* const from = tokens.row(r);
      const double scale = rows.document_inverse ? rows.document_inverse[r] : 1;
      Compute* const to = s.tokens + count * width;
      for (int64_t k = 0; k < args.dimensions; k++) to[k] = static_cast<Compute>(widen(from[k]) * scale);
      for (int64_t k = args.dimensions; k < width; k++) to[k] = 0;
      for (int64_t slice = 0; with_slices && slice < slices; slice++)
        __builtin_memcpy(s.sliced + (slice * kSmoothTokens + count) * kColumns, to + slice * kColumns,
                         kColumns * sizeof(Compute));
      s.index[count++] = static_cast<int32_t>(r - start);
    }
    return count;
  }

  // shares[count][kColumns] of a pair's gradient, 0 in columns past the tokens.
  void set_shares(int64_t panel, int64_t candidate, int64_t count, const Scratch& s) {
    typedef Vector<Compute> V;
    constexpr int kLanes = Simd<Compute>::kLanes;
    constexpr int64_t kDepth = Tile<Compute>::kDepth;
    const MaxsimBackwardArgs& args = rows.args;
    const int64_t query = panel_query[panel], width = slices * kColumns;
    const Compute* const b = query_columns + panel * args.dimensions * kColumns;
    for (int64_t k = 0; k < args.dimensions; k += kDepth)
      multiply_all<Compute>(count, s.tokens + k, width, 1, b + k * kColumns, least(kDepth, args.dimensions - k), k > 0,
                            s.shares);
    const Compute* const smooth = static_cast<const Compute*>(args.token_scores) + rows.first_token(query, candidate);
    const Compute weight = static_cast<Compute>(rows.weight(query, candidate));
    const Compute inverse_temperature = static_cast<Compute>(1 / args.temperature);
    Compute of_column[kColumns], weights[kColumns];
    for (int c = 0; c < kColumns; c++) {
      const int32_t row = panel_row[panel * kColumns + c];
      of_column[c] = row < 0 ? static_cast<Compute>(__builtin_inf()) : smooth[row];
      weights[c] = row < 0 ? 0 : weight;
    }
    for (int64_t i = 0; i < count; i++) {
      for (int v = 0; v < kColumns; v += kLanes) {
        Compute* const p = s.shares + i * kColumns + v;
        const V below = load<Compute>(p) - load<Compute>(of_column + v);
        // No share is above 1, whatever was rounded.
        const V share = exp_nonpositive(below >= 0 ? V{} : below * inverse_temperature);
        store<Compute>(p, share * load<Compute>(weights + v));
      }
    }
  }

  void add_to_queries(int64_t panel, int worker) {
    const MaxsimBackwardArgs& args = rows.args;
    const Scratch s = scratch_of(worker);
    const int64_t query = panel_query[panel], tokens = tokens_of_panel(panel), dimensions = args.dimensions;
    __builtin_memset(s.gradient, 0, static_cast<size_t>(slices * kColumns * kColumns) * sizeof(Compute));
    for (int64_t c = 0; c < args.candidate_count; c++) {
      const int64_t document = rows.candidate(query, c);
      if (document < 0) continue;
      for (int64_t block = 0; block < first_block[document + 1] - first_block[document]; block++) {
        const int64_t count = copy_block(document, block, true, s);
        set_shares(panel, c, count, s);
        for (int64_t slice = 0; slice < slices; slice++)
          multiply_all<Compute>(tokens, s.shares, 1, kColumns, s.sliced + slice * kSmoothTokens * kColumns, count, true,
                                s.gradient + slice * kColumns * kColumns);
      }
    }
    for (int64_t t = 0; t < tokens; t++) {
      Compute* const to = rows.grad_query(args.queries.starts[query] + panel_row[panel * kColumns + t]);
      for (int64_t k = 0; k < dimensions; k++)
        to[k] = s.gradient[(k / kColumns * kColumns + t) * kColumns + k % kColumns];
    }
  }

  void add_to_document(int64_t document, int64_t block, int worker) {
    const MaxsimBackwardArgs& args = rows.args;
    const Scratch s = scratch_of(worker);
    const int64_t count = copy_block(document, block, false, s);
    __builtin_memset(s.gradient, 0, static_cast<size_t>(slices * kSmoothTokens * kColumns) * sizeof(Compute));
    for (int64_t p = 0; p < rows.pairs_of(document); p++) {
      int64_t query, c;
      rows.pair(document, p, &query, &c);
      for (int64_t panel = first_panel[query]; panel < first_panel[query + 1]; panel++) {
        set_shares(panel, c, count, s);
        const Compute* const b = query_slices + panel * slices * kColumns * kColumns;
        const int64_t tokens = tokens_of_panel(panel);
        for (int64_t slice = 0; slice < slices; slice++)
          multiply_all<Compute>(count, s.shares, kColumns, 1, b + slice * kColumns * kColumns, tokens, true,
                                s.gradient + slice * kSmoothTokens * kColumns);
      }
    }
    for (int64_t i = 0; i < count; i++) {
      Compute* const to = rows.grad_document(args.documents.starts[document] + s.index[i]);
      for (int64_t k = 0; k < args.dimensions; k++)
        to[k] = s.gradient[(k / kColumns * kSmoothTokens + i) * kColumns + k % kColumns];
    }
  }

  static void pack_task(void* context, int64_t task, int) { static_cast<SmoothBackward*>(context)->pack(task); }

  static void query_task(void* context, int64_t task, int worker) {
    static_cast<SmoothBackward*>(context)->add_to_queries(task, worker);
  }

  static void document_task(void* context, int64_t task, int worker) {
    SmoothBackward& self = *static_cast<SmoothBackward*>(context);
    int64_t document = 0, end = self.rows.args.documents.count;  // the last whose first block is not past the task's
    while (end - document > 1) {
      const int64_t middle = document + (end - document) / 2;
      (self.first_block[middle] <= task ? document : end) = middle;
    }
    self.add_to_document(document, task - self.first_block[document], worker);
  }

  static int64_t workspace_bytes(const MaxsimBackwardArgs& args, int threads) {
    return SmoothBackward(args, threads).lay_out(nullptr);
  }

  static void run(const MaxsimBackwardArgs& args, const Executor& executor, void* workspace) {
    SmoothBackward self(args, executor.threads);
    self.lay_out(workspace);
    self.rows.prepare(executor);
    self.plan();
    executor.run(self.panels, pack_task, &self);
    if (args.grad_queries) executor.run(self.panels, query_task, &self);
    if (args.grad_documents) executor.run(self.first_block[args.documents.count], document_task, &self);
    self.rows.through_norms(executor);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
