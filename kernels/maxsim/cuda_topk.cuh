// The best of the scores that MaxSim's launches make. A key is topk's: the score, turned so that smaller is better, above the document, so
// that neither who meets a document nor when shows in a result.
#pragma once

#include "maxsim/cuda_topk_args.hpp"
#include "topk/merge.cuh"

namespace simtile::cuda::maxsim {

constexpr int kChooseThreads = 256;
constexpr int kKeepWarps = 4;  // of a block that has lists. Not measured: few lists to merge
constexpr int kKeepThreads = 32 * kKeepWarps;

// Which documents some queries may find.
struct Allowed {
  const uint8_t* bytes;  // [N] of the first of them; or null: all
  int64_t stride;        // from one query's to the next

  __device__ __forceinline__ bool operator()(int64_t query, int64_t document) const {
    return !bytes || bytes[query * stride + document];
  }
};

struct ChooseArgs {
  const topk::Key* sorted;  // [queries, size] candidates, ascending, what is none last
  int64_t size;
  int64_t count;      // C, at most size
  int64_t documents;  // N
  Allowed allowed;
  int64_t* chosen;  // [queries, count] out
};

// Candidates that are there, allowed, and not the same as the one before; -1 for the others, which are not scored. Grid (places, queries).
static __global__ void __launch_bounds__(kChooseThreads) maxsim_choose(const ChooseArgs args) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kChooseThreads + threadIdx.x, query = blockIdx.y;
  if (place >= args.count) return;
  const topk::Key* sorted = args.sorted + query * args.size;
  int64_t document = static_cast<int64_t>(sorted[place]);  // no_key is -1
  if (place > 0 && sorted[place - 1] == sorted[place]) document = -1;
  if (document >= args.documents) document = -1;
  if (document >= 0 && !args.allowed(query, document)) document = -1;
  args.chosen[query * args.count + place] = document;
}

// The scores of some documents with some queries.
struct Scored {
  const float* scores;  // [queries, stride]
  int64_t stride;
  const int64_t* chosen;  // which documents, -1 for none, rows chosen_stride apart; or null: from first_document on
  int64_t chosen_stride;
  int64_t first_document;
  int64_t items;
  Allowed allowed;  // of `chosen` null
};

// Of a document that is not found, and of a NaN, no_order.
__device__ __forceinline__ unsigned order_at(const Scored& scored, int64_t query, int64_t item, int64_t& document) {
  document = scored.chosen ? scored.chosen[query * scored.chosen_stride + item] : scored.first_document + item;
  if (document < 0 || !(scored.chosen || scored.allowed(query, document))) return topk::no_order;
  return topk::order_cost(-scored.scores[query * scored.stride + item]);
}

struct KeepArgs {
  Scored scored;
  topk::Key* partial;  // [queries, keys, splits] in and out, ascending along keys
  int keys;
  topk::ListShape list;
  bool first;  // nothing has been kept
};

// Every split of a query keeps its best of all launches. Grid (splits, queries).
static __global__ void __launch_bounds__(kKeepThreads) maxsim_keep(const KeepArgs args) {
  SIMTILE_DYNAMIC_SHARED(topk::Key, lists);  // [warps]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t query = blockIdx.y, splits = gridDim.x;
  topk::Key* kept = args.partial + query * args.keys * splits + blockIdx.x;
  topk::Key* list = lists + warp * args.list.keys();
  topk::clear_list(list, args.list);
  topk::Key threshold = topk::no_key;
  if (!args.first) {
    threshold = kept[(args.keys - 1) * splits];
    if (warp == 0)
      for (int rank = lane; rank < args.keys; rank += 32) list[rank] = kept[rank * splits];  // read after a flush
  }
  int count = 0;
  const int64_t step = splits * kKeepThreads;
  for (int64_t base = (blockIdx.x * int64_t(kKeepWarps) + warp) * 32; base < args.scored.items; base += step) {
    topk::Key key = topk::no_key;
    if (base + lane < args.scored.items) {
      int64_t document;
      const unsigned order = order_at(args.scored, query, base + lane, document);
      if (order != topk::no_order) key = static_cast<topk::Key>(order) << 32 | static_cast<unsigned>(document);
    }
    const bool taken = key < threshold;
    const unsigned takers = __ballot_sync(topk::full_warp, taken);
    if (takers == 0) continue;
    if (topk::make_room(list, args.list, count, takers)) threshold = min(threshold, list[args.keys - 1]);
    count = topk::add_keys(list, args.list, count, taken, key);
  }
  topk::flush_list(list, args.list, count);
  topk::merge_warps(lists, args.list, kKeepWarps, 1);
  for (int rank = threadIdx.x; rank < args.keys; rank += kKeepThreads) kept[rank * splits] = lists[rank];
}

struct OrderArgs {
  Scored scored;
  unsigned* orders;  // [queries, stride] out; may be where the scores are
};

// Scores become orders. Grid (items, queries).
static __global__ void __launch_bounds__(kChooseThreads) maxsim_order(const OrderArgs args) {
  const Scored& scored = args.scored;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kChooseThreads + threadIdx.x, query = blockIdx.y;
  if (item >= scored.items) return;
  int64_t document;
  args.orders[query * scored.stride + item] = order_at(scored, query, item, document);
}

}  // namespace simtile::cuda::maxsim
