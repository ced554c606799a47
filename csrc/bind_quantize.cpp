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

// A thread more than this many bytes justify costs more to wake than it saves (about 30 us of reading).
constexpr double kBytesPerThread = 512 << 10;

Codes codes_named(const std::string& kind) {
  if (kind == "int8") return Codes::int8;
  if (kind == "uint8") return Codes::uint8;
  if (kind == "int4") return Codes::int4;
  if (kind == "binary") return Codes::binary;
  if (kind == "int8_vector") return Codes::int8_vector;
  if (kind == "int4_vector") return Codes::int4_vector;
  refuse("kind", "unknown \"" + kind + "\"");
}

int64_t row_bytes(Codes codes, int64_t dimensions) {
  if (codes == Codes::binary) return (dimensions + 7) / 8;
  return codes == Codes::int4 || codes == Codes::int4_vector ? (dimensions + 1) / 2 : dimensions;
}

// Sets what both calls say of their input.
template <typename Args>
void set_data(Args& args, const py::array& x, const ElementType& type) {
  if (x.ndim() != 2) refuse("x", "not a matrix");
  args.element = type.element;
  args.rows = x.shape(0);
  args.dimensions = x.shape(1);
  if (args.dimensions == 0) refuse("x", "no columns");
  check_dtype("x", x, type.kind, type.bytes);
  args.data = x.data();
  args.stride = row_stride("x", x, 0);
  if (args.stride < 0) refuse("x", "rows go backwards");
}

template <typename T>
T* output(const char* name, py::array& array, char kind, std::initializer_list<int64_t> shape) {
  check_dtype(name, array, kind, sizeof(T));
  check_shape(name, array, shape);
  if (!(array.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return static_cast<T*>(array.mutable_data());  // refuses what is read-only
}

long long threads_for(const py::array& x, long long threads) {
  return useful_threads(static_cast<double>(x.shape(0) * x.shape(1) * x.itemsize()), kBytesPerThread, threads);
}

int64_t quantize(const py::array& x, const std::string& dtype, const std::string& kind,
                 const std::optional<py::array>& starts, const std::optional<py::array>& steps, py::array codes,
                 std::optional<py::array> scales, long long threads) {
  const ElementType type = element_type(dtype);
  QuantizeArgs args = {};
  set_data(args, x, type);
  args.codes = codes_named(kind);
  const bool per_vector = args.codes == Codes::int8_vector || args.codes == Codes::int4_vector;
  const bool per_dimension = !per_vector && args.codes != Codes::binary;
  args.starts = vector_data<float>("starts", starts, 'f', args.dimensions);
  args.steps = vector_data<float>("steps", steps, 'f', args.dimensions);
  if (per_dimension != (args.starts != nullptr) || per_dimension != (args.steps != nullptr))
    refuse("starts, steps", "expected with one scale a dimension, and only then");
  const int64_t width = row_bytes(args.codes, args.dimensions);
  args.out = output<uint8_t>("codes", codes, 'u', {args.rows, width});
  if (per_vector != scales.has_value()) refuse("scales", "expected with one scale a vector, and only then");
  if (scales) args.scales = output<float>("scales", *scales, 'f', {args.rows});
  if (args.rows == 0) return -1;

  const QuantizeVariant& variant = kernels().quantize().by_element[static_cast<int>(type.element)];
  Call call(threads_for(x, threads));
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.codes_bytes(args, executor.threads)));
  return variant.codes(args, executor, workspace.data());
}

void value_ranges(const py::array& x, const std::string& dtype, py::array ends, long long threads) {
  const ElementType type = element_type(dtype);
  RangesArgs args = {};
  set_data(args, x, type);
  if (args.rows == 0) refuse("x", "no rows");
  if (type.element == Element::float64) {
    double* const out = output<double>("ends", ends, 'f', {2, args.dimensions});
    args.smallest = out;
    args.largest = out + args.dimensions;
  } else {
    float* const out = output<float>("ends", ends, 'f', {2, args.dimensions});
    args.smallest = out;
    args.largest = out + args.dimensions;
  }
  const QuantizeVariant& variant = kernels().quantize().by_element[static_cast<int>(type.element)];
  Call call(threads_for(x, threads));
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.ranges_bytes(args, executor.threads)));
  variant.ranges(args, executor, workspace.data());
}

}  // namespace

void register_quantize(py::module_& m) {
  m.def("quantize", &quantize, py::arg("x"), py::arg("dtype"), py::arg("kind"), py::arg("starts"), py::arg("steps"),
        py::arg("codes"), py::arg("scales"), py::arg("threads"));
  m.def("value_ranges", &value_ranges, py::arg("x"), py::arg("dtype"), py::arg("ends"), py::arg("threads"));
}

}  // namespace simtile
