// info_nce: from vectors to logits, with what is left out. The class is in cpu.hpp.
#pragma once

#include "info_nce/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
void InfoNce<Engine>::pack_operand(int64_t task, int) {
  Vectors& operand = *now_;
  const int64_t last = least(operand.panels, (task + 1) * panels_per_task_);
  for (int64_t panel = task * panels_per_task_; panel < last; panel++) {
    const int64_t first = panel * kColumns;
    const int count = static_cast<int>(least<int64_t>(kColumns, operand.count - first));
    for (int j = 0; j < kColumns; j++) {
      RowScale<T> scale = {}, guide = {};
      if (j < count) {
        scale = row_scale<T>(operand.row(first + j), args_.dimensions, args_.normalize);
        if (has_guide())
          guide = row_scale<T>(operand.guide + (first + j) * operand.guide_stride, args_.guide_dimensions, true);
      }
      operand.pack[first + j] = scale.pack;
      operand.tile[operand.at(widths_ - 1, first + j)] = scale.tile;
      operand.unit[operand.at(widths_ - 1, first + j)] = scale.unit;
      if (widths_ > 1) scale_prefixes(operand, first + j);
      operand.penalty[first + j] = j < count ? 0 : -static_cast<T>(__builtin_inf());
      if (!has_guide()) continue;
      operand.guide_pack[first + j] = guide.pack;
      operand.guide_tile[first + j] = guide.tile;
    }
    if (!operand.is_column) continue;
    for (int k = 0; k < widths_; k++)
      Engine::pack_panel(columns(operand, panel, count, k), length(k),
                         operand.packed + panel * panel_bytes_ + panel_end(k));
    if (has_guide())
      Engine::pack_panel(guides(operand, first, count), args_.guide_dimensions,
                         operand.guide_packed + panel * guide_panel_bytes_);
  }
}

template <typename Engine>
void InfoNce<Engine>::pack_rows(int64_t task, int) {
  const int64_t last = least(rows_, (task + 1) * rows_per_task_);
  for (int64_t r = task * rows_per_task_; r < last; r += Engine::kRows) {
    const int64_t count = least<int64_t>(Engine::kRows, last - r);
    for (Side<Engine>& side : side_) {
      if (!side.present) continue;
      const Vectors& operand = operand_[side.operand];
      for (int64_t i = r; i < r + Engine::kRows; i++) {
        const bool there = i < r + count;
        for (int k = 0; k < widths_; k++)
          side.scale[k * chunk_ + i] = there ? operand.tile[operand.at(k, first_ + i)] : 0;
        if (has_guide()) side.guide_scale[i] = there ? operand.guide_tile[first_ + i] : 0;
        if (args_.query_ids) side.ids[i] = there ? operand.ids[first_ + i] : 0;
      }
      for (int k = 0; k < widths_; k++)
        Engine::pack_queries(rows(side, r, count, k), r, rows_, length(k), side.packed + rows_end(k));
      if (has_guide())
        Engine::pack_queries(guides(operand, first_ + r, count), r, rows_, args_.guide_dimensions, side.guide_packed);
    }
    if (own_)
      for (int64_t i = r; i < r + count; i++) score_own(i);
  }
}

template <typename Engine>
void InfoNce<Engine>::score_own(int64_t r) {
  const Vectors &queries = operand_[kQueries], &documents = operand_[kDocuments], &negatives = operand_[kNegatives];
  const int64_t i = first_ + r, t = target(i);
  const T scale = side_[0].scale[r] * inverse_temperature(), lowest = -static_cast<T>(__builtin_inf());
  const auto logit = [&](const Vectors& other, int64_t j) {
    return dot<T>(queries.row(i), queries.pack[i], other.row(j), other.pack[j], args_.dimensions) * other.tile[j] *
           scale;
  };
  const auto cosine = [&](const Vectors& other, int64_t j) {
    return dot<T>(queries.guide + i * queries.guide_stride, queries.guide_pack[i], other.guide + j * other.guide_stride,
                  other.guide_pack[j], args_.guide_dimensions) *
           other.guide_tile[j] * queries.guide_tile[i];
  };
  const T positive = args_.has_margin || args_.statistics ? logit(documents, t) : 0;
  const T most_similar = positive - margin();
  const T guide_threshold = has_guide() ? guided(cosine(documents, t)) : 0;
  for (int64_t k = 0; k < own_; k++) {
    const int64_t j = negative_index(r, k);
    T s = logit(negatives, j);
    const T by_guide = has_guide() ? cosine(negatives, j) : 0;
    const bool looks_false = args_.has_margin && s > most_similar,
               known_false = has_guide() && by_guide > guide_threshold;
    if (args_.statistics) count_own(r, k, s, positive, known_false, looks_false);
    const bool left_out = looks_false || known_false;
    if (has_guide() && !(by_guide <= guide_threshold)) s += by_guide - guide_threshold;
    own_scores_[r * own_ + k] = left_out ? lowest : s * harden(args_.harden_own);
  }
}

