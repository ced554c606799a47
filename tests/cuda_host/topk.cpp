// Search's dispatch and kernels on NumPy arrays: tests/topk_backends.py. A call is a dict of the arguments of simtile._core.topk, and
// multiprocessors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>

#include "cuda/topk_dispatch.hpp"

namespace py = pybind11;
namespace topk = simtile::cuda::topk;
using simtile::cuda::Device;
using simtile::cuda::TopkArgs;
using simtile::cuda::TopkKind;
using simtile::cuda::TopkMetric;

namespace {

const std::map<std::string, TopkKind> kinds = {{"packed", TopkKind::packed},   {"bits", TopkKind::bits},
                                               {"int4", TopkKind::int4},       {"int8", TopkKind::int8},
                                               {"uint8", TopkKind::uint8},     {"float32", TopkKind::float32},
                                               {"float16", TopkKind::float16}, {"bfloat16", TopkKind::bfloat16}};
const std::map<std::string, TopkMetric> metrics = {
    {"hamming", TopkMetric::hamming}, {"dot", TopkMetric::dot}, {"cosine", TopkMetric::cosine}, {"l2", TopkMetric::l2}};

// The memory of an array as it is, strides and alignment included: nothing is converted.
template <class T>
T* data(const py::dict& given, const char* name) {
  if (!given.contains(name) || given[name].is_none()) return nullptr;
  return const_cast<T*>(static_cast<const T*>(py::reinterpret_borrow<py::array>(given[name]).data()));
}

TopkArgs arguments(const py::dict& given) {
  const auto array = [&](const char* name) { return py::reinterpret_borrow<py::array>(given[name]); };
  const py::array queries = array("queries"), documents = array("documents");
  TopkArgs args = {};
  args.kind = kinds.at(given["kind"].cast<std::string>());
  args.metric = metrics.at(given["metric"].cast<std::string>());
  args.queries = queries.shape(0);
  args.documents = documents.shape(0);
  args.dim = given["dim"].cast<int64_t>();
  args.queries_data = queries.data();
  args.documents_data = documents.data();
  args.queries_stride = queries.strides(0);
  args.documents_stride = documents.strides(0);
  args.scale = data<float>(given, "scale");
  args.offset = data<float>(given, "offset");
  args.factor = data<float>(given, "factor");
  args.addend = data<float>(given, "addend");
  args.query_scale = data<float>(given, "query_scale");
  if (data<void>(given, "allow")) {
    const py::array allow = array("allow");
    const bool each = allow.ndim() == 2;
    if (allow.dtype().kind() == 'b') {
      args.allow = data<uint8_t>(given, "allow");
      args.allow_stride = each ? allow.strides(0) : 0;
    } else {
      args.allow_bits = data<uint32_t>(given, "allow");
      args.allow_stride = each ? allow.strides(0) / 4 : 0;
    }
  }
  args.rank = data<uint32_t>(given, "rank");
  args.candidates = data<int64_t>(given, "candidates");
  if (args.candidates) args.candidate_count = array("candidates").shape(1);
  args.k = given.contains("k") ? given["k"].cast<int64_t>() : 1;
  args.first_id = given.contains("first_id") ? given["first_id"].cast<int64_t>() : 0;
  args.scores = data<void>(given, "scores");
  args.ids = data<int64_t>(given, "ids");
  return args;
}

Device device(const py::dict& given) { return {given["multiprocessors"].cast<int>(), 99 << 10, 80}; }

std::string codes_name(TopkKind kind) {
  const char* names[] = {"6Packed", "4Bits", "4Int4", "4Int8", "5Uint8", "7Float32", "7Float16", "8BFloat16"};
  return names[static_cast<int>(kind)];
}

std::string instance(const char* kernel, TopkKind kind, std::initializer_list<int> values) {
  std::string name = std::string(kernel) + "INS1_" + codes_name(kind);
  for (const int value : values) name += "ELi" + std::to_string(value);
  return name + "E";
}

// A part of the mangled name that no other kernel has.
std::string scan_name(const topk::Plan& plan, TopkKind kind) {
  if (plan.mma) return instance("topk_scan_mma", kind, {plan.planes});
  if (kind >= TopkKind::float32) return instance("topk_scan_float", kind, {plan.load_bytes, plan.kernel_tile});
  return instance("topk_scan", kind, {plan.load_bytes, plan.lanes, plan.kernel_tile});
}

// What would be launched, for those who run the kernels elsewhere: (kernel, grid, block, shared bytes, argument).
struct Recorder {
  const topk::Plan& plan;
  TopkKind kind;
  py::list& launches;

