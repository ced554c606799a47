#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
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

void maxsim(const std::string& dtype, const py::array& queries, const py::array& query_starts,
            const py::array& query_ends, const Array& query_mask, const py::object& documents,
            const py::array& document_starts, const py::array& document_ends, const Array& document_mask,
            bool normalize, bool pad_zero_rows, bool length_normalize, double empty_score, double temperature,
            const Array& candidates, py::array scores, Array argmax, Array token_scores, long long threads) {
  const ElementType type = element_type(dtype);
  const ElementType compute = element_type(dtype == "float64" ? "float64" : "float32");
  MaxsimArgs args = {};
  args.element = type.element;
  const bool apart = py::isinstance<py::list>(documents);
  if (!apart && !py::isinstance<py::array>(documents)) refuse("documents", "neither an array nor a list of arrays");
  const py::array columns = apart ? queries : py::reinterpret_borrow<py::array>(documents);
  if (columns.ndim() != 2 || columns.shape(1) == 0)
    refuse(apart ? "queries" : "documents", "not a matrix with columns");
  args.dimensions = columns.shape(1);
  const int64_t query_rows =
      set_side(args.queries, "queries", {queries, query_starts, query_ends, query_mask}, compute, args.dimensions);
  Matrices matrices;  // where documents are a list
  int64_t document_rows = 0;
  if (apart) {
    if (document_mask) refuse("document_mask", "not None beside a list of documents");
    document_rows = set_matrices(args.documents, matrices, "documents", documents, document_starts, document_ends, type,
                                 args.dimensions);
  } else {
    document_rows = set_side(args.documents, "documents", {columns, document_starts, document_ends, document_mask},
                             type, args.dimensions);
  }
  args.normalize = normalize;
  args.pad_zero_rows = pad_zero_rows;
  args.length_normalize = length_normalize;
  args.empty_score = empty_score;
  args.temperature = checked_temperature(temperature);
  args.candidate_count = args.documents.count;
  if (candidates) {
    args.candidate_count = candidate_count(*candidates);
    args.candidates = candidate_data(*candidates, args.queries.count, args.documents.count);
  }
  Array score_array = scores;
  args.scores = output("scores", score_array, 'f', compute.bytes, {args.queries.count, args.candidate_count});
  args.argmax = static_cast<int32_t*>(output("argmax", argmax, 'i', 4, {query_rows * args.candidate_count}));
  args.token_scores = output("token_scores", token_scores, 'f', compute.bytes, {query_rows * args.candidate_count});

  const MaxsimVariant& variant = kernels().maxsim().by_element[static_cast<int>(type.element)];
  const double products = products_of(args, query_rows, document_rows);
  run_variant(variant, args, useful_threads(products, kProductsPerThread, threads));
}

}  // namespace

void register_maxsim(py::module_& m) {
  m.def("maxsim", &maxsim, py::arg("dtype"), py::arg("queries"), py::arg("query_starts"), py::arg("query_ends"),
        py::arg("query_mask"), py::arg("documents"), py::arg("document_starts"), py::arg("document_ends"),
        py::arg("document_mask"), py::arg("normalize"), py::arg("pad_zero_rows"), py::arg("length_normalize"),
        py::arg("empty_score"), py::arg("temperature"), py::arg("candidates"), py::arg("scores"), py::arg("argmax"),
        py::arg("token_scores"), py::arg("threads"));
}

}  // namespace simtile
