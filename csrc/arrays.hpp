#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "info_nce/args.hpp"

namespace simtile {

// What a binding checks of the arrays it is given: a wrong call must not touch memory. The messages for
// users, with shapes and the fix, come from Python before that.

namespace py = pybind11;

[[noreturn]] inline void refuse(const char* name, const std::string& found) {
  throw py::value_error(std::string(name) + ": " + found);
}

struct ElementType {
  Element element;
  char kind;  // of the NumPy dtype that carries it
  int64_t bytes;
};

inline ElementType element_type(const std::string& name) {
  if (name == "float32") return {Element::float32, 'f', 4};
  if (name == "float64") return {Element::float64, 'f', 8};
  if (name == "bfloat16") return {Element::bfloat16, 'u', 2};
  if (name == "float16") return {Element::float16, 'f', 2};
  refuse("dtype", "unknown \"" + name + "\"");
}

inline void check_shape(const char* name, const py::array& array, std::initializer_list<int64_t> shape) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (const int64_t size : shape) same = same && array.shape(axis++) == size;
  if (!same) refuse(name, "shape " + std::string(py::str(array.attr("shape"))) + " does not fit the other arguments");
}

inline void check_dtype(const char* name, const py::array& array, char kind, int64_t bytes) {
  if (array.dtype().kind() != kind || array.itemsize() != bytes)
    refuse(name, "dtype " + std::string(py::str(array.dtype())) + " is not the one announced");
  if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(bytes) != 0)
    refuse(name, "not aligned to its elements");
}

// Elements from one row to the next along `axis`; the last axis has unit stride.
inline int64_t row_stride(const char* name, const py::array& array, int axis) {
  const py::ssize_t last = array.ndim() - 1, item = array.itemsize();
  if (array.size() == 0) return array.shape(last);  // whose strides NumPy sets to 0
  if (array.shape(last) > 1 && array.strides(last) != item) refuse(name, "the last axis is not contiguous");
  if (array.shape(axis) <= 1) return array.shape(last);
  if (array.strides(axis) % item != 0) refuse(name, "rows are not a whole number of elements apart");
  return array.strides(axis) / item;
}

template <typename T>
const T* vector_data(const char* name, const std::optional<py::array>& array, char kind, int64_t size) {
  if (!array) return nullptr;
  check_dtype(name, *array, kind, sizeof(T));
  check_shape(name, *array, {size});
  if (size > 1 && array->strides(0) != sizeof(T)) refuse(name, "not contiguous");
  return static_cast<const T*>(array->data());
}

inline const int64_t* int64_data(const char* name, const py::array& array, std::initializer_list<int64_t> shape) {
  check_dtype(name, array, 'i', 8);
  check_shape(name, array, shape);
  if (!(array.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return static_cast<const int64_t*>(array.data());
}

// Where to write, or null; C-contiguous.
inline void* output(const char* name, std::optional<py::array>& array, char kind, int64_t bytes,
                    std::initializer_list<int64_t> shape) {
  if (!array) return nullptr;
  check_dtype(name, *array, kind, bytes);
  check_shape(name, *array, shape);
  if (!(array->flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  return array->mutable_data();  // refuses what is read-only
}

}  // namespace simtile
