// Which rows of a matrix are tokens, and what they are divided by.
#pragma once

#include "maxsim/args.hpp"
#include "tile/pack.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr double kSmallestNorm = 1e-12;  // what shorter rows are divided by

SIMTILE_INLINE int64_t rows_of(const MaxsimSide& side) {
  int64_t rows = 0;
  for (int64_t i = 0; i < side.count; i++) rows += side.ends[i] - side.starts[i];
  return rows;
}

template <typename Source>
struct TokenRows {
  const MaxsimSide& side;
  int64_t dimensions;
  bool pad_zero_rows;

  SIMTILE_INLINE const Source* row(int64_t r) const {
    return reinterpret_cast<const Source*>(static_cast<const char*>(side.data) + r * side.stride);
  }
  SIMTILE_INLINE bool is_there(int64_t r) const {
    if (side.mask && !side.mask[r]) return false;
    if (!pad_zero_rows) return true;
    const Source* x = row(r);
    for (int64_t i = 0; i < dimensions; i++)
      if (widen(x[i]) != 0) return true;  // NaN too
    return false;
  }
};

SIMTILE_INLINE double inverse_norm(double squared) {
  const double norm = __builtin_sqrt(squared);
  return 1 / (norm < kSmallestNorm ? kSmallestNorm : norm);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
