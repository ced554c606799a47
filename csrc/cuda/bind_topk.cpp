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

TopkKind kind_of(const std::string& name) {
  const struct {
    const char* name;
    TopkKind kind;
  } kinds[] = {{"packed", TopkKind::packed},   {"bits", TopkKind::bits},        {"int4", TopkKind::int4},
               {"int8", TopkKind::int8},       {"uint8", TopkKind::uint8},      {"float32", TopkKind::float32},
               {"float16", TopkKind::float16}, {"bfloat16", TopkKind::bfloat16}};
  for (const auto& kind : kinds)
    if (name == kind.name) return kind.kind;
  throw py::value_error("kind: found '" + name +
                        "', expected 'packed', 'bits', 'int4', 'int8', 'uint8', 'float32', 'float16' or 'bfloat16'");
}

TopkMetric metric_of(const std::string& name) {
  if (name == "hamming") return TopkMetric::hamming;
  if (name == "dot") return TopkMetric::dot;
  if (name == "cosine") return TopkMetric::cosine;
  require(name == "l2", "metric: found '" + name + "', expected 'hamming', 'dot', 'cosine' or 'l2'");
  return TopkMetric::l2;
}

TopkArgs arguments(const std::string& kind, const std::string& metric, int64_t queries, int64_t documents, int64_t dim,
                   Address queries_data, int64_t queries_stride, Address documents_data, int64_t documents_stride,
                   Address scale, Address offset, Address factor, Address addend, Address query_scale, Address allow,
                   Address allow_bits, int64_t allow_stride, Address rank, Address candidates, int64_t candidate_count,
                   int64_t k, int64_t first_id, Address scores, Address ids) {
  require_at_least("queries", queries, 0);
  require_at_least("documents", documents, 0);
  require_at_least("dim", dim, 1);
  require_at_least("queries_stride", queries_stride, 0);
  require_at_least("documents_stride", documents_stride, 0);
  require_at_least("allow_stride", allow_stride, 0);
  require_at_least("candidate_count", candidate_count, 0);
  require_at_least("k", k, 1);
  require_at_least("first_id", first_id, 0);
  require_memory("queries_data", queries_data, queries > 0);
  require_memory("documents_data", documents_data, documents > 0);
  TopkArgs args = {};
  args.kind = kind_of(kind);
  args.metric = metric_of(metric);
  args.queries = queries;
  args.documents = documents;
  args.dim = dim;
  args.queries_data = as_pointer<const void>(queries_data);
  args.documents_data = as_pointer<const void>(documents_data);
  args.queries_stride = queries_stride;
  args.documents_stride = documents_stride;
  args.scale = as_pointer<const float>(scale);
  args.offset = as_pointer<const float>(offset);
  args.factor = as_pointer<const float>(factor);
  args.addend = as_pointer<const float>(addend);
  args.query_scale = as_pointer<const float>(query_scale);
  args.allow = as_pointer<const uint8_t>(allow);
  args.allow_bits = as_pointer<const uint32_t>(allow_bits);
  args.allow_stride = allow_stride;
  args.rank = as_pointer<const uint32_t>(rank);
  args.candidates = as_pointer<const int64_t>(candidates);
  args.candidate_count = candidate_count;
  args.k = k;
  args.first_id = first_id;
  args.scores = as_pointer<void>(scores);
  args.ids = as_pointer<int64_t>(ids);
  return args;
}

int64_t workspace_bytes(const TopkArgs& args, int device, bool scores_only) {
  return topk_workspace_bytes(args, device_facts(device), scores_only);
}

void run(const TopkArgs& args, int device, Address stream, Address workspace, int64_t size, bool scores_only) {
  require_memory("scores", reinterpret_cast<Address>(args.scores), args.queries > 0);
  require_memory("ids", reinterpret_cast<Address>(args.ids), args.queries > 0 && !scores_only);
  const Device facts = device_facts(device);
  require_workspace(workspace, size, topk_workspace_bytes(args, facts, scores_only));
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_topk(args, facts, as_pointer<void>(workspace), scores_only, as_stream(stream));
}

void merge(const std::string& metric, int64_t queries, int64_t k, int64_t first_count, Address first_scores,
           Address first_ids, int64_t second_count, Address second_scores, Address second_ids, Address scores,
           Address ids, int device, Address stream) {
  TopkMergeArgs args = {};
  args.metric = metric_of(metric);
  args.queries = queries;
  args.k = k;
  args.counts[0] = first_count;
  args.counts[1] = second_count;
  args.scores[0] = as_pointer<const void>(first_scores);
  args.scores[1] = as_pointer<const void>(second_scores);
  args.ids[0] = as_pointer<const int64_t>(first_ids);
  args.ids[1] = as_pointer<const int64_t>(second_ids);
  args.merged_scores = as_pointer<void>(scores);
  args.merged_ids = as_pointer<int64_t>(ids);
  require_at_least("queries", queries, 0);
  require(first_count >= 0 && second_count >= 0 && k >= 1 && k <= first_count + second_count,
          "k: found " + std::to_string(k) + " of lists of " + std::to_string(first_count) + " and " +
              std::to_string(second_count) + ", expected 1 to their sum");
  for (const Address memory : {first_scores, first_ids}) require_memory("first", memory, queries * first_count > 0);
  for (const Address memory : {second_scores, second_ids}) require_memory("second", memory, queries * second_count > 0);
  for (const Address memory : {scores, ids}) require_memory("out", memory, queries > 0);
  device_facts(device);  // whether there is one
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_topk_merge(args, as_stream(stream));
}

}  // namespace

void register_topk(py::module_& m) {
  py::class_<TopkArgs>(m, "TopkArgs")
      .def(py::init(&arguments), py::kw_only(), py::arg("kind"), py::arg("metric"), py::arg("queries"),
           py::arg("documents"), py::arg("dim"), py::arg("queries_data"), py::arg("queries_stride"),
           py::arg("documents_data"), py::arg("documents_stride"), py::arg("scale"), py::arg("offset"),
           py::arg("factor"), py::arg("addend"), py::arg("query_scale"), py::arg("allow"), py::arg("allow_bits"),
           py::arg("allow_stride"), py::arg("rank"), py::arg("candidates"), py::arg("candidate_count"), py::arg("k"),
           py::arg("first_id"), py::arg("scores"), py::arg("ids"));
  m.def("topk_workspace_bytes", &workspace_bytes, py::arg("args"), py::arg("device"), py::arg("scores_only"));
  m.def("topk", &run, py::arg("args"), py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("workspace_bytes"), py::arg("scores_only"));
  m.def("topk_merge", &merge, py::kw_only(), py::arg("metric"), py::arg("queries"), py::arg("k"),
        py::arg("first_count"), py::arg("first_scores"), py::arg("first_ids"), py::arg("second_count"),
        py::arg("second_scores"), py::arg("second_ids"), py::arg("scores"), py::arg("ids"), py::arg("device"),
        py::arg("stream"));
}

}  // namespace simtile::cuda
