// Segments' maxima to scores.
#pragma once

#include "maxsim/cuda_work.cuh"

namespace simtile::cuda::maxsim {

// Grid (items, queries of the launch): a warp adds up a query's maxima over an item, in double precision and in order.
static __global__ void __launch_bounds__(kThreads) maxsim_sum(const Work work) {
  const MaxsimArgs& args = work.args;
  const int lane = threadIdx.x % 32;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t query = work.first_query(work.first_group) + blockIdx.y;
  if (item >= work.items || query >= args.queries.count) return;
  const int first_group = work.groups_per_query > 1 ? static_cast<int>(blockIdx.y) * work.groups_per_query
                                                    : static_cast<int>(blockIdx.y) / work.queries_per_group;
  const int64_t* before = work.list(first_group);
  const int64_t tile = before[item], end = before[item + 1], total = before[work.items];

  // Segments are those of the parts from the one of the item's first tile to that of its last. Part p begins at total * p / parts.
  int64_t first_part = 0, last_part = -1, tokens = 0;
  if (end > tile) {
    const int64_t parts = work.parts(total);
    first_part = ((tile + 1) * parts - 1) / total;
    last_part = (end * parts - 1) / total;
    for (int64_t p = first_part; p <= last_part; p++) tokens += work.tokens[first_group * work.segments() + item + p];
  }

  const int64_t rows = args.queries.ends[query] - args.queries.starts[query];
  const int64_t out =
      args.rows_before ? args.candidate_count * args.rows_before[query] + (work.first_item + item) * rows : 0;
  double sum = 0;
  int query_tokens = 0;
  for (int64_t base = 0; base < rows; base += 32) {
    const int64_t row = base + lane;
    const int column = row < rows ? work.place[query * args.longest_query + row] : -1;
    const int group = first_group + (work.groups_per_query > 1 ? static_cast<int>(row / kMostColumns) : 0);
    float value = 0;
    int matched = -1;
    if (column >= 0 && tokens > 0) {
      value = -INFINITY;
      matched = kNoRow;
      for (int64_t p = first_part; p <= last_part; p++) {
        const int64_t slot = group * work.segments() + item + p, at = slot * work.columns + column;
        if (work.tokens[slot] == 0) continue;
        const float other = work.maxima[at];
        const int other_row = work.rows[at];
        // Segments come in order: of equals the first stays.
        if (other > value || matched == kNoRow || (other != other && value == value))
          value = other, matched = other_row;
      }
      value = __fmul_rn(value, work.factor[(work.first_group + group) * work.columns + column]);
    }
    if (row < rows) {
      if (args.argmax) args.argmax[out + row] = matched;
      if (args.token_scores) args.token_scores[out + row] = value;
    }
    const unsigned there = __ballot_sync(kAllLanes, column >= 0);
    query_tokens += __popc(there);
    const int count = static_cast<int>(min(rows - base, int64_t(32)));
    for (int i = 0; i < count; i++) {
      const float one = __shfl_sync(kAllLanes, value, i);
      if (there >> i & 1) sum += one;
    }
  }
  if (lane > 0) return;
  if (args.length_normalize) sum /= query_tokens > 0 ? query_tokens : 1;
  const float score = tokens == 0 ? args.empty_score : static_cast<float>(sum);
  work.scores[blockIdx.y * work.scores_stride + item] = score;
}

}  // namespace simtile::cuda::maxsim
