// From products to coefficients: the epilogue of siglip's scores.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename T>
struct SoftplusSigmoid {
  Vector<T> softplus, sigmoid;
};

// log(1 + exp(x)) and 1 / (1 + exp(-x)) from one exponential e = exp(-|x|) and one division: with y = e / (2 + e) <= 1/3,
// log(1 + e) = 2 artanh(y) = 2 y (1 + y^2/3 + y^4/5 + ...). Relative errors of a few ulp at both ends; NaN stays NaN.
template <typename T>
SIMTILE_INLINE SoftplusSigmoid<T> softplus_sigmoid(Vector<T> x) {
  // What is cut off is under y^(2 kTerms) / (2 kTerms + 1): 3e-9 and 2e-18.
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 18;
  const Vector<T> e = exp_nonpositive(x < 0 ? x : -x);
  const Vector<T> inverse = 1 / ((1 + e) * (2 + e));
  const Vector<T> y = e * (1 + e) * inverse, square = y * y, larger = (2 + e) * inverse;  // larger: 1 / (1 + e)
  Vector<T> series = broadcast<T>(T(1) / (2 * kTerms - 1));
#pragma GCC unroll 20
  for (int k = kTerms - 2; k >= 0; k--) series = series * square + T(1) / (2 * k + 1);
  const Vector<T> zero{};
  return {(x > 0 ? x : zero) + 2 * y * series, x < 0 ? e * larger : larger};
}

// Scores of one tile as they leave the product: to ∂loss/∂logit, in place, with the sums of each row. Columns count from the first panel on.
template <typename Engine>
struct SigmoidEpilogue {
  using T = typename Engine::Scalar;
  static constexpr int kColumns = Engine::kColumns;
  static constexpr int kVectors = Engine::kVectors;
  static constexpr int kLanes = Engine::kLanes;

  // A product becomes a similarity by both scales.
  const T* row_scale;       // per row of the chunk
  const T* column_scale;    // per column
  const T* column_penalty;  // 0, or -inf where a panel has no document
  const T* sign;            // [3 * kColumns]: 1, and -1 in the middle at kColumns
  T inverse_temperature, bias;
  int64_t first_pair;  // the column of the first row's own document, past which the others' follow
  // [rows][lanes]: of a row the losses, the coefficients, and coefficients times similarity.
  T *losses, *sums, *weighted;

  template <int rows>
  SIMTILE_INLINE void tile(int64_t panel, int64_t r, T* products) {
    const T* scale = column_scale + panel * kColumns;
    const T* penalty = column_penalty + panel * kColumns;
    for (int i = 0; i < rows; i++, products += kColumns) {
      const int64_t at = (r + i) * kLanes, own = first_pair + r + i - panel * kColumns;
      // A pair's own logit is that of the other class: its sign is turned, whose vector slides over the columns.
      const T* signs = sign + (own >= 0 && own < kColumns ? kColumns - own : 2 * kColumns);
      Vector<T> loss = load<T>(losses + at), sum = load<T>(sums + at), product = load<T>(weighted + at);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        const Vector<T> similarity = load<T>(products + v * kLanes) * (load<T>(scale + v * kLanes) * row_scale[r + i]);
        const Vector<T> turn = load<T>(signs + v * kLanes);
        const Vector<T> logit = (similarity * inverse_temperature + bias) * turn + load<T>(penalty + v * kLanes);
        const SoftplusSigmoid<T> of = softplus_sigmoid<T>(logit);
        const Vector<T> coefficient = of.sigmoid * turn;
        loss += of.softplus;
        sum += coefficient;
        product += coefficient * similarity;
        store<T>(products + v * kLanes, coefficient);
      }
      store<T>(losses + at, loss);
      store<T>(sums + at, sum);
      store<T>(weighted + at, product);
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
