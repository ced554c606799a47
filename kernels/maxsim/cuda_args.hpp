// What MaxSim on a device asks of its kernels: raw device pointers and sizes. Formulas: README.md beside this file.
#pragma once

#include <cstdint>

namespace simtile::cuda {

enum class MaxsimKind { float32, float16, bfloat16 };  // of rows

// Matrices of tokens as runs of the rows of one matrix.
struct MaxsimRuns {
  MaxsimKind kind;
  const void* data;
  int64_t stride;         // bytes from one row to the next
  int64_t count;          // of matrices
  const int64_t* starts;  // [count] the first row, and the one after the last
  const int64_t* ends;
  const uint8_t* mask;  // of every row: 0 is no token; or null: all are
};

struct MaxsimArgs {
  MaxsimRuns queries;  // Q
  MaxsimRuns documents;
  int64_t dimensions;     // D, at least 1
  int64_t longest_query;  // no run of queries has more rows: all that the host must know of their lengths

  bool normalize;         // rows are divided by their lengths
  bool pad_zero_rows;     // rows of zeros are no tokens
  bool length_normalize;  // scores are divided by the number of the query's tokens
  float empty_score;      // of documents without tokens

  const int64_t* candidates;  // [Q, C] documents, below 0 none; or null: all of them
  int64_t candidate_count;    // C; without candidates the number of documents

  float* scores;  // [Q, C]
  // What each row of a query matched, or null. Row i of query q with candidate c stands at C * rows_before[q] + c * rows of q + i.
  int32_t* argmax;             // the row of the document from its start, -1 for none
  float* token_scores;         // the similarity to it, 0 for none
  const int64_t* rows_before;  // [Q] of the queries before; needed with argmax or token_scores

  // Of the workspace, for the maxima of documents that are scored by one launch; where they do not fit, there are more launches.
  int64_t most_maxima_bytes = int64_t(64) << 20;
};

}  // namespace simtile::cuda
