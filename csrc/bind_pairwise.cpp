#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// A thread more than this many multiply-adds justify costs more to wake than it saves (about 30 us of work).
constexpr double kWorkPerThread = 6e6;

template <typename Args>
ElementType set_rows(Args& args, const py::array& embeddings, const std::string& dtype) {
  const ElementType type = element_type(dtype);
  if (embeddings.ndim() != 2) refuse("embeddings", "not a matrix");
  if (embeddings.shape(0) == 0 || embeddings.shape(1) == 0) refuse("embeddings", "empty");
  if (embeddings.shape(0) >= (int64_t{1} << 31) - 64) refuse("embeddings", "more rows than 32 bits count");
  check_dtype("embeddings", embeddings, type.kind, type.bytes);
  args.element = type.element;
  args.rows = embeddings.shape(0);
  args.dimensions = embeddings.shape(1);
  args.data = embeddings.data();
  args.stride = row_stride("embeddings", embeddings, 0);
  return type;
}

PairDistance pair_distance(const std::string& name) {
  if (name == "euclidean") return PairDistance::euclidean;
  if (name == "cosine") return PairDistance::cosine;
  refuse("distance", "unknown \"" + name + "\"");
}

template <typename Args>
void run_for(const PairwiseVariant<Args> (&variants)[4], const Args& args, double work, long long threads) {
  run_variant(variants[static_cast<int>(args.element)], args, useful_threads(work, kWorkPerThread, threads));
}

double multiplications(int64_t rows, int64_t others, int64_t dimensions) {
  return static_cast<double>(rows) * static_cast<double>(others) * static_cast<double>(dimensions);
}

void hardest_pairs(const py::array& embeddings, const std::string& dtype, const py::array& labels,
                   const std::string& distance, bool normalize, std::optional<py::array> positive,
                   std::optional<py::array> negative, std::optional<py::array> positive_distance,
                   std::optional<py::array> negative_distance, long long threads) {
  HardestPairsArgs args = {};
  set_rows(args, embeddings, dtype);
  args.labels = int64_data("labels", labels, {args.rows});
  for (int64_t i = 0; i < args.rows; i++)
    if (args.labels[i] < 0 || args.labels[i] >= args.rows)
      refuse("labels", "found " + std::to_string(args.labels[i]) + ", not a number from 0 to N - 1");
  args.distance = pair_distance(distance);
  args.normalize = normalize;
  args.positive = static_cast<int64_t*>(output("positive", positive, 'i', 8, {args.rows}));
  args.negative = static_cast<int64_t*>(output("negative", negative, 'i', 8, {args.rows}));
  args.positive_distance = static_cast<double*>(output("positive_distance", positive_distance, 'f', 8, {args.rows}));
  args.negative_distance = static_cast<double*>(output("negative_distance", negative_distance, 'f', 8, {args.rows}));
  if (!args.positive || !args.negative || !args.positive_distance || !args.negative_distance)
    refuse("positive, negative, positive_distance, negative_distance", "missing");
  run_for(kernels().pairwise().hardest_pairs, args, multiplications(args.rows, args.rows, args.dimensions), threads);
}

void pair_gradients(const py::array& embeddings, const std::string& dtype, const std::string& distance, bool normalize,
                    const py::array& positive, const py::array& negative, const py::array& positive_coefficient,
                    const py::array& negative_coefficient, std::optional<py::array> grad, long long threads) {
  PairGradientsArgs args = {};
  const ElementType type = set_rows(args, embeddings, dtype);
  args.distance = pair_distance(distance);
  args.normalize = normalize;
  args.positive = int64_data("positive", positive, {args.rows});
  args.negative = int64_data("negative", negative, {args.rows});
  for (int64_t i = 0; i < args.rows; i++)
    for (const int64_t j : {args.positive[i], args.negative[i]})
      if (j < -1 || j >= args.rows) refuse("positive, negative", "found " + std::to_string(j) + ", which is no row");
  args.positive_coefficient = vector_data<double>("positive_coefficient", positive_coefficient, 'f', args.rows);
  args.negative_coefficient = vector_data<double>("negative_coefficient", negative_coefficient, 'f', args.rows);
  args.grad = output("grad", grad, 'f', type.element == Element::float64 ? 8 : 4, {args.rows, args.dimensions});
  if (!args.grad) refuse("grad", "missing");
  run_for(kernels().pairwise().pair_gradients, args, multiplications(args.rows, 8, args.dimensions), threads);
}

double uniformity(const py::array& embeddings, const std::string& dtype, double t, bool normalize,
                  std::optional<py::array> grad, long long threads) {
  UniformityArgs args = {};
  const ElementType type = set_rows(args, embeddings, dtype);
  if (args.rows < 2) refuse("embeddings", "fewer than two rows");
  if (!(t > 0) || !std::isfinite(t)) refuse("t", "not positive and finite");
  args.t = t;
  args.normalize = normalize;
  args.grad = output("grad", grad, 'f', type.element == Element::float64 ? 8 : 4, {args.rows, args.dimensions});
  double value = 0;
  args.value = &value;
  run_for(kernels().pairwise().uniformity, args, 2 * multiplications(args.rows, args.rows, args.dimensions), threads);
  return value;
}

}  // namespace

void register_pairwise(py::module_& m) {
  m.def("hardest_pairs", &hardest_pairs, py::arg("embeddings"), py::arg("dtype"), py::arg("labels"),
        py::arg("distance"), py::arg("normalize"), py::arg("positive"), py::arg("negative"),
        py::arg("positive_distance"), py::arg("negative_distance"), py::arg("threads"));
  m.def("pair_gradients", &pair_gradients, py::arg("embeddings"), py::arg("dtype"), py::arg("distance"),
        py::arg("normalize"), py::arg("positive"), py::arg("negative"), py::arg("positive_coefficient"),
        py::arg("negative_coefficient"), py::arg("grad"), py::arg("threads"));
  m.def("uniformity", &uniformity, py::arg("embeddings"), py::arg("dtype"), py::arg("t"), py::arg("normalize"),
        py::arg("grad"), py::arg("threads"));
}

}  // namespace simtile
