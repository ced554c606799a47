// info_nce: what the loss sees, on request, noted while the logits leave the product (RowTally in logits.hpp). The class is in cpu.hpp.
#pragma once

#include "info_nce/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
auto InfoNce<Engine>::start_tally(T* lanes) const -> RowTally<T> {
  const int64_t size = chunk_ * kLanes;
  for (int64_t i = 0; i < 2 * size; i++) lanes[i] = 0;
  for (int64_t i = 2 * size; i < 3 * size; i++) lanes[i] = -static_cast<T>(__builtin_inf());
  return {lanes, lanes + size, lanes + 2 * size};
}

template <typename Engine>
void InfoNce<Engine>::finish_tally(const RowTally<T>& tally, T* partial) const {
  for (int64_t r = 0; r < rows_; r++) {
    partial[r] = reduce_add<T>(load<T>(tally.similarity + r * kLanes));
    partial[chunk_ + r] = reduce_add<T>(load<T>(tally.kept + r * kLanes));
    partial[2 * chunk_ + r] = reduce_max<T>(load<T>(tally.peak + r * kLanes));
  }
}

// Hard negatives that only their row sees; `peak` is 1 where one is as similar as the pair.
template <typename Engine>
void InfoNce<Engine>::count_own(int64_t r, int64_t k, T logit, T positive, bool known_false, bool looks_false) {
  T *similarity = own_tally_ + r, *kept = similarity + chunk_, *peak = kept + chunk_;
  if (k == 0) *similarity = *kept = *peak = 0;
  if (known_false) return;
  if (!(positive > logit)) *peak = 1;
  if (looks_false) return;
  *similarity += logit;
  *kept += 1;
}

template <typename Engine>
void InfoNce<Engine>::count_rows() {
  const T* positive = positive_ + (widths_ - 1) * chunk_;
  for (int64_t r = 0; r < rows_; r++) {
    double similarity = 0, kept = 0;
    T peak = -static_cast<T>(__builtin_inf());
    for (int64_t task = 0; task < tasks_; task++) {
      const T* partial = partial_tally_ + task * kTallies * chunk_ + r;
      similarity += partial[0];
      kept += partial[chunk_];
      peak = most(peak, partial[2 * chunk_]);
    }
    bool ahead = positive[r] > peak;
    if (own_now()) {
      similarity += own_tally_[r];
      kept += own_tally_[chunk_ + r];
      ahead &= own_tally_[2 * chunk_ + r] == 0;
    }
    // NaN is nowhere in a peak, but in the sum.
    ahead &= similarity == similarity;
    if (group_now_ == 0) tally_[positive_similarity] += positive[r];
    tally_[negative_similarity] += similarity;
    tally_[negatives_kept] += kept;
    tally_[pairs_ahead] += ahead;
    tally_[pairs_compared] += 1;
  }
}

// The documents as anchors, whose similarities were counted with the rows'. Their positives were taken out.
template <typename Engine>
void InfoNce<Engine>::count_columns() {
  for (int64_t i = 0; i < args_.rows; i++) {
    tally_[pairs_ahead] += row_positive_[i] > column_max_[i] && column_sum_[i] == column_sum_[i];
    tally_[pairs_compared] += 1;
  }
}

template <typename Engine>
void InfoNce<Engine>::finish_statistics() {
  // Of the pairs' own vectors: the anchor itself and its positive are no negatives.
  const double n = static_cast<double>(args_.rows), m = static_cast<double>(args_.documents), k = args_.negatives;
  double there = 0;
  if (args_.has(query_to_doc)) there += n * (m - 1 + (args_.scope == Scope::own ? k : n * k));
  if (args_.has(query_to_query)) there += n * (n - 1);
  if (args_.has(doc_to_query)) there += n * (n - 1);
  if (args_.has(doc_to_doc)) there += n * (m - 1 + (args_.scope == Scope::all ? (n - 1) * k : 0));
  tally_[pairs] = n;
  tally_[negatives_there] = there;
  tally_[positive_similarity] *= args_.temperature;
  tally_[negative_similarity] *= args_.temperature;
  for (int i = 0; i < tally_size; i++) args_.statistics[i] = tally_[i];
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
