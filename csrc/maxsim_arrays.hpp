#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "maxsim/args.hpp"

namespace simtile {

// What the bindings of MaxSim share: runs of rows, and candidates.

using Array = std::optional<py::array>;

struct Given {
  py::array data, starts, ends;
  Array mask;
};

// Runs of the rows of a matrix; none may leave it. Returns the number of rows in all runs.
inline int64_t set_side(MaxsimSide& side, const char* name, const Given& given, const ElementType& type,
                        int64_t dimensions) {
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

// Where gradients are written: no row may belong to two runs. In ascending order that is seen at once.
inline void check_apart(const char* name, const MaxsimSide& side) {
  for (int64_t i = 1; i < side.count; i++)
    if (side.starts[i] < side.ends[i - 1]) refuse(name, "runs of rows overlap or do not ascend");
}

struct Matrices {
  std::vector<py::array> arrays;
  std::vector<const void*> data;
};

// Runs of the rows of one matrix each, in which rows follow each other without gaps.
inline int64_t set_matrices(MaxsimSide& side, Matrices& matrices, const char* name, const py::list& list,
                            const py::array& starts, const py::array& ends, const ElementType& type,
                            int64_t dimensions) {
  side.count = static_cast<int64_t>(list.size());
  side.stride = dimensions * type.bytes;
  side.starts = int64_data((std::string(name) + "_starts").c_str(), starts, {side.count});
  side.ends = int64_data((std::string(name) + "_ends").c_str(), ends, {side.count});
  int64_t rows = 0;
  for (int64_t i = 0; i < side.count; i++) {
    const std::string item = std::string(name) + "[" + std::to_string(i) + "]";
    if (!py::isinstance<py::array>(list[static_cast<size_t>(i)])) refuse(item.c_str(), "not an array");
    matrices.arrays.push_back(list[static_cast<size_t>(i)].cast<py::array>());
    const py::array& array = matrices.arrays.back();
    if (array.ndim() != 2) refuse(item.c_str(), "not a matrix");
    check_shape(item.c_str(), array, {array.shape(0), dimensions});
    check_dtype(item.c_str(), array, type.kind, type.bytes);
    if (!(array.flags() & py::array::c_style)) refuse(item.c_str(), "not C-contiguous");
    if (side.starts[i] < 0 || side.ends[i] < side.starts[i] || side.ends[i] > array.shape(0) ||
        side.ends[i] - side.starts[i] > INT32_MAX)
      refuse(item.c_str(), "a run of rows that is not in the matrix");
    rows += side.ends[i] - side.starts[i];
    matrices.data.push_back(array.data());
  }
  side.matrices = matrices.data.data();
  return rows;
}

inline int64_t candidate_count(const py::array& candidates) {
  if (candidates.ndim() != 2) refuse("candidates", "not a matrix");
  return candidates.shape(1);
}

// [Q, C] documents; below 0 is none.
inline const int64_t* candidate_data(const py::array& candidates, int64_t queries, int64_t documents) {
  const int64_t count = candidate_count(candidates);
  const int64_t* const data = int64_data("candidates", candidates, {queries, count});
  for (int64_t i = 0; i < queries * count; i++)
    if (data[i] >= documents) refuse("candidates", "beyond the documents");
  return data;
}

// Of a document in some number of rows; one more, so that a call of nothing is some work too.
inline double mean_rows(const MaxsimSide& documents, int64_t rows) {
  return static_cast<double>(rows) / static_cast<double>(documents.count + 1) + 1;
}

// Multiply-adds of all pairs.
inline double products_of(const MaxsimArgs& args, int64_t query_rows, int64_t document_rows) {
  return static_cast<double>(query_rows) * static_cast<double>(args.candidate_count) *
         mean_rows(args.documents, document_rows) * static_cast<double>(args.dimensions);
}

inline double checked_temperature(double temperature) {
  if (!(temperature >= 0) || std::isinf(temperature)) refuse("temperature", "not 0 or a positive number");
  return temperature;
}

}  // namespace simtile
