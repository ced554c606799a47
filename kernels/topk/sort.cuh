// Ascending order of many keys a query, [Q, size] in global memory, size a power of two: the network of select.cuh, with the steps that
// fit shared memory together in one launch.
#pragma once

#include "topk/merge.cuh"

namespace simtile::cuda::topk {

constexpr int sort_threads = 256;
constexpr int sort_chunk = 2048;  // keys of a block: 16 KiB

// Of a network step, pair `pair`: of two ascending halves of a run the second is met from its end, otherwise keys `distance` apart.
__device__ inline void order_pair_of(Key* keys, int64_t pair, int64_t distance, bool flip) {
  const int64_t within = pair & (distance - 1), start = 2 * (pair - within);
  Key& first = keys[start + within];
  Key& second = keys[start + (flip ? 2 * distance - 1 - within : distance + within)];
  order_pair(first, second);
}

struct SortArgs {
  Key* keys;
  int64_t size;
  int64_t distance;  // of a step
  int chunk;
  bool flip;   // of a step
  bool whole;  // chunks from any order, not only their last steps
};

// Chunks [chunk] of every query's keys: sorted, or, where only the last steps of longer runs are left, finished. Grid (chunks, queries).
static __global__ void __launch_bounds__(sort_threads) topk_sort_chunks(const SortArgs args) {
  SIMTILE_DYNAMIC_SHARED(Key, shared);  // [chunk]
  const int chunk = args.chunk;
  Key* own = args.keys + static_cast<int64_t>(blockIdx.y) * args.size + static_cast<int64_t>(blockIdx.x) * chunk;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < chunk; i += sort_threads) shared[i] = own[i];
  __syncthreads();
  for (int run = args.whole ? 2 : chunk; run <= chunk; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      const bool flip = args.whole && distance == run / 2;
      for (int pair = thread; pair < chunk / 2; pair += sort_threads) order_pair_of(shared, pair, distance, flip);
      __syncthreads();
    }
  }
  for (int i = thread; i < chunk; i += sort_threads) own[i] = shared[i];
}

// One step between chunks. Grid (pairs, queries).
static __global__ void __launch_bounds__(sort_threads) topk_sort_step(const SortArgs args) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * sort_threads + threadIdx.x;
  if (pair >= args.size / 2) return;
  order_pair_of(args.keys + static_cast<int64_t>(blockIdx.y) * args.size, pair, args.distance, args.flip);
}

struct ResultsArgs {
  const Key* keys;  // [Q, size]
  int64_t size;
  Results results;
};

// The first sorted keys of a query as results. Grid (places, queries).
static __global__ void __launch_bounds__(sort_threads) topk_results(const ResultsArgs args) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * sort_threads + threadIdx.x, query = blockIdx.y;
  if (place >= args.results.k) return;
  write_result(args.results, query, place, place < args.size ? args.keys[query * args.size + place] : no_key);
}

struct CandidatesArgs {
  const int64_t* candidates;  // [Q, count]
  int64_t count;
  Key* keys;  // [Q, size]
  int64_t size;
};

// Candidates [Q, count] as keys [Q, size], none and what is missing last. Grid (places, queries).
static __global__ void __launch_bounds__(sort_threads) topk_candidates(const CandidatesArgs args) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * sort_threads + threadIdx.x, query = blockIdx.y;
  if (place >= args.size) return;
  const int64_t document = place < args.count ? args.candidates[query * args.count + place] : -1;
  args.keys[query * args.size + place] = document < 0 ? no_key : static_cast<Key>(document);
}

}  // namespace simtile::cuda::topk
