// Gradients of MaxSim on the CPU. A maximum passes its gradient to the token that argmax names: rows are gathered and added, so this is
// a small part of the scores' work. The smooth maximum (backward_smooth.hpp) computes similarities again.
//
// A task owns the rows that it writes, of queries or of documents, and adds in order: no atomics, the same bits on any number of threads.
#pragma once

#include "maxsim/backward_smooth.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Compute, typename Document>
struct MaxsimBackward {
  static constexpr int64_t kQueryRows = 8;  // of a task
  static constexpr int64_t kPartColumns = 64;
  static constexpr int64_t kTasksPerThread = 4;

  typedef BackwardRows<Compute, Document> Rows;
  Rows rows;
  int threads;
  int64_t row_blocks = 0;  // of the longest query
  int64_t parts = 1;       // of the columns, where there are few documents
  int64_t part_columns = 0;

  MaxsimBackward(const MaxsimBackwardArgs& args, int workers) : rows(args), threads(workers) {}

  void plan() {
    const MaxsimBackwardArgs& args = rows.args;
    for (int64_t q = 0; q < args.queries.count; q++)
      row_blocks = most(row_blocks, (args.queries.ends[q] - args.queries.starts[q] + kQueryRows - 1) / kQueryRows);
    const int64_t wanted = threads * kTasksPerThread / most<int64_t>(args.documents.count, 1);
    parts = most<int64_t>(least(wanted, args.dimensions / kPartColumns), 1);
    part_columns = round_to((args.dimensions + parts - 1) / parts, Simd<Compute>::kLanes);
  }

  void add_to_query(int64_t query, int64_t block) {
    const MaxsimBackwardArgs& args = rows.args;
    const int64_t start = args.queries.starts[query], span = args.queries.ends[query] - start;
    const int64_t first = block * kQueryRows, end = least(first + kQueryRows, span);
    for (int64_t c = 0; c < args.candidate_count && first < end; c++) {
      const int64_t document = rows.candidate(query, c);
      if (document < 0) continue;
      const int32_t* const argmax = args.argmax + rows.first_token(query, c);
      const double weight = rows.weight(query, c);
      for (int64_t i = first; i < end; i++) {
        if (argmax[i] < 0) continue;
        const int64_t row = args.documents.starts[document] + argmax[i];
        const Scaling scaling(weight, rows.document_inverse ? rows.document_inverse + row : nullptr);
        add_scaled(rows.document_row(row), args.dimensions, scaling, rows.grad_query(start + i));
      }
    }
  }

  void add_to_document(int64_t document, int64_t part) {
    const MaxsimBackwardArgs& args = rows.args;
    const int64_t column = part * part_columns, columns = least(part_columns, args.dimensions - column);
    const int64_t start = args.documents.starts[document];
    for (int64_t p = 0; p < rows.pairs_of(document) && columns > 0; p++) {
      int64_t query, c;
      rows.pair(document, p, &query, &c);
      const int64_t first = args.queries.starts[query], span = args.queries.ends[query] - first;
      const int32_t* const argmax = args.argmax + rows.first_token(query, c);
      const double weight = rows.weight(query, c);
      for (int64_t i = 0; i < span; i++) {
        if (argmax[i] < 0) continue;
        const Scaling scaling(weight, rows.query_inverse ? rows.query_inverse + first + i : nullptr);
        add_scaled(rows.query_row(first + i) + column, columns, scaling,
                   rows.grad_document(start + argmax[i]) + column);
      }
    }
  }

  static void query_task(void* context, int64_t task, int) {
    MaxsimBackward& self = *static_cast<MaxsimBackward*>(context);
    self.add_to_query(task / self.row_blocks, task % self.row_blocks);
  }

  static void document_task(void* context, int64_t task, int) {
    MaxsimBackward& self = *static_cast<MaxsimBackward*>(context);
    self.add_to_document(task / self.parts, task % self.parts);
  }

  static int64_t workspace_bytes(const MaxsimBackwardArgs& args, int threads) {
    if (args.temperature > 0) return SmoothBackward<Compute, Document>::workspace_bytes(args, threads);
    Pieces pieces(nullptr);
    MaxsimBackward(args, threads).rows.lay_out(pieces);
    return pieces.used();
  }

  static void run(const MaxsimBackwardArgs& args, const Executor& executor, void* workspace) {
    if (args.temperature > 0) return SmoothBackward<Compute, Document>::run(args, executor, workspace);
    MaxsimBackward self(args, executor.threads);
    Pieces pieces(workspace);
    self.rows.lay_out(pieces);
    self.rows.prepare(executor);
    self.plan();
    if (args.grad_queries) executor.run(args.queries.count * self.row_blocks, query_task, &self);
    if (args.grad_documents) executor.run(args.documents.count * self.parts, document_task, &self);
    self.rows.through_norms(executor);
  }
};

template <typename Compute, typename Document>
constexpr MaxsimBackwardVariant maxsim_backward_variant = {MaxsimBackward<Compute, Document>::workspace_bytes,
                                                           MaxsimBackward<Compute, Document>::run};

constexpr MaxsimBackwardKernel maxsim_backward_kernel = {
    {maxsim_backward_variant<float, float>, maxsim_backward_variant<double, double>,
     maxsim_backward_variant<float, bf16>, maxsim_backward_variant<float, f16>}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