  template <class Args>
  void operator()(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared_bytes, Args args) const {
    const py::bytes argument(reinterpret_cast<const char*>(&args), sizeof args);
    launches.append(py::make_tuple(name(kernel), py::make_tuple(grid.x, grid.y), block.x, shared_bytes, argument));
  }

  template <class Args>
  std::string name(void (*kernel)(Args)) const {
    if constexpr (std::is_same_v<Args, topk::ScanArgs>) return scan_name(plan, kind);
    if constexpr (std::is_same_v<Args, topk::RowsArgs>) {
      if (kind >= TopkKind::float32) return instance("topk_rows_float", kind, {});
      return instance("topk_rows", kind, {plan.load_bytes == 1 ? 1 : 4});
    }
    const std::pair<const void*, const char*> plain[] = {
        {reinterpret_cast<const void*>(topk::topk_fold), "topk_fold"},
        {reinterpret_cast<const void*>(topk::topk_norms), "topk_norms"},
        {reinterpret_cast<const void*>(topk::topk_pack_allow), "topk_pack_allow"},
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

PYBIND11_MODULE(simtile_cuda_host_topk, module) {
  module.def(
      "workspace_bytes",
      [](const py::dict& given, bool scores_only) {
        return workspace_bytes(arguments(given), device(given), scores_only);
      },
      py::arg("given"), py::arg("scores_only"));
  module.def(
      "division",
      [](const py::dict& given) {
        const topk::Plan plan = topk::plan(arguments(given), device(given), nullptr);
        return py::make_tuple(plan.scan.tile, plan.scan.splits);
      },
      "Queries of a block, splits of the documents.", py::arg("given"));
  module.def(
      "scan_kernel",
      [](const py::dict& given) {
        const TopkArgs args = arguments(given);
        return scan_name(topk::plan(args, device(given), nullptr), args.kind);
      },
      py::arg("given"));
  module.def(
      "run",
      [](const py::dict& given, py::array& workspace, bool scores_only, uint64_t order) {
        const TopkArgs args = arguments(given);
        const cuda_host::Launch launch{order};
        if (scores_only) {
          run_rows(args, device(given), workspace.mutable_data(), launch);
        } else {
          run(args, device(given), workspace.mutable_data(), launch);
        }
      },
      py::arg("given"), py::arg("workspace"), py::arg("scores_only"), py::arg("order"));
  module.def(
      "merge",
      [](const py::dict& given, uint64_t order) {
        simtile::cuda::TopkMergeArgs args = {};
        args.metric = metrics.at(given["metric"].cast<std::string>());
        const py::array first = py::reinterpret_borrow<py::array>(given["scores0"]);
        const py::array second = py::reinterpret_borrow<py::array>(given["scores1"]);
        args.queries = first.shape(0);
        args.counts[0] = first.shape(1);
        args.counts[1] = second.shape(1);
        args.k = given["k"].cast<int64_t>();
        args.scores[0] = first.data();
        args.scores[1] = second.data();
        args.ids[0] = data<int64_t>(given, "ids0");
        args.ids[1] = data<int64_t>(given, "ids1");
        args.merged_scores = data<void>(given, "scores");
        args.merged_ids = data<int64_t>(given, "ids");
        run_merge(args, cuda_host::Launch{order});
      },
      py::arg("given"), py::arg("order"));
  module.def(
      "launches",
      [](const py::dict& given, py::array& workspace, bool scores_only) {
        const TopkArgs args = arguments(given);
        const topk::Plan plan = topk::plan(args, device(given), nullptr, scores_only);
        py::list launches;
        const Recorder recorder{plan, args.kind, launches};
        if (scores_only) {
          run_rows(args, device(given), workspace.mutable_data(), recorder);
        } else {
          run(args, device(given), workspace.mutable_data(), recorder);
        }
        return launches;
      },
      py::arg("given"), py::arg("workspace"), py::arg("scores_only"));
}
