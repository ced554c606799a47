// The row-wise part of info_nce: scales of a row, one row against its own negatives, the rank-one term of the normalisation.
#pragma once

#include "tile/pack.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr double kNormFloor = 1e-12;  // as torch.nn.functional.normalize

// What multiplies a row, per use. `pack` is a power of two, and 1 unless the norm is extreme: it keeps products of packed values in
// range without rounding anything.
template <typename T>
struct RowScale {
  T pack;  // operand of the similarity product
  T tile;  // what is left to turn a product of packed values into a similarity
  T unit;  // normalised row = unit * row
};

SIMTILE_INLINE double unit_of(double norm, bool normalize) {
  return normalize ? 1 / (norm > kNormFloor ? norm : norm <= kNormFloor ? kNormFloor : norm) : 1;
}

template <typename T, typename Source>
RowScale<T> row_scale(const Source* row, int64_t columns, bool normalize) {
  const double norm = __builtin_sqrt(squared_norm<T>(row, columns));
  double pack = 1;
  // Products of two rows within 2^+-40 stay far from overflow and from the subnormals, even of float32.
  if (norm != 0 && norm < __builtin_inf() && (norm < 0x1p-40 || norm > 0x1p40))
    pack = __builtin_ldexp(1.0, most(-126, least(126, -__builtin_ilogb(norm))));
  const double unit = unit_of(norm, normalize);
  return {static_cast<T>(pack), static_cast<T>(unit / pack), static_cast<T>(unit)};
}

// Rows at or below the floor are divided by a constant: no rank-one term.
template <typename T>
SIMTILE_INLINE bool is_projected(bool normalize, T unit) {
  return normalize && !(unit >= static_cast<T>(1 / kNormFloor));
}

template <typename T, typename Source>
SIMTILE_INLINE Vector<T> load_tail(const Source* p, int64_t left) {
  return left >= Simd<T>::kLanes ? load_widened(p) : load_widened_first<T>(p, static_cast<int>(left));
}

template <typename T, typename A, typename B>
T dot(const A* a, T a_scale, const B* b, T b_scale, int64_t columns) {
  constexpr int kLanes = Simd<T>::kLanes;
  Vector<T> sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
    for (int i = 0; i < 4; i++)
      sum[i] += (load_widened(a + c + i * kLanes) * a_scale) * (load_widened(b + c + i * kLanes) * b_scale);
  for (; c < columns; c += kLanes)
    sum[0] += (load_tail<T>(a + c, columns - c) * a_scale) * (load_tail<T>(b + c, columns - c) * b_scale);
  return reduce_add<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// out += coefficient * (unit * row), in this order: unit may be as small as the row is large.
template <typename T, typename Source>
void add_row(const Source* row, T unit, T coefficient, int64_t columns, T* out) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    store<T>(out + c, load<T>(out + c) + load_widened(row + c) * unit * coefficient);
  for (; c < columns; c++) out[c] += static_cast<T>(widen(row[c])) * unit * coefficient;
}

// gradient = (gradient - along (pack row)) pack, in place.
template <typename T, typename Source>
void subtract_row(const Source* row, T pack, T along, int64_t columns, T* gradient) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    store<T>(gradient + c, (load<T>(gradient + c) - load_widened(row + c) * pack * along) * pack);
  for (; c < columns; c++) gradient[c] = (gradient[c] - static_cast<T>(widen(row[c])) * pack * along) * pack;
}

// From the gradient of the normalised row, in place, to that of the row: (g - u (u.g)) / norm with u = unit * row.
template <typename T, typename Source>
void finish_gradient(const Source* row, const RowScale<T>& scale, bool normalize, int64_t columns, T* gradient) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (!normalize) return;
  T along = 0;
  if (is_projected(normalize, scale.unit)) along = dot<T>(row, scale.unit, gradient, T(1), columns);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    store<T>(gradient + c, (load<T>(gradient + c) - load_widened(row + c) * scale.unit * along) * scale.unit);
  for (; c < columns; c++)
    gradient[c] = (gradient[c] - static_cast<T>(widen(row[c])) * scale.unit * along) * scale.unit;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
