// What MaxSim asks of the CPU's kernels: raw pointers and sizes. Formulas: README.md beside this file.
#pragma once

#include <cstdint>

#include "info_nce/args.hpp"
#include "tile/parallel.hpp"

namespace simtile {

// Matrices of tokens as runs of the rows of one matrix, or of one matrix each.
struct MaxsimSide {
  const void* data;
  const void* const* matrices;  // [count] instead of `data`, or null; only documents that are scored, without a mask
  int64_t stride;               // bytes from one row to the next
  int64_t count;                // of matrices
  const int64_t* starts;        // [count] the first row, and the one after the last
  const int64_t* ends;
  const uint8_t* mask;  // of every row: 0 is no token; or null: all are
};

// Tokens of documents as codes. Rows of `queries` are then int16, the whole numbers that queries were rounded to, and a similarity is
//   unit · ((weight · dot + centroid's product) · factor), or without centroids unit · ((dot + addend) · factor)
// where dot is an exact whole number and everything else float32, rounded after each operation; a centroid's product is a
// sum in order, and the dot with a residual 256 high + low of the exact products with its values' two bytes.
enum class MaxsimKind { int8, uint8, bits, residual1, residual2, residual4 };

struct MaxsimCodes {
  MaxsimKind kind;
  const float* factors;  // [rows of documents], or null: 1
  const float* units;    // [rows of queries]
  const float* terms;    // [rows of queries] addends, or weights with residuals
  // Residuals.
  const int32_t* centroids;  // [rows of documents]
  int64_t centroid_count;
  const float* centroid_rows;  // [centroids][D]
  const float* query_values;   // [rows of queries][D] what centroids are multiplied with
  const int16_t* weights;      // [2^bits] of the value of a residual, up to 2^15 - 129 in magnitude
};

struct MaxsimArgs {
  Element element;     // of the documents; queries are float64 with float64 documents, otherwise float32
  MaxsimSide queries;  // Q
  MaxsimSide documents;
  int64_t dimensions;  // D, at least 1
  int64_t query_rows;  // of the matrix that queries are runs of

  bool normalize;         // rows are divided by their lengths
  bool pad_zero_rows;     // rows of zeros are no tokens
  bool length_normalize;  // scores are divided by the number of the query's tokens
  double empty_score;     // of documents without tokens
  double temperature;     // t log Σ exp(x / t) instead of the maximum; 0: the maximum

  MaxsimCodes codes;  // only of codes

  const int64_t* candidates;  // [Q, C] documents; or null: all of them
  int64_t candidate_count;    // C; without candidates the number of documents

  // In the type of the queries.
  void* scores;  // [Q, C]
  // What each row of a query matched, or null. Row i of query q with candidate c stands at C * rows before q + c * rows of q + i.
  int32_t* argmax;     // the row of the document from its start, -1 for none
  void* token_scores;  // the similarity to it, or with a temperature what takes the maximum's place; 0 for none
};

struct MaxsimVariant {
  int64_t (*workspace_bytes)(const MaxsimArgs&, int threads);
  void (*run)(const MaxsimArgs&, const Executor&, void* workspace);
};

struct MaxsimTopkArgs;  // topk_args.hpp

struct MaxsimTopkVariant {
  int64_t (*workspace_bytes)(const MaxsimTopkArgs&, int threads);
  void (*run)(const MaxsimTopkArgs&, const Executor&, void* workspace);
};

struct MaxsimKernel {
  MaxsimVariant by_element[4];
  MaxsimTopkVariant topk_by_element[4];  // null for float64
};

struct MaxsimCodesKernel {
  MaxsimVariant by_kind[6];
};

// Gradients of Σ grad_scores · scores. No row belongs to two runs.
struct MaxsimBackwardArgs {
  Element element;  // as in MaxsimArgs, and so on
  MaxsimSide queries;
  MaxsimSide documents;
  int64_t query_rows;  // of the matrix, in runs or not
  int64_t document_rows;
  int64_t dimensions;

  bool normalize;
  bool pad_zero_rows;
  bool length_normalize;
  double temperature;

  const int64_t* candidates;
  int64_t candidate_count;

  // In the type of the queries, like the gradients.
  const void* grad_scores;  // [Q, C]
  // What maxsim wrote.
  const int32_t* argmax;
  const void* token_scores;  // needed with a temperature

  // [rows, D], rows that are no tokens get zeros; or null.
  void* grad_queries;
  void* grad_documents;
};

struct MaxsimBackwardVariant {
  int64_t (*workspace_bytes)(const MaxsimBackwardArgs&, int threads);
  void (*run)(const MaxsimBackwardArgs&, const Executor&, void* workspace);
};

struct MaxsimBackwardKernel {
  MaxsimBackwardVariant by_element[4];
};

}  // namespace simtile
