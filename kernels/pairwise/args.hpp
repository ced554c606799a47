// What the losses over all pairs ask of a kernel: raw pointers and sizes. Formulas: README.md beside this file.
#pragma once

#include <cstdint>

#include "info_nce/args.hpp"

namespace simtile {

// euclidean also serves its square: both have the same order.
enum class PairDistance { euclidean, cosine };

// Of every row the furthest one with its label and the nearest one with another.
struct HardestPairsArgs {
  Element element;
  int64_t rows;        // N
  int64_t dimensions;  // D
  const void* data;
  int64_t stride;         // elements from one row to the next
  const int64_t* labels;  // [N], from 0 to N - 1
  PairDistance distance;
  bool normalize;

  int64_t* positive;          // [N]; -1 where no other row has the label
  int64_t* negative;          // [N]; -1 where every row has the label
  double* positive_distance;  // [N], squared if euclidean; NaN where there is none
  double* negative_distance;
};

// Gradients of a sum of distances of pairs. The derivative of a pair (i, j) by row i is coefficient * (u_i - u_j), or with cosine
// -coefficient * u_j, where u are the (normalised) rows.
struct PairGradientsArgs {
  Element element;
  int64_t rows;
  int64_t dimensions;
  const void* data;
  int64_t stride;
  PairDistance distance;
  bool normalize;
  const int64_t* positive;  // [N]: two pairs a row; -1 is none
  const int64_t* negative;
  const double* positive_coefficient;  // [N]; pairs with 0 are left out
  const double* negative_coefficient;

  void* grad;  // [N, D] float, or double when element is float64
};

// log of the mean of exp(-t |u_i - u_j|^2) over all pairs i < j.
struct UniformityArgs {
  Element element;
  int64_t rows;
  int64_t dimensions;
  const void* data;
  int64_t stride;
  double t;
  bool normalize;

  double* value;
  void* grad;  // [N, D] float, or double when element is float64; null where not wanted
};

template <typename Args>
struct PairwiseVariant {
  int64_t (*workspace_bytes)(const Args&, int threads);  // aligned to 64
  void (*run)(const Args&, const Executor&, void* workspace);
};

// By element type.
struct PairwiseKernel {
  PairwiseVariant<HardestPairsArgs> hardest_pairs[4];
  PairwiseVariant<PairGradientsArgs> pair_gradients[4];
  PairwiseVariant<UniformityArgs> uniformity[4];
};

}  // namespace simtile
