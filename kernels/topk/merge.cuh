// The partial lists of one query's splits into the result, one block a query; and two results into one.
#pragma once

#include "topk/score.cuh"

namespace simtile::cuda::topk {

constexpr int most_merge_warps = 16;
constexpr int combine_threads = 256;

// Where results go.
struct Results {
  int64_t k;
  int64_t first_id;
  TopkMetric metric;
  unsigned* scores;  // [Q, k] the bits of int32 or float32
  int64_t* ids;      // [Q, k]
};

__device__ inline void write_result(const Results& results, int64_t query, int64_t place, Key key) {
  const bool missing = key == no_key;
  const int64_t at = query * results.k + place;
  results.scores[at] =
      missing ? missing_score_bits(results.metric) : score_bits(static_cast<unsigned>(key >> 32), results.metric);
  results.ids[at] = missing ? -1 : results.first_id + static_cast<int64_t>(key & 0xffffffffu);
}

struct MergeArgs {
  const Key* partial;  // [Q, keys, splits], ascending along keys
  int splits;
  int keys;
  ListShape list;
  Results results;
};

// A lane walks down one split's list while the lanes beside it walk down the next ones, so that loads are side by side
// and a warp is done at the first rank at which none of them is below the threshold.
static __global__ void __launch_bounds__(most_merge_warps* warp_size) topk_merge(const MergeArgs args) {
  SIMTILE_DYNAMIC_SHARED(Key, lists);  // [warps]
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / warp_size;
  const int warps = static_cast<int>(blockDim.x) / warp_size;
  const int64_t query = blockIdx.x;
  const Key* partial = args.partial + query * args.keys * args.splits;
  Key* list = lists + warp * args.list.keys();
  clear_list(list, args.list);

  Key threshold = no_key;
  int count = 0;
  for (int first = warp * warp_size; first < args.splits; first += warps * warp_size) {
    const int split = first + lane;
    for (int rank = 0; rank < args.keys; ++rank) {
      const Key key = split < args.splits ? partial[static_cast<int64_t>(rank) * args.splits + split] : no_key;
      const bool taken = key < threshold;
      const unsigned takers = __ballot_sync(full_warp, taken);
      if (takers == 0) break;
      if (make_room(list, args.list, count, takers)) threshold = list[args.keys - 1];
      count = add_keys(list, args.list, count, taken, key);
    }
  }
  flush_list(list, args.list, count);
  merge_warps(lists, args.list, warps, 1);
  for (int64_t place = threadIdx.x; place < args.results.k; place += blockDim.x)
    write_result(args.results, query, place, place < args.keys ? lists[place] : no_key);
}

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
