// MaxSim's search for the best documents: which kernels run, in which order, with how much workspace. `launch` is called as in
// maxsim_dispatch.hpp.
//
// Up to topk::list_keys results a query, scores are written for the documents of one launch at a time, and lists keep the best of them.
// Beyond that, all scores of some queries are written and the best selected.
#pragma once

#include "cuda/maxsim_dispatch.hpp"
#include "cuda/topk_select.hpp"
#include "maxsim/cuda_topk.cuh"

namespace simtile::cuda {

namespace maxsim {

struct TopkPlan {
  bool lists;
  int64_t batch;  // queries that are searched together
  int64_t bytes;  // of the workspace
  void* pairs;    // MaxSim's own part of it

  topk::Key* sorted;  // [batch, power of two from C] candidates
  int64_t* chosen;    // [batch, C]

  // With lists.
  topk::MergeArgs merge;
  topk::Key* partial;    // [batch, keys, splits]
  float* launch_scores;  // [queries of a launch, items of a launch]

  // Without.
  topk::RadixArgs radix;
  float* scores;  // [batch, C], and then their orders
};

inline void check(const MaxsimTopkArgs& args) {
  check(args.pairs);
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("maxsim: " + what); };
  if (args.k < 1 || args.k > topk::most_keys)
    refuse("k = " + std::to_string(args.k) + "; expected 1 to " + std::to_string(topk::most_keys) +
           " on a CUDA device; search on the CPU, which takes any k");
  if (args.pairs.documents.count >= topk::most_documents)
    refuse("documents: " + std::to_string(args.pairs.documents.count) +
           "; expected fewer than 2^32 with k; split them and merge the results");
  if (args.pairs.argmax || args.pairs.token_scores) refuse("argmax or token_scores with k; expected neither");
}

// Queries [first, first + count), as if there were no others.
inline MaxsimArgs part_of(const MaxsimArgs& args, int64_t first, int64_t count) {
  MaxsimArgs part = args;
  part.queries.starts += first;
  part.queries.ends += first;
  part.queries.count = count;
  return part;
}

inline TopkPlan plan(const MaxsimTopkArgs& args, const Device& device, void* memory) {
  check(args);
  TopkPlan plan = {};
  const int64_t queries = args.pairs.queries.count, count = args.pairs.candidate_count;
  if (queries == 0) return plan;
  const Plan whole = maxsim::plan(args.pairs, device, nullptr);
  plan.lists = args.k <= topk::list_keys;
  plan.radix = topk::radix_of(count, args.k);
  int64_t query_bytes = args.pairs.candidates ? 8 * (count + topk::power_of_two(count)) : 0;
  if (plan.lists) {
    plan.merge.keys = static_cast<int>(args.k);
    plan.merge.list = topk::list_shape(args.k);
    const int64_t blocks = device.multiprocessors * topk::blocks_per_multiprocessor;
    const int64_t wanted = blocks / std::max<int64_t>(launch_queries(whole.work, whole.launch_groups), 1);
    // A split of fewer documents than keys would keep a list that is mostly empty.
    const int64_t most = whole.launch_items / std::max<int64_t>(kKeepThreads, args.k);
    plan.merge.splits = static_cast<int>(std::max<int64_t>(std::min(wanted, most), 1));
    query_bytes += 8 * args.k * plan.merge.splits;
  } else {
    query_bytes += topk::radix_bytes(plan.radix);
  }
  plan.batch = std::min(
      {std::max<int64_t>(args.most_query_bytes / std::max<int64_t>(query_bytes, 1), 1), topk::launch_queries, queries});

  // The last batch may be smaller, and take more: its launches may be of more documents.
  MaxsimArgs pairs = args.pairs;
  int64_t most_bytes = 0, most_scores = 0;
  for (const int64_t some : {plan.batch, queries % plan.batch}) {
    if (some == 0) continue;
    pairs.queries.count = some;
    const Plan part = maxsim::plan(pairs, device, nullptr);
    most_bytes = std::max(most_bytes, part.bytes);
    most_scores = std::max(most_scores, launch_queries(part.work, part.launch_groups) * part.launch_items);
  }
  Pieces pieces(memory);
  plan.pairs = pieces.take<uint8_t>(most_bytes);
  if (args.pairs.candidates) {
    plan.sorted = pieces.take<topk::Key>(plan.batch * topk::power_of_two(count));
    plan.chosen = pieces.take<int64_t>(plan.batch * count);
  }
  if (plan.lists) {
    plan.partial = pieces.take<topk::Key>(plan.batch * args.k * plan.merge.splits);
    plan.launch_scores = pieces.take<float>(most_scores);
    plan.merge.partial = plan.partial;
  } else {
    plan.scores = pieces.take<float>(plan.batch * count);
    topk::take_radix(plan.radix, plan.batch, pieces);
    plan.radix.ordered = reinterpret_cast<const unsigned*>(plan.scores);
    plan.radix.sorted = reinterpret_cast<const topk::Key*>(plan.chosen);
    plan.radix.sorted_stride = count;
  }
  plan.bytes = pieces.bytes();
  return plan;
}

inline Allowed allowed(const MaxsimTopkArgs& args, int64_t first_query) {
  return {args.allow ? args.allow + first_query * args.allow_stride : nullptr, args.allow_stride};
}

// What a launch has scored; `first_query` of all.
inline Scored scored(const MaxsimTopkArgs& args, const Work& work, int64_t first_query) {
  const int64_t* chosen = work.args.candidates;
  const int64_t count = work.args.candidate_count;
  if (chosen) chosen += work.first_query(work.first_group) * count + work.first_item;
  return {work.scores, work.scores_stride, chosen, count, work.first_item, work.items, allowed(args, first_query)};
}

// The best of queries [first, first + pairs.queries.count), which are those of `pairs`.
template <class Launch>
void search_lists(const TopkPlan& topk_plan, const MaxsimTopkArgs& args, const Plan& plan, int64_t first,
                  const Launch& launch) {
  const int64_t queries = plan.work.args.queries.count;
  const topk::MergeArgs& merge = topk_plan.merge;
  const std::size_t shared = static_cast<std::size_t>(topk::list_bytes(kKeepWarps, merge.list));
  const auto begin = [&](Work& work) {
    work.scores = topk_plan.launch_scores;
    work.scores_stride = work.items;
  };
  run_plan(plan, launch, begin, [&](const Work& work) {
    const int64_t before = work.first_query(work.first_group);
    KeepArgs keep = {};
    keep.scored = scored(args, work, first + before);
    keep.partial = topk_plan.partial + before * merge.keys * merge.splits;
    keep.keys = merge.keys;
    keep.list = merge.list;
    keep.first = work.first_item == 0;
    launch(maxsim_keep, grid(merge.splits, std::min(launch_queries(work, work.groups), queries - before)),
           dim3(kKeepThreads), shared, keep);
  });
}

template <class Launch>
void search_orders(const MaxsimTopkArgs& args, const Plan& plan, int64_t first, const Launch& launch) {
  run_plan(plan, launch, place_scores, [&](const Work& work) {
    const int64_t before = work.first_query(work.first_group);
    const OrderArgs order = {scored(args, work, first + before), reinterpret_cast<unsigned*>(work.scores)};
    launch(maxsim_order,
           grid(ceil_div(work.items, kChooseThreads),
                std::min(launch_queries(work, work.groups), work.args.queries.count - before)),
           dim3(kChooseThreads), 0, order);
  });
}

}  // namespace maxsim

