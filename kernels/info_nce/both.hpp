// info_nce: query_to_doc and doc_to_query from the same products, a loss each. The class is in cpu.hpp.
//
// A row's sum and a column's are known only after all chunks: the first pass adds them up, the second multiplies once more (8 operations
// for a multiply-add instead of 12).
#pragma once

#include "info_nce/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
void InfoNce<Engine>::measure(const Executor& executor) {
  const T lowest = -static_cast<T>(__builtin_inf());
  measuring_ = true;
  for (int64_t j = 0; j < panels_ * kColumns; j++) {
    column_max_[j] = lowest;
    column_sum_[j] = 0;
  }
  for_chunks(executor, [&] {
    reduce_maximum();
    each<&InfoNce::exponentiate>(executor, tasks_);
    for (int64_t r = 0; r < rows_; r++) {
      row_max_[first_ + r] = maximum_[r];
      row_positive_[first_ + r] = positive_[r];
      row_sum_[first_ + r] = static_cast<T>(sums_of(r).others);
    }
  });
  if (counts()) count_columns();
  measuring_ = false;
  for (int64_t i = 0; i < args_.rows; i++) {
    raise_column(i);
    args_.losses[i] = (loss_of(row_sum_[i], static_cast<double>(row_positive_[i]) - row_max_[i]) +
                       loss_of(column_sum_[i], static_cast<double>(row_positive_[i]) - column_max_[i])) /
                      2;
  }
  // Documents of no query are nobody's anchors, and neither are hard negatives.
  for (int64_t j = args_.rows; j < panels_ * kColumns; j++) column_max_[j] = static_cast<T>(__builtin_inf());
}

template <typename Engine>
void InfoNce<Engine>::raise_column(int64_t j) {
  const T peak = most(column_max_[j], row_positive_[j]);
  column_sum_[j] = static_cast<T>(column_sum_[j] * __builtin_exp(static_cast<double>(column_max_[j]) - peak));
  column_max_[j] = peak;
}

template <typename Engine>
double InfoNce<Engine>::share(int64_t i, double others, double maximum) const {
  return args_.weight * (args_.row_weights ? args_.row_weights[i] : 1) /
         (2 * args_.temperature * (others + __builtin_exp(static_cast<double>(row_positive_[i]) - maximum)));
}

template <typename Engine>
void InfoNce<Engine>::combine(int64_t task, int worker) {
  const Block& block = block_of_task(task);
  char* scratch = workers_ + worker * worker_bytes_;
  T* weighted = reinterpret_cast<T*>(scratch);
  T* row_scale = weighted + chunk_ * kLanes;
  for (int64_t i = 0; i < rows_ * kLanes; i++) weighted[i] = 0;
  for (int64_t r = 0; r < rows_; r++) row_scale[r] = static_cast<T>(row_share(first_ + r));
  const int64_t first = (task - block.first_task) * panels_per_task_;
  const int64_t last = least(block.panels, first + panels_per_task_);
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t column = (block.first_panel + panel) * kColumns;
    alignas(64) T column_scale[kColumns];
    for (int64_t j = column; j < column + kColumns; j++)
      column_scale[j - column] = j < args_.rows ? static_cast<T>(column_share(j)) : 0;
    Engine::combine(panel_scores(block.first_panel + panel), rows_, row_max_ + first_, row_scale, column_max_ + column,
                    column_scale, weighted);
  }
  for (int64_t r = 0; r < rows_; r++)
    partial_weighted_[task * chunk_ + r] = reduce_add<T>(load<T>(weighted + r * kLanes));
}

template <typename Engine>
void InfoNce<Engine>::combine_rows() {
  for (int64_t r = 0; r < rows_; r++) {
    const int64_t i = first_ + r;
    double weighted = 0;
    for (int64_t task = 0; task < tasks_; task++) weighted += partial_weighted_[task * chunk_ + r];
    for (int64_t k = 0; k < own_; k++) {
      const double s = own_scores_[r * own_ + k];
      const double c = row_share(i) * __builtin_exp(s - row_max_[i]);
      own_scores_[r * own_ + k] = static_cast<T>(c);
      weighted += c == 0 ? 0 : c * s;
    }
    const double others = row_share(i) * row_sum_[i] + column_share(i) * column_sum_[i];
    grad_temperature_ -= weighted - others * row_positive_[i];
    set_row_scale(r, 1);
    set_positive(r, static_cast<T>(-others));
  }
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
