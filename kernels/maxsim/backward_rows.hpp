// What both backward passes of MaxSim know of their rows: gradients that start as zeros, who meets whom, lengths and what they do.
#pragma once

#include "maxsim/tokens.hpp"
#include "tile/pieces.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// A coefficient times 1/length of the row that it multiplies, as two factors: that of a huge row alone may be too small for a float.
struct Scaling {
  double exact = 1;  // a power of two; the row is multiplied by it first
  double factor;

  Scaling(double coefficient, const double* inverse) : factor(coefficient) {
    if (!inverse) return;
    if (*inverse < 0x1p-40) exact = 0x1p-64;
    factor = coefficient * (*inverse / exact);
  }
};

// to += row * scaling
template <typename Compute, typename Source>
SIMTILE_INLINE void add_scaled(const Source* row, int64_t columns, const Scaling& scaling, Compute* to) {
  constexpr int kLanes = Simd<Compute>::kLanes;
  const Compute exact = static_cast<Compute>(scaling.exact), factor = static_cast<Compute>(scaling.factor);
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes)
    store<Compute>(to + k, load<Compute>(to + k) + load_widened(row + k) * exact * factor);
  for (; k < columns; k++) to[k] += static_cast<Compute>(widen(row[k])) * exact * factor;
}

// The gradient by a row from that by the row divided by its length: what is orthogonal to the row, over the length.
template <typename Compute, typename Source>
void through_norm(const Source* row, double inverse, int64_t columns, Compute* grad) {
  constexpr int kSums = 8;
  double along = 0;
  if (inverse < 1 / kSmallestNorm || inverse != inverse) {  // otherwise the row was divided by a constant
    double sums[kSums] = {};
    int64_t k = 0;
    for (; k + kSums <= columns; k += kSums)
      for (int i = 0; i < kSums; i++)
        sums[i] += static_cast<double>(widen(row[k + i])) * inverse * static_cast<double>(grad[k + i]);
    for (; k < columns; k++) along += static_cast<double>(widen(row[k])) * inverse * static_cast<double>(grad[k]);
    for (int i = 0; i < kSums; i++) along += sums[i];
    for (k = 0; k < columns; k++) {
      const double direction = static_cast<double>(widen(row[k])) * inverse;
      grad[k] = static_cast<Compute>((static_cast<double>(grad[k]) - along * direction) * inverse);
    }
    return;
  }
  for (int64_t k = 0; k < columns; k++) grad[k] = static_cast<Compute>(static_cast<double>(grad[k]) * inverse);
}

template <typename Compute, typename Document>
struct BackwardRows {
  const MaxsimBackwardArgs& args;
  int64_t* rows_before;      // [Q] rows of the queries before
  int64_t* query_tokens;     // [Q]
  int64_t* pair_start;       // [N + 2] with candidates: where a document's pairs start
  int64_t* pairs;            // [Q * C] q * C + c of each document in ascending order
  double* query_inverse;     // [rows] 1/length; or null without normalize
  double* document_inverse;  // [rows]

  explicit BackwardRows(const MaxsimBackwardArgs& given) : args(given) {}

  void lay_out(Pieces& pieces) {
    const int64_t queries = args.queries.count;
    rows_before = pieces.take<int64_t>(queries);
    query_tokens = pieces.take<int64_t>(queries);
    pair_start = pieces.take<int64_t>(args.candidates ? args.documents.count + 2 : 0);
    pairs = pieces.take<int64_t>(args.candidates ? queries * args.candidate_count : 0);
    query_inverse = document_inverse = nullptr;
    if (!args.normalize) return;
    query_inverse = pieces.take<double>(args.query_rows);
    document_inverse = pieces.take<double>(args.document_rows);
  }

  TokenRows<Compute> query_tokens_of() const { return {args.queries, args.dimensions, args.pad_zero_rows}; }
  TokenRows<Document> document_tokens_of() const { return {args.documents, args.dimensions, args.pad_zero_rows}; }
  const Compute* query_row(int64_t r) const { return query_tokens_of().row(r); }
  const Document* document_row(int64_t r) const { return document_tokens_of().row(r); }
  Compute* grad_queries() const { return static_cast<Compute*>(args.grad_queries); }
  Compute* grad_documents() const { return static_cast<Compute*>(args.grad_documents); }
  Compute* grad_query(int64_t r) const { return grad_queries() + r * args.dimensions; }
  Compute* grad_document(int64_t r) const { return grad_documents() + r * args.dimensions; }