// Of the caller's workspace, aligned to 256 bytes, for exactly these arguments.
inline int64_t workspace_bytes(const MaxsimTopkArgs& args, const Device& device) {
  return maxsim::plan(args, device, nullptr).bytes;
}

// Queues the kernels; throws std::invalid_argument before the first of them for what they cannot do.
template <class Launch>
void run(const MaxsimTopkArgs& args, const Device& device, void* workspace, const Launch& launch) {
  using namespace maxsim;
  TopkPlan plan = maxsim::plan(args, device, workspace);
  const int64_t count = args.pairs.candidate_count;
  for (int64_t first = 0; first < args.pairs.queries.count; first += plan.batch) {
    const int64_t queries = std::min(plan.batch, args.pairs.queries.count - first);
    MaxsimArgs pairs = part_of(args.pairs, first, queries);
    pairs.scores = plan.scores;
    if (pairs.candidates && count > 0) {
      const int64_t* candidates = pairs.candidates + first * count;
      topk::sort_candidates(candidates, count, plan.sorted, queries, launch);
      const ChooseArgs choose = {plan.sorted,           topk::power_of_two(count), count,
                                 pairs.documents.count, allowed(args, first),      plan.chosen};
      launch(maxsim_choose, grid(ceil_div(count, kChooseThreads), queries), dim3(kChooseThreads), 0, choose);
      pairs.candidates = plan.chosen;
    }
    Plan part = maxsim::plan(pairs, device, plan.pairs);
    // Documents that no query may find are not scored; masks of several queries are not put together for that.
    if (!pairs.candidates && (args.allow_stride == 0 || queries == 1)) part.work.wanted = allowed(args, first).bytes;
    const topk::Results results = {args.k, 0, TopkMetric::dot,
                                   reinterpret_cast<unsigned*>(args.scores) + first * args.k,
                                   args.ids + first * args.k};
    if (plan.lists) {
      search_lists(plan, args, part, first, launch);
      plan.merge.results = results;
      if (count == 0) plan.merge.splits = 0;  // nothing was kept
      topk::merge(plan.merge, queries, launch);
    } else {
      search_orders(args, part, first, launch);
      topk::select_orders(plan.radix, queries, device, results, launch);
    }
  }
}

}  // namespace simtile::cuda
