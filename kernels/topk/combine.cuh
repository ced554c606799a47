// Two results of a query into one.
#pragma once

#include "topk/merge.cuh"

namespace simtile::cuda::topk {

constexpr int combine_threads = 256;

struct CombineArgs {
  const unsigned* scores[2];  // [Q, count] best first
  const int64_t* ids[2];      // -1 last
  int64_t counts[2];
  Results results;
};

__device__ inline unsigned order_of_bits(unsigned bits, TopkMetric metric) {
  if (metric == TopkMetric::hamming) return bits;
  const float score = __uint_as_float(bits);
  return order_cost(metric == TopkMetric::l2 ? score : -score);
}

// Two lists of a query become one, one thread for each of their results: its place is its own in its list, plus how many of the other
// list come before it. Among equals those of the first list do. Grid (threads for both lists, queries).
static __global__ void __launch_bounds__(combine_threads) topk_combine(const CombineArgs args) {
  const int64_t query = blockIdx.y;
  int64_t own = static_cast<int64_t>(blockIdx.x) * combine_threads + threadIdx.x;
  const int list = own >= args.counts[0];
  if (list) own -= args.counts[0];
  // Not args.counts[list]: an argument that is indexed at run time is copied to memory of the thread.
  const int64_t count = list ? args.counts[1] : args.counts[0], other_count = list ? args.counts[0] : args.counts[1];
  if (own >= count) return;
  const TopkMetric metric = args.results.metric;
  const unsigned* scores = (list ? args.scores[1] : args.scores[0]) + query * count;
  const int64_t id = (list ? args.ids[1] : args.ids[0])[query * count + own];
  const unsigned ordered = order_of_bits(scores[own], metric);
  const unsigned* other_scores = (list ? args.scores[0] : args.scores[1]) + query * other_count;
  const int64_t* other_ids = (list ? args.ids[0] : args.ids[1]) + query * other_count;

  int64_t low = 0, high = other_count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t other_id = other_ids[middle];
    const unsigned other = order_of_bits(other_scores[middle], metric);
    bool before = other < ordered || (other == ordered && (other_id < id || (list && other_id == id)));
    if (other_id < 0 || id < 0) before = other_id < 0 ? list && id < 0 : true;
    if (before) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t place = own + low;
  if (place >= args.results.k) return;
  args.results.scores[query * args.results.k + place] = scores[own];
  args.results.ids[query * args.results.k + place] = id;
}

}  // namespace simtile::cuda::topk
