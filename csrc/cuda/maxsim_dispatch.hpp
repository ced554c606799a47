// Which instances of MaxSim's kernels run, on what grids, with how much shared memory and workspace. The same code under nvcc and on the
// host: `launch` is called as launch(kernel, grid, block, dynamic_shared_bytes, argument).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "maxsim/cuda.cuh"
#include "maxsim/cuda_args.hpp"
#include "tile/cuda_device.hpp"

namespace simtile::cuda {

namespace maxsim {

constexpr int kFewColumns = 32;
constexpr int64_t kMostDimensions = int64_t(1) << 24;  // places of fragments are int
constexpr int64_t kMostRows = int64_t(1) << 31;        // of a run: argmax is int32
constexpr int64_t kLaunchGroups = 64;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check(const MaxsimArgs& args) {
  const auto in_range = [](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      throw std::invalid_argument(std::string("maxsim: ") + name + " = " + std::to_string(value) + "; expected " +
                                  std::to_string(least) + " to " + std::to_string(most));
  };
  in_range("queries", args.queries.count, 0, (int64_t(1) << 31) - 1);
  in_range("documents", args.documents.count, 0, (int64_t(1) << 40));
  in_range("candidate_count", args.candidate_count, 0, (int64_t(1) << 40));
  in_range("dimensions", args.dimensions, 1, kMostDimensions);
  in_range("longest_query", args.longest_query, 0, kMostRows - 1);
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("maxsim: ") + what);
  };
  const bool is_code = args.documents.kind >= MaxsimKind::int8;
  const bool are_whole = args.queries.kind == MaxsimKind::int8 || args.queries.kind == MaxsimKind::int16;
  require(is_code ? are_whole : args.queries.kind <= MaxsimKind::bfloat16,
          "the kind of queries; expected floats, or int8 or int16 with documents of codes");
  require(args.documents.kind != MaxsimKind::int16, "documents of int16; expected floats or codes");
  require(is_code || !(args.units || args.terms || args.factors), "units, terms or factors without codes");
  require(!residual_bits(args.documents.kind) || args.queries.kind == MaxsimKind::int16,
          "the kind of queries; expected int16 with documents of residuals");
  require(!residual_bits(args.documents.kind) || args.residuals.centroid_count > 0, "residuals without centroids");
  in_range("centroid_count", args.residuals.centroid_count, 0, (int64_t(1) << 31) - 1);
  require(!is_code || !(args.normalize || args.pad_zero_rows), "normalize or pad_zero_rows with codes");
  if (!args.candidates && args.candidate_count != args.documents.count)
    throw std::invalid_argument("maxsim: candidate_count without candidates; expected the number of documents");
  if ((args.argmax || args.token_scores) && !args.rows_before)
    throw std::invalid_argument("maxsim: argmax or token_scores without rows_before");
}

// Pieces of the caller's workspace, one after the other. Without memory it only counts.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t begin = bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

struct Plan {
  Work work;
  int64_t groups;        // of all queries
  int64_t launch_items;  // at most, of one launch
  int launch_groups;
  int blocks;  // of a group
  bool staged;
  std::size_t shared_bytes;
  int64_t bytes;  // of the workspace
};

// What of a format the host has to know.
struct Shape {
  int64_t step_bytes;
  int products;  // mma of a step
  int most_eights;
  int64_t row_bytes;
  bool is_code;
};

template <class Format>
Shape shape_of(int64_t dimensions) {
  return {16 * Format::kWords, Format::kProducts, Format::kMostEights, row_bytes<Format>(dimensions), Format::kIsCode};
}

inline Shape shape(const MaxsimArgs& args) {
  switch (args.documents.kind) {
    case MaxsimKind::float32:
      return shape_of<Float32>(args.dimensions);
    case MaxsimKind::float16:
      return shape_of<Float16>(args.dimensions);
    case MaxsimKind::bfloat16:
      return shape_of<BFloat16>(args.dimensions);
    case MaxsimKind::int8:
    case MaxsimKind::uint8:
      return shape_of<Bytes>(args.dimensions);
    case MaxsimKind::bits:
      return shape_of<Bits>(args.dimensions);
    case MaxsimKind::residual1:
      return shape_of<Residual<1>>(args.dimensions);
    case MaxsimKind::residual2:
      return shape_of<Residual<2>>(args.dimensions);
    case MaxsimKind::residual4:
      return shape_of<Residual<4>>(args.dimensions);
    case MaxsimKind::int16:
      break;
  }
  throw std::invalid_argument("maxsim: an unknown kind");
}

