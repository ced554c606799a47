#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"
#include "workspace.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

using Array = std::optional<py::array>;

// Below this many multiply-adds a thread costs more to wake than it saves.
constexpr double kProductsPerThread = 2e6;

const int64_t* int64_data(const char* name, const py::array& array, std::initializer_list<int64_t> shape) {
  check_dtype(name, array, 'i', 8);
  check_shape(name, array, shape);
  if (!(array.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return static_cast<const int64_t*>(array.data());
}

struct Given {
  py::array data, starts, ends;
  Array mask;
};

// Runs of the rows of a matrix; none may leave it. Returns the number of rows in all runs.
int64_t set_side(MaxsimSide& side, const char* name, const Given& given, const ElementType& type, int64_t dimensions) {
  const std::string starts = std::string(name) + "_starts", ends = std::string(name) + "_ends";
  if (given.data.ndim() != 2) refuse(name, "not a matrix");
  check_shape(name, given.data, {given.data.shape(0), dimensions});
  check_dtype(name, given.data, type.kind, type.bytes);
  side.data = given.data.data();
  side.stride = row_stride(name, given.data, 0) * type.bytes;
  if (side.stride < 0) refuse(name, "rows go backwards");
  if (given.starts.ndim() != 1) refuse(starts.c_str(), "not a vector");
  side.count = given.starts.shape(0);
  side.starts = int64_data(starts.c_str(), given.starts, {side.count});
  side.ends = int64_data(ends.c_str(), given.ends, {side.count});
  int64_t rows = 0;
  for (int64_t i = 0; i < side.count; i++) {
    if (side.starts[i] < 0 || side.ends[i] < side.starts[i] || side.ends[i] > given.data.shape(0) ||
        side.ends[i] - side.starts[i] > INT32_MAX)
      refuse(starts.c_str(), "a run of rows that is not in the matrix");
    rows += side.ends[i] - side.starts[i];
  }
  if (given.mask) {
    const std::string mask = std::string(name) + "_mask";
    if (given.mask->dtype().kind() != 'b') refuse(mask.c_str(), "not of dtype bool");
    check_shape(mask.c_str(), *given.mask, {given.data.shape(0)});
    if (!(given.mask->flags() & py::array::c_style)) refuse(mask.c_str(), "not C-contiguous");
    side.mask = static_cast<const uint8_t*>(given.mask->data());
  }
  return rows;
}

void* output(const char* name, Array& array, char kind, int64_t bytes, std::initializer_list<int64_t> shape) {
  if (!array) return nullptr;
  check_dtype(name, *array, kind, bytes);
  check_shape(name, *array, shape);
  if (!(array->flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return array->mutable_data();  // refuses what is read-only
}

void maxsim(const std::string& dtype, const py::array& queries, const py::array& query_starts,
            const py::array& query_ends, const Array& query_mask, const py::array& documents,
            const py::array& document_starts, const py::array& document_ends, const Array& document_mask,
            bool normalize, bool pad_zero_rows, bool length_normalize, double empty_score, const Array& candidates,
            py::array scores, Array argmax, Array token_scores, long long threads) {
  const ElementType type = element_type(dtype);
  const ElementType compute = element_type(dtype == "float64" ? "float64" : "float32");
  MaxsimArgs args = {};
  args.element = type.element;
  if (documents.ndim() != 2 || documents.shape(1) == 0) refuse("documents", "not a matrix with columns");
  args.dimensions = documents.shape(1);
  const int64_t query_rows =
      set_side(args.queries, "queries", {queries, query_starts, query_ends, query_mask}, compute, args.dimensions);
  const int64_t document_rows = set_side(
      args.documents, "documents", {documents, document_starts, document_ends, document_mask}, type, args.dimensions);
  args.normalize = normalize;
  args.pad_zero_rows = pad_zero_rows;
  args.length_normalize = length_normalize;
  args.empty_score = empty_score;
  args.candidate_count = args.documents.count;
  if (candidates) {
    if (candidates->ndim() != 2) refuse("candidates", "not a matrix");
    args.candidate_count = candidates->shape(1);
    args.candidates = int64_data("candidates", *candidates, {args.queries.count, args.candidate_count});
    for (int64_t i = 0; i < args.queries.count * args.candidate_count; i++)
      if (args.candidates[i] >= args.documents.count) refuse("candidates", "beyond the documents");
  }
  Array score_array = scores;
  args.scores = output("scores", score_array, 'f', compute.bytes, {args.queries.count, args.candidate_count});
  args.argmax = static_cast<int32_t*>(output("argmax", argmax, 'i', 4, {query_rows * args.candidate_count}));
  args.token_scores = output("token_scores", token_scores, 'f', compute.bytes, {query_rows * args.candidate_count});

  const MaxsimVariant& variant = kernels().maxsim().by_element[static_cast<int>(type.element)];
  const double mean = static_cast<double>(document_rows) / static_cast<double>(args.documents.count + 1) + 1;
  const double products = static_cast<double>(query_rows) * static_cast<double>(args.candidate_count) * mean *
                          static_cast<double>(args.dimensions);
  const long long wanted = resolve_threads(threads);
  const double useful = products / kProductsPerThread + 1;
  Call call(useful < static_cast<double>(wanted) ? static_cast<long long>(useful) : wanted);
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, executor.threads)));
  variant.run(args, executor, workspace.data());
}

}  // namespace

void register_maxsim(py::module_& m) {
  m.def("maxsim", &maxsim, py::arg("dtype"), py::arg("queries"), py::arg("query_starts"), py::arg("query_ends"),
        py::arg("query_mask"), py::arg("documents"), py::arg("document_starts"), py::arg("document_ends"),
        py::arg("document_mask"), py::arg("normalize"), py::arg("pad_zero_rows"), py::arg("length_normalize"),
        py::arg("empty_score"), py::arg("candidates"), py::arg("scores"), py::arg("argmax"), py::arg("token_scores"),
        py::arg("threads"));
}

}  // namespace simtile
