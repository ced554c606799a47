// MaxSim's dispatch and kernels on memory of the CPU: tests/maxsim_cuda_host.py. A call is a dict of the arguments of _cuda.MaxsimArgs and of
// the device's multiprocessors and shared_bytes; of a search, of those of _cuda.MaxsimTopkArgs as well, k and what follows it.
#include <pybind11/pybind11.h>

#include <map>

#include "cuda/maxsim_topk_dispatch.hpp"

namespace py = pybind11;
namespace maxsim = simtile::cuda::maxsim;
namespace topk = simtile::cuda::topk;
using simtile::cuda::Device;
using simtile::cuda::MaxsimArgs;
using simtile::cuda::MaxsimKind;
using simtile::cuda::MaxsimRuns;
using simtile::cuda::MaxsimTopkArgs;

namespace {

const std::map<std::string, MaxsimKind> kinds = {
    {"float32", MaxsimKind::float32},    {"float16", MaxsimKind::float16},     {"bfloat16", MaxsimKind::bfloat16},
    {"int8", MaxsimKind::int8},          {"int16", MaxsimKind::int16},         {"uint8", MaxsimKind::uint8},
    {"bits", MaxsimKind::bits},          {"residual1", MaxsimKind::residual1}, {"residual2", MaxsimKind::residual2},
    {"residual4", MaxsimKind::residual4}};

// Memory comes as addresses, 0 for none.
template <class T>
T* data(const py::dict& given, const std::string& name) {
  return reinterpret_cast<T*>(given[name.c_str()].cast<std::uintptr_t>());
}

int64_t number(const py::dict& given, const std::string& name) { return given[name.c_str()].cast<int64_t>(); }

MaxsimRuns runs(const py::dict& given, const std::string& side) {
  MaxsimRuns runs = {};
  runs.kind = kinds.at(given[(side + "_kind").c_str()].cast<std::string>());
  runs.count = number(given, side + "_count");
  runs.data = data<const void>(given, side + "_data");
  runs.stride = number(given, side + "_stride");
  runs.starts = data<const int64_t>(given, side + "_starts");
  runs.ends = data<const int64_t>(given, side + "_ends");
  runs.mask = data<const uint8_t>(given, side + "_mask");
  return runs;
}

MaxsimArgs arguments(const py::dict& given) {
  MaxsimArgs args = {};
  args.queries = runs(given, "queries");
  args.documents = runs(given, "documents");
  args.dimensions = number(given, "dimensions");
  args.longest_query = number(given, "longest_query");
  args.units = data<const float>(given, "units");
  args.terms = data<const float>(given, "terms");
  args.factors = data<const float>(given, "factors");
  args.normalize = given["normalize"].cast<bool>();
  args.pad_zero_rows = given["pad_zero_rows"].cast<bool>();
  args.length_normalize = given["length_normalize"].cast<bool>();
  args.empty_score = given["empty_score"].cast<float>();
  args.candidates = data<const int64_t>(given, "candidates");
  args.candidate_count = number(given, "candidate_count");
  args.scores = data<float>(given, "scores");
  args.argmax = data<int32_t>(given, "argmax");
  args.token_scores = data<float>(given, "token_scores");
  args.rows_before = data<const int64_t>(given, "rows_before");
  if (given.contains("centroids")) {
    args.residuals.centroid_ids = data<const int32_t>(given, "centroid_ids");
    args.residuals.centroid_count = number(given, "centroid_count");
    args.residuals.centroids = data<const float>(given, "centroids");
    args.residuals.query_values = data<const float>(given, "query_values");
    int16_t* weight = args.residuals.weights;
    for (const py::handle one : given["weights"].cast<py::list>()) *weight++ = one.cast<int16_t>();
  }
  if (given.contains("most_product_bytes")) args.most_product_bytes = number(given, "most_product_bytes");
  if (given.contains("most_maxima_bytes")) args.most_maxima_bytes = number(given, "most_maxima_bytes");
  return args;
}

MaxsimTopkArgs search_arguments(const py::dict& given) {
  MaxsimTopkArgs args = {};
  args.pairs = arguments(given);
  args.k = number(given, "k");
  args.allow = data<const uint8_t>(given, "allow");
  args.allow_stride = number(given, "allow_stride");
  args.scores = data<float>(given, "best_scores");
  args.ids = data<int64_t>(given, "best_ids");
  if (given.contains("most_query_bytes")) args.most_query_bytes = number(given, "most_query_bytes");
  return args;
}

Device device(const py::dict& given) {
  return {given["multiprocessors"].cast<int>(), given["shared_bytes"].cast<std::size_t>(), 80};
}

std::string format_name(MaxsimKind kind) {
  switch (kind) {
    case MaxsimKind::float32:
      return "7Float32";
    case MaxsimKind::float16:
      return "7Float16";
    case MaxsimKind::bfloat16:
      return "8BFloat16";
    case MaxsimKind::bits:
      return "4Bits";
    case MaxsimKind::residual1:
      return "8ResidualILi1EE";
    case MaxsimKind::residual2:
      return "8ResidualILi2EE";
    case MaxsimKind::residual4:
      return "8ResidualILi4EE";
    default:
      return "5Bytes";
  }
}

// What would be launched, for those who run the kernels elsewhere: (part of the mangled name, grid, block, shared bytes, argument).
struct Recorder {
  const maxsim::Plan& plan;
  py::list& launches;

