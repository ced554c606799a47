#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "call.hpp"
#include "isa.hpp"
#include "workspace.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

using Array = std::optional<py::array>;

// A thread more than this many bytes of rows against queries justify costs more to wake than it saves.
constexpr double kBytesPerThread = 1e6;
// Sums of products of codes stay within 32 bits.
constexpr int64_t kMostCodeDimensions = 65536;

[[noreturn]] void refuse(const char* name, const std::string& found) {
  throw py::value_error(std::string(name) + ": " + found);
}

struct KindName {
  const char* name;
  TopkKind kind;
  char dtype;  // of documents
  int bytes;
};
constexpr KindName kKinds[] = {
    {"float32", TopkKind::float32, 'f', 4}, {"float64", TopkKind::float64, 'f', 8},
    {"float16", TopkKind::float16, 'f', 2}, {"bfloat16", TopkKind::bfloat16, 'u', 2},
    {"int8", TopkKind::int8, 'i', 1},       {"uint8", TopkKind::uint8, 'u', 1},
    {"int4", TopkKind::int4, 'u', 1},       {"bits", TopkKind::bits, 'u', 1},
    {"packed", TopkKind::packed, 'u', 1},
};

const KindName& kind_of(const std::string& name) {
  for (const KindName& kind : kKinds)
    if (name == kind.name) return kind;
  refuse("kind", "unknown \"" + name + "\"");
}

TopkMetric metric_of(const std::string& name) {
  if (name == "dot") return TopkMetric::dot;
  if (name == "cosine") return TopkMetric::cosine;
  if (name == "l2") return TopkMetric::l2;
  if (name == "hamming") return TopkMetric::hamming;
  refuse("metric", "unknown \"" + name + "\"");
}

void check_dtype(const char* name, const py::array& array, char kind, int64_t bytes) {
  if (array.dtype().kind() != kind || array.itemsize() != bytes)
    refuse(name, "dtype " + std::string(py::str(array.dtype())) + " is not the one announced");
  if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(bytes) != 0)
    refuse(name, "not aligned to its elements");
}

// A matrix whose rows have unit stride; bytes from one row to the next.
int64_t matrix(const char* name, const py::array& array, char kind, int64_t bytes, int64_t columns) {
  check_dtype(name, array, kind, bytes);
  if (array.ndim() != 2 || array.shape(1) != columns)
    refuse(name, "shape " + std::string(py::str(array.attr("shape"))) + " does not fit the other arguments");
  if (array.size() == 0) return columns * bytes;
  if (columns > 1 && array.strides(1) != bytes) refuse(name, "the last axis is not contiguous");
  if (array.shape(0) <= 1) return columns * bytes;
  if (array.strides(0) < 0 || array.strides(0) % bytes != 0) refuse(name, "rows run backwards or between elements");
  return array.strides(0);
}

template <typename T>
const T* vector_data(const char* name, const Array& array, char kind, int64_t size) {
  if (!array) return nullptr;
  check_dtype(name, *array, kind, sizeof(T));
  if (array->ndim() != 1 || array->shape(0) != size || (size > 1 && array->strides(0) != sizeof(T)))
    refuse(name, "not contiguous, or of a size that does not fit the other arguments");
  return static_cast<const T*>(array->data());
}

void* output_data(const char* name, py::array& array, char kind, int64_t bytes, int64_t rows, int64_t columns) {
  check_dtype(name, array, kind, bytes);
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns || !(array.flags() & py::array::c_style))
    refuse(name, "not C-contiguous, or of a shape that does not fit the other arguments");
  return array.mutable_data();  // refuses what is read-only
}

int64_t row_elements(TopkKind kind, int64_t dimensions) {
  if (kind == TopkKind::int4) return (dimensions + 1) / 2;
  if (kind == TopkKind::bits || kind == TopkKind::packed) return (dimensions + 7) / 8;
  return dimensions;
}

bool is_float(TopkKind kind) { return kind <= TopkKind::bfloat16; }

struct Given {
  std::string kind, metric;
  py::array documents;
  int64_t dimensions;
  Array scale, offset, factor, addend;
};

