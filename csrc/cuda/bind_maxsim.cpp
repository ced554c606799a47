#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "call.hpp"
#include "operations.hpp"
#include "runtime.hpp"

namespace py = pybind11;

namespace simtile::cuda {
namespace {

using Address = std::uintptr_t;

MaxsimKind kind_of(const std::string& argument, const std::string& name) {
  const struct {
    const char* name;
    MaxsimKind kind;
  } kinds[] = {{"float32", MaxsimKind::float32},     {"float16", MaxsimKind::float16},
               {"bfloat16", MaxsimKind::bfloat16},   {"int8", MaxsimKind::int8},
               {"int16", MaxsimKind::int16},         {"uint8", MaxsimKind::uint8},
               {"bits", MaxsimKind::bits},           {"residual1", MaxsimKind::residual1},
               {"residual2", MaxsimKind::residual2}, {"residual4", MaxsimKind::residual4}};
  for (const auto& kind : kinds)
    if (name == kind.name) return kind.kind;
  throw py::value_error(argument + ": found '" + name +
                        "', expected 'float32', 'float16', 'bfloat16', 'int8', 'int16', 'uint8', 'bits', 'residual1', "
                        "'residual2' or 'residual4'");
}

MaxsimRuns runs(const std::string& name, const std::string& kind, int64_t count, Address data, int64_t stride,
                Address starts, Address ends, Address mask) {
  require_at_least((name + "_count").c_str(), count, 0);
  require_at_least((name + "_stride").c_str(), stride, 0);
  require_memory((name + "_starts").c_str(), starts, count > 0);
  require_memory((name + "_ends").c_str(), ends, count > 0);
  MaxsimRuns runs = {};
  runs.kind = kind_of(name + "_kind", kind);
  runs.data = as_pointer<const void>(data);
  runs.stride = stride;
  runs.count = count;
  runs.starts = as_pointer<const int64_t>(starts);
  runs.ends = as_pointer<const int64_t>(ends);
  runs.mask = as_pointer<const uint8_t>(mask);
  return runs;
}

MaxsimResiduals residuals(Address centroid_ids, int64_t centroid_count, Address centroids, Address query_values,
                          const std::vector<int16_t>& weights) {
  require_at_least("centroid_count", centroid_count, 1);
  require_memory("centroids", centroids, true);
  MaxsimResiduals residuals = {};
  residuals.centroid_ids = as_pointer<const int32_t>(centroid_ids);
  residuals.centroid_count = centroid_count;
  residuals.centroids = as_pointer<const float>(centroids);
  residuals.query_values = as_pointer<const float>(query_values);
  std::copy(weights.begin(), weights.end(), residuals.weights);
  return residuals;
}

MaxsimArgs arguments(const std::string& queries_kind, int64_t queries_count, Address queries_data,
                     int64_t queries_stride, Address queries_starts, Address queries_ends, Address queries_mask,
                     const std::string& documents_kind, int64_t documents_count, Address documents_data,
                     int64_t documents_stride, Address documents_starts, Address documents_ends, Address documents_mask,
                     int64_t dimensions, int64_t longest_query, Address units, Address terms, Address factors,
                     bool normalize, bool pad_zero_rows, bool length_normalize, float empty_score, Address candidates,
                     int64_t candidate_count, Address scores, Address argmax, Address token_scores, Address rows_before,
                     Address centroid_ids, int64_t centroid_count, Address centroids, Address query_values,
                     const std::vector<int16_t>& weights) {
  require_at_least("dimensions", dimensions, 1);
  require_at_least("longest_query", longest_query, 0);
  require_at_least("candidate_count", candidate_count, 0);
  MaxsimArgs args = {};
  args.queries = runs("queries", queries_kind, queries_count, queries_data, queries_stride, queries_starts,
                      queries_ends, queries_mask);
  args.documents = runs("documents", documents_kind, documents_count, documents_data, documents_stride,
                        documents_starts, documents_ends, documents_mask);
  args.dimensions = dimensions;
  args.longest_query = longest_query;
  args.units = as_pointer<const float>(units);
  args.terms = as_pointer<const float>(terms);
  args.factors = as_pointer<const float>(factors);
  if (const int bits = residual_bits(args.documents.kind)) {
    if (weights.size() != std::size_t(1) << bits)
      throw py::value_error("weights: found " + std::to_string(weights.size()) + " for " + documents_kind +
                            ", expected " + std::to_string(1 << bits));
    args.residuals = residuals(centroid_ids, centroid_count, centroids, query_values, weights);
  }
  args.normalize = normalize;
  args.pad_zero_rows = pad_zero_rows;
  args.length_normalize = length_normalize;
  args.empty_score = empty_score;
  args.candidates = as_pointer<const int64_t>(candidates);
  args.candidate_count = candidate_count;
  args.scores = as_pointer<float>(scores);
  args.argmax = as_pointer<int32_t>(argmax);
  args.token_scores = as_pointer<float>(token_scores);
  args.rows_before = as_pointer<const int64_t>(rows_before);
  return args;
}

int64_t workspace_bytes(const MaxsimArgs& args, int device) {
  return maxsim_workspace_bytes(args, device_facts(device));
}

void run(const MaxsimArgs& args, int device, Address stream, Address workspace, int64_t size) {
  require_memory("scores", reinterpret_cast<Address>(args.scores), args.queries.count > 0 && args.candidate_count > 0);
  const Device facts = device_facts(device);
  require_workspace(workspace, size, maxsim_workspace_bytes(args, facts));
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_maxsim(args, facts, as_pointer<void>(workspace), as_stream(stream));
}

}  // namespace

void register_maxsim(py::module_& m) {
  py::class_<MaxsimArgs>(m, "MaxsimArgs")
      .def(py::init(&arguments), py::kw_only(), py::arg("queries_kind"), py::arg("queries_count"),
           py::arg("queries_data"), py::arg("queries_stride"), py::arg("queries_starts"), py::arg("queries_ends"),
           py::arg("queries_mask"), py::arg("documents_kind"), py::arg("documents_count"), py::arg("documents_data"),
           py::arg("documents_stride"), py::arg("documents_starts"), py::arg("documents_ends"),
           py::arg("documents_mask"), py::arg("dimensions"), py::arg("longest_query"), py::arg("units"),
           py::arg("terms"), py::arg("factors"), py::arg("normalize"), py::arg("pad_zero_rows"),
           py::arg("length_normalize"), py::arg("empty_score"), py::arg("candidates"), py::arg("candidate_count"),
           py::arg("scores"), py::arg("argmax"), py::arg("token_scores"), py::arg("rows_before"),
           py::arg("centroid_ids") = 0, py::arg("centroid_count") = 0, py::arg("centroids") = 0,
           py::arg("query_values") = 0, py::arg("weights") = std::vector<int16_t>());
  m.def("maxsim_workspace_bytes", &workspace_bytes, py::arg("args"), py::arg("device"));
  m.def("maxsim", &run, py::arg("args"), py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("workspace_bytes"));
}

}  // namespace simtile::cuda
