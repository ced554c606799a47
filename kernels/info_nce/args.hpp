// What info_nce asks of a kernel: raw pointers and sizes. Formula, shapes and error bound: README.md beside this file.
#pragma once

#include <cstdint>

#include "tile/parallel.hpp"

namespace simtile {

enum class Element { float32, float64, bfloat16, float16 };

struct InfoNceArgs {
  Element element;  // of queries, documents and negatives

  int64_t rows;        // N
  int64_t documents;   // M
  int64_t negatives;   // K, per query; 0 without
  int64_t dimensions;  // D
  const void* queries_data;
  const void* documents_data;
  const void* negatives_data;  // [N * K, D]
  int64_t queries_stride;      // elements from one row to the next
  int64_t documents_stride;
  int64_t negatives_stride;

  double temperature;
  bool normalize;
  bool own_negatives;           // a row sees its own K negatives, not all N * K
  const int64_t* targets;       // [N], or null: row i's positive is document i
  const int64_t* query_ids;     // [N], with document_ids [M]; or both null
  const int64_t* document_ids;  // equal ids are never each other's negatives
  double weight;                // of every row in the gradients
  const double* row_weights;    // [N], times `weight`; or null

  // Outputs; gradients are float, or double when element is float64; null where not wanted.
  double* losses;  // [N]
  void* grad_queries;
  void* grad_documents;
  void* grad_negatives;
  double* grad_temperature;  // one value

  // always_inline: at -O0 it would otherwise be a weak symbol of every ISA level.
  [[gnu::always_inline]] bool wants_gradients() const { return grad_queries || grad_documents || grad_negatives; }
};

// One element type's entry points at one ISA level. The caller allocates workspace_bytes(args, threads) bytes, aligned to 64.
struct InfoNceVariant {
  int64_t (*workspace_bytes)(const InfoNceArgs&, int threads);
  void (*run)(const InfoNceArgs&, const Executor&, void* workspace);
  const char* arithmetic;  // what multiplies: "float32", "float64", "bf16", "amx_bf16", "amx_bf16x3"
};

struct InfoNceKernel {
  InfoNceVariant by_element[4];
};

}  // namespace simtile
