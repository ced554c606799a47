// The partial lists of one query's splits into the result, one block a query.
#pragma once

#include "topk/score.cuh"

namespace simtile::cuda::topk {

constexpr int most_merge_warps = 16;

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

}  // namespace simtile::cuda::topk