TopkProblem documents_of(const Given& given) {
  const KindName& kind = kind_of(given.kind);
  TopkProblem problem = {};
  problem.kind = kind.kind;
  problem.metric = metric_of(given.metric);
  problem.dimensions = given.dimensions;
  if (given.dimensions < 1) refuse("dim", "not positive");
  if (!is_float(kind.kind) && given.dimensions > kMostCodeDimensions)
    refuse("dim", std::to_string(given.dimensions) + " dimensions of codes, expected at most " +
                      std::to_string(kMostCodeDimensions));
  if ((kind.kind == TopkKind::packed) != (problem.metric == TopkMetric::hamming))
    refuse("metric", "\"hamming\" is for packed bits, and they have no other");
  const int64_t columns = row_elements(kind.kind, given.dimensions);
  problem.documents_stride = matrix("documents", given.documents, kind.dtype, kind.bytes, columns);
  problem.documents = given.documents.shape(0);
  problem.documents_data = given.documents.data();
  if (problem.documents >= int64_t{std::numeric_limits<uint32_t>::max()})
    refuse("documents", std::to_string(problem.documents) + " rows, expected fewer than 2^32 - 1");
  const bool codes = !is_float(kind.kind) && kind.kind != TopkKind::packed;
  if (!codes && (given.scale || given.offset || given.factor || given.addend))
    refuse("scale, offset, factor, addend", "only for codes");
  problem.scale = vector_data<float>("scale", given.scale, 'f', given.dimensions);
  problem.offset = vector_data<float>("offset", given.offset, 'f', given.dimensions);
  problem.factor = vector_data<float>("factor", given.factor, 'f', problem.documents);
  problem.addend = vector_data<float>("addend", given.addend, 'f', problem.documents);
  return problem;
}

TopkProblem problem_of(const Given& given, const py::array& queries, const Array& query_scale) {
  TopkProblem problem = documents_of(given);
  if (queries.ndim() != 2) refuse("queries", "not a matrix");
  problem.queries = queries.shape(0);
  problem.queries_data = queries.data();
  if (problem.kind == TopkKind::packed) {
    problem.queries_stride = matrix("queries", queries, 'u', 1, row_elements(problem.kind, problem.dimensions));
  } else if (!is_float(problem.kind) && queries.dtype().kind() == 'i') {
    if (problem.scale || problem.offset || problem.kind == TopkKind::bits)
      refuse("queries", "integer codes against documents that have a step for each dimension, or bits");
    problem.queries_stride = matrix("queries", queries, 'i', 1, problem.dimensions);
    problem.integer_queries = true;
    problem.query_scale = vector_data<float>("query_scale", query_scale, 'f', problem.queries);
  } else {
    const int64_t bytes = problem.kind == TopkKind::float64 ? 8 : 4;
    problem.queries_stride = matrix("queries", queries, 'f', bytes, problem.dimensions);
  }
  if (query_scale && !problem.integer_queries) refuse("query_scale", "only for integer queries");
  return problem;
}

// A mask of bytes as bits.
class AllowBits {
 public:
  AllowBits(const Array& allow, int64_t queries, int64_t documents) {
    if (!allow) return;
    check_dtype("allow", *allow, 'b', 1);
    const bool each = allow->ndim() == 2;
    if (allow->ndim() != 1 && !each) refuse("allow", "not [N] or [Q, N]");
    if (allow->shape(each) != documents || (each && allow->shape(0) != queries))
      refuse("allow", "shape " + std::string(py::str(allow->attr("shape"))) + " is neither [N] nor [Q, N]");
    const int64_t words = (documents + 63) / 64, rows = each ? queries : 1;
    const py::ssize_t step = allow->strides(each), row = each ? allow->strides(0) : 0;
    words_.resize(static_cast<size_t>(std::max<int64_t>(rows * words, 1)));
    for (int64_t q = 0; q < rows; q++)
      for (int64_t w = 0; w < words; w++) {
        const char* from = static_cast<const char*>(allow->data()) + q * row + w * 64 * step;
        words_[static_cast<size_t>(q * words + w)] = word(from, step, std::min<int64_t>(64, documents - w * 64));
      }
    stride_ = each ? words : 0;
  }

  const uint64_t* data() const { return words_.empty() ? nullptr : words_.data(); }
  int64_t stride() const { return stride_; }

 private:
  static uint64_t word(const char* from, py::ssize_t step, int64_t count) {
    uint64_t bits = 0;
    if (step == 1 && count == 64) {
      for (int part = 0; part < 8; part++) {
        uint64_t bytes;
        std::memcpy(&bytes, from + 8 * part, 8);
        constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;
        const uint64_t set = (((bytes & kLow) + kLow) | bytes) >> 7 & 0x0101010101010101;
        bits |= set * 0x0102040810204080 >> 56 << 8 * part;
      }
      return bits;
    }
    for (int64_t i = 0; i < count; i++) bits |= static_cast<uint64_t>(from[i * step] != 0) << i;
    return bits;
  }

  std::vector<uint64_t> words_;
  int64_t stride_ = 0;
};

