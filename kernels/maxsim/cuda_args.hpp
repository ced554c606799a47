// What MaxSim on a device asks of its kernels: raw device pointers and sizes. Formulas: README.md beside this file.
#pragma once

#include <cstdint>

namespace simtile::cuda {

enum class MaxsimKind {  // of rows
  float32,
  float16,
  bfloat16,
  int8,       // codes; of queries whole numbers for documents of codes
  uint8,      // documents only
  bits,       // documents only: 0 and 1, the highest of a byte first
  residual1,  // documents only: codes of so many bits, the lowest first, eight bits a byte with the first one highest
  residual2,
  residual4,
  int16,  // queries only: whole numbers, of magnitude 32639 at most
};

// Of a code; 0: no residuals.
inline int residual_bits(MaxsimKind kind) {
  if (kind == MaxsimKind::residual1) return 1;
  if (kind == MaxsimKind::residual2) return 2;
  return kind == MaxsimKind::residual4 ? 4 : 0;
}

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

// What residuals stand for besides their codes. A centroid's id is below the count: nothing is checked on the device.
struct MaxsimResiduals {
  const int32_t* centroid_ids;  // of every row of documents
  int64_t centroid_count;
  const float* centroids;     // [centroid_count, D]
  const float* query_values;  // of every row of queries, [.., D]: what centroids are multiplied with
  int16_t weights[16];        // [2^bits] of the codes, 2^15 - 129 at most in magnitude; on the host
};

struct MaxsimArgs {
  MaxsimRuns queries;  // Q
  MaxsimRuns documents;
  int64_t dimensions;     // D, at least 1: elements of a row
  int64_t longest_query;  // no run of queries has more rows: all that the host must know of their lengths

  // Codes only; each may be null. The similarity to a token is units ((z . code + terms) factors): the product of whole numbers is exact
  // and fits int32, every other operation is one of float32, and the maximum is taken before the last.
  const float* units;    // of every row of queries
  const float* terms;    // of every row of queries
  const float* factors;  // of every row of documents
  // Of residuals it is units ((terms dot + q . centroid) factors); the dot of the weights 256 high + low is 256 times the exact product
  // with high, plus that with low, in float32; q . centroid is a sum in float32, in order. Queries are int16.
  MaxsimResiduals residuals;

  bool normalize;         // rows are divided by their lengths; not with codes
  bool pad_zero_rows;     // rows of zeros are no tokens; not with codes
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
  // The same for products with centroids, where more than one query's fit: what a device's cache holds.
  int64_t most_product_bytes = int64_t(32) << 20;
};

}  // namespace simtile::cuda
