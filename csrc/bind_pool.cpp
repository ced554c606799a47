#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "call.hpp"
#include "isa.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

// A thread more than this many bytes justify costs more to wake than it saves (about 30 us of reading).
constexpr double kBytesPerThread = 512 << 10;

Pooling pooling(const std::string& name) {
  if (name == "mean") return Pooling::mean;
  if (name == "cls") return Pooling::first;
  if (name == "last") return Pooling::last;
  if (name == "max") return Pooling::largest;
  refuse("how", "unknown \"" + name + "\"");
}

// Rows of `total` tokens: `rows` of `length` each, or what the offsets say.
TokenRows token_rows(const std::optional<py::array>& offsets, int64_t rows, int64_t length, int64_t total) {
  TokenRows of = {rows, length, length, nullptr};
  if (offsets) {
    of.rows = offsets->ndim() == 1 ? offsets->shape(0) - 1 : -1;
    if (of.rows < 0) refuse("offsets", "not a vector, or empty");
    of.offsets = int64_data("offsets", *offsets, {of.rows + 1});
    of.length = of.longest = 0;
    if (of.offsets[0] != 0 || of.offsets[of.rows] != total) refuse("offsets", "not from 0 to the number of tokens");
    for (int64_t n = 0; n < of.rows; n++) {
      if (of.offsets[n + 1] < of.offsets[n]) refuse("offsets", "not ascending");
      of.longest = std::max(of.longest, of.offsets[n + 1] - of.offsets[n]);
    }
  }
  if (of.longest >= int64_t{1} << 31) refuse("tokens", "more in a row than 32 bits count");
  return of;
}

// Elements from one to the next along an axis, of any sign.
int64_t step(const char* name, const py::array& array, int axis) {
  if (array.shape(axis) <= 1 || array.size() == 0) return 0;
  if (array.strides(axis) % array.itemsize() != 0) refuse(name, "not a whole number of elements apart");
  return array.strides(axis) / array.itemsize();
}

// Tokens [N, L, D], or [T, D] with offsets.
template <typename Args>
int64_t set_tokens(Args& args, const py::array& tokens, const ElementType& type,
                   const std::optional<py::array>& offsets) {
  const int last = offsets ? 1 : 2;
  if (tokens.ndim() != last + 1) refuse("tokens", offsets ? "not a matrix" : "not three-dimensional");
  check_dtype("tokens", tokens, type.kind, type.bytes);
  if (tokens.shape(last) > 1 && tokens.size() > 0 && tokens.strides(last) != type.bytes)
    refuse("tokens", "the last axis is not contiguous");
  args.element = type.element;
  args.data = tokens.data();
  args.token_stride = step("tokens", tokens, last - 1);
  args.row_stride = offsets ? 0 : step("tokens", tokens, 0);
  const int64_t total = offsets ? tokens.shape(0) : tokens.shape(0) * tokens.shape(1);
  args.of = token_rows(offsets, tokens.shape(0), offsets ? 0 : tokens.shape(1), total);
  return total;
}

