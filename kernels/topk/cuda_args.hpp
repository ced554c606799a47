// What top-k on a device asks of its kernels: raw device pointers and sizes. Formula, ties and the list: README.md beside this file.
#pragma once

#include <cstdint>

namespace simtile::cuda {

enum class TopkMetric {
  hamming,  // packed bits, ascending int32 distance
  int8,     // int8 codes, descending dot product
};

struct TopkArgs {
  TopkMetric metric;

  int64_t queries;    // Q
  int64_t documents;  // N, below 2^32
  int64_t row_bytes;  // W: bytes of packed bits, or int8 dimensions
  const void* queries_data;
  const void* documents_data;
  int64_t queries_stride;  // bytes from one row to the next
  int64_t documents_stride;

  // int8 only. With either of them the scores are float32, float(dot) * (query_scale * document_scale), an absent scale
  // being 1; without both they are the int32 dot products.
  const float* query_scales;     // [Q], or null
  const float* document_scales;  // [N], or null

  const uint8_t* allow;  // [N] or [Q, N]: a document with 0 never appears; or null
  int64_t allow_stride;  // bytes from one query's mask to the next; 0: one mask for all queries

  int64_t k;  // from 1; places beyond what was found hold id -1 and the worst score

  void* scores;  // [Q, k] int32, or float32 with a scale
  int64_t* ids;  // [Q, k]

  bool scaled() const { return query_scales || document_scales; }
};

}  // namespace simtile::cuda
