// Which top-k kernels run, on what grid, with how much memory. The same code under nvcc and on the host: `launch` is called as
// launch(kernel, grid, block, dynamic_shared_bytes, arguments...).
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "tile/cuda_device.hpp"
#include "topk/cuda.cuh"
#include "topk/cuda_args.hpp"

namespace simtile::cuda {

namespace topk {

constexpr int64_t keys_per_pass = 1024;               // a list of more would leave no room for a block's warps
constexpr int64_t most_row_bytes = 32 << 10;          // one query and its lists fit shared memory
constexpr int64_t most_documents = int64_t(1) << 32;  // a key has 32 bits for a document
constexpr int64_t shared_limit = 64 << 10;  // two blocks a multiprocessor on every device from sm_80 but 86, 89, 120
constexpr int64_t blocks_per_multiprocessor = 4;  // not measured: 16 warps with 4 KiB of loads in flight each
constexpr int scan_tile = 8;                      // queries of a block without the matrix unit

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline void check(const TopkArgs& args) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("topk: " + what); };
  if (args.k < 1) refuse("k = " + std::to_string(args.k) + "; expected at least 1");
  if (args.queries < 0 || args.queries >= int64_t(1) << 31)
    refuse("queries: " + std::to_string(args.queries) + " rows; expected fewer than 2^31; split them");
  if (args.documents < 0 || args.documents >= most_documents)
    refuse("documents: " + std::to_string(args.documents) +
           " rows; expected fewer than 2^32; split them and merge the results");
  if (args.row_bytes < 1 || args.row_bytes > most_row_bytes)
    refuse("documents: rows of " + std::to_string(args.row_bytes) + " bytes; expected 1 to " +
           std::to_string(most_row_bytes));
  if (args.metric == TopkMetric::hamming && args.scaled()) refuse("scales; Hamming distances have none");
}

// What a block may load at once: 16, 4 or 1 bytes, by the alignment of every row.
inline int load_bytes(const TopkArgs& args) {
  uint64_t bits = reinterpret_cast<uintptr_t>(args.queries_data) | reinterpret_cast<uintptr_t>(args.documents_data);
  if (args.queries > 1) bits |= static_cast<uint64_t>(args.queries_stride);
  if (args.documents > 1) bits |= static_cast<uint64_t>(args.documents_stride);
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

struct Plan {
  ScanArgs scan;  // without what changes from pass to pass
  bool mma;
  int load_bytes;   // the template arguments of topk_scan: BYTES,
  int lanes;        // LANES,
  int kernel_tile;  // and TILE, at least scan.tile
  int warps;        // of a scanning block
  int64_t shared_bytes;
  int merge_warps;
  int64_t merge_shared_bytes;
  int64_t passes;
  int64_t partial_keys;
};

// Queries a block and its warps: as many as fit shared memory, queries first, since each tile reads every document again.
inline void fit(Plan& plan, const TopkArgs& args, const Device& device) {
  const int64_t limit = std::min<int64_t>(shared_limit, static_cast<int64_t>(device.shared_bytes_per_block));
  const auto fits = [&](int tile, int warps, int rows) {
    plan.scan.tile = tile;
    plan.warps = warps;
    plan.shared_bytes = scan_shared_bytes(plan.scan, warps, rows);
    return plan.shared_bytes <= limit;
  };
  if (args.metric == TopkMetric::int8 && args.queries > scan_tile && plan.load_bytes == 16 &&
      args.row_bytes % 16 == 0) {
    // 64 past a multiple of 128: eight lanes that read 16 bytes each, 4 of one query and 4 of the next, meet every bank once.
    plan.scan.query_pitch = static_cast<int>(round_up(args.row_bytes - 64, 128) + 64);
    const int tile = static_cast<int>(std::min<int64_t>(args.queries, mma_rows));
    plan.mma = fits(tile, scan_warps, mma_rows) || fits(tile, scan_warps / 2, mma_rows);
    if (plan.mma) return;
  }
  plan.scan.query_pitch = static_cast<int>(round_up(args.row_bytes, 16));
  for (int tile = static_cast<int>(std::min<int64_t>(args.queries, scan_tile)); tile > 0; --tile)
    if (fits(tile, scan_warps, tile)) return;
  for (int warps = scan_warps / 2; warps > 0; warps /= 2)
    if (fits(1, warps, 1)) return;
  throw std::invalid_argument("topk: rows of " + std::to_string(args.row_bytes) + " bytes with k = " +
                              std::to_string(args.k) + " need " + std::to_string(plan.shared_bytes) +
                              " bytes of shared memory a block; this device allows " + std::to_string(limit));
}

// The instance of topk_scan. A tile of one query has its own: with one eighth of the sums, more warps fit a multiprocessor.
// Where loads are narrow, they and not the registers are the limit. Lanes that share a document: as many as it has pieces
// of 16 bytes, so that short rows leave few of them idle.
inline void choose_kernel(Plan& plan) {
  plan.kernel_tile = plan.load_bytes == 16 && plan.scan.tile == 1 ? 1 : scan_tile;
  plan.lanes = 8;
  if (plan.scan.kind != ScoreKind::distance || plan.load_bytes < 16) return;
  if (plan.scan.row_bytes <= 32)
    plan.lanes = 2;
  else if (plan.scan.row_bytes <= 64)
    plan.lanes = 4;
}

inline ListShape list_shape(int64_t keys) {
  int capacity = warp_size;
  while (capacity < keys) capacity *= 2;
  return {capacity, std::max(warp_size, capacity / 4)};
}

inline Plan plan(const TopkArgs& args, const Device& device) {
  check(args);
  Plan plan = {};
  plan.load_bytes = load_bytes(args);
  plan.passes = std::max<int64_t>(1, ceil_div(std::min(args.k, args.documents), keys_per_pass));

  ScanArgs& scan = plan.scan;
  scan.queries = static_cast<const uint8_t*>(args.queries_data);
  scan.documents = static_cast<const uint8_t*>(args.documents_data);
  scan.query_scales = args.query_scales;
  scan.document_scales = args.document_scales;
  if (args.allow) (args.allow_stride ? scan.allow_each : scan.allow_all) = args.allow;
  scan.queries_stride = args.queries_stride;
  scan.documents_stride = args.documents_stride;
  scan.allow_stride = args.allow_stride;
  scan.query_count = args.queries;
  scan.document_count = args.documents;
  scan.row_bytes = static_cast<int>(args.row_bytes);
  scan.keys = static_cast<int>(std::min(args.k, keys_per_pass));
  scan.list = list_shape(scan.keys);
  scan.kind = args.metric == TopkMetric::hamming ? ScoreKind::distance
              : args.scaled()                    ? ScoreKind::scaled_dot
                                                 : ScoreKind::dot;
  if (args.queries > 0) fit(plan, args, device);
  choose_kernel(plan);

  scan.tiles = static_cast<int>(args.queries > 0 ? ceil_div(args.queries, scan.tile) : 0);
  if (scan.tiles > 0 && args.documents > 0) {
    const int64_t wanted = ceil_div(device.multiprocessors * blocks_per_multiprocessor, scan.tiles);
    const int64_t round = plan.warps * warp_size;
    // A split of fewer documents than keys would write a list that is mostly empty.
    const int64_t per_split = std::max<int64_t>(ceil_div(args.documents, wanted), scan.keys);
    scan.documents_per_split = round_up(per_split, round);
    scan.splits = static_cast<int>(ceil_div(args.documents, scan.documents_per_split));
  }
  plan.partial_keys = args.queries * scan.keys * scan.splits;

  plan.merge_warps = 1;
  const auto merge_bytes = [&](int warps) { return int64_t(warps) * scan.list.keys() * int64_t(sizeof(Key)); };
  while (plan.merge_warps < most_merge_warps && plan.merge_warps * warp_size < scan.splits &&
         merge_bytes(2 * plan.merge_warps) <= shared_limit)
    plan.merge_warps *= 2;
  plan.merge_shared_bytes = merge_bytes(plan.merge_warps);
  return plan;
}

using ScanKernel = void (*)(ScanArgs);

template <class Metric, int LANES>
ScanKernel wide_kernel(int tile) {
  return tile == 1 ? topk_scan<Metric, 16, LANES, 1> : topk_scan<Metric, 16, LANES, scan_tile>;
}

template <class Metric>
ScanKernel narrow_kernel(int load_bytes) {
  return load_bytes == 1 ? topk_scan<Metric, 1, 8, scan_tile> : topk_scan<Metric, 4, 8, scan_tile>;
}

inline ScanKernel scan_kernel(const Plan& plan) {
  if (plan.mma) return topk_scan_mma;
  const bool hamming = plan.scan.kind == ScoreKind::distance;
  if (plan.load_bytes < 16) {
    return hamming ? narrow_kernel<Hamming>(plan.load_bytes) : narrow_kernel<Int8Dot>(plan.load_bytes);
  }
  if (!hamming) return wide_kernel<Int8Dot, 8>(plan.kernel_tile);
  if (plan.lanes == 2) return wide_kernel<Hamming, 2>(plan.kernel_tile);
  if (plan.lanes == 4) return wide_kernel<Hamming, 4>(plan.kernel_tile);
  return wide_kernel<Hamming, 8>(plan.kernel_tile);
}

}  // namespace topk

