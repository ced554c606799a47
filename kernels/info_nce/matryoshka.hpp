// info_nce on prefixes of the vectors, all widths in one pass. The class is in cpu.hpp.
//
// Dimensions are cut into segments between one width and the next. Products are summed up segment by segment, and where one ends they are
// the scores by that width, still in cache: its own norms, maximum and log-sum-exp make its coefficients C_w. With those all gradients are
// one product a segment again,
//
//   dL/dq_segment = sum_w (C_w * units_w) d_segment - (sum_w unit_w^2 rho_w) q_segment      over the widths w that contain the segment
//
// for vectors without units; rho_w, the sum of C_w times cosines over a row or column, is the rank-one term of the normalisation.
#pragma once

#include "info_nce/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// What the widest has been given, for the narrower ones: the power of two is the row's.
template <typename Engine>
void InfoNce<Engine>::scale_prefixes(const Vectors& operand, int64_t i) {
  double squared = 0;
  for (int k = 0; k < widths_; k++) {
    double unit = 0, tile = 0;
    if (i < operand.count) {
      squared += squared_norm<T>(operand.row(i) + start(k), length(k));
      unit = unit_of(__builtin_sqrt(squared), args_.normalize);
      // A prefix of zeros in a huge row has a huge unit; products of two stay finite.
      tile = least(unit / operand.pack[i], 0x1p60);
    }
    operand.unit[operand.at(k, i)] = static_cast<T>(unit);
    operand.tile[operand.at(k, i)] = static_cast<T>(tile);
    operand.projection[operand.at(k, i)] = 0;
  }
}

// Losses of the chunk; of every row and width the scale of its exponentials, the positive's coefficient (in place of its logit) and the
// row's share of the rank-one term.
template <typename Engine>
void InfoNce<Engine>::finish_prefix_losses() {
  const Block& positive = block_[positive_block_];
  for (int k = 0; k < widths_; k++) {
    for (int64_t r = 0; r < rows_; r++) {
      const int64_t at = k * chunk_ + r;
      const double m = maximum_[at], logit = positive_[at];
      double sum_of[2] = {0, 0}, weighted_of[2] = {0, 0};  // of either side's candidates
      for (int b = 0; b < blocks_; b++) {
        for (int64_t task = block_[b].first_task; task < block_[b].first_task + block_[b].tasks; task++) {
          sum_of[block_[b].side] += partial_sum_[task * widths_ * chunk_ + at];
          weighted_of[block_[b].side] += partial_weighted_[task * widths_ * chunk_ + at];
        }
      }
      const double others = sum_of[0] + sum_of[1], share = args_.shares[k];
      args_.losses[first_ + r] += share * loss_of(others, logit - m) / groups_;
      const double scale =
          share * row_weight(first_ + r) / (args_.temperature * (others + positives_ * __builtin_exp(logit - m)));
      grad_temperature_ -= scale * (weighted_of[0] + weighted_of[1] - others * (logit - m));
      if (!args_.wants_gradients()) continue;
      inverse_sum_[at] = static_cast<T>(scale);
      positive_[at] = static_cast<T>(-others * scale);
      const double of_positive = -others * logit;
      for (int s = 0; s < 2; s++) {
        if (!side_[s].present) continue;
        const double sum = weighted_of[s] + sum_of[s] * m + (s == positive.side ? of_positive : 0);
        add_projection(operand_[side_[s].operand], k, first_ + r, scale * sum);
      }
      add_projection(operand_[positive.operand], k, own_column(positive, r), scale * of_positive);
    }
  }
}

template <typename Engine>
void InfoNce<Engine>::add_projection(const Vectors& operand, int k, int64_t i, double along) {
  operand.projection[operand.at(k, i)] += static_cast<T>(args_.temperature * along);
}

template <typename Engine>
int64_t InfoNce<Engine>::column_tasks() const {
  int64_t tasks = 0;
  for (const Vectors& operand : operand_) tasks += operand.in_columns ? tasks_of(operand.panels) : 0;
  return tasks;
}

template <typename Engine>
void InfoNce<Engine>::combine_prefixes(int64_t task, int worker) {
  int o = 0;
  for (; !operand_[o].in_columns || task >= tasks_of(operand_[o].panels); o++)
    task -= operand_[o].in_columns ? tasks_of(operand_[o].panels) : 0;
  const Vectors& operand = operand_[o];
  T* weighted = reinterpret_cast<T*>(workers_ + worker * worker_bytes_);
  const int64_t last = least(operand.panels, (task + 1) * panels_per_task_);
  for (int64_t panel = task * panels_per_task_; panel < last; panel += Engine::kGroup) {
    const int64_t next = least(last, panel + Engine::kGroup);
    for (int b = 0; b < blocks_; b++)
      if (&operand_[block_[b].operand] == &operand)
        for (int64_t p = panel; p < next; p++) combine_panel(block_[b], operand, p, weighted);
    if (operand.gradient) accumulate_columns(operand, panel, next, worker);
  }
}

template <typename Engine>
void InfoNce<Engine>::combine_panel(const Block& block, const Vectors& operand, int64_t panel, T* weighted) {
  const Side<Engine>& side = side_[block.side];
  const int64_t first = panel * kColumns;
  char* scores = panel_scores(block.first_panel + panel);
  T* projection = operand.projection + first;
  for (int64_t i = 0; i < widths_ * kColumns; i++) weighted[i] = 0;
  Engine::combine_widths(scores, scores_bytes_, widths_, rows_, maximum_, inverse_sum_, side.scale, chunk_,
                         operand.tile + first, operand.at(1, 0), weighted);
  for (int k = 0; k < widths_; k++)
    for (int j = 0; j < kColumns; j++)
      projection[operand.at(k, j)] += static_cast<T>(args_.temperature) * weighted[k * kColumns + j];
  if (&block != &block_[positive_block_]) return;
  for (int64_t r = 0; r < rows_; r++) {
    const int64_t j = own_column(block, r) - first;
    if (j < 0 || j >= kColumns) continue;
    T sum = 0;
    for (int k = widths_ - 1; k >= 0; k--) {
      sum += positive_[k * chunk_ + r] * (operand.tile[operand.at(k, first + j)] * side.scale[k * chunk_ + r]);
      Engine::set_coefficient(scores + k * scores_bytes_, r, static_cast<int>(j), sum);
    }
  }
}

// From the gradient that products of packed rows give, in place, to that of the row.
template <typename Engine>
void InfoNce<Engine>::finish_prefixes(const Vectors& operand, int64_t i) {
  T* gradient = operand.gradient + i * args_.dimensions;
  const auto* row = operand.row(i);
  const T pack = operand.pack[i];
  double along = 0;
  for (int k = widths_ - 1; k >= 0; k--) {
    const int64_t at = operand.at(k, i);
    const double tile = operand.tile[at];
    if (is_projected(args_.normalize, operand.unit[at])) along += tile * tile * operand.projection[at];
    subtract_row<T>(row + start(k), pack, static_cast<T>(along), length(k), gradient + start(k));
  }
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