  template <class Args>
  void operator()(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared_bytes, Args args) const {
    const py::bytes argument(reinterpret_cast<const char*>(&args), sizeof args);
    launches.append(py::make_tuple(name(kernel), py::make_tuple(grid.x, grid.y), block.x, shared_bytes, argument));
  }

  std::string name(void (*kernel)(maxsim::Work)) const {
    const MaxsimKind kind = plan.work.args.documents.kind;
    if (kernel == maxsim::maxsim_count) return "maxsim_count";
    if (kernel == maxsim::maxsim_sum) return "maxsim_sum";
    if (kernel == maxsim::centroids_kernel(plan))
      return "maxsim_centroidsILi" + std::to_string(plan.work.columns) + "EE";
    const bool is_float = kind < MaxsimKind::int8;
    if (kernel == maxsim::pack_kernel(kind)) {
      const MaxsimKind packed = kind == MaxsimKind::float16 ? MaxsimKind::bfloat16 : kind;
      return (is_float ? "maxsim_packINS1_" : "maxsim_pack_codesINS1_") + format_name(packed) + "EE";
    }
    return "maxsim_scanINS1_" + format_name(kind) + "ELi" + std::to_string(plan.work.planes) + "ELi" +
           std::to_string(plan.work.columns / 16) + "ELb" + std::to_string(plan.staged) + "EE";
  }

  // Of a kernel that selects.
  template <class Args>
  std::string name(void (*kernel)(Args)) const {
    const std::pair<const void*, const char*> plain[] = {
        {reinterpret_cast<const void*>(maxsim::maxsim_choose), "maxsim_choose"},
        {reinterpret_cast<const void*>(maxsim::maxsim_keep), "maxsim_keep"},
        {reinterpret_cast<const void*>(maxsim::maxsim_order), "maxsim_order"},
        {reinterpret_cast<const void*>(topk::topk_merge), "topk_merge"},
        {reinterpret_cast<const void*>(topk::topk_sort_chunks), "topk_sort_chunks"},
        {reinterpret_cast<const void*>(topk::topk_sort_step), "topk_sort_step"},
        {reinterpret_cast<const void*>(topk::topk_results), "topk_results"},
        {reinterpret_cast<const void*>(topk::topk_candidates), "topk_candidates"},
        {reinterpret_cast<const void*>(topk::topk_radix_begin), "topk_radix_begin"},
        {reinterpret_cast<const void*>(topk::topk_radix_count), "topk_radix_count"},
        {reinterpret_cast<const void*>(topk::topk_radix_digit), "topk_radix_digit"},
        {reinterpret_cast<const void*>(topk::topk_radix_collect), "topk_radix_collect"},
    };
    for (const auto& [address, text] : plain)
      if (address == reinterpret_cast<const void*>(kernel)) return text;
    throw std::runtime_error("a kernel without a name");
  }
};

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_maxsim, module) {
  module.def(
      "workspace_bytes", [](const py::dict& given) { return workspace_bytes(arguments(given), device(given)); },
      py::arg("given"));
  module.def(
      "plan",
      [](const py::dict& given) {
        const maxsim::Plan plan = maxsim::plan(arguments(given), device(given), nullptr);
        py::dict found;
        found["columns"] = plan.work.columns;
        found["planes"] = plan.work.planes;
        found["staged"] = plan.staged;
        found["groups"] = plan.groups;
        found["blocks"] = plan.blocks;
        found["steps"] = plan.work.steps;
        found["tile_rows"] = plan.work.tile_rows;
        found["queries_per_group"] = plan.work.queries_per_group;
        found["launch_items"] = plan.launch_items;
        return found;
      },
      py::arg("given"));
  module.def(
      "launches",
      [](const py::dict& given, std::uintptr_t workspace) {
        const maxsim::Plan plan = maxsim::plan(arguments(given), device(given), nullptr);
        py::list launches;
        run(arguments(given), device(given), reinterpret_cast<void*>(workspace), Recorder{plan, launches});
        return launches;
      },
      py::arg("given"), py::arg("workspace"));
  module.def(
      "run",
      [](const py::dict& given, std::uintptr_t workspace, uint64_t order) {
        run(arguments(given), device(given), reinterpret_cast<void*>(workspace), cuda_host::Launch{order});
      },
      py::arg("given"), py::arg("workspace"), py::arg("order"));
  module.def(
      "search_workspace_bytes",
      [](const py::dict& given) { return workspace_bytes(search_arguments(given), device(given)); }, py::arg("given"));
  module.def(
      "search_plan",
      [](const py::dict& given) {
        const maxsim::TopkPlan plan = maxsim::plan(search_arguments(given), device(given), nullptr);
        return py::make_tuple(plan.lists, plan.batch, plan.merge.splits);
      },
      "Whether lists are kept, queries of a batch, splits.", py::arg("given"));
  module.def(
      "search_launches",
      [](const py::dict& given, std::uintptr_t workspace) {
        // One batch, whose instances are those of all its queries.
        const maxsim::Plan plan = maxsim::plan(arguments(given), device(given), nullptr);
        py::list launches;
        run(search_arguments(given), device(given), reinterpret_cast<void*>(workspace), Recorder{plan, launches});
        return launches;
      },
      py::arg("given"), py::arg("workspace"));
  module.def(
      "search",
      [](const py::dict& given, std::uintptr_t workspace, uint64_t order) {
        run(search_arguments(given), device(given), reinterpret_cast<void*>(workspace), cuda_host::Launch{order});
      },
      py::arg("given"), py::arg("workspace"), py::arg("order"));
}
