#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// A thread more than this many multiply-adds justify costs more to wake than it saves (about 30 us of work).
constexpr double kWorkPerThread = 6e6;

void check_matrix(const char* name, const py::array& array, const ElementType& type) {
  if (array.ndim() != 2) refuse(name, "not a matrix");
  if (array.shape(0) == 0 || array.shape(1) == 0) refuse(name, "empty");
  check_dtype(name, array, type.kind, type.bytes);
}

// The gradients by temperature and bias.
std::pair<double, double> siglip(const py::array& queries, const py::array& documents, const std::string& dtype,
                                 double temperature, double bias, bool normalize, double weight, py::array losses,
                                 std::optional<py::array> grad_queries, std::optional<py::array> grad_documents,
                                 long long threads) {
  const ElementType type = element_type(dtype);
  check_matrix("queries", queries, type);
  check_matrix("documents", documents, type);
  if (documents.shape(1) != queries.shape(1)) refuse("documents", "not of the queries' dimensions");
  if (documents.shape(0) < queries.shape(0)) refuse("documents", "fewer than queries");
  if (!(temperature > 0) || !std::isfinite(temperature)) refuse("temperature", "not positive and finite");

  SiglipArgs args = {};
  args.element = type.element;
  args.rows = queries.shape(0);
  args.documents = documents.shape(0);
  args.dimensions = queries.shape(1);
  args.queries_data = queries.data();
  args.documents_data = documents.data();
  args.queries_stride = row_stride("queries", queries, 0);
  args.documents_stride = row_stride("documents", documents, 0);
  args.temperature = temperature;
  args.bias = bias;
  args.normalize = normalize;
  args.weight = weight;
  std::optional<py::array> given(std::move(losses));
  args.losses = static_cast<double*>(output("losses", given, 'f', 8, {args.rows}));
  const int64_t bytes = type.element == Element::float64 ? 8 : 4;
  args.grad_queries = output("grad_queries", grad_queries, 'f', bytes, {args.rows, args.dimensions});
  args.grad_documents = output("grad_documents", grad_documents, 'f', bytes, {args.documents, args.dimensions});
  double grad_temperature = 0, grad_bias = 0;
  args.grad_temperature = &grad_temperature;
  args.grad_bias = &grad_bias;
  const double products = static_cast<double>(args.rows) * static_cast<double>(args.documents) *
                          static_cast<double>(args.dimensions) * (args.wants_gradients() ? 3 : 1);
  run_variant(kernels().siglip().by_element[static_cast<int>(type.element)], args,
              useful_threads(products, kWorkPerThread, threads));
  return {grad_temperature, grad_bias};
}

}  // namespace

void register_siglip(py::module_& m) {
  m.def("siglip", &siglip, py::arg("queries"), py::arg("documents"), py::arg("dtype"), py::arg("temperature"),
        py::arg("bias"), py::arg("normalize"), py::arg("weight"), py::arg("losses"), py::arg("grad_queries"),
        py::arg("grad_documents"), py::arg("threads"));
}

}  // namespace simtile
