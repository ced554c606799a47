// What siglip asks of a kernel: raw pointers and sizes. Formula, shapes and error bound: README.md beside this file.
#pragma once

#include <cstdint>

#include "info_nce/args.hpp"

namespace simtile {

struct SiglipArgs {
  Element element;  // of queries and documents

  int64_t rows;        // N
  int64_t documents;   // M >= N: document i belongs to query i
  int64_t dimensions;  // D
  const void* queries_data;
  const void* documents_data;
  int64_t queries_stride;  // elements from one row to the next
  int64_t documents_stride;

  double temperature;
  double bias;
  bool normalize;
  double weight;  // of every row in the gradients

  // Outputs; gradients are float, or double when element is float64; null where not wanted.
  double* losses;  // [N]
  void* grad_queries;
  void* grad_documents;
  double* grad_temperature;  // one value each
  double* grad_bias;

  // always_inline: at -O0 it would otherwise be a weak symbol of every ISA level.
  [[gnu::always_inline]] bool wants_gradients() const { return grad_queries || grad_documents; }
};

// One element type's entry points at one ISA level. The caller allocates workspace_bytes(args, threads) bytes, aligned to 64.
struct SiglipVariant {
  int64_t (*workspace_bytes)(const SiglipArgs&, int threads);
  void (*run)(const SiglipArgs&, const Executor&, void* workspace);
};

struct SiglipKernel {
  SiglipVariant by_element[4];
};

}  // namespace simtile
