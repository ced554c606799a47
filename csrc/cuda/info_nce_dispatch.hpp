// Which instance of the info_nce forward runs, on what grid, with how much shared memory. The same code under nvcc and on the host:
// `launch` is called as launch(kernel, grid, block, dynamic_shared_bytes, arguments...).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "info_nce/cuda.cuh"
#include "info_nce/cuda_args.hpp"
#include "tile/cuda_device.hpp"

namespace simtile::cuda {

namespace info_nce {

constexpr int64_t most_dimensions = int64_t(1) << 30;  // places in a row are int
constexpr int64_t most_rows = int64_t(1) << 34;        // the grid has fewer than 2^31 blocks

// Up to so many candidates, a warp takes 8 columns: all warps have work, and none has two rounds. Beyond, 32 columns use a fragment of
// the queries four times. Not measured.
constexpr int64_t few_candidates = 8 * kWarps;

inline void check(const InfoNceForwardArgs& args) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("info_nce: " + what);
  };
  const auto in_range = [&](const char* name, int64_t value, int64_t least, int64_t most) {
    require(value >= least && value <= most, std::string(name) + " = " + std::to_string(value) + "; expected " +
                                                 std::to_string(least) + " to " + std::to_string(most));
  };
  in_range("rows", args.rows, 1, most_rows);
  in_range("documents", args.documents, 1, INT64_MAX);
  in_range("negatives", args.negatives, 0, INT64_MAX);
  in_range("dimensions", args.dimensions, 1, most_dimensions);
  in_range("queries_stride", args.queries_stride, 0, INT64_MAX);
  in_range("documents_stride", args.documents_stride, 0, INT64_MAX);
  in_range("negatives_stride", args.negatives_stride, 0, INT64_MAX);
  require((args.query_ids == nullptr) == (args.document_ids == nullptr),
          "only one of query_ids and document_ids; expected both or none");
}

inline bool is_aligned(const void* data, int64_t stride, int64_t count) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (count < 2 || stride % 8 == 0);
}

struct Plan {
  bool aligned;
  int row_tiles;     // of 16 rows a block
  int column_tiles;  // of 8 columns a warp at a time
  int slice;         // dimensions that are staged at a time, whole steps; all of them if they fit
  std::size_t shared_bytes;
};

inline std::size_t state_bytes(int row_tiles) {
  static_assert(sizeof(RowState<16>) % 16 == 0 && sizeof(RowState<32>) % 16 == 0,
                "staged rows are read 16 bytes at a time");
  return row_tiles == 1 ? sizeof(RowState<16>) : sizeof(RowState<32>);
}

// False if not all dimensions of the rows fit shared memory; a slice of them is then planned.
inline bool plan_shared(const InfoNceForwardArgs& args, const Device& device, int row_tiles, Plan& plan) {
  const int64_t pairs = 8 * row_tiles, step_bytes = staged_pitch(1) - staged_pitch(0);
  const int64_t room =
      (static_cast<int64_t>(device.shared_bytes_per_block) - static_cast<int64_t>(state_bytes(row_tiles))) / pairs;
  const int64_t all = (args.dimensions + kStep - 1) / kStep, fit = (room - staged_pitch(0)) / step_bytes;
  if (fit < 1)
    throw std::invalid_argument("info_nce: a device with " + std::to_string(device.shared_bytes_per_block) +
                                " bytes of shared memory a block; expected at least 8192");
  const int64_t steps = std::min(all, fit);
  plan.row_tiles = row_tiles;
  plan.slice = static_cast<int>(steps * kStep);
  plan.shared_bytes = state_bytes(row_tiles) + static_cast<std::size_t>(pairs * staged_pitch(steps));
  return steps == all;
}

inline Plan plan(const InfoNceForwardArgs& args, const Device& device) {
  check(args);
  Plan plan = {};
  plan.aligned = args.dimensions % 8 == 0 && is_aligned(args.queries_data, args.queries_stride, args.rows) &&
                 is_aligned(args.documents_data, args.documents_stride, args.documents) &&
                 is_aligned(args.negatives_data, args.negatives_stride, args.rows * args.negatives);
  const int64_t candidates = args.documents + (args.own_negatives ? 16 : args.rows) * args.negatives;
  plan.column_tiles = !plan.aligned ? 2 : candidates <= few_candidates ? 1 : 4;
  // 32 rows halve what is read of the candidates and what their norms cost, once such blocks occupy every multiprocessor.
  const bool many_rows = plan.column_tiles == 4 && (args.rows + 31) / 32 >= device.multiprocessors;
  if (!(many_rows && plan_shared(args, device, 2, plan))) plan_shared(args, device, 1, plan);
  return plan;
}

using Kernel = void (*)(InfoNceForwardArgs, float, int);

template <bool kNormalize>
Kernel kernel(const Plan& plan) {
  if (!plan.aligned) return info_nce_forward<1, 2, false, kNormalize>;
  if (plan.column_tiles == 1) return info_nce_forward<1, 1, true, kNormalize>;
  return plan.row_tiles == 1 ? info_nce_forward<1, 4, true, kNormalize> : info_nce_forward<2, 4, true, kNormalize>;
}

}  // namespace info_nce

inline int64_t workspace_bytes(const InfoNceForwardArgs&, const Device&) { return 0; }

// Queues the one kernel; throws std::invalid_argument before it for what it cannot do. The workspace may be null.
template <class Launch>
void run(const InfoNceForwardArgs& args, const Device& device, void* /*workspace*/, const Launch& launch) {
  const info_nce::Plan plan = info_nce::plan(args, device);
  const int64_t rows = 16 * plan.row_tiles, blocks = (args.rows + rows - 1) / rows;
  launch(args.normalize ? info_nce::kernel<true>(plan) : info_nce::kernel<false>(plan),
         dim3(static_cast<unsigned>(blocks)), dim3(info_nce::kThreads), plan.shared_bytes, args,
         args.temperature_data ? 0.0f : static_cast<float>(1 / args.temperature), plan.slice);
}

}  // namespace simtile::cuda