// Columns of a group: those of most tokens that the device's shared memory holds.
inline void plan_columns(Plan& plan, const MaxsimArgs& args, const Device& device) {
  Work& work = plan.work;
  const Shape format = shape(args);
  const MaxsimKind kind = args.documents.kind;
  // Where both sides are bfloat16, one plane is all there is; rows are scaled by powers of two.
  work.planes = kind == MaxsimKind::bfloat16 && args.queries.kind == MaxsimKind::bfloat16 ? 1 : kMostPlanes;
  if (format.is_code) work.planes = args.queries.kind == MaxsimKind::int8 ? 1 : 2;
  work.steps = static_cast<int>(ceil_div(format.row_bytes, format.step_bytes)) * format.products;
  const auto set = [&](int columns) {
    work.columns = columns;
    plan.shared_bytes = static_cast<std::size_t>(work.planes) * work.steps * columns * 32 +
                        static_cast<std::size_t>(addend_bytes(format.is_code, columns));
    plan.staged = plan.shared_bytes <= device.shared_bytes_per_block;
  };
  set(args.queries.count * args.longest_query > kFewColumns && !(args.candidates && args.longest_query <= kFewColumns)
          ? kMostColumns
          : kFewColumns);
  // A query longer than a group is cut at kMostColumns; so are queries that no group's shared memory holds.
  if (!plan.staged && args.longest_query <= kFewColumns) set(kFewColumns);
  if (!plan.staged) {
    set(kMostColumns);
    plan.shared_bytes = static_cast<std::size_t>(addend_bytes(format.is_code, kMostColumns));
  }
  const int64_t fit = args.candidates ? 1 : work.columns / std::max<int64_t>(args.longest_query, 1);
  work.queries_per_group = static_cast<int>(std::max<int64_t>(std::min(fit, args.queries.count), 1));
  work.groups_per_query = static_cast<int>(std::max<int64_t>(ceil_div(args.longest_query, kMostColumns), 1));
  plan.groups = work.groups_per_query > 1 ? args.queries.count * work.groups_per_query
                                          : ceil_div(args.queries.count, work.queries_per_group);
}

inline Plan plan(const MaxsimArgs& args, const Device& device, void* memory) {
  check(args);
  Plan plan = {};
  Work& work = plan.work;
  work.args = args;
  if (args.queries.count == 0 || args.candidate_count == 0) return plan;
  plan_columns(plan, args, device);
  const int bits = residual_bits(args.documents.kind);
  const int64_t group_products = bits ? args.residuals.centroid_count * work.columns : 0;
  int64_t most_groups = kLaunchGroups;
  if (bits) {
    work.values = residual_values(args.residuals.weights, bits);
    most_groups = std::min(most_groups, args.most_product_bytes / (group_products * int64_t(sizeof(float))));
  }
  // Whole queries.
  const int64_t unit = work.groups_per_query;
  plan.launch_groups = static_cast<int>(std::min(plan.groups, std::max(most_groups / unit, int64_t(1)) * unit));
  const int64_t resident = device.multiprocessors * (plan.staged && work.columns == kFewColumns ? 2 : 1);
  plan.blocks = static_cast<int>(ceil_div(resident, plan.launch_groups));
  work.warps = plan.blocks * kWarps;
  work.tile_rows = 8 * rows_of_eight(shape(args).most_eights, work.columns / 16, plan.staged);
  const int64_t slot_bytes = work.columns * 8 + 4;
  const int64_t slots = args.most_maxima_bytes / (slot_bytes * plan.launch_groups);
  plan.launch_items = std::min(args.candidate_count, std::max<int64_t>(slots - work.warps, 1));

  Pieces pieces(memory);
  const int64_t lists = args.candidates ? plan.launch_groups : 1;
  const int64_t segments = plan.launch_groups * (plan.launch_items + work.warps);
  work.packed = pieces.take<uint4>(plan.groups * work.planes * work.steps * work.columns * 2);
  work.factor = pieces.take<float>(plan.groups * work.columns);
  work.column = pieces.take<Column>(plan.groups * work.columns);
  work.group_columns = pieces.take<int>(plan.groups);
  work.place = pieces.take<int16_t>(args.queries.count * args.longest_query);
  work.tiles_before = pieces.take<int64_t>(lists * (plan.launch_items + 1));
  work.maxima = pieces.take<float>(segments * work.columns);
  work.rows = pieces.take<int32_t>(segments * work.columns);
  work.tokens = pieces.take<int32_t>(segments);
  work.products = pieces.take<float>(plan.launch_groups * group_products);
  plan.bytes = pieces.bytes();
  return plan;
}

using Kernel = void (*)(Work);

template <class Format, int kQueryPlanes>
Kernel scan_kernel_of(const Plan& plan) {
  if (!plan.staged) return maxsim_scan<Format, kQueryPlanes, kMostColumns / 16, false>;
  return plan.work.columns == kMostColumns ? maxsim_scan<Format, kQueryPlanes, kMostColumns / 16, true>
                                           : maxsim_scan<Format, kQueryPlanes, kFewColumns / 16, true>;
}

