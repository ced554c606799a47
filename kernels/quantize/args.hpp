// What quantize asks of a kernel: raw pointers and sizes. Formulas and the layout of codes: README.md beside this file.
#pragma once

#include <cstdint>

#include "info_nce/args.hpp"

namespace simtile {

enum class Codes { int8, uint8, int4, binary, int8_vector, int4_vector };

struct QuantizeArgs {
  Element element;  // of the data
  Codes codes;
  int64_t rows;        // N
  int64_t dimensions;  // D
  const void* data;    // [N, D]
  int64_t stride;      // elements from one row to the next

  const float* starts;  // [D], the kinds with one scale a dimension: the range's lower end
  const float* steps;   // [D]: the width of a level

  uint8_t* out;   // [N, W] without gaps; W = D, ceil(D / 2) of int4, ceil(D / 8) of binary
  float* scales;  // [N], out, the kinds with one scale a vector
};

struct RangesArgs {
  Element element;
  int64_t rows;
  int64_t dimensions;
  const void* data;
  int64_t stride;
  void* smallest;  // [D], out; float, or double where element is float64
  void* largest;   // [D]
};

// One element type's entry points at one ISA level. The caller allocates what *_bytes says, aligned to 64.
struct QuantizeVariant {
  int64_t (*ranges_bytes)(const RangesArgs&, int threads);
  // NaN in a dimension makes both ends NaN. No rows: infinity and -infinity.
  void (*ranges)(const RangesArgs&, const Executor&, void* workspace);

  int64_t (*codes_bytes)(const QuantizeArgs&, int threads);
  // The first row that has no code, or -1. With one scale a dimension: an element that is NaN after the range is applied, whose
  // code is 0. With one scale a vector: a scale that is not finite; the row's codes are 0.
  int64_t (*codes)(const QuantizeArgs&, const Executor&, void* workspace);
};

struct QuantizeKernel {
  QuantizeVariant by_element[4];
};

}  // namespace simtile
