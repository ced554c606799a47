// What the search for the best documents asks of the CPU's kernels.
#pragma once

#include "maxsim/args.hpp"

namespace simtile {

// The k best documents of each query, of equals the first; NaN is not found. Documents are not float64, and fewer than 2^32 - 1.
struct MaxsimTopkArgs {
  MaxsimArgs pairs;      // their scores, argmax and token_scores are not used
  int64_t k;             // at least 1
  const uint8_t* allow;  // of every document, 0: may not be found; or null
  int64_t allow_stride;  // from one query to the next; 0: one for all
  float* scores;         // [Q, k], -infinity where there are no more
  int64_t* ids;          // [Q, k], and -1
};

}  // namespace simtile
