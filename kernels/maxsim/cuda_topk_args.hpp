// What the search for the best documents asks of MaxSim's kernels on a device. Formulas, ties and selection: README.md beside this file.
#pragma once

#include "maxsim/cuda_args.hpp"

namespace simtile::cuda {

struct MaxsimTopkArgs {
  MaxsimArgs pairs;  // of what is searched; scores, argmax and token_scores are not used
  int64_t k;         // from 1

  const uint8_t* allow;  // [N] or [Q, N]: a document with 0 is not found; or null: all may be
  int64_t allow_stride;  // from one query's to the next; 0: one for all

  float* scores;  // [Q, k] best first; -infinity where there are no more
  int64_t* ids;   // [Q, k] of equal scores the lowest first, each once; -1 where there are no more

  // Of the workspace, for what is kept of queries that are searched together; where it does not fit, they are searched in parts.
  int64_t most_query_bytes = int64_t(256) << 20;
};

}  // namespace simtile::cuda
