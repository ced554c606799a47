// What the forward of info_nce on a device asks of its kernel: raw device pointers and sizes. Formula and loop: README.md beside this file.
#pragma once

#include <cstdint>

namespace simtile::cuda {

struct InfoNceForwardArgs {
  int64_t rows;        // N, from 1
  int64_t documents;   // M, from 1
  int64_t negatives;   // K, per query; 0 without
  int64_t dimensions;  // D, from 1
  // bfloat16, aligned to 2 bytes. Rows of which the address divides by 16, D being a multiple of 8, are read fastest.
  const void* queries_data;
  const void* documents_data;
  const void* negatives_data;  // [N * K, D], or null when K is 0
  int64_t queries_stride;      // elements from one row to the next, from 0
  int64_t documents_stride;
  int64_t negatives_stride;

  const float* temperature_data;  // one value on the device; or null: `temperature` holds
  double temperature;
  bool normalize;
  bool own_negatives;           // a row sees its own K negatives, not all N * K
  const int64_t* targets;       // [N], or null: row i's positive is document i; one outside [0, M) makes the loss NaN
  const int64_t* query_ids;     // [N], with document_ids [M]; or both null
  const int64_t* document_ids;  // equal ids are never each other's negatives

  // Outputs, [N] each. loss = row_log_sum - (positive's logit - row_maximum), but for the last digits of small losses.
  float* losses;
  float* row_maxima;    // largest logit of the row's candidates; or null
  float* row_log_sums;  // log of the sum of exp(logit - row_maximum) over them; or null
};

}  // namespace simtile::cuda
