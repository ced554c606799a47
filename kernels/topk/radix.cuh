// The k smallest of all keys of a query, for k beyond a list: eight passes over the scores, each of which counts the keys by one digit
// of those that have the digits found so far, settle the k-th smallest key; one more collects what is not above it.
//
// Counts are sums of integers, which do not depend on their order. The order in which keys are collected does, and is undone by sorting.
#pragma once

#include "topk/sort.cuh"

namespace simtile::cuda::topk {

constexpr int radix_threads = 256;
constexpr int digits = 256;
constexpr int digit_bits = 8;
constexpr int key_digits = 64 / digit_bits;

struct Selection {            // of one query
  Key prefix;                 // digits found, zeros below
  unsigned long long wanted;  // keys from those that have them
  unsigned collected;
};

struct RadixArgs {
  const unsigned* ordered;  // [Q, count]
  int64_t count;
  const Key* sorted;  // [Q, sorted_stride] the documents, or null: all
  int64_t sorted_stride;
  const uint32_t* rank;   // of documents, or null
  Selection* selections;  // [Q]
  unsigned* histogram;    // [Q, digits]
  Key* keys;              // [Q, size] out
  int64_t size;
  int64_t wanted;  // at most size and count
  int digit;       // of a pass, the most significant is 0
  bool all;        // every key is collected
};

__device__ inline Key key_at(const RadixArgs& args, int64_t query, int64_t place) {
  const unsigned ordered = args.ordered[query * args.count + place];
  if (ordered == no_order) return no_key;
  const int64_t document = args.sorted ? static_cast<int64_t>(args.sorted[query * args.sorted_stride + place]) : place;
  return static_cast<Key>(ordered) << 32 | (args.rank ? args.rank[document] : static_cast<unsigned>(document));
}

// Grid (queries).
static __global__ void __launch_bounds__(radix_threads) topk_radix_begin(const RadixArgs args) {
  const int64_t query = blockIdx.x;
  if (threadIdx.x == 0) args.selections[query] = {0, static_cast<unsigned long long>(args.wanted), 0};
  for (int i = static_cast<int>(threadIdx.x); i < digits; i += radix_threads) args.histogram[query * digits + i] = 0;
  for (int64_t i = threadIdx.x; i < args.size; i += radix_threads) args.keys[query * args.size + i] = no_key;
}

// Grid (parts of the documents, queries).
static __global__ void __launch_bounds__(radix_threads) topk_radix_count(const RadixArgs args) {
  SIMTILE_DYNAMIC_SHARED(unsigned, counts);  // [digits]
  const int64_t query = blockIdx.y;
  const Key prefix = args.selections[query].prefix;
  const int shift = 64 - digit_bits * (args.digit + 1);
  for (int i = static_cast<int>(threadIdx.x); i < digits; i += radix_threads) counts[i] = 0;
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * radix_threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * radix_threads + threadIdx.x; i < args.count; i += step) {
    const Key key = key_at(args, query, i);
    // In two steps: a shift by 64 is none.
    if (((key ^ prefix) >> shift >> digit_bits) == 0) atomicAdd(&counts[key >> shift & (digits - 1)], 1u);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < digits; i += radix_threads) {
    if (counts[i]) atomicAdd(&args.histogram[query * digits + i], counts[i]);
  }
}

// The digit of the key that is wanted; the histogram is cleared for the next one. One warp a query.
static __global__ void __launch_bounds__(warp_size) topk_radix_digit(const RadixArgs args) {
  constexpr int own = digits / warp_size;
  const int64_t query = blockIdx.x;
  unsigned* histogram = args.histogram + query * digits + lane_index() * own;
  unsigned counts[own], sum = 0;
#pragma unroll
  for (int i = 0; i < own; ++i) {
    counts[i] = histogram[i];
    histogram[i] = 0;
    sum += counts[i];
  }
  unsigned before = sum;  // of this lane and those below
  for (int apart = 1; apart < warp_size; apart *= 2) {
    const unsigned below = __shfl_up_sync(full_warp, before, apart);
    if (lane_index() >= apart) before += below;
  }
  const Selection selection = args.selections[query];
  __syncwarp();
  before -= sum;
  if (selection.wanted <= before || selection.wanted > before + sum) return;  // all lanes but one
  unsigned long long left = selection.wanted - before;
#pragma unroll
  for (int i = 0; i < own; ++i) {
    if (left <= counts[i]) {
      const Key value = static_cast<Key>(lane_index() * own + i) << (64 - digit_bits * (args.digit + 1));
      args.selections[query] = {selection.prefix | value, left, 0};
      return;
    }
    left -= counts[i];
  }
}

// Grid (parts of the documents, queries).
static __global__ void __launch_bounds__(radix_threads) topk_radix_collect(const RadixArgs args) {
  const int64_t query = blockIdx.y;
  const Key last = args.all ? no_key : args.selections[query].prefix;
  const int64_t step = static_cast<int64_t>(gridDim.x) * radix_threads;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * radix_threads; first < args.count; first += step) {
    const int64_t place = first + threadIdx.x;
    const Key key = place < args.count ? key_at(args, query, place) : no_key;
    const bool taken = key <= last && key != no_key;
    const unsigned takers = __ballot_sync(full_warp, taken);
    if (takers == 0) continue;
    unsigned at = 0;
    if (lane_index() == 0) at = atomicAdd(&args.selections[query].collected, static_cast<unsigned>(__popc(takers)));
    at = __shfl_sync(full_warp, at, 0) + __popc(takers & lanes_below());
    if (taken) args.keys[query * args.size + at] = key;
  }
}

}  // namespace simtile::cuda::topk
