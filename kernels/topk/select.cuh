// The list that selects: one per warp and query, in shared memory. A warp works on it together.
//
//   sorted  [capacity]  the best keys so far, ascending; no_key where there are none yet
//   buffer  [buffer]    keys that were below the threshold when they were met, unordered
//
// A key is the score, turned so that smaller is better, in the upper 32 bits and the document's index in the lower:
// a total order in which ties go to the lowest index, so that neither the grid nor the schedule shows in a result.
#pragma once

#include "tile/ptx.cuh"

namespace simtile::cuda::topk {

using Key = unsigned long long;

constexpr Key no_key = ~0ull;               // after every real key
constexpr unsigned no_order = 0xffffffffu;  // the upper half of a key that no score gives
constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

// Powers of two, for the sorting network; at least 32, so that one round of 32 documents fits an empty buffer.
struct ListShape {
  int capacity;
  int buffer;

  __host__ __device__ int keys() const { return capacity + buffer; }
};

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % warp_size; }

__device__ inline unsigned lanes_below() { return (1u << lane_index()) - 1; }

__device__ inline void order_pair(Key& first, Key& second) {
  const Key a = first, b = second;
  if (b < a) {
    first = b;
    second = a;
  }
}

// One step of the network on size keys: those `distance` apart become ascending. distance and size are powers of two.
__device__ inline void half_clean(Key* keys, int size, int distance) {
  for (int pair = lane_index(); pair < size / 2; pair += warp_size) {
    const int first = 2 * pair - (pair & (distance - 1));
    order_pair(keys[first], keys[first + distance]);
  }
  __syncwarp();
}

// Ascending, from a bitonic sequence.
__device__ inline void sort_bitonic(Key* keys, int size) {
  for (int distance = size / 2; distance > 0; distance /= 2) half_clean(keys, size, distance);
}

// Ascending, from any order.
__device__ inline void sort_keys(Key* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    // Two ascending halves of every run: the second is met from its end, which makes both bitonic.
    for (int pair = lane_index(); pair < size / 2; pair += warp_size) {
      const int within = pair & (run / 2 - 1), start = 2 * (pair - within);
      order_pair(keys[start + within], keys[start + run - 1 - within]);
    }
    __syncwarp();
    for (int distance = run / 4; distance > 0; distance /= 2) half_clean(keys, size, distance);
  }
}

// sorted becomes the best `capacity` of both; others [count <= capacity] are ascending too.
__device__ inline void merge_sorted(Key* sorted, int capacity, const Key* others, int count) {
  for (int i = lane_index(); i < count; i += warp_size) {
    Key& mine = sorted[capacity - 1 - i];
    const Key other = others[i];
    if (other < mine) mine = other;
  }
  __syncwarp();
  sort_bitonic(sorted, capacity);
}

__device__ inline void clear_list(Key* list, ListShape shape) {
  for (int i = lane_index(); i < shape.capacity; i += warp_size) list[i] = no_key;
  __syncwarp();
}

// The first `count` keys of the buffer go into the sorted part. Ends with the warp in step: the buffer is free again.
__device__ inline void flush_list(Key* list, ListShape shape, int count) {
  Key* buffer = list + shape.capacity;
  for (int i = count + lane_index(); i < shape.buffer; i += warp_size) buffer[i] = no_key;
  __syncwarp();
  sort_keys(buffer, shape.buffer);
  merge_sorted(list, shape.capacity, buffer, shape.buffer);
}

// Room in the buffer, which holds `count` keys, for those of the lanes in `takers`. Whether it was emptied for that.
__device__ inline bool make_room(Key* list, ListShape shape, int& count, unsigned takers) {
  if (count + __popc(takers) <= shape.buffer) return false;
  flush_list(list, shape, count);
  count = 0;
  return true;
}

// The keys of the lanes that have one behind the `count` that the buffer holds, in the order of lanes. Returns how many it holds then.
__device__ inline int add_keys(Key* list, ListShape shape, int count, bool taken, Key key) {
  const unsigned takers = __ballot_sync(full_warp, taken);
  if (taken) list[shape.capacity + count + __popc(takers & lanes_below())] = key;
  return count + __popc(takers);
}

// The lists of a block's warps, [warps][queries], become the first warp's. warps is a power of two.
__device__ inline void merge_warps(Key* lists, ListShape shape, int warps, int queries) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  __syncthreads();
  for (int apart = 1; apart < warps; apart *= 2) {
    const int pairs = warps / (2 * apart);
    for (int item = warp; item < pairs * queries; item += warps) {
      Key* mine = lists + (item / queries * 2 * apart * queries + item % queries) * shape.keys();
      merge_sorted(mine, shape.capacity, mine + apart * queries * shape.keys(), shape.capacity);
    }
    __syncthreads();
  }
}

}  // namespace simtile::cuda::topk
