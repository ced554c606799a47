#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>

#include "call.hpp"
#include "operations.hpp"
#include "runtime.hpp"

namespace py = pybind11;

namespace simtile::cuda {
namespace {

using Address = std::uintptr_t;

InfoNceForwardArgs arguments(int64_t rows, int64_t documents, int64_t negatives, int64_t dimensions,
                             Address queries_data, int64_t queries_stride, Address documents_data,
                             int64_t documents_stride, Address negatives_data, int64_t negatives_stride,
                             Address temperature_data, double temperature, bool normalize, bool own_negatives,
                             Address targets, Address query_ids, Address document_ids, Address losses,
                             Address row_maxima, Address row_log_sums) {
  require_at_least("rows", rows, 1);
  require_at_least("documents", documents, 1);
  require_at_least("negatives", negatives, 0);
  require_at_least("dimensions", dimensions, 1);
  require_at_least("queries_stride", queries_stride, 0);
  require_at_least("documents_stride", documents_stride, 0);
  require_at_least("negatives_stride", negatives_stride, 0);
  require_memory("queries_data", queries_data, true);
  require_memory("documents_data", documents_data, true);
  require_memory("negatives_data", negatives_data, negatives > 0);
  require((query_ids == 0) == (document_ids == 0), "query_ids, document_ids: found one, expected both or neither");
  require(targets != 0 || documents >= rows,
          "documents: found fewer than rows without targets, expected at least as many");
  require(temperature_data != 0 || (std::isfinite(temperature) && temperature > 0),
          "temperature: expected a finite number above 0");
  InfoNceForwardArgs args = {};
  args.rows = rows;
  args.documents = documents;
  args.negatives = negatives;
  args.dimensions = dimensions;
  args.queries_data = as_pointer<const void>(queries_data);
  args.documents_data = as_pointer<const void>(documents_data);
  args.negatives_data = as_pointer<const void>(negatives_data);
  args.queries_stride = queries_stride;
  args.documents_stride = documents_stride;
  args.negatives_stride = negatives_stride;
  args.temperature_data = as_pointer<const float>(temperature_data);
  args.temperature = temperature;
  args.normalize = normalize;
  args.own_negatives = own_negatives;
  args.targets = as_pointer<const int64_t>(targets);
  args.query_ids = as_pointer<const int64_t>(query_ids);
  args.document_ids = as_pointer<const int64_t>(document_ids);
  args.losses = as_pointer<float>(losses);
  args.row_maxima = as_pointer<float>(row_maxima);
  args.row_log_sums = as_pointer<float>(row_log_sums);
  return args;
}

void run(const InfoNceForwardArgs& args, int device, Address stream) {
  require_memory("losses", reinterpret_cast<Address>(args.losses), true);
  const Device facts = device_facts(device);
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_info_nce(args, facts, as_stream(stream));
}

}  // namespace

void register_info_nce(py::module_& m) {
  py::class_<InfoNceForwardArgs>(m, "InfoNceForwardArgs")
      .def(py::init(&arguments), py::kw_only(), py::arg("rows"), py::arg("documents"), py::arg("negatives"),
           py::arg("dimensions"), py::arg("queries_data"), py::arg("queries_stride"), py::arg("documents_data"),
           py::arg("documents_stride"), py::arg("negatives_data"), py::arg("negatives_stride"),
           py::arg("temperature_data"), py::arg("temperature"), py::arg("normalize"), py::arg("own_negatives"),
           py::arg("targets"), py::arg("query_ids"), py::arg("document_ids"), py::arg("losses"), py::arg("row_maxima"),
           py::arg("row_log_sums"));
  m.def("info_nce_forward", &run, py::arg("args"), py::arg("device"), py::arg("stream"));
}

}  // namespace simtile::cuda