template <typename Engine>
void InfoNce<Engine>::find_positives(int64_t task, int worker) {
  const Block& block = block_[positive_block_];
  const Side<Engine>& side = side_[block.side];
  const Vectors& operand = operand_[block.operand];
  char* scratch = workers_ + worker * worker_bytes_ + guide_offset_;
  const T* products = reinterpret_cast<const T*>(scratch);
  Plain plain;
  const int64_t last = least(block.panels, (task + 1) * panels_per_task_);
  for (int64_t panel = task * panels_per_task_; panel < last; panel++) {
    const auto here = [&](int64_t r) { return own_column(block, r) / kColumns == panel; };
    bool any = false;
    for (int64_t r = 0; r < rows_; r++) any |= here(r);
    if (!any) continue;
    Engine::scores(side.packed, operand.packed + panel * panel_bytes_, panel_bytes_, 1, rows_, args_.dimensions,
                   scratch, scores_bytes_, plain);
    for (int64_t r = 0; r < rows_; r++) {
      if (!here(r)) continue;
      const int64_t j = own_column(block, r);
      positive_[r] = products[r * kColumns + j % kColumns] * (operand.tile[j] * side.scale[r]) * inverse_temperature();
      if (args_.has_margin) threshold_[r] = positive_[r] - margin();
    }
    if (!has_guide()) continue;
    Engine::scores(side.guide_packed, operand.guide_packed + panel * guide_panel_bytes_, guide_panel_bytes_, 1, rows_,
                   args_.guide_dimensions, scratch, scores_bytes_, plain);
    for (int64_t r = 0; r < rows_; r++) {
      if (!here(r)) continue;
      const int64_t j = own_column(block, r);
      guide_threshold_[r] =
          guided(products[r * kColumns + j % kColumns] * (operand.guide_tile[j] * side.guide_scale[r]));
    }
  }
}

template <typename Engine>
void InfoNce<Engine>::score(int64_t task, int worker) {
  const Block& block = block_of_task(task);
  const Side<Engine>& side = side_[block.side];
  const Vectors& operand = operand_[block.operand];
  const T lowest = -static_cast<T>(__builtin_inf());
  char* scratch = workers_ + worker * worker_bytes_;
  T* row_max = reinterpret_cast<T*>(scratch);
  const int64_t padded = Engine::round_rows(rows_);
  for (int64_t i = 0; i < widths_ * chunk_ * kLanes; i++) row_max[i] = lowest;
  RowTally<T> tally;
  if (counts()) tally = start_tally(row_max + widths_ * chunk_ * kLanes);

  const int64_t first = (task - block.first_task) * panels_per_task_,
                last = least(block.panels, first + panels_per_task_);
  // With a guide its products lie beside those of a group of panels; prefixes are read off while the group is in cache.
  const int64_t group = has_guide() || widths_ > 1 ? Engine::kGroup : last - first;
  for (int64_t panel = first; panel < last; panel += group) {
    const int64_t count = least(group, last - panel);
    int64_t own[Engine::kChunkRows + Engine::kRows];
    for (int64_t r = 0; r < padded; r++) own[r] = own_column(block, least(r, rows_ - 1)) - panel * kColumns;
    if (has_guide()) {
      Plain plain;
      Engine::scores(side.guide_packed, operand.guide_packed + panel * guide_panel_bytes_, guide_panel_bytes_, count,
                     rows_, args_.guide_dimensions, scratch + guide_offset_, scores_bytes_, plain);
    }
    // Products are summed up in place of the widest logits.
    const int widest = widths_ - 1;
    for (int k = 0; k <= widest; k++) {
      LogitEpilogue<Engine> epilogue = this->epilogue(block, panel, own, k);
      epilogue.row_max = row_max + k * chunk_ * kLanes;
      if (has_guide()) epilogue.guide = scratch + guide_offset_;
      if (k < widest) epilogue.out = panel_scores(block.first_panel + panel, k);
      epilogue.out_stride = panel_stride();
      if (k == widest && counts()) {
        epilogue.tally = tally;
        // Documents of no query are anchors of nothing.
        if (group_[group_now_].both && block.operand == kDocuments)
          epilogue.tally.twice = args_.rows - panel * kColumns;
      }
      Engine::scores(side.packed + rows_end(k), operand.packed + panel * panel_bytes_ + panel_end(k), panel_bytes_,
                     count, rows_, length(k), panel_scores(block.first_panel + panel, widest), panel_stride(), epilogue,
                     k > 0);
    }
  }
  for (int k = 0; k < widths_; k++) {
    take_positives_out(block, first, last, k);
    for (int64_t r = 0; r < rows_; r++)
      partial_max_[(task * widths_ + k) * chunk_ + r] = reduce_max<T>(load<T>(row_max + (k * chunk_ + r) * kLanes));
  }
  if (counts()) finish_tally(tally, partial_tally_ + task * kTallies * chunk_);
  if (measuring_ && block.operand == kDocuments)
    for (int64_t panel = first; panel < last; panel++)
      Engine::add_columns(panel_scores(block.first_panel + panel), rows_, column_max_ + panel * kColumns,
                          column_sum_ + panel * kColumns);
}