// int64 [Q, C] rows, those below 0 are none.
const int64_t* candidate_rows(const py::array& candidates, const TopkProblem& problem) {
  check_dtype("candidates", candidates, 'i', 8);
  if (candidates.ndim() != 2 || candidates.shape(0) != problem.queries || !(candidates.flags() & py::array::c_style))
    refuse("candidates", "not C-contiguous [Q, C]");
  const int64_t* rows = static_cast<const int64_t*>(candidates.data());
  for (py::ssize_t i = 0; i < candidates.size(); i++)
    if (rows[i] >= problem.documents)
      refuse("candidates",
             "row " + std::to_string(rows[i]) + " of " + std::to_string(problem.documents) + " documents");
  return rows;
}

long long threads_for(const TopkProblem& problem, int64_t pairs_per_query, long long threads) {
  const double bytes = 1.0 * problem.queries * pairs_per_query * std::max<int64_t>(problem.documents_stride, 1);
  return useful_threads(bytes, kBytesPerThread, threads);
}

const TopkVariant& variant_of(const TopkProblem& problem) {
  return kernels().topk().by_kind[static_cast<int>(problem.kind)];
}

char score_dtype(const TopkProblem& problem) { return problem.metric == TopkMetric::hamming ? 'i' : 'f'; }

void topk(const std::string& kind, const std::string& metric, const py::array& queries, const py::array& documents,
          int64_t dim, const Array& scale, const Array& offset, const Array& factor, const Array& addend,
          const Array& query_scale, int64_t k, const Array& allow, const Array& rank, const Array& candidates,
          long long threads, py::array scores, py::array ids) {
  TopkArgs args = {};
  args.problem = problem_of({kind, metric, documents, dim, scale, offset, factor, addend}, queries, query_scale);
  if (k < 1) refuse("k", std::to_string(k) + ", expected at least 1");
  args.k = k;
  const AllowBits bits(allow, args.problem.queries, args.problem.documents);
  args.filter = {bits.data(), bits.stride(), vector_data<uint32_t>("rank", rank, 'u', args.problem.documents)};
  if (candidates) {
    args.candidates = candidate_rows(*candidates, args.problem);
    args.candidate_count = candidates->shape(1);
  }
  args.scores = output_data("scores", scores, score_dtype(args.problem), 4, args.problem.queries, k);
  args.ids = static_cast<int64_t*>(output_data("ids", ids, 'i', 8, args.problem.queries, k));
  if (args.problem.queries == 0) return;
  const TopkVariant& variant = variant_of(args.problem);
  const int64_t pairs = args.candidates ? args.candidate_count : args.problem.documents;
  Call call(threads_for(args.problem, pairs, threads));
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.topk_workspace_bytes(args, executor.threads)));
  variant.topk(args, executor, workspace.data());
}

struct Hit {
  int64_t query;
  uint64_t key;
  bool operator<(const Hit& other) const { return query != other.query ? query < other.query : key < other.key; }
};