// Of the caller's workspace for exactly these arguments, pointers included. It is aligned to 256 bytes.
inline int64_t workspace_bytes(const TopkArgs& args, const Device& device) {
  const topk::Plan plan = topk::plan(args, device);
  return (plan.partial_keys + (plan.passes > 1 ? args.queries : 0)) * static_cast<int64_t>(sizeof(topk::Key));
}

// Queues the kernels; throws std::invalid_argument before the first of them for what they cannot do.
template <class Launch>
void run(const TopkArgs& args, const Device& device, void* workspace, const Launch& launch) {
  const topk::Plan plan = topk::plan(args, device);
  if (args.queries == 0) return;
  topk::ScanArgs scan = plan.scan;
  scan.partial = static_cast<topk::Key*>(workspace);
  topk::Key* last = plan.passes > 1 ? scan.partial + plan.partial_keys : nullptr;

  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    if (scan.splits > 0) {
      launch(topk::scan_kernel(plan), dim3(static_cast<unsigned>(scan.tiles) * static_cast<unsigned>(scan.splits)),
             dim3(static_cast<unsigned>(plan.warps * topk::warp_size)), static_cast<size_t>(plan.shared_bytes), scan);
    }
    const int64_t first_place = pass * topk::keys_per_pass;
    topk::MergeArgs merge = {};
    merge.partial = scan.partial;
    merge.splits = scan.splits;
    merge.keys = scan.keys;
    merge.list = scan.list;
    merge.kind = scan.kind;
    merge.first_place = first_place;
    merge.places = pass + 1 < plan.passes ? topk::keys_per_pass : args.k - first_place;
    merge.k = args.k;
    merge.scores = static_cast<unsigned*>(args.scores);
    merge.ids = args.ids;
    merge.last = last;
    launch(topk::topk_merge, dim3(static_cast<unsigned>(args.queries)),
           dim3(static_cast<unsigned>(plan.merge_warps * topk::warp_size)),
           static_cast<size_t>(plan.merge_shared_bytes), merge);
    scan.after = last;
  }
}

}  // namespace simtile::cuda
