#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "call.hpp"
#include "operations.hpp"
#include "runtime.hpp"

namespace py = pybind11;

namespace simtile::cuda {
namespace {

using Address = std::uintptr_t;

TopkArgs arguments(const std::string& metric, int64_t queries, int64_t documents, int64_t row_bytes,
                   Address queries_data, int64_t queries_stride, Address documents_data, int64_t documents_stride,
                   Address query_scales, Address document_scales, Address allow, int64_t allow_stride, int64_t k,
                   Address scores, Address ids) {
  require(metric == "hamming" || metric == "int8", "metric: found '" + metric + "', expected 'hamming' or 'int8'");
  require_at_least("queries", queries, 0);
  require_at_least("documents", documents, 0);
  require_at_least("row_bytes", row_bytes, 1);
  require_at_least("queries_stride", queries_stride, 0);
  require_at_least("documents_stride", documents_stride, 0);
  require_at_least("allow_stride", allow_stride, 0);
  require_at_least("k", k, 1);
  require_memory("queries_data", queries_data, queries > 0);
  require_memory("documents_data", documents_data, documents > 0);
  TopkArgs args = {};
  args.metric = metric == "int8" ? TopkMetric::int8 : TopkMetric::hamming;
  args.queries = queries;
  args.documents = documents;
  args.row_bytes = row_bytes;
  args.queries_data = as_pointer<const void>(queries_data);
  args.documents_data = as_pointer<const void>(documents_data);
  args.queries_stride = queries_stride;
  args.documents_stride = documents_stride;
  args.query_scales = as_pointer<const float>(query_scales);
  args.document_scales = as_pointer<const float>(document_scales);
  args.allow = as_pointer<const uint8_t>(allow);
  args.allow_stride = allow_stride;
  args.k = k;
  args.scores = as_pointer<void>(scores);
  args.ids = as_pointer<int64_t>(ids);
  require(args.metric == TopkMetric::int8 || !args.scaled(),
          "query_scales, document_scales: found one with metric 'hamming', expected none");
  return args;
}

int64_t workspace_bytes(const TopkArgs& args, int device) { return topk_workspace_bytes(args, device_facts(device)); }

void run(const TopkArgs& args, int device, Address stream, Address workspace, int64_t size) {
  require_memory("scores", reinterpret_cast<Address>(args.scores), args.queries > 0);
  require_memory("ids", reinterpret_cast<Address>(args.ids), args.queries > 0);
  const Device facts = device_facts(device);
  require_workspace(workspace, size, topk_workspace_bytes(args, facts));
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_topk(args, facts, as_pointer<void>(workspace), as_stream(stream));
}

}  // namespace

void register_topk(py::module_& m) {
  py::class_<TopkArgs>(m, "TopkArgs")
      .def(py::init(&arguments), py::kw_only(), py::arg("metric"), py::arg("queries"), py::arg("documents"),
           py::arg("row_bytes"), py::arg("queries_data"), py::arg("queries_stride"), py::arg("documents_data"),
           py::arg("documents_stride"), py::arg("query_scales"), py::arg("document_scales"), py::arg("allow"),
           py::arg("allow_stride"), py::arg("k"), py::arg("scores"), py::arg("ids"));
  m.def("topk_workspace_bytes", &workspace_bytes, py::arg("args"), py::arg("device"));
  m.def("topk", &run, py::arg("args"), py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("workspace_bytes"));
}

}  // namespace simtile::cuda