void check_per_token(const char* name, const py::array& array, const TokenRows& of, int64_t total, char kind,
                     int64_t bytes) {
  check_dtype(name, array, kind, bytes);
  if (of.offsets)
    check_shape(name, array, {total});
  else
    check_shape(name, array, {of.rows, of.length});
  if (!(array.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
}

const void* per_token(const char* name, const std::optional<py::array>& array, const TokenRows& of, int64_t total,
                      char kind, int64_t bytes) {
  if (!array) return nullptr;
  check_per_token(name, *array, of, total, kind, bytes);
  return array->data();
}

// Columns of a matrix, at least one.
int64_t columns_of(const char* name, const py::array& array) {
  if (array.ndim() != 2 || array.shape(1) < 1) refuse(name, "not a matrix with columns");
  return array.shape(1);
}

template <typename Args>
void run_part(const PoolPart<Args>& part, const Args& args, int64_t bytes, long long threads) {
  run_variant(part, args, useful_threads(static_cast<double>(bytes), kBytesPerThread, threads));
}

const PoolVariant& variant_of(Element element) { return kernels().pool().by_element[static_cast<int>(element)]; }

void pool(const py::array& tokens, const std::string& dtype, const std::string& how,
          const std::optional<py::array>& offsets, const std::optional<py::array>& mask,
          const std::optional<py::array>& weights, bool normalize, std::optional<py::array> out,
          std::optional<py::array> raw, std::optional<py::array> totals, std::optional<py::array> positions,
          long long threads) {
  const ElementType type = element_type(dtype);
  PoolArgs args = {};
  const int64_t total = set_tokens(args, tokens, type, offsets);
  args.how = pooling(how);
  if (!out) refuse("out", "missing");
  args.dimensions = columns_of("out", *out);
  if (args.dimensions > tokens.shape(tokens.ndim() - 1)) refuse("out", "more columns than tokens have");
  args.mask = static_cast<const uint8_t*>(per_token("mask", mask, args.of, total, 'u', 1));
  const int64_t wide = type.element == Element::float64 ? 8 : 4;
  args.weights = per_token("weights", weights, args.of, total, 'f', wide);
  if (weights && args.how != Pooling::mean) refuse("weights", "expected for the mean only");
  args.normalize = normalize;
  args.out = output("out", out, type.kind, type.bytes, {args.of.rows, args.dimensions});
  args.raw = output("raw", raw, 'f', wide, {args.of.rows, args.dimensions});
  args.totals = output("totals", totals, 'f', wide, {args.of.rows});
  if (positions && args.how == Pooling::mean) refuse("positions", "not expected for the mean");
  args.positions = static_cast<int32_t*>(args.how == Pooling::largest
                                             ? output("positions", positions, 'i', 4, {args.of.rows, args.dimensions})
                                             : output("positions", positions, 'i', 4, {args.of.rows}));
  if (args.of.rows == 0) return;
  const int64_t read = args.how == Pooling::mean || args.how == Pooling::largest ? total : args.of.rows;
  run_part(variant_of(type.element).pool, args, read * args.dimensions * type.bytes, threads);
}

void pool_spread(const py::array& grad, const std::string& dtype, const std::optional<py::array>& offsets,
                 const std::optional<py::array>& coefficients, const std::optional<py::array>& positions,
                 std::optional<py::array> out, long long threads) {
  const ElementType type = element_type(dtype);
  const int64_t wide = type.element == Element::float64 ? 8 : 4;
  PoolSpreadArgs args = {};
  args.element = type.element;
  if (!out || out->ndim() != (offsets ? 2 : 3)) refuse("out", "missing, or of another number of axes");
  const int64_t length = offsets ? 0 : out->shape(1), total = offsets ? out->shape(0) : out->shape(0) * length;
  args.of = token_rows(offsets, out->shape(0), length, total);
  args.dimensions = columns_of("grad", grad);
  args.token_dimensions = out->shape(out->ndim() - 1);
  if (args.dimensions > args.token_dimensions) refuse("grad", "more columns than tokens have");
  check_dtype("grad", grad, 'f', wide);
  check_shape("grad", grad, {args.of.rows, args.dimensions});
  if (!(grad.flags() & py::array::c_style)) refuse("grad", "not C-contiguous");
  args.grad = grad.data();
  args.coefficients = per_token("coefficients", coefficients, args.of, total, 'f', wide);
  if (positions) {
    check_dtype("positions", *positions, 'i', 4);
    check_shape("positions", *positions, {args.of.rows, args.dimensions});
    if (!(positions->flags() & py::array::c_style)) refuse("positions", "not C-contiguous");
    args.positions = static_cast<const int32_t*>(positions->data());
  }
  if (!args.coefficients == !args.positions) refuse("coefficients, positions", "expected one of the two");
  args.out = offsets ? output("out", out, type.kind, type.bytes, {total, args.token_dimensions})
                     : output("out", out, type.kind, type.bytes, {args.of.rows, length, args.token_dimensions});
  if (total == 0) return;
  run_part(variant_of(type.element).spread, args, total * args.token_dimensions * type.bytes, threads);
}

void pool_dots(const py::array& tokens, const std::string& dtype, const std::optional<py::array>& offsets,
               const std::optional<py::array>& mask, const py::array& vectors, std::optional<py::array> out,
               long long threads) {
  const ElementType type = element_type(dtype);
  const int64_t wide = type.element == Element::float64 ? 8 : 4;
  PoolDotsArgs args = {};
  const int64_t total = set_tokens(args, tokens, type, offsets);
  args.dimensions = columns_of("vectors", vectors);
  if (args.dimensions > tokens.shape(tokens.ndim() - 1)) refuse("vectors", "more columns than tokens have");
  args.mask = static_cast<const uint8_t*>(per_token("mask", mask, args.of, total, 'u', 1));
  check_dtype("vectors", vectors, 'f', wide);
  check_shape("vectors", vectors, {args.of.rows, args.dimensions});
  if (!(vectors.flags() & py::array::c_style)) refuse("vectors", "not C-contiguous");
  args.vectors = vectors.data();
  if (!out) refuse("out", "missing");
  check_per_token("out", *out, args.of, total, 'f', wide);
  args.out = out->mutable_data();
  if (total == 0) return;
  run_part(variant_of(type.element).dots, args, total * args.dimensions * type.bytes, threads);
}

}  // namespace

void register_pool(py::module_& m) {
  m.def("pool", &pool, py::arg("tokens"), py::arg("dtype"), py::arg("how"), py::arg("offsets"), py::arg("mask"),
        py::arg("weights"), py::arg("normalize"), py::arg("out"), py::arg("raw"), py::arg("totals"),
        py::arg("positions"), py::arg("threads"));
  m.def("pool_spread", &pool_spread, py::arg("grad"), py::arg("dtype"), py::arg("offsets"), py::arg("coefficients"),
        py::arg("positions"), py::arg("out"), py::arg("threads"));
  m.def("pool_dots", &pool_dots, py::arg("tokens"), py::arg("dtype"), py::arg("offsets"), py::arg("mask"),
        py::arg("vectors"), py::arg("out"), py::arg("threads"));
}

}  // namespace simtile