// As keys.hpp orders scores.
float score_of(uint32_t order, bool descending) {
  const uint32_t ascending = descending ? ~order : order;
  const uint32_t bits = ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

py::typing::Tuple<py::array, py::array, py::array> range_search(
    const std::string& kind, const std::string& metric, const py::array& queries, const py::array& documents,
    int64_t dim, const Array& scale, const Array& offset, const Array& factor, const Array& addend,
    const Array& query_scale, double threshold, const Array& allow, const Array& rank, long long threads) {
  TopkRangeArgs args = {};
  args.problem = problem_of({kind, metric, documents, dim, scale, offset, factor, addend}, queries, query_scale);
  const AllowBits bits(allow, args.problem.queries, args.problem.documents);
  args.filter = {bits.data(), bits.stride(), vector_data<uint32_t>("rank", rank, 'u', args.problem.documents)};
  args.threshold = static_cast<float>(threshold);
  const bool descending = args.problem.metric == TopkMetric::dot || args.problem.metric == TopkMetric::cosine;
  std::vector<Hit> all;
  if (args.problem.queries > 0) {
    const TopkVariant& variant = variant_of(args.problem);
    Call call(threads_for(args.problem, args.problem.documents, threads));
    const Executor executor = call.executor();
    std::vector<std::vector<Hit>> by_worker(static_cast<size_t>(executor.threads));
    args.context = &by_worker;
    args.found = [](void* context, int worker, int64_t query, uint64_t key) {
      (*static_cast<std::vector<std::vector<Hit>>*>(context))[static_cast<size_t>(worker)].push_back({query, key});
    };
    const Workspace workspace(static_cast<size_t>(variant.range_workspace_bytes(args, executor.threads)));
    variant.range(args, executor, workspace.data());
    for (std::vector<Hit>& hits : by_worker) {
      all.insert(all.end(), hits.begin(), hits.end());
      std::vector<Hit>().swap(hits);
    }
    std::sort(all.begin(), all.end());
  }
  const py::ssize_t count = static_cast<py::ssize_t>(all.size());
  const bool hamming = args.problem.metric == TopkMetric::hamming;
  py::array_t<int64_t> offset_array(args.problem.queries + 1), id_array(count);
  const py::array scores = hamming ? py::array(py::array_t<int32_t>(count)) : py::array(py::array_t<float>(count));
  int64_t *offsets = offset_array.mutable_data(), *ids = id_array.mutable_data();
  void* score_data = py::array(scores).mutable_data();
  std::fill_n(offsets, args.problem.queries + 1, 0);
  for (py::ssize_t i = 0; i < count; i++) {
    const Hit& hit = all[static_cast<size_t>(i)];
    const uint32_t order = static_cast<uint32_t>(hit.key >> 32);
    offsets[hit.query + 1]++;
    ids[i] = static_cast<int64_t>(hit.key & 0xffffffffu);
    if (hamming)
      static_cast<int32_t*>(score_data)[i] = static_cast<int32_t>(order);
    else
      static_cast<float*>(score_data)[i] = score_of(order, descending);
  }
  for (int64_t q = 0; q < args.problem.queries; q++) offsets[q + 1] += offsets[q];
  return py::make_tuple(offset_array, scores, id_array);
}

void score_rows(const std::string& kind, const std::string& metric, const py::array& queries,
                const py::array& documents, int64_t dim, const Array& scale, const Array& offset, const Array& factor,
                const Array& addend, const Array& query_scale, const py::array& candidates, long long threads,
                py::array scores) {
  TopkScoreArgs args = {};
  args.problem = problem_of({kind, metric, documents, dim, scale, offset, factor, addend}, queries, query_scale);
  args.candidates = candidate_rows(candidates, args.problem);
  args.candidate_count = candidates.shape(1);
  args.scores = output_data("scores", scores, score_dtype(args.problem), 4, args.problem.queries, args.candidate_count);
  if (args.problem.queries == 0) return;
  const TopkVariant& variant = variant_of(args.problem);
  Call call(threads_for(args.problem, args.candidate_count, threads));
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.score_workspace_bytes(args, executor.threads)));
  variant.score(args, executor, workspace.data());
}

void code_norms(const std::string& kind, const py::array& documents, int64_t dim, const Array& scale,
                const Array& offset, bool inverse, long long threads, py::array out) {
  TopkNormArgs args = {};
  args.problem = documents_of({kind, "dot", documents, dim, scale, offset, std::nullopt, std::nullopt});
  const TopkVariant& variant = variant_of(args.problem);
  if (variant.norms == nullptr) refuse("kind", "\"" + kind + "\" has no codes");
  args.inverse = inverse;
  check_dtype("out", out, 'f', 4);
  if (out.ndim() != 1 || out.shape(0) != args.problem.documents || !(out.flags() & py::array::c_style))
    refuse("out", "not C-contiguous [N]");
  args.norms = static_cast<float*>(out.mutable_data());
  Call call(threads_for(args.problem, 8, threads));
  variant.norms(args, call.executor());
}

}  // namespace

void register_topk(py::module_& m) {
  m.def("topk", &topk, py::arg("kind"), py::arg("metric"), py::arg("queries"), py::arg("documents"), py::arg("dim"),
        py::arg("scale"), py::arg("offset"), py::arg("factor"), py::arg("addend"), py::arg("query_scale"), py::arg("k"),
        py::arg("allow"), py::arg("rank"), py::arg("candidates"), py::arg("threads"), py::arg("scores"),
        py::arg("ids"));
  m.def("range_search", &range_search, py::arg("kind"), py::arg("metric"), py::arg("queries"), py::arg("documents"),
        py::arg("dim"), py::arg("scale"), py::arg("offset"), py::arg("factor"), py::arg("addend"),
        py::arg("query_scale"), py::arg("threshold"), py::arg("allow"), py::arg("rank"), py::arg("threads"));
  m.def("score_rows", &score_rows, py::arg("kind"), py::arg("metric"), py::arg("queries"), py::arg("documents"),
        py::arg("dim"), py::arg("scale"), py::arg("offset"), py::arg("factor"), py::arg("addend"),
        py::arg("query_scale"), py::arg("candidates"), py::arg("threads"), py::arg("scores"));
  m.def("code_norms", &code_norms, py::arg("kind"), py::arg("documents"), py::arg("dim"), py::arg("scale"),
        py::arg("offset"), py::arg("inverse"), py::arg("threads"), py::arg("out"));
}

}  // namespace simtile
