// Selection of the best where scores are made: lists and their merge, candidates in order, and the radix selection from orders in memory.
// Search and MaxSim share it. `launch` is called as in topk_dispatch.hpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tile/cuda_device.hpp"
#include "topk/radix.cuh"

namespace simtile::cuda::topk {

constexpr int64_t list_keys = 1024;                   // a longer list would leave no room for a block's warps
constexpr int64_t most_keys = 65536;                  // of a result
constexpr int64_t most_documents = int64_t(1) << 32;  // a key has 32 bits for a document
constexpr int64_t shared_limit = 72 << 10;  // two blocks a multiprocessor on every device from sm_80 but 86, 89, 120
constexpr int64_t blocks_per_multiprocessor = 4;  // not measured: 16 warps with 4 KiB of loads in flight each
constexpr int64_t launch_queries = 32 << 10;      // of a grid with one row a query
constexpr int64_t scores_memory = 256 << 20;      // of the scores of as many queries as are selected from at a time

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t power_of_two(int64_t least) {
  int64_t size = 1;
  while (size < least) size *= 2;
  return size;
}

inline dim3 grid(int64_t items, int per_block, int64_t rows = 1) {
  return {static_cast<unsigned>(ceil_div(items, per_block)), static_cast<unsigned>(rows)};
}

inline ListShape list_shape(int64_t keys) {
  const int capacity = static_cast<int>(std::max<int64_t>(warp_size, power_of_two(keys)));
  return {capacity, std::max(warp_size, capacity / 4)};
}

inline int64_t list_bytes(int warps, ListShape list) { return int64_t(warps) * list.keys() * int64_t(sizeof(Key)); }

// The warps of a block of topk_merge.
inline int merge_block_warps(int splits, ListShape list) {
  int warps = 1;
  while (warps < most_merge_warps && warps * warp_size < splits && list_bytes(2 * warps, list) <= shared_limit)
    warps *= 2;
  return warps;
}

template <class Launch>
void merge(const MergeArgs& args, int64_t queries, const Launch& launch) {
  const int warps = merge_block_warps(args.splits, args.list);
  launch(topk_merge, dim3(static_cast<unsigned>(queries)), dim3(static_cast<unsigned>(warps * warp_size)),
         static_cast<size_t>(list_bytes(warps, args.list)), args);
}

// keys [queries, size] ascending, in steps between chunks and inside them.
template <class Launch>
void sort(Key* keys, int64_t size, int64_t queries, const Launch& launch) {
  SortArgs args = {keys, size, 0, static_cast<int>(std::min<int64_t>(size, sort_chunk)), false, true};
  const auto chunks = [&] {
    launch(topk_sort_chunks, grid(size, args.chunk, queries), dim3(sort_threads),
           static_cast<size_t>(args.chunk) * sizeof(Key), args);
  };
  chunks();
  args.whole = false;
  for (int64_t run = 2 * int64_t(args.chunk); run <= size; run *= 2) {
    for (args.distance = run / 2; args.distance >= args.chunk; args.distance /= 2) {
      args.flip = args.distance == run / 2;
      launch(topk_sort_step, grid(size / 2, sort_threads, queries), dim3(sort_threads), 0, args);
    }
    chunks();
  }
}

// Candidates [queries, count] in order, as keys [queries, power_of_two(count)].
template <class Launch>
void sort_candidates(const int64_t* candidates, int64_t count, Key* keys, int64_t queries, const Launch& launch) {
  const CandidatesArgs args = {candidates, count, keys, power_of_two(count)};
  launch(topk_candidates, grid(args.size, sort_threads, queries), dim3(sort_threads), 0, args);
  sort(keys, args.size, queries, launch);
}

// The k best of `count` orders a query; memory comes after it.
inline RadixArgs radix_of(int64_t count, int64_t k) {
  RadixArgs radix = {};
  radix.count = count;
  radix.wanted = std::min(k, count);
  // Sorting all of a few keys takes less time than finding the last of the wanted ones.
  const int64_t all = power_of_two(count);
  radix.all = all <= 2 * sort_chunk || all == power_of_two(radix.wanted);
  radix.size = radix.all ? all : power_of_two(radix.wanted);
  return radix;
}

// Of the workspace, for each query.
inline int64_t radix_bytes(const RadixArgs& radix) { return 4 * radix.count + 8 * radix.size + 4 * digits + 64; }

template <class Workspace>
void take_radix(RadixArgs& radix, int64_t queries, Workspace& workspace) {
  radix.keys = workspace.template take<Key>(queries * radix.size);
  radix.selections = workspace.template take<Selection>(queries);
  radix.histogram = workspace.template take<unsigned>(queries * digits);
}

// The best of the orders [queries, count] that are in memory.
template <class Launch>
void select_orders(RadixArgs radix, int64_t queries, const Device& device, const Results& results,
                   const Launch& launch) {
  const auto blocks = [&] {
    const int64_t each = ceil_div(device.multiprocessors * blocks_per_multiprocessor, queries);
    return dim3(static_cast<unsigned>(std::min(ceil_div(radix.count, radix_threads), each)),
                static_cast<unsigned>(queries));
  };
  launch(topk_radix_begin, dim3(static_cast<unsigned>(queries)), dim3(radix_threads), 0, radix);
  if (radix.count > 0) {
    if (!radix.all) {
      for (radix.digit = 0; radix.digit < key_digits; ++radix.digit) {
        launch(topk_radix_count, blocks(), dim3(radix_threads), digits * sizeof(unsigned), radix);
        launch(topk_radix_digit, dim3(static_cast<unsigned>(queries)), dim3(warp_size), 0, radix);
      }
    }
    launch(topk_radix_collect, blocks(), dim3(radix_threads), 0, radix);
  }
  sort(radix.keys, radix.size, queries, launch);
  const ResultsArgs found = {radix.keys, radix.size, results};
  launch(topk_results, grid(results.k, sort_threads, queries), dim3(sort_threads), 0, found);
}

}  // namespace simtile::cuda::topk
