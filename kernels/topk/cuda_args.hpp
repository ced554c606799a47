// What a search on a device asks of its kernels: raw device pointers and sizes. Formulas, ties and selection: README.md beside this file.
#pragma once

#include <cstdint>

namespace simtile::cuda {

enum class TopkKind {  // of the documents
  packed,              // bits, compared with bits
  bits,                // bits that stand for -1 and 1, with queries of float32
  int4,                // two codes a byte, the even one in the lower half
  int8,
  uint8,
  float32,
  float16,
  bfloat16,
};

enum class TopkMetric { hamming, dot, cosine, l2 };  // hamming and l2 ascending

struct TopkArgs {
  TopkKind kind;
  TopkMetric metric;

  int64_t queries;           // Q
  int64_t documents;         // N, below 2^32
  int64_t dim;               // D: elements of a row; bits of packed rows
  const void* queries_data;  // float32 [Q, D]; int8 with query_scale; packed bits
  const void* documents_data;
  int64_t queries_stride;  // bytes from one row to the next
  int64_t documents_stride;

  // Codes only; each may be null. A document is code * scale + offset, its score ((A dot + B) factor + addend) + C.
  const float* scale;        // [D]
  const float* offset;       // [D]
  const float* factor;       // [N]
  const float* addend;       // [N]
  const float* query_scale;  // [Q] queries are int8 codes with a scale each

  // A document with 0 never appears. At most one of the two; a stride of 0 is one mask for all queries.
  const uint8_t* allow;        // [N] or [Q, N] bool
  const uint32_t* allow_bits;  // [ceil(N / 32)], or for each query: document i is bit i % 32 of word i / 32
  int64_t allow_stride;        // bytes, or words of allow_bits

  const uint32_t* rank;  // [N] the id of each document, in results and for ties; null: its index

  // Only these documents are scored; below 0, or from N: none. Twice the same counts once. Null: all.
  const int64_t* candidates;  // [Q, candidate_count]
  int64_t candidate_count;

  int64_t k;         // from 1; places beyond what was found hold id -1 and the worst score
  int64_t first_id;  // added to every id

  void* scores;  // [Q, k] float32; int32 distances. topk_score_rows: [Q, candidate_count]
  int64_t* ids;  // [Q, k]

  bool is_float() const { return kind >= TopkKind::float32; }
  bool is_folded() const { return kind != TopkKind::packed && !is_float(); }
};

// Two results of a search, each best first, become one.
struct TopkMergeArgs {
  TopkMetric metric;
  int64_t queries;
  int64_t counts[2];
  int64_t k;
  const void* scores[2];  // [Q, count] float32; int32 distances
  const int64_t* ids[2];  // [Q, count], -1 last
  void* merged_scores;    // [Q, k]
  int64_t* merged_ids;
};

}  // namespace simtile::cuda