template <typename Engine>
LogitEpilogue<Engine> InfoNce<Engine>::epilogue(const Block& block, int64_t panel, const int64_t* own, int k) const {
  const Side<Engine>& side = side_[block.side];
  const Vectors& operand = operand_[block.operand];
  const int64_t first = panel * kColumns;
  LogitEpilogue<Engine> epilogue = {};
  epilogue.row_scale = side.scale + k * chunk_;
  epilogue.inverse_temperature = inverse_temperature();
  epilogue.column_scale = operand.tile + operand.at(k, first);
  epilogue.column_penalty = operand.penalty + first;
  if (args_.query_ids && operand.ids) {
    epilogue.row_ids = side.ids;
    epilogue.column_ids = operand.ids + first;
    epilogue.columns = operand.count - first;
  }
  const bool hardened = block.hardened && (args_.harden_others != 0 || args_.harden_own != 0);
  epilogue.own = own;
  epilogue.own_count = own_columns(block);
  epilogue.own_is_negative = block.own == Own::negative;
  // Positives whose logit is known are not among those that thresholds are for.
  epilogue.leave_own_out = block.own == Own::excluded || (block.own == Own::positive && has_thresholds());
  epilogue.single = epilogue.leave_own_out || hardened;
  if (hardened) {
    epilogue.factor = harden(args_.harden_others);
    epilogue.own_factor = block.own == Own::positive ? 1 : harden(args_.harden_own);
  }
  if (args_.has_margin) epilogue.threshold = threshold_;
  if (has_guide()) {
    epilogue.guide_stride = scores_bytes_;
    epilogue.guide_row_scale = side.guide_scale;
    epilogue.guide_column_scale = operand.guide_tile + first;
    epilogue.guide_threshold = guide_threshold_;
  }
  return epilogue;
}

template <typename Engine>
void InfoNce<Engine>::take_positives_out(const Block& block, int64_t first, int64_t last, int width) {
  const bool noted = block.hardened && block.operand == kNegatives && hardens_differently();
  if (block.own != Own::positive && !noted) return;
  for (int64_t r = 0; r < rows_; r++) {
    for (int64_t k = 0; k < own_columns(block); k++) {
      const int64_t j = own_column(block, r) + k - first * kColumns;
      if (j < 0 || j >= (last - first) * kColumns) continue;
      char* panel = panel_scores(block.first_panel + first + j / kColumns, width);
      const int column = static_cast<int>(j % kColumns);
      const T lowest = -static_cast<T>(__builtin_inf());
      if (noted) {
        hard_logits_[r * args_.negatives + k] = Engine::exchange_score(panel, r, column, lowest);
        Engine::exchange_score(panel, r, column, hard_logits_[r * args_.negatives + k]);
      } else {
        const T s = Engine::exchange_score(panel, r, column, lowest);
        if (&block == &block_[positive_block_] && !has_thresholds()) positive_[width * chunk_ + r] = s;
      }
    }
  }
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
