#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"
#include "maxsim_arrays.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// Below this many multiply-adds a thread costs more to wake than it saves.
constexpr double kProductsPerThread = 2e6;

// Every match is a row of its document; a pair without a document has none.
void check_argmax(const MaxsimBackwardArgs& args) {
  const int32_t* match = args.argmax;
  for (int64_t q = 0; q < args.queries.count; q++) {
    for (int64_t c = 0; c < args.candidate_count; c++) {
      const int64_t document = args.candidates ? args.candidates[q * args.candidate_count + c] : c;
      const int64_t rows = document < 0 ? 0 : args.documents.ends[document] - args.documents.starts[document];
      int32_t largest = -1;
      const int32_t* const end = match + (args.queries.ends[q] - args.queries.starts[q]);
      for (; match < end; match++) largest = *match > largest ? *match : largest;
      if (largest >= rows) refuse("argmax", "a row beyond its document");
    }
  }
}

void maxsim_backward(const std::string& dtype, const py::array& queries, const py::array& query_starts,
                     const py::array& query_ends, const Array& query_mask, const py::array& documents,
                     const py::array& document_starts, const py::array& document_ends, const Array& document_mask,
                     bool normalize, bool pad_zero_rows, bool length_normalize, double temperature,
                     const Array& candidates, const py::array& grad_scores, const py::array& argmax,
                     const Array& token_scores, Array grad_queries, Array grad_documents, long long threads) {
  const ElementType type = element_type(dtype);
  const ElementType compute = element_type(dtype == "float64" ? "float64" : "float32");
  MaxsimBackwardArgs args = {};
  args.element = type.element;
  if (documents.ndim() != 2 || documents.shape(1) == 0) refuse("documents", "not a matrix with columns");
  args.dimensions = documents.shape(1);
  const int64_t query_rows =
      set_side(args.queries, "queries", {queries, query_starts, query_ends, query_mask}, compute, args.dimensions);
  const int64_t document_rows = set_side(
      args.documents, "documents", {documents, document_starts, document_ends, document_mask}, type, args.dimensions);
  check_apart("queries_starts", args.queries);
  check_apart("documents_starts", args.documents);
  args.query_rows = queries.shape(0);
  args.document_rows = documents.shape(0);
  args.normalize = normalize;
  args.pad_zero_rows = pad_zero_rows;
  args.length_normalize = length_normalize;
  args.temperature = checked_temperature(temperature);
  args.candidate_count = args.documents.count;
  if (candidates) {
    args.candidate_count = candidate_count(*candidates);
    args.candidates = candidate_data(*candidates, args.queries.count, args.documents.count);
  }
  const auto read = [](const char* name, const py::array& array, char kind, int64_t bytes,
                       std::initializer_list<int64_t> shape) {
    check_dtype(name, array, kind, bytes);
    check_shape(name, array, shape);
    if (!(array.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
    return array.data();
  };
  args.grad_scores = read("grad_scores", grad_scores, 'f', compute.bytes, {args.queries.count, args.candidate_count});
  args.argmax = static_cast<const int32_t*>(read("argmax", argmax, 'i', 4, {query_rows * args.candidate_count}));
  if (token_scores)
    args.token_scores = read("token_scores", *token_scores, 'f', compute.bytes, {query_rows * args.candidate_count});
  else if (temperature > 0)
    refuse("token_scores", "missing, and needed with a temperature");
  args.grad_queries = output("grad_queries", grad_queries, 'f', compute.bytes, {args.query_rows, args.dimensions});
  args.grad_documents =
      output("grad_documents", grad_documents, 'f', compute.bytes, {args.document_rows, args.dimensions});
  check_argmax(args);

  const MaxsimBackwardVariant& variant = kernels().maxsim_backward().by_element[static_cast<int>(type.element)];
  // A gathered row twice; or similarities twice, and two products with them.
  const double mean = mean_rows(args.documents, document_rows);
  const double matches = static_cast<double>(query_rows) * static_cast<double>(args.candidate_count);
  const double products =
      matches * static_cast<double>(args.dimensions) * (temperature > 0 ? 4 * mean : 2) +
      static_cast<double>(args.query_rows + args.document_rows) * static_cast<double>(args.dimensions);
  run_variant(variant, args, useful_threads(products, kProductsPerThread, threads));
}

}  // namespace

void register_maxsim_backward(py::module_& m) {
  m.def("maxsim_backward", &maxsim_backward, py::arg("dtype"), py::arg("queries"), py::arg("query_starts"),
        py::arg("query_ends"), py::arg("query_mask"), py::arg("documents"), py::arg("document_starts"),
        py::arg("document_ends"), py::arg("document_mask"), py::arg("normalize"), py::arg("pad_zero_rows"),
        py::arg("length_normalize"), py::arg("temperature"), py::arg("candidates"), py::arg("grad_scores"),
        py::arg("argmax"), py::arg("token_scores"), py::arg("grad_queries"), py::arg("grad_documents"),
        py::arg("threads"));
}

}  // namespace simtile
