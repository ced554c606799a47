// What is kept of a query while its scores are known within a width: keys whose order is the worst that the score can have, with the row in
// the place of the rank. The k-th best of those orders is a bar that no better document can fail, and everything within the largest width
// of it is kept; only where that is too much, or at the end, are scores computed by the definition.
#pragma once

#include "topk/keys.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// The order of the worst score that one which may be better than its estimate by `width` needs to have as its estimate to pass `order`.
SIMTILE_INLINE uint32_t worse_by(uint32_t order, float width, bool descending) {
  if (width == 0) return order;
  if (!(width < __builtin_inff())) return kNoOrder - 1;
  const double away = descending ? -1 : 1;
  double score = static_cast<double>(score_of(order, descending)) + away * static_cast<double>(width);
  score += away * ((score < 0 ? -score : score) * 0x1p-22 + 0x1p-140);
  return order_of(static_cast<float>(score), descending);
}

// An order that at least k keys are within, a little above the k-th; keys stay where they are. 0 < k < count. kNoOrder: not found.
SIMTILE_INLINE uint32_t bar_of(const Key* keys, int64_t count, int64_t k) {
  constexpr int64_t kFew = 128;
  if (count > kFew) return static_cast<uint32_t>(sampled_bar(keys, count, k) >> 32);
  Key few[kFew];
  for (int64_t i = 0; i < count; i++) few[i] = keys[i];
  return static_cast<uint32_t>(keep_best(few, count, k) >> 32);
}

// Removes the keys above `cut`; those that are certain stay in front. Returns how many are left.
SIMTILE_INLINE int64_t keep_within(Key* keys, int64_t count, uint32_t cut, int64_t& certain) {
  int64_t kept = 0, kept_certain = 0;
  for (int64_t i = 0; i < count; i++) {
    const Key key = keys[i];
    keys[kept] = key;
    const bool within = static_cast<uint32_t>(key >> 32) <= cut;
    kept += within;
    kept_certain += within && i < certain;
  }
  certain = kept_certain;
  return kept;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
