#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// A thread more than this many multiply-adds justify costs more to wake than it saves (about 30 us of work).
constexpr double kWorkPerThread = 6e6;

void* output_data(const char* name, std::optional<py::array>& array, int64_t bytes,
                  std::initializer_list<int64_t> shape) {
  if (!array) return nullptr;
  check_dtype(name, *array, 'f', bytes);
  check_shape(name, *array, shape);
  if (!(array->flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return array->mutable_data();  // refuses what is read-only
}

// The rows of negatives [N, K, D], and how far apart they lie.
const void* negative_rows(const char* name, const py::array& array, const ElementType& type, int64_t rows,
                          int64_t negatives, int64_t dimensions, int64_t* stride) {
  check_dtype(name, array, type.kind, type.bytes);
  check_shape(name, array, {rows, negatives, dimensions});
  *stride = negatives > 1 ? row_stride(name, array, 1) : row_stride(name, array, 0);
  if (negatives > 1 && rows > 1 && array.strides(0) != negatives * array.strides(1))
    refuse(name, "the first two axes do not form one");
  return array.data();
}

const void* matrix_rows(const char* name, const py::array& array, const ElementType& type, int64_t rows,
                        int64_t dimensions, int64_t* stride) {
  check_dtype(name, array, type.kind, type.bytes);
  check_shape(name, array, {rows, dimensions});
  *stride = row_stride(name, array, 0);
  return array.data();
}

double info_nce(const py::array& queries, const py::array& documents, const std::optional<py::array>& negatives,
                const std::string& dtype, double temperature, bool normalize, const std::optional<py::array>& targets,
                const std::optional<py::array>& query_ids, const std::optional<py::array>& document_ids,
                unsigned directions, bool per_direction, int scope, double harden_others, double harden_own,
                const std::optional<double>& margin, double guide_margin, bool guide_relative,
                const std::vector<int64_t>& widths, const std::vector<double>& shares,
                const std::optional<py::array>& guide_queries, const std::optional<py::array>& guide_documents,
                const std::optional<py::array>& guide_negatives, double weight,
                const std::optional<py::array>& row_weights, std::optional<py::array> losses,
                std::optional<py::array> grad_queries, std::optional<py::array> grad_documents,
                std::optional<py::array> grad_negatives, long long threads, std::optional<py::array> statistics) {
  const ElementType type = element_type(dtype);
  if (queries.ndim() != 2 || documents.ndim() != 2) refuse("queries, documents", "not matrices");
  InfoNceArgs args = {};
  args.element = type.element;
  args.rows = queries.shape(0);
  args.dimensions = queries.shape(1);
  args.documents = documents.shape(0);
  if (args.rows == 0 || args.documents == 0 || args.dimensions == 0) refuse("queries, documents", "empty");
  args.queries_data = matrix_rows("queries", queries, type, args.rows, args.dimensions, &args.queries_stride);
  args.documents_data =
      matrix_rows("documents", documents, type, args.documents, args.dimensions, &args.documents_stride);
  if (negatives) {
    if (negatives->ndim() != 3) refuse("negatives", "not three-dimensional");
    args.negatives = negatives->shape(1);
    args.negatives_data = negative_rows("negatives", *negatives, type, args.rows, args.negatives, args.dimensions,
                                        &args.negatives_stride);
  }
  if (!(temperature > 0) || !(temperature <= std::numeric_limits<double>::max()))
    refuse("temperature", "not positive and finite");
  args.temperature = temperature;
  args.normalize = normalize;
  if (scope < 0 || scope > 2) refuse("scope", "not one of three");
  args.scope = static_cast<Scope>(scope);
  const unsigned with_positive = query_to_doc | doc_to_query, from_documents = doc_to_query | doc_to_doc;
  if (!(directions & with_positive) || directions > 15 || (per_direction && directions & ~with_positive))
    refuse("directions", "a log-sum-exp without the positive");
  if (directions & from_documents && (targets || args.documents < args.rows))
    refuse("directions", "from documents, with targets or too few of them");
  args.directions = directions;
  args.per_direction = per_direction;
  if (!(harden_others >= 0) || !(harden_own >= 0)) refuse("harden_others, harden_own", "below 0");
  args.harden_others = harden_others;
  args.harden_own = harden_own;
  args.has_margin = margin.has_value();
  args.margin = margin.value_or(0);
  if (guide_queries) {
    if (!guide_documents || guide_queries->ndim() != 2) refuse("guide", "not two matrices");
    const int64_t d = args.guide_dimensions = guide_queries->shape(1);
    if (d == 0) refuse("guide", "empty");
    args.guide_queries = matrix_rows("guide", *guide_queries, type, args.rows, d, &args.guide_queries_stride);
    args.guide_documents =
        matrix_rows("guide", *guide_documents, type, args.documents, d, &args.guide_documents_stride);
    if (negatives) {
      if (!guide_negatives) refuse("guide", "without negatives");
      args.guide_negatives =
          negative_rows("guide", *guide_negatives, type, args.rows, args.negatives, d, &args.guide_negatives_stride);
    }
    args.guide_margin = guide_margin;
    args.guide_relative = guide_relative;
  }
  if (!widths.empty()) {
    if (widths.size() < 2 || shares.size() != widths.size()) refuse("widths, shares", "fewer than two, or not alike");
    if (widths[0] < 1 || widths.back() != args.dimensions ||
        std::adjacent_find(widths.begin(), widths.end(), std::greater_equal<>()) != widths.end())
      refuse("widths", "not ascending up to the dimensions");
    if (harden_others > 0 || harden_own > 0 || margin || guide_queries || (negatives && args.scope == Scope::own))
      refuse("widths", "with options that need a run for each");
    args.widths = widths.data();
    args.shares = shares.data();
    args.width_count = static_cast<int64_t>(widths.size());
  }
  args.targets = vector_data<int64_t>("targets", targets, 'i', args.rows);
  for (int64_t i = 0; i < args.rows; i++) {
    const int64_t target = args.targets ? args.targets[i] : i;
    if (target < 0 || target >= args.documents)
      refuse("targets", "row " + std::to_string(i) + " has " + std::to_string(target) + " of " +
                            std::to_string(args.documents) + " documents");
  }
  args.query_ids = vector_data<int64_t>("query_ids", query_ids, 'i', args.rows);
  args.document_ids = vector_data<int64_t>("document_ids", document_ids, 'i', args.documents);
  if (!args.query_ids != !args.document_ids) refuse("query_ids, document_ids", "one without the other");
  args.weight = weight;
  args.row_weights = vector_data<double>("row_weights", row_weights, 'f', args.rows);

  const int64_t gradient_bytes = type.element == Element::float64 ? 8 : 4;
  if (!losses) refuse("losses", "missing");
  args.losses = static_cast<double*>(output_data("losses", losses, 8, {args.rows}));
  args.grad_queries = output_data("grad_queries", grad_queries, gradient_bytes, {args.rows, args.dimensions});
  args.grad_documents =
      output_data("grad_documents", grad_documents, gradient_bytes, {args.documents, args.dimensions});
  if (grad_negatives && !negatives) refuse("grad_negatives", "given without negatives");
  args.grad_negatives =
      output_data("grad_negatives", grad_negatives, gradient_bytes, {args.rows, args.negatives, args.dimensions});
  double grad_temperature = 0;
  args.grad_temperature = &grad_temperature;
  args.statistics = static_cast<double*>(output_data("statistics", statistics, 8, {tally_size}));

  const double candidates = static_cast<double>(args.documents) +
                            (args.scope == Scope::own ? 1.0 : static_cast<double>(args.rows)) * args.negatives;
  const double work = 3.0 * args.rows * candidates * args.dimensions;
  const InfoNceVariant& variant = kernels().info_nce.by_element[static_cast<int>(type.element)];
  run_variant(variant, args, useful_threads(work, kWorkPerThread, threads));
  return grad_temperature;
}

}  // namespace

void register_info_nce(py::module_& m) {
  m.def("info_nce", &info_nce, py::arg("queries"), py::arg("documents"), py::arg("negatives"), py::arg("dtype"),
        py::arg("temperature"), py::arg("normalize"), py::arg("targets"), py::arg("query_ids"), py::arg("document_ids"),
        py::arg("directions"), py::arg("per_direction"), py::arg("scope"), py::arg("harden_others"),
        py::arg("harden_own"), py::arg("margin"), py::arg("guide_margin"), py::arg("guide_relative"), py::arg("widths"),
        py::arg("shares"), py::arg("guide_queries"), py::arg("guide_documents"), py::arg("guide_negatives"),
        py::arg("weight"), py::arg("row_weights"), py::arg("losses"), py::arg("grad_queries"),
        py::arg("grad_documents"), py::arg("grad_negatives"), py::arg("threads"), py::arg("statistics") = py::none());
  m.def(
      "info_nce_arithmetic",
      [](const std::string& dtype) {
        return kernels().info_nce.by_element[static_cast<int>(element_type(dtype).element)].arithmetic;
      },
      py::arg("dtype"));
}

}  // namespace simtile