inline Kernel scan_kernel(const Plan& plan) {
  switch (plan.work.args.documents.kind) {
    case MaxsimKind::float32:
      return scan_kernel_of<Float32, 3>(plan);
    case MaxsimKind::float16:
      return scan_kernel_of<Float16, 3>(plan);
    case MaxsimKind::bfloat16:
      return plan.work.planes == 1 ? scan_kernel_of<BFloat16, 1>(plan) : scan_kernel_of<BFloat16, 3>(plan);
    case MaxsimKind::int8:
    case MaxsimKind::uint8:
      return plan.work.planes == 1 ? scan_kernel_of<Bytes, 1>(plan) : scan_kernel_of<Bytes, 2>(plan);
    case MaxsimKind::bits:
      return plan.work.planes == 1 ? scan_kernel_of<Bits, 1>(plan) : scan_kernel_of<Bits, 2>(plan);
    case MaxsimKind::residual1:
      return scan_kernel_of<Residual<1>, 2>(plan);
    case MaxsimKind::residual2:
      return scan_kernel_of<Residual<2>, 2>(plan);
    case MaxsimKind::residual4:
      return scan_kernel_of<Residual<4>, 2>(plan);
    case MaxsimKind::int16:
      break;
  }
  throw std::invalid_argument("maxsim: an unknown kind");
}

inline Kernel pack_kernel(MaxsimKind kind) {
  switch (kind) {
    case MaxsimKind::float32:
      return maxsim_pack<Float32>;
    case MaxsimKind::float16:
    case MaxsimKind::bfloat16:
      return maxsim_pack<BFloat16>;
    case MaxsimKind::int8:
    case MaxsimKind::uint8:
      return maxsim_pack_codes<Bytes>;
    case MaxsimKind::bits:
      return maxsim_pack_codes<Bits>;
    case MaxsimKind::residual1:
      return maxsim_pack_codes<Residual<1>>;
    case MaxsimKind::residual2:
      return maxsim_pack_codes<Residual<2>>;
    case MaxsimKind::residual4:
      return maxsim_pack_codes<Residual<4>>;
    case MaxsimKind::int16:
      break;
  }
  throw std::invalid_argument("maxsim: an unknown kind");
}

inline Kernel centroids_kernel(const Plan& plan) {
  return plan.work.columns == kMostColumns ? maxsim_centroids<kMostColumns> : maxsim_centroids<kFewColumns>;
}

inline dim3 grid(int64_t x, int64_t y = 1) { return {static_cast<unsigned>(x), static_cast<unsigned>(y)}; }

// The queries of a launch's groups, of which the last may be beyond all queries.
inline int64_t launch_queries(const Work& work, int64_t groups) {
  return work.groups_per_query > 1 ? groups / work.groups_per_query : groups * work.queries_per_group;
}

// Queues the kernels. `begin(work)` says where the scores of a launch go, `end(work)` follows them.
template <class Launch, class Begin, class End>
void run_plan(const Plan& plan, const Launch& launch, const Begin& begin, const End& end) {
  Work work = plan.work;
  const MaxsimArgs& args = work.args;
  if (args.queries.count == 0 || args.candidate_count == 0) return;
  launch(pack_kernel(args.documents.kind), grid(plan.groups), dim3(kThreads), sizeof(PackState), work);
  for (work.first_item = 0; work.first_item < args.candidate_count; work.first_item += plan.launch_items) {
    work.items = std::min(plan.launch_items, args.candidate_count - work.first_item);
    for (work.first_group = 0; work.first_group < plan.groups; work.first_group += plan.launch_groups) {
      work.groups = static_cast<int>(std::min<int64_t>(plan.launch_groups, plan.groups - work.first_group));
      begin(work);
      if (args.candidates || work.first_group == 0)
        launch(maxsim_count, grid(args.candidates ? work.groups : 1), dim3(kCountThreads),
               kCountThreads / 32 * sizeof(int64_t), work);
      // Where one launch has all groups, their products stay.
      if (residual_bits(args.documents.kind) && (work.first_item == 0 || plan.groups > plan.launch_groups))
        launch(centroids_kernel(plan), grid(ceil_div(args.residuals.centroid_count, kBlockCentroids), work.groups),
               dim3(kThreads), static_cast<std::size_t>(centroid_shared_bytes(work.columns)), work);
      launch(scan_kernel(plan), grid(plan.blocks, work.groups), dim3(kThreads), plan.shared_bytes, work);
      launch(maxsim_sum, grid(ceil_div(work.items, kWarps), launch_queries(work, work.groups)), dim3(kThreads), 0,
             work);
      end(work);
    }
  }
}

// Scores go where all of them stand.
inline void place_scores(Work& work) {
  const MaxsimArgs& args = work.args;
  work.scores = args.scores + work.first_query(work.first_group) * args.candidate_count + work.first_item;
  work.scores_stride = args.candidate_count;
}

}  // namespace maxsim

// Of the caller's workspace, aligned to 256 bytes, for exactly these arguments.
inline int64_t workspace_bytes(const MaxsimArgs& args, const Device& device) {
  return maxsim::plan(args, device, nullptr).bytes;
}

// Queues the kernels; throws std::invalid_argument before the first of them for what they cannot do.
template <class Launch>
void run(const MaxsimArgs& args, const Device& device, void* workspace, const Launch& launch) {
  maxsim::run_plan(maxsim::plan(args, device, workspace), launch, maxsim::place_scores, [](const maxsim::Work&) {});
}

}  // namespace simtile::cuda
