// Which top-k kernels run, in which order. The same code under nvcc and on the host: `launch` is called as
// launch(kernel, grid, block, dynamic_shared_bytes, argument).
#pragma once

#include "cuda/topk_plan.hpp"

namespace simtile::cuda {

namespace topk {

using ScanKernel = void (*)(ScanArgs);
using RowsKernel = void (*)(RowsArgs);

template <int LANES>
ScanKernel packed_kernel(int tile) {
  return tile == 1 ? topk_scan<Packed, 16, LANES, 1> : topk_scan<Packed, 16, LANES, packed_tile>;
}

template <class Codes>
ScanKernel scan_kernel_of(const Plan& plan) {
  constexpr int tile = Codes::folded ? folded_tile : packed_tile;
  if (plan.load_bytes == 1) return topk_scan<Codes, 1, 8, tile>;
  if (plan.load_bytes == 4) return topk_scan<Codes, 4, 8, tile>;
  if constexpr (!Codes::folded) {
    if (plan.lanes == 2) return packed_kernel<2>(plan.kernel_tile);
    if (plan.lanes == 4) return packed_kernel<4>(plan.kernel_tile);
  }
  return plan.kernel_tile == 1 ? topk_scan<Codes, 16, 8, 1> : topk_scan<Codes, 16, 8, tile>;
}

template <class Element>
ScanKernel float_kernel(const Plan& plan) {
  if (plan.load_bytes < 16) return topk_scan_float<Element, Element::bytes, float_tile>;
  return plan.kernel_tile == 1 ? topk_scan_float<Element, 16, 1> : topk_scan_float<Element, 16, float_tile>;
}

inline ScanKernel scan_kernel(const Plan& plan, TopkKind kind) {
  switch (kind) {
    case TopkKind::packed:
      return plan.mma ? topk_scan_mma<Packed, 1> : scan_kernel_of<Packed>(plan);
    case TopkKind::bits:
      return plan.mma ? topk_scan_mma<Bits, 2> : scan_kernel_of<Bits>(plan);
    case TopkKind::int4:
      if (plan.mma) return plan.planes == 1 ? topk_scan_mma<Int4, 1> : topk_scan_mma<Int4, 2>;
      return scan_kernel_of<Int4>(plan);
    case TopkKind::int8:
      if (plan.mma) return plan.planes == 1 ? topk_scan_mma<Int8, 1> : topk_scan_mma<Int8, 2>;
      return scan_kernel_of<Int8>(plan);
    case TopkKind::uint8:
      return plan.mma ? topk_scan_mma<Uint8, 2> : scan_kernel_of<Uint8>(plan);
    case TopkKind::float32:
      return float_kernel<Float32>(plan);
    case TopkKind::float16:
      return float_kernel<Float16>(plan);
    case TopkKind::bfloat16:
      return float_kernel<BFloat16>(plan);
  }
  throw std::invalid_argument("topk: an unknown kind");
}

template <class Codes>
RowsKernel rows_kernel_of(const Plan& plan) {
  return plan.load_bytes == 1 ? topk_rows<Codes, 1> : topk_rows<Codes, 4>;
}

inline RowsKernel rows_kernel(const Plan& plan, TopkKind kind) {
  switch (kind) {
    case TopkKind::packed:
      return rows_kernel_of<Packed>(plan);
    case TopkKind::bits:
      return rows_kernel_of<Bits>(plan);
    case TopkKind::int4:
      return rows_kernel_of<Int4>(plan);
    case TopkKind::int8:
      return rows_kernel_of<Int8>(plan);
    case TopkKind::uint8:
      return rows_kernel_of<Uint8>(plan);
    case TopkKind::float32:
      return topk_rows_float<Float32>;
    case TopkKind::float16:
      return topk_rows_float<Float16>;
    case TopkKind::bfloat16:
      return topk_rows_float<BFloat16>;
  }
  throw std::invalid_argument("topk: an unknown kind");
}

inline Results results(const TopkArgs& args, int64_t first_query = 0) {
  return {args.k, args.first_id, args.metric, static_cast<unsigned*>(args.scores) + first_query * args.k,
          args.ids ? args.ids + first_query * args.k : nullptr};
}

template <class Launch>
void prepare(const Plan& plan, const TopkArgs& args, const Launch& launch) {
  if (plan.pack.rows > 0) {
    launch(topk_pack_allow, grid(plan.pack.rows * plan.pack.words, fold_threads / warp_size), dim3(fold_threads), 0,
           plan.pack);
  }
  if (args.is_float()) {
    launch(topk_norms, grid(args.queries, fold_threads / warp_size), dim3(fold_threads), 0, plan.norms);
  }
  if (args.is_folded()) {
    constexpr size_t shared = (2 + fold_threads / warp_size) * sizeof(double);
    launch(topk_fold, dim3(static_cast<unsigned>(args.queries)), dim3(fold_threads), shared, plan.fold);
  }
}

template <class Launch>
void scan(const Plan& plan, const ScanArgs& args, TopkKind kind, const Launch& launch) {
  if (args.splits == 0) return;
  launch(scan_kernel(plan, kind), dim3(static_cast<unsigned>(args.tiles) * static_cast<unsigned>(args.splits)),
         dim3(static_cast<unsigned>(plan.warps * warp_size)), static_cast<size_t>(plan.shared_bytes), args);
}

// Rows of `args` from `first` on.
inline RowsArgs rows_args(const Plan& plan, const TopkArgs& args, int64_t first) {
  const ScanArgs& scan = plan.scan;
  RowsArgs rows = {};
  rows.corpus = scan.corpus;
  rows.queries = scan.queries + first * scan.queries_stride;
  rows.queries_stride = scan.queries_stride;
  rows.rows_stride = scan.rows_stride;
  rows.terms = scan.terms ? scan.terms + first : nullptr;
  rows.first_query = first;
  rows.count = args.candidates ? args.candidate_count : args.documents;
  return rows;
}

template <class Launch>
void score(const Plan& plan, TopkKind kind, const RowsArgs& rows, int64_t queries, const Launch& launch) {
  const int lanes = kind >= TopkKind::float32 ? warp_size : 8;  // of a document
  launch(rows_kernel(plan, kind), grid(rows.count, rows_threads / lanes, queries), dim3(rows_threads), 0, rows);
}

// Every score of a batch of queries, then the best of them.
template <class Launch>
void select(const Plan& plan, const TopkArgs& args, const Device& device, int64_t first, const Launch& launch) {
  const RadixArgs& radix = plan.radix;
  const int64_t queries = std::min(plan.batch, args.queries - first);
  if (radix.count > 0) {
    if (args.candidates)
      sort_candidates(args.candidates + first * radix.count, radix.count, plan.candidate_keys, queries, launch);
    // The definition of a float score takes a warp, whether few documents are asked for or all.
    if (args.candidates || args.is_float()) {
      RowsArgs rows = rows_args(plan, args, first);
      rows.sorted = plan.candidate_keys;
      rows.sorted_stride = plan.candidates;
      rows.ordered = plan.scan.all;
      score(plan, args.kind, rows, queries, launch);
    } else {
      Plan part = plan;
      part.scan.queries += first * plan.scan.queries_stride;
      if (part.scan.terms) part.scan.terms += first;
      if (part.scan.corpus.allow) part.scan.corpus.allow += first * part.scan.corpus.allow_stride;
      plan_splits(part, args, queries, device);
      scan(part, part.scan, args.kind, launch);
    }
  }
  select_orders(radix, queries, device, results(args, first), launch);
}

}  // namespace topk

// Of the caller's workspace for exactly these arguments, pointers included. It is aligned to 256 bytes.
inline int64_t workspace_bytes(const TopkArgs& args, const Device& device, bool scores_only = false) {
  return topk::plan(args, device, nullptr, scores_only).bytes;
}

// Queues the kernels; throws std::invalid_argument before the first of them for what they cannot do.
template <class Launch>
void run(const TopkArgs& args, const Device& device, void* workspace, const Launch& launch) {
  topk::Plan plan = topk::plan(args, device, workspace);
  if (args.queries == 0) return;
  topk::prepare(plan, args, launch);
  if (!plan.lists) {
    for (int64_t first = 0; first < args.queries; first += plan.batch) topk::select(plan, args, device, first, launch);
    return;
  }
  topk::scan(plan, plan.scan, args.kind, launch);
  plan.merge.results = topk::results(args);
  topk::merge(plan.merge, args.queries, launch);
}

// The scores of candidates where they stand: args.scores is [Q, candidate_count], k and ids are not used.
template <class Launch>
void run_rows(const TopkArgs& args, const Device& device, void* workspace, const Launch& launch) {
  const topk::Plan plan = topk::plan(args, device, workspace, true);
  if (args.queries == 0 || args.candidate_count == 0) return;
  topk::prepare(plan, args, launch);
  for (int64_t first = 0; first < args.queries; first += topk::launch_queries) {
    topk::RowsArgs rows = topk::rows_args(plan, args, first);
    rows.candidates = args.candidates + first * args.candidate_count;
    rows.results = {args.candidate_count, 0, args.metric,
                    static_cast<unsigned*>(args.scores) + first * args.candidate_count, nullptr};
    topk::score(plan, args.kind, rows, std::min(topk::launch_queries, args.queries - first), launch);
  }
}

template <class Launch>
void run_merge(const TopkMergeArgs& args, const Launch& launch) {
  for (int64_t first = 0; first < args.queries; first += topk::launch_queries) {
    topk::CombineArgs combine = {};
    for (int list = 0; list < 2; ++list) {
      combine.counts[list] = args.counts[list];
      combine.scores[list] = static_cast<const unsigned*>(args.scores[list]) + first * args.counts[list];
      combine.ids[list] = args.ids[list] + first * args.counts[list];
    }
    combine.results = {args.k, 0, args.metric, static_cast<unsigned*>(args.merged_scores) + first * args.k,
                       args.merged_ids + first * args.k};
    launch(topk::topk_combine,
           topk::grid(args.counts[0] + args.counts[1], topk::combine_threads,
                      std::min(topk::launch_queries, args.queries - first)),
           dim3(topk::combine_threads), 0, combine);
  }
}

}  // namespace simtile::cuda
