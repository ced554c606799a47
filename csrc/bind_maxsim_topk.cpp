#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"
#include "maxsim/topk_args.hpp"
#include "maxsim_arrays.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// Below this many multiply-adds a thread costs more to wake than it saves.
constexpr double kProductsPerThread = 2e6;

// [N] for all queries or [Q, N].
void set_allowed(MaxsimTopkArgs& args, const py::array& allow) {
  if (allow.dtype().kind() != 'b') refuse("allow", "not of dtype bool");
  if (!(allow.flags() & py::array::c_style)) refuse("allow", "not C-contiguous");
  const int64_t documents = args.pairs.documents.count;
  if (allow.ndim() == 1) {
    check_shape("allow", allow, {documents});
  } else {
    check_shape("allow", allow, {args.pairs.queries.count, documents});
    args.allow_stride = documents;
  }
  args.allow = static_cast<const uint8_t*>(allow.data());
}

void maxsim_topk(const std::string& dtype, const py::array& queries, const py::array& query_starts,
                 const py::array& query_ends, const Array& query_mask, const py::array& documents,
                 const py::array& document_starts, const py::array& document_ends, const Array& document_mask,
                 bool normalize, bool pad_zero_rows, bool length_normalize, double empty_score, double temperature,
                 int64_t k, const Array& allow, const Array& candidates, py::array scores, py::array ids,
                 long long threads) {
  const ElementType type = element_type(dtype);
  if (type.element == Element::float64) refuse("dtype", "float64 is scored by maxsim only");
  MaxsimTopkArgs args = {};
  MaxsimArgs& pairs = args.pairs;
  pairs.element = type.element;
  if (documents.ndim() != 2 || documents.shape(1) == 0) refuse("documents", "not a matrix with columns");
  pairs.dimensions = documents.shape(1);
  const int64_t query_rows = set_side(pairs.queries, "queries", {queries, query_starts, query_ends, query_mask},
                                      element_type("float32"), pairs.dimensions);
  const int64_t document_rows = set_side(
      pairs.documents, "documents", {documents, document_starts, document_ends, document_mask}, type, pairs.dimensions);
  if (pairs.documents.count >= INT64_C(0xffffffff)) refuse("documents", "too many");
  pairs.normalize = normalize;
  pairs.pad_zero_rows = pad_zero_rows;
  pairs.length_normalize = length_normalize;
  pairs.empty_score = empty_score;
  pairs.temperature = checked_temperature(temperature);
  pairs.candidate_count = pairs.documents.count;
  if (candidates) {
    pairs.candidate_count = candidate_count(*candidates);
    pairs.candidates = candidate_data(*candidates, pairs.queries.count, pairs.documents.count);
  }
  if (k < 1) refuse("k", "below 1");
  args.k = k;
  if (allow) set_allowed(args, *allow);
  Array score_array = scores, id_array = ids;
  args.scores = static_cast<float*>(output("scores", score_array, 'f', 4, {pairs.queries.count, k}));
  args.ids = static_cast<int64_t*>(output("ids", id_array, 'i', 8, {pairs.queries.count, k}));

  const MaxsimTopkVariant& variant = kernels().maxsim().topk_by_element[static_cast<int>(type.element)];
  const double products = products_of(pairs, query_rows, document_rows);
  run_variant(variant, args, useful_threads(products, kProductsPerThread, threads));
}

}  // namespace

void register_maxsim_topk(py::module_& m) {
  m.def("maxsim_topk", &maxsim_topk, py::arg("dtype"), py::arg("queries"), py::arg("query_starts"),
        py::arg("query_ends"), py::arg("query_mask"), py::arg("documents"), py::arg("document_starts"),
        py::arg("document_ends"), py::arg("document_mask"), py::arg("normalize"), py::arg("pad_zero_rows"),
        py::arg("length_normalize"), py::arg("empty_score"), py::arg("temperature"), py::arg("k"), py::arg("allow"),
        py::arg("candidates"), py::arg("scores"), py::arg("ids"), py::arg("threads"));
}

}  // namespace simtile
