// info_nce: from coefficients to gradients. The class is in cpu.hpp.
#pragma once

#include "info_nce/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
void InfoNce<Engine>::pack_slices(int64_t slice, int) {
  const int k = prefix_of(slice);
  Engine::pack_query_slice(rows(*side_now_, 0, rows_, k), slice - slices_end(k), length(k),
                           side_now_->slices + slice * slice_bytes_);
}

template <typename Engine>
int64_t InfoNce<Engine>::gradient_tasks() const {
  int64_t tasks = 0;
  for (const Side<Engine>& side : side_) tasks += wants_rows(side) ? slice_tasks_ : 0;
  for (const Vectors& operand : operand_) tasks += wants_columns(operand) ? tasks_of(operand.panels) : 0;
  return tasks;
}

template <typename Engine>
void InfoNce<Engine>::accumulate(int64_t task, int worker) {
  for (int s = 0; s < 2; s++) {
    const int64_t tasks = wants_rows(side_[s]) ? slice_tasks_ : 0;
    if (task < tasks) return accumulate_rows(s, task, worker);
    task -= tasks;
  }
  for (Vectors& operand : operand_) {
    const int64_t tasks = wants_columns(operand) ? tasks_of(operand.panels) : 0;
    if (task < tasks)
      return accumulate_columns(operand, task * panels_per_task_, least(operand.panels, (task + 1) * panels_per_task_),
                                worker);
    task -= tasks;
  }
}

template <typename Engine>
void InfoNce<Engine>::accumulate_columns(const Vectors& operand, int64_t panel, int64_t last, int worker) {
  const int64_t first = panel * kColumns, count = least(operand.count, last * kColumns) - first;
  T* out = operand.gradient + first * args_.dimensions;
  bool accumulate = operand.touched;
  for (int b = 0; b < blocks_; b++) {
    const Block& block = block_[b];
    if (&operand_[block.operand] != &operand) continue;
    const Side<Engine>& side = side_[block.side];
    for (int k = 0; k < widths_; k++)
      Engine::accumulate_documents(panel_scores(block.first_panel + panel, k), panel_stride(),
                                   side.slices + slices_end(k) * slice_bytes_, slice_bytes_, rows(side, 0, rows_, k),
                                   count, length(k), workers_ + worker * worker_bytes_, out + start(k),
                                   args_.dimensions, accumulate);
    accumulate = true;
  }
  if (finished_last(operand) || !last_rows() || !in_last_group(operand)) return;
  for (int64_t j = 0; j < count; j++) finish(operand, first + j);
}

template <typename Engine>
void InfoNce<Engine>::accumulate_rows(int side, int64_t task, int worker) {
  const int64_t first_slice = task * slices_per_task_, last_slice = least(slices_, first_slice + slices_per_task_);
  bool accumulate = false;
  for (int b = 0; b < blocks_; b++) {
    const Block& block = block_[b];
    if (block.side != side) continue;
    const Vectors& operand = operand_[block.operand];
    for (int64_t j = 0; j < operand.count; j += Engine::kPacked, accumulate = true)
      for (int k = 0; k < widths_; k++) {
        const int64_t before = slices_end(k), first = most(first_slice, before),
                      last = least(last_slice, slices_end(k + 1));
        if (first >= last) continue;
        Engine::accumulate_queries(
            panel_scores(block.first_panel + j / kColumns, k), panel_stride(),
            columns(operand, j / kColumns, least<int64_t>(Engine::kPacked, operand.count - j), k), rows_,
            first - before, last - before, length(k), workers_ + worker * worker_bytes_,
            side_[side].gradient + start(k), args_.dimensions, accumulate);
      }
  }
}

template <typename Engine>
void InfoNce<Engine>::finish_rows(int64_t task, int) {
  const int64_t dimensions = args_.dimensions;
  const int64_t last = least(rows_, (task + 1) * rows_per_task_);
  for (int64_t r = task * rows_per_task_; r < last; r++) {
    if (own_now()) finish_own(r);
    for (const Side<Engine>& side : side_) {
      if (!wants_rows(side)) continue;
      const Vectors& operand = operand_[side.operand];
      const T* sum = side.gradient + r * dimensions;
      T* out = operand.gradient + (first_ + r) * dimensions;
      const T scale = widths_ > 1 ? 1 : inverse_sum_[r];
      for (int64_t c = 0; c < dimensions; c++) out[c] = operand.touched ? out[c] + sum[c] * scale : sum[c] * scale;
      if (!finished_last(operand) && in_last_group(operand)) finish(operand, first_ + r);
    }
  }
}

template <typename Engine>
void InfoNce<Engine>::finish_own(int64_t r) {
  const Vectors &queries = operand_[kQueries], &negatives = operand_[kNegatives];
  for (int64_t k = 0; k < own_; k++) {
    const int64_t j = negative_index(r, k);
    const T e = own_scores_[r * own_ + k];
    if (queries.gradient)
      add_row<T>(negatives.row(j), negatives.unit[j], e, args_.dimensions, side_[0].gradient + r * args_.dimensions);
    if (!negatives.gradient) continue;
    T* out = negatives.gradient + j * args_.dimensions;
    for (int64_t c = 0; c < args_.dimensions; c++) out[c] = 0;
    add_row<T>(queries.row(first_ + r), queries.unit[first_ + r], e * inverse_sum_[r], args_.dimensions, out);
    finish(negatives, j);
  }
}

template <typename Engine>
void InfoNce<Engine>::finish(const Vectors& operand, int64_t i) {
  if (widths_ > 1) return finish_prefixes(operand, i);
  finish_gradient<T>(operand.row(i), RowScale<T>{0, 0, operand.unit[i]}, args_.normalize, args_.dimensions,
                     operand.gradient + i * args_.dimensions);
}

template <typename Engine>
void InfoNce<Engine>::project(int64_t task, int) {
  const int64_t last = least(now_->count, (task + 1) * panels_per_task_ * kColumns);
  for (int64_t i = task * panels_per_task_ * kColumns; i < last; i++) finish(*now_, i);
}

template <typename Engine>
void InfoNce<Engine>::clear(const Vectors& operand) {
  const bool own = &operand == &operand_[kNegatives] && own_;
  const int64_t first = own ? operand.count : operand.is_row ? args_.rows : 0;
  for (int64_t i = first * args_.dimensions; i < operand.count * args_.dimensions; i++) operand.gradient[i] = 0;
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
