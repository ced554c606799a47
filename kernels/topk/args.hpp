// What search asks of the CPU's kernels: raw pointers and sizes. Formulas, ties and rounding: README.md beside this file.
#pragma once

#include <cstdint>

#include "tile/parallel.hpp"

namespace simtile {

enum class TopkKind { float32, float64, float16, bfloat16, int8, uint8, int4, bits, packed };
constexpr int kTopkKinds = 9;

enum class TopkMetric { dot, cosine, l2, hamming };

// Queries, documents and everything that a pair's score depends on.
struct TopkProblem {
  TopkKind kind;  // of the documents
  TopkMetric metric;

  int64_t queries;     // Q
  int64_t documents;   // N, below 2^32 - 1
  int64_t dimensions;  // D; bits for `bits` and `packed`

  // [Q, D] float32 or, for float64 documents, float64; int8 codes with integer_queries; packed bytes for `packed`.
  const void* queries_data;
  const void* documents_data;
  int64_t queries_stride;  // bytes from one row to the next
  int64_t documents_stride;

  // Codes stand for codes * scale + offset.
  const float* scale;   // [D], or null: 1
  const float* offset;  // [D], or null: 0
  const float* factor;  // [N], or null: 1
  const float* addend;  // [N], or null: 0

  bool integer_queries;      // int8 codes times query_scale
  const float* query_scale;  // [Q], or null: 1
};

// Which documents a search may find, and how equal ones are ordered.
struct TopkFilter {
  const uint64_t* allow;  // bit i % 64 of word i / 64: document i; or null: all
  int64_t allow_stride;   // words from one query to the next; 0: one mask for all
  const uint32_t* rank;   // [N] a permutation: equal scores in its order, and ids hold it; or null: the row
};

struct TopkArgs {
  TopkProblem problem;
  TopkFilter filter;
  const int64_t* candidates;  // [Q, C] the rows that are scored, those below 0 are none; or null: all
  int64_t candidate_count;    // C
  int64_t k;                  // at least 1
  void* scores;               // [Q, k] float32; int32 for hamming
  int64_t* ids;               // [Q, k]
};

// A hit is `found(context, worker, query, key)`, see keys.hpp; it may throw.
struct TopkRangeArgs {
  TopkProblem problem;
  TopkFilter filter;
  float threshold;  // of hamming a whole number
  void (*found)(void* context, int worker, int64_t query, uint64_t key);
  void* context;
};

struct TopkScoreArgs {
  TopkProblem problem;
  const int64_t* candidates;  // [Q, C] rows; those below 0 get the worst score
  int64_t candidate_count;
  void* scores;  // [Q, C]
};

// ||x||^2, or with `inverse` 1 / ||x|| and 0 for zero rows, of what codes stand for.
struct TopkNormArgs {
  TopkProblem problem;  // without queries
  bool inverse;
  float* norms;  // [N]
};

struct TopkVariant {
  int64_t (*topk_workspace_bytes)(const TopkArgs&, int threads);
  void (*topk)(const TopkArgs&, const Executor&, void* workspace);
  int64_t (*range_workspace_bytes)(const TopkRangeArgs&, int threads);
  void (*range)(const TopkRangeArgs&, const Executor&, void* workspace);
  int64_t (*score_workspace_bytes)(const TopkScoreArgs&, int threads);
  void (*score)(const TopkScoreArgs&, const Executor&, void* workspace);
  void (*norms)(const TopkNormArgs&, const Executor&);  // null for floats and packed bits
};

struct TopkKernel {
  TopkVariant by_kind[kTopkKinds];
};

}  // namespace simtile
