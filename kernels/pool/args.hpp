// What pool asks of a kernel: raw pointers and sizes. Formulas, shapes and error: README.md beside this file.
#pragma once

#include <cstdint>

#include "info_nce/args.hpp"

namespace simtile {

enum class Pooling { mean, first, last, largest };

// Whose tokens are whose: row n of a batch has `length` tokens, row_stride elements after those of the row before; with
// offsets it has tokens offsets[n] to offsets[n + 1]. What there is for each token (mask, weights, …) has no gaps: [N, L], or [T].
struct TokenRows {
  int64_t rows;            // N
  int64_t length;          // L, without offsets
  int64_t longest;         // the largest number of tokens of a row, below 2^31
  const int64_t* offsets;  // [N + 1], or null
};

struct PoolArgs {
  Element element;  // of data and out
  Pooling how;
  TokenRows of;
  int64_t dimensions;  // of the result: the first ones of every token, the only ones that are read
  const void* data;
  int64_t row_stride;  // elements from one to the next, of any sign
  int64_t token_stride;
  const uint8_t* mask;  // 0: no token; null: all are
  const void* weights;  // of the mean; float, or double where element is float64; null: all 1
  bool normalize;

  void* out;           // [N, dimensions]
  void* raw;           // float, or double: the same before it is normalised; null if not wanted
  void* totals;        // [N], likewise: the sum of weights, or how many tokens there are; null
  int32_t* positions;  // where in its row it comes from, -1 if from nowhere: [N], `largest` [N, dimensions]; null
};

// The gradient of tokens: that of their row's pooled vector times the token's coefficient, or where the token is the largest.
struct PoolSpreadArgs {
  Element element;  // of out
  TokenRows of;
  int64_t dimensions;
  int64_t token_dimensions;  // D: beyond `dimensions` the gradient is 0
  const void* grad;          // [N, dimensions], float, or double where element is float64
  const void* coefficients;  // [N, L] or [T], likewise, or null
  const int32_t* positions;  // [N, dimensions]; null where there are coefficients
  void* out;                 // [N, L, D] or [T, D]
};

// The product of every token with a vector of its row: what weights are differentiated by.
struct PoolDotsArgs {
  Element element;  // of data
  TokenRows of;
  int64_t dimensions;
  const void* data;
  int64_t row_stride;
  int64_t token_stride;
  const uint8_t* mask;  // where it is 0 nothing is read and the product is 0
  const void* vectors;  // [N, dimensions], float, or double where element is float64
  void* out;            // [N, L] or [T], likewise
};

// One element type's entry points at one ISA level. The caller allocates what workspace_bytes says, aligned to 64.
template <typename Args>
struct PoolPart {
  int64_t (*workspace_bytes)(const Args&, int threads);
  void (*run)(const Args&, const Executor&, void* workspace);
};

struct PoolVariant {
  PoolPart<PoolArgs> pool;
  PoolPart<PoolSpreadArgs> spread;
  PoolPart<PoolDotsArgs> dots;
};

struct PoolKernel {
  PoolVariant by_element[4];
};

}  // namespace simtile
