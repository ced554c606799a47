// Top-k's dispatch and kernels on NumPy arrays: tests/test_topk.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/topk_dispatch.hpp"

namespace py = pybind11;
using simtile::cuda::Device;
using simtile::cuda::TopkArgs;
using simtile::cuda::TopkMetric;

namespace {

using Floats = std::optional<py::array_t<float>>;

const float* pointer(const Floats& values) { return values ? values->data() : nullptr; }

// The arrays as they are, strides and alignment included: rows are contiguous, nothing is converted.
TopkArgs arguments(const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
                   const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow) {
  TopkArgs args = {};
  args.metric = metric == "hamming" ? TopkMetric::hamming : TopkMetric::int8;
  args.queries = queries.shape(0);
  args.documents = documents.shape(0);
  args.row_bytes = documents.shape(1);
  args.queries_data = queries.data();
  args.documents_data = documents.data();
  args.queries_stride = queries.strides(0);
  args.documents_stride = documents.strides(0);
  args.query_scales = pointer(query_scales);
  args.document_scales = pointer(document_scales);
  if (allow) {
    args.allow = static_cast<const uint8_t*>(allow->data());
    args.allow_stride = allow->ndim() == 2 ? allow->strides(0) : 0;
  }
  args.k = k;
  return args;
}

Device device(int multiprocessors) { return {multiprocessors, 99 << 10, 80}; }

// What would be launched, for those who run the kernels elsewhere: (kernel, grid, block, shared bytes, argument).
struct Recorder {
  std::string scan;
  py::list& launches;

  template <class Args>
  void operator()(void (*)(Args), dim3 grid, dim3 block, size_t shared_bytes, Args args) const {
    const bool scans = std::is_same_v<Args, simtile::cuda::topk::ScanArgs>;
    const py::bytes argument(reinterpret_cast<const char*>(&args), sizeof args);
    launches.append(py::make_tuple(scans ? scan : "topk_merge", grid.x, block.x, shared_bytes, argument));
  }
};

// A part of the mangled name that no other kernel has.
std::string scan_name(const TopkArgs& args, const Device& on) {
  const simtile::cuda::topk::Plan plan = simtile::cuda::topk::plan(args, on);
  if (plan.mma) return "topk_scan_mma";
  std::string name = args.metric == TopkMetric::hamming ? "Hamming" : "Int8Dot";
  for (const int value : {plan.load_bytes, plan.lanes, plan.kernel_tile}) name += "ELi" + std::to_string(value);
  return name + "E";
}

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_topk, module) {
  module.def(
      "workspace_bytes",
      [](const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
         const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow,
         int multiprocessors) {
        return workspace_bytes(arguments(metric, queries, documents, k, query_scales, document_scales, allow),
                               device(multiprocessors));
      },
      py::arg("metric"), py::arg("queries").noconvert(), py::arg("documents").noconvert(), py::arg("k"),
      py::arg("query_scales"), py::arg("document_scales"), py::arg("allow"), py::arg("multiprocessors"));
  module.def(
      "division",
      [](const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
         const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow,
         int multiprocessors) {
        const auto plan = simtile::cuda::topk::plan(
            arguments(metric, queries, documents, k, query_scales, document_scales, allow), device(multiprocessors));
        return py::make_tuple(plan.scan.tile, plan.scan.splits);
      },
      "Queries of a block, splits of the documents.", py::arg("metric"), py::arg("queries").noconvert(),
      py::arg("documents").noconvert(), py::arg("k"), py::arg("query_scales"), py::arg("document_scales"),
      py::arg("allow"), py::arg("multiprocessors"));
  module.def(
      "scan_kernel",
      [](const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
         const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow,
         int multiprocessors) {
        return scan_name(arguments(metric, queries, documents, k, query_scales, document_scales, allow),
                         device(multiprocessors));
      },
      py::arg("metric"), py::arg("queries").noconvert(), py::arg("documents").noconvert(), py::arg("k"),
      py::arg("query_scales"), py::arg("document_scales"), py::arg("allow"), py::arg("multiprocessors"));
  module.def(
      "run",
      [](const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
         const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow,
         int multiprocessors, py::array& scores, py::array_t<int64_t>& ids, py::array& workspace, uint64_t order) {
        TopkArgs args = arguments(metric, queries, documents, k, query_scales, document_scales, allow);
        args.scores = scores.mutable_data();
        args.ids = ids.mutable_data();
        simtile::cuda::run(args, device(multiprocessors), workspace.mutable_data(), cuda_host::Launch{order});
      },
      py::arg("metric"), py::arg("queries").noconvert(), py::arg("documents").noconvert(), py::arg("k"),
      py::arg("query_scales").noconvert(), py::arg("document_scales").noconvert(), py::arg("allow").noconvert(),
      py::arg("multiprocessors"), py::arg("scores").noconvert(), py::arg("ids").noconvert(),
      py::arg("workspace").noconvert(), py::arg("order"));
  module.def(
      "launches",
      [](const std::string& metric, const py::array& queries, const py::array& documents, int64_t k,
         const Floats& query_scales, const Floats& document_scales, const std::optional<py::array>& allow,
         int multiprocessors, py::array& scores, py::array_t<int64_t>& ids, py::array& workspace) {
        TopkArgs args = arguments(metric, queries, documents, k, query_scales, document_scales, allow);
        args.scores = scores.mutable_data();
        args.ids = ids.mutable_data();
        py::list launches;
        const Device on = device(multiprocessors);
        simtile::cuda::run(args, on, workspace.mutable_data(), Recorder{scan_name(args, on), launches});
        return launches;
      },
      py::arg("metric"), py::arg("queries").noconvert(), py::arg("documents").noconvert(), py::arg("k"),
      py::arg("query_scales").noconvert(), py::arg("document_scales").noconvert(), py::arg("allow").noconvert(),
      py::arg("multiprocessors"), py::arg("scores").noconvert(), py::arg("ids").noconvert(),
      py::arg("workspace").noconvert());
}
