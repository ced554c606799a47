// What info_nce asks of a kernel: raw pointers and sizes. Formula, shapes and error bound: README.md beside this file.
#pragma once

#include <cstdint>

#include "tile/parallel.hpp"

namespace simtile {

enum class Element { float32, float64, bfloat16, float16 };

// What is compared with what; a set of them is a sum. The anchor of doc_* is the query's document: document i of query i.
enum Direction : unsigned { query_to_doc = 1, query_to_query = 2, doc_to_query = 4, doc_to_doc = 8 };

// Whose candidates hard negatives are: of every anchor but their own query's document, of every query, of their own query.
enum class Scope { all, queries, own };

struct InfoNceArgs {
  Element element;  // of queries, documents and negatives

  int64_t rows;        // N
  int64_t documents;   // M
  int64_t negatives;   // K, per query; 0 without
  int64_t dimensions;  // D
  const void* queries_data;
  const void* documents_data;
  const void* negatives_data;  // [N * K, D]
  int64_t queries_stride;      // elements from one row to the next
  int64_t documents_stride;
  int64_t negatives_stride;

  double temperature;
  bool normalize;
  unsigned directions;  // of Direction; every log-sum-exp has the positive among its candidates
  bool per_direction;   // a log-sum-exp for each direction, and the mean of the losses; else one for all
  Scope scope;
  const int64_t* targets;       // [N], or null: row i's positive is document i; only for directions from queries
  const int64_t* query_ids;     // [N], with document_ids [M]; or both null
  const int64_t* document_ids;  // equal ids are never each other's negatives
  double
      harden_others;  // in query_to_doc: times the similarity, added to the logits of others' documents and negatives
  double harden_own;  // and of the row's own hard negatives; both at least 0
  bool has_margin;    // candidates more similar than the positive less `margin` are left out
  double margin;      // a similarity
  // Candidates whose cosine with the anchor exceeds the positive's less guide_margin (times its size if relative) are left out, by
  // the vectors of another model. Null without; of the same element type.
  const void* guide_queries;
  const void* guide_documents;
  const void* guide_negatives;
  int64_t guide_queries_stride;
  int64_t guide_documents_stride;
  int64_t guide_negatives_stride;
  int64_t guide_dimensions;
  double guide_margin;
  bool guide_relative;
  // Matryoshka: losses are sum_k shares[k] * those of the first widths[k] dimensions alone. Ascending, the last is D; at least two, or null.
  // Without hardness, margin, guide and the scope `own`.
  const int64_t* widths;
  const double* shares;
  int64_t width_count;
  double weight;              // of every row in the gradients
  const double* row_weights;  // [N], times `weight`; or null

  // Outputs; gradients are float, or double when element is float64; null where not wanted.
  double* losses;  // [N]
  void* grad_queries;
  void* grad_documents;
  void* grad_negatives;
  double* grad_temperature;  // one value
  double* statistics;        // [tally_size], or null

  // always_inline: at -O0 it would otherwise be a weak symbol of every ISA level.
  [[gnu::always_inline]] bool wants_gradients() const { return grad_queries || grad_documents || grad_negatives; }
  [[gnu::always_inline]] bool has(Direction direction) const { return (directions & direction) != 0; }
};

// What `statistics` holds: sums, so that those of several runs can be added up. Similarities are those of the vectors, without temperature and
// hardness, with Matryoshka of the widest prefix. Of a negative in two directions there are two.
enum Tally {
  pairs,                // N
  positive_similarity,  // of the pairs
  negative_similarity,  // of the negatives in the loss
  negatives_kept,       // how many those are
  negatives_there,      // with those that ids, the guide or the margin leave out
  pairs_ahead,          // more similar than each of their negatives, those that only the margin leaves out among them
  pairs_compared,       // N for each log-sum-exp
  tally_size
};

// One element type's entry points at one ISA level. The caller allocates workspace_bytes(args, threads) bytes, aligned to 64.
struct InfoNceVariant {
  int64_t (*workspace_bytes)(const InfoNceArgs&, int threads);
  void (*run)(const InfoNceArgs&, const Executor&, void* workspace);
  const char* arithmetic;  // what multiplies: "float32", "float64", "bf16", "amx_bf16", "amx_bf16x3"
};

struct InfoNceKernel {
  InfoNceVariant by_element[4];
};

}  // namespace simtile
