#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"
#include "maxsim_arrays.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// Below this many products a thread costs more to wake than it saves.
constexpr double kProductsPerThread = 4e6;

struct Kind {
  const char* name;
  MaxsimKind kind;
  int bits;
  int largest;  // magnitude of what is multiplied
};
constexpr Kind kKinds[] = {{"int8", MaxsimKind::int8, 8, 128},
                           {"uint8", MaxsimKind::uint8, 8, 255},
                           {"bits", MaxsimKind::bits, 1, 1},
                           {"residual1", MaxsimKind::residual1, 1, 128},
                           {"residual2", MaxsimKind::residual2, 2, 128},
                           {"residual4", MaxsimKind::residual4, 4, 128}};

const Kind& kind_of(const std::string& name) {
  for (const Kind& kind : kKinds)
    if (name == kind.name) return kind;
  refuse("kind", "none of int8, uint8, bits, residual1, residual2, residual4");
}

const float* floats(const char* name, const Array& array, std::initializer_list<int64_t> shape) {
  if (!array) return nullptr;
  check_dtype(name, *array, 'f', 4);
  check_shape(name, *array, shape);
  if (!(array->flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return static_cast<const float*>(array->data());
}

// What a residual adds, 2^bits of int16 whose high byte is one too.
void set_residuals(MaxsimCodes& codes, const Kind& kind, int64_t dimensions, int64_t rows, int64_t query_rows,
                   const Array& centroids, const Array& centroid_rows, const Array& query_values,
                   const Array& weights) {
  if (!centroids || !centroid_rows || !query_values || !weights)
    refuse("centroids", "not given, with centroid_rows, query_values and weights");
  if (centroid_rows->ndim() != 2) refuse("centroid_rows", "not a matrix");
  codes.centroid_count = centroid_rows->shape(0);
  codes.centroid_rows = floats("centroid_rows", centroid_rows, {codes.centroid_count, dimensions});
  codes.query_values = floats("query_values", query_values, {query_rows, dimensions});
  check_dtype("centroids", *centroids, 'i', 4);
  check_shape("centroids", *centroids, {rows});
  check_dtype("weights", *weights, 'i', 2);
  check_shape("weights", *weights, {1 << kind.bits});
  if (!(centroids->flags() & weights->flags() & py::array::c_style)) refuse("centroids", "not C-contiguous");
  codes.centroids = static_cast<const int32_t*>(centroids->data());
  codes.weights = static_cast<const int16_t*>(weights->data());
  for (int64_t i = 0; i < rows; i++)
    if (codes.centroids[i] < 0 || codes.centroids[i] >= codes.centroid_count)
      refuse("centroids", "a number that is no centroid's");
  for (int i = 0; i < 1 << kind.bits; i++)
    if (std::abs(int{codes.weights[i]}) > 32639) refuse("weights", "beyond 32639");
}

void maxsim_codes(const std::string& kind_name, const py::array& queries, const py::array& query_starts,
                  const py::array& query_ends, const Array& query_mask, const py::array& units, const Array& terms,
                  const py::array& documents, int64_t dimensions, const py::array& document_starts,
                  const py::array& document_ends, const Array& document_mask, const Array& factors,
                  const Array& centroids, const Array& centroid_rows, const Array& query_values, const Array& weights,
                  bool length_normalize, double empty_score, const Array& candidates, py::array scores, Array argmax,
                  Array token_scores, long long threads) {
  const Kind& kind = kind_of(kind_name);
  MaxsimArgs args = {};
  if (dimensions < 1) refuse("dimensions", "below 1");
  args.dimensions = dimensions;
  const int64_t query_rows = set_side(args.queries, "queries", {queries, query_starts, query_ends, query_mask},
                                      {Element::float32, 'i', 2}, dimensions);
  const ElementType bytes = {Element::float32, kind.kind == MaxsimKind::int8 ? 'i' : 'u', 1};
  const int64_t document_rows =
      set_side(args.documents, "documents", {documents, document_starts, document_ends, document_mask}, bytes,
               (dimensions * kind.bits + 7) / 8);
  args.query_rows = queries.shape(0);
  // Dot products, and what is added up to them, stay whole numbers of 32 bits.
  const int64_t most = INT32_MAX / (dimensions * kind.largest);
  for (int64_t r = 0; r < args.query_rows; r++) {
    const int16_t* row =
        reinterpret_cast<const int16_t*>(static_cast<const char*>(args.queries.data) + r * args.queries.stride);
    for (int64_t k = 0; k < dimensions; k++)
      if (std::abs(int{row[k]}) > most || std::abs(int{row[k]}) > 32639)
        refuse("queries", "a value too large for so many dimensions");
  }
  args.codes.kind = kind.kind;
  args.codes.units = floats("units", units, {args.query_rows});
  args.codes.terms = floats("terms", terms, {args.query_rows});
  args.codes.factors = floats("factors", factors, {documents.shape(0)});
  if (kind.kind >= MaxsimKind::residual1) {
    if (!terms) refuse("terms", "not given");
    set_residuals(args.codes, kind, dimensions, documents.shape(0), args.query_rows, centroids, centroid_rows,
                  query_values, weights);
  }
  args.length_normalize = length_normalize;
  args.empty_score = empty_score;
  args.candidate_count = args.documents.count;
  if (candidates) {
    args.candidate_count = candidate_count(*candidates);
    args.candidates = candidate_data(*candidates, args.queries.count, args.documents.count);
  }
  Array score_array = scores;
  args.scores = output("scores", score_array, 'f', 4, {args.queries.count, args.candidate_count});
  args.argmax = static_cast<int32_t*>(output("argmax", argmax, 'i', 4, {query_rows * args.candidate_count}));
  args.token_scores = output("token_scores", token_scores, 'f', 4, {query_rows * args.candidate_count});

  const MaxsimVariant& variant = kernels().maxsim_codes().by_kind[static_cast<int>(kind.kind)];
  const double products = products_of(args, query_rows, document_rows);
  run_variant(variant, args, useful_threads(products, kProductsPerThread, threads));
}

}  // namespace

void register_maxsim_codes(py::module_& m) {
  m.def("maxsim_codes", &maxsim_codes, py::arg("kind"), py::arg("queries"), py::arg("query_starts"),
        py::arg("query_ends"), py::arg("query_mask"), py::arg("units"), py::arg("terms"), py::arg("documents"),
        py::arg("dimensions"), py::arg("document_starts"), py::arg("document_ends"), py::arg("document_mask"),
        py::arg("factors"), py::arg("centroids"), py::arg("centroid_rows"), py::arg("query_values"), py::arg("weights"),
        py::arg("length_normalize"), py::arg("empty_score"), py::arg("candidates"), py::arg("scores"),
        py::arg("argmax"), py::arg("token_scores"), py::arg("threads"));
}

}  // namespace simtile