  int64_t candidate(int64_t query, int64_t c) const {
    return args.candidates ? args.candidates[query * args.candidate_count + c] : c;
  }
  // Of a pair's tokens in argmax and token_scores.
  int64_t first_token(int64_t query, int64_t c) const {
    return args.candidate_count * rows_before[query] + c * (args.queries.ends[query] - args.queries.starts[query]);
  }
  // The gradient of each of a pair's maxima.
  double weight(int64_t query, int64_t c) const {
    const double grad = static_cast<const Compute*>(args.grad_scores)[query * args.candidate_count + c];
    return args.length_normalize ? grad / static_cast<double>(most<int64_t>(query_tokens[query], 1)) : grad;
  }
  int64_t pairs_of(int64_t document) const {
    return args.candidates ? pair_start[document + 1] - pair_start[document] : args.queries.count;
  }
  void pair(int64_t document, int64_t p, int64_t* query, int64_t* c) const {
    const int64_t at = args.candidates ? pairs[pair_start[document] + p] : p * args.candidate_count + document;
    *query = at / args.candidate_count;
    *c = at % args.candidate_count;
  }

  void sort_pairs() {
    const int64_t documents = args.documents.count, count = args.queries.count * args.candidate_count;
    // Counted two places further on: after the pairs are placed, each start stands where it belongs.
    for (int64_t n = 0; n < documents + 2; n++) pair_start[n] = 0;
    for (int64_t i = 0; i < count; i++)
      if (args.candidates[i] >= 0) pair_start[args.candidates[i] + 2]++;
    for (int64_t n = 2; n < documents + 2; n++) pair_start[n] += pair_start[n - 1];
    for (int64_t i = 0; i < count; i++)
      if (args.candidates[i] >= 0) pairs[pair_start[args.candidates[i] + 1]++] = i;
  }

  // Zeros, also between the runs; lengths of tokens.
  template <typename Source>
  static void start_side(const TokenRows<Source>& rows, int64_t matrix, int64_t matrix_rows, Compute* grad,
                         double* inverse) {
    const MaxsimSide& side = rows.side;
    const int64_t first = matrix == 0 ? 0 : side.ends[matrix - 1];
    const int64_t end = matrix + 1 == side.count ? matrix_rows : side.ends[matrix];
    if (grad)
      __builtin_memset(grad + first * rows.dimensions, 0,
                       static_cast<size_t>((end - first) * rows.dimensions) * sizeof(Compute));
    for (int64_t r = side.starts[matrix]; inverse && r < side.ends[matrix]; r++)
      if (rows.is_there(r)) inverse[r] = inverse_norm(squared_norm<Compute>(rows.row(r), rows.dimensions));
  }

  template <typename Source>
  static void finish_side(const TokenRows<Source>& rows, int64_t matrix, Compute* grad, const double* inverse) {
    for (int64_t r = rows.side.starts[matrix]; grad && r < rows.side.ends[matrix]; r++)
      if (rows.is_there(r)) through_norm(rows.row(r), inverse[r], rows.dimensions, grad + r * rows.dimensions);
  }

  static void start_task(void* context, int64_t task, int) {
    const BackwardRows& self = *static_cast<BackwardRows*>(context);
    const MaxsimBackwardArgs& args = self.args;
    const int64_t document = task - args.queries.count;
    if (document < 0)
      start_side(self.query_tokens_of(), task, args.query_rows, self.grad_queries(), self.query_inverse);
    else
      start_side(self.document_tokens_of(), document, args.document_rows, self.grad_documents(), self.document_inverse);
  }

  static void finish_task(void* context, int64_t task, int) {
    const BackwardRows& self = *static_cast<BackwardRows*>(context);
    const int64_t document = task - self.args.queries.count;
    if (document < 0)
      finish_side(self.query_tokens_of(), task, self.grad_queries(), self.query_inverse);
    else
      finish_side(self.document_tokens_of(), document, self.grad_documents(), self.document_inverse);
  }

  void prepare(const Executor& executor) {
    const int64_t row_bytes = args.dimensions * static_cast<int64_t>(sizeof(Compute));
    if (args.queries.count == 0 && args.grad_queries)
      __builtin_memset(args.grad_queries, 0, static_cast<size_t>(args.query_rows * row_bytes));
    if (args.documents.count == 0 && args.grad_documents)
      __builtin_memset(args.grad_documents, 0, static_cast<size_t>(args.document_rows * row_bytes));
    const TokenRows<Compute> rows = query_tokens_of();
    int64_t before = 0;
    for (int64_t q = 0; q < args.queries.count; q++) {
      rows_before[q] = before;
      before += args.queries.ends[q] - args.queries.starts[q];
      query_tokens[q] = 0;
      for (int64_t r = args.queries.starts[q]; r < args.queries.ends[q]; r++) query_tokens[q] += rows.is_there(r);
    }
    if (args.candidates) sort_pairs();
    executor.run(args.queries.count + args.documents.count, start_task, this);
  }

  void through_norms(const Executor& executor) {
    if (args.normalize) executor.run(args.queries.count + args.documents.count, finish_task, this);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
