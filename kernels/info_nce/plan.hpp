// What is multiplied with what, by whom, and where it lies: everything of info_nce that is known before the first product.
#pragma once

#include "info_nce/blocks.hpp"
#include "info_nce/rows.hpp"
#include "tile/amx_engine.hpp"
#include "tile/bf16.hpp"
#include "tile/float_engine.hpp"
#include "tile/parallel.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
class InfoNcePlan {
 public:
  // With a null workspace only bytes() is meaningful.
  InfoNcePlan(const InfoNceArgs& args, int threads, void* workspace)
      : args_(args),
        threads_(threads),
        base_(static_cast<char*>(workspace)),
        widths_(args.widths ? static_cast<int>(args.width_count) : 1) {
    find_groups();
    describe_operands();
    plan_chunks();
    int64_t most_panels = 0, most_tasks = 0;
    for (int g = 0; g < groups_; g++) {
      plan_group(g);
      most_panels = most(most_panels, panels_);
      most_tasks = most(most_tasks, tasks_);
    }
    lay_out(most_panels, most_tasks);
  }

  int64_t bytes() const { return bytes_; }

 protected:
  using T = typename Engine::Scalar;
  using Source = typename Engine::Source;
  using Vectors = Operand<Engine>;
  static constexpr int kColumns = Engine::kColumns;
  static constexpr int kLanes = Engine::kLanes;

  // The score panel's memory is bounded: with many candidates, chunks get shorter, down to where reading the documents would cost more
  // than multiplying them.
  static constexpr int64_t kPanelBytes = 52 << 20;
  static constexpr int64_t kFewestRows = 96;

  static constexpr int kTallies = 3;  // of RowTally

  static int64_t panels_of(int64_t rows) { return (rows + kColumns - 1) / kColumns; }
  static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  bool has_guide() const { return args_.guide_queries != nullptr; }
  // Whether the positives are needed before anything is compared with them.
  bool has_thresholds() const { return has_guide() || args_.has_margin; }
  // The scores of a panel by a width lie beside those by the others.
  char* panel_scores(int64_t panel, int k = 0) const { return scores_ + (panel * widths_ + k) * scores_bytes_; }

  // The dimensions that a width has more than the one before it; all of them without Matryoshka.
  int64_t width(int k) const { return args_.widths ? args_.widths[k] : args_.dimensions; }
  int64_t start(int k) const { return k ? width(k - 1) : 0; }
  int64_t length(int k) const { return width(k) - start(k); }
  // Where those before them end: of a packed panel, of packed rows, of slices.
  int64_t panel_end(int k) const { return k ? panel_end(k - 1) + aligned(Engine::panel_bytes(length(k - 1))) : 0; }
  int64_t rows_end(int k) const {
    return k ? rows_end(k - 1) + aligned(Engine::queries_bytes(chunk_, length(k - 1))) : 0;
  }
  int64_t slices_end(int k) const { return k ? slices_end(k - 1) + Engine::slices(length(k - 1)) : 0; }

  void find_groups() {
    if (!args_.per_direction) {
      group_[groups_++] = {args_.directions, false};
    } else if (args_.directions == (query_to_doc | doc_to_query) && !has_thresholds() && args_.harden_others == 0 &&
               args_.harden_own == 0 && widths_ == 1) {
      // Otherwise a pair's product is one logit as a row and another, or none, as a column; and Matryoshka has no such pass.
      group_[groups_++] = {args_.directions, true};
    } else {
      for (unsigned direction = 1; direction <= doc_to_doc; direction *= 2)
        if (args_.directions & direction) group_[groups_++] = {direction, false};
    }
  }

  void describe_operands() {
    const InfoNceArgs& a = args_;
    own_ = a.scope == Scope::own && a.has(query_to_doc) ? a.negatives : 0;
    operand_[kQueries] = {static_cast<const Source*>(a.queries_data),
                          a.queries_stride,
                          a.rows,
                          static_cast<T*>(a.grad_queries),
                          a.query_ids,
                          static_cast<const Source*>(a.guide_queries),
                          a.guide_queries_stride};
    operand_[kDocuments] = {static_cast<const Source*>(a.documents_data),
                            a.documents_stride,
                            a.documents,
                            static_cast<T*>(a.grad_documents),
                            a.document_ids,
                            static_cast<const Source*>(a.guide_documents),
                            a.guide_documents_stride};
    operand_[kNegatives] = {static_cast<const Source*>(a.negatives_data),
                            a.negatives_stride,
                            a.rows * a.negatives,
                            static_cast<T*>(a.grad_negatives),
                            nullptr,
                            static_cast<const Source*>(a.guide_negatives),
                            a.guide_negatives_stride};
    for (Vectors& operand : operand_) operand.panels = panels_of(operand.count);
    side_[0].operand = kQueries;
    side_[1].operand = kDocuments;
    for (int g = 0; g < groups_; g++) {
      list_blocks(group_[g]);
      for (int b = 0; b < blocks_; b++) {
        Vectors &rows = operand_[side_[block_[b].side].operand], &columns = operand_[block_[b].operand];
        rows.is_row = columns.is_column = true;
        rows.last_group = columns.last_group = g;
      }
    }
  }

  // The blocks of a group; where they lie is plan_group's.
  void list_blocks(const Group& group) {
    blocks_ = 0;
    const bool queries_meet_negatives = args_.negatives && args_.scope != Scope::own;
    const bool documents_do = args_.negatives && args_.scope == Scope::all;
    if (group.directions & query_to_doc) {
      block_[blocks_++] = {0, kDocuments, Own::positive, true};
      if (queries_meet_negatives) block_[blocks_++] = {0, kNegatives, Own::negative, true};
    }
    if (group.directions & query_to_query) block_[blocks_++] = {0, kQueries, Own::excluded, false};
    if (group.directions & doc_to_query && !group.both) block_[blocks_++] = {1, kQueries, Own::positive, false};
    if (group.directions & doc_to_doc) {
      block_[blocks_++] = {1, kDocuments, Own::excluded, false};
      if (documents_do) block_[blocks_++] = {1, kNegatives, Own::excluded, false};
    }
  }

  // Rows per chunk: every chunk reads the columns twice and reads and writes their gradient once, so more rows mean less traffic; but
  // the score panel (rows x columns) should stay near the cores. Chunks are equal, so that the last is no stub.
  void plan_chunks() {
    int64_t widest = 1;
    for (int g = 0; g < groups_; g++) {
      int64_t columns = 0;
      list_blocks(group_[g]);
      for (int b = 0; b < blocks_; b++) columns += operand_[block_[b].operand].count;
      widest = most(widest, columns);
    }
    const int64_t most_rows = least(
        Engine::kChunkRows, most(kPanelBytes / (widths_ * widest * static_cast<int64_t>(sizeof(T))), kFewestRows));
    const int64_t chunks = (args_.rows + most_rows - 1) / most_rows;
    chunk_ = Engine::round_rows((args_.rows + chunks - 1) / chunks);
    rows_per_task_ = Engine::round_rows((chunk_ + 4 * threads_ - 1) / (4 * threads_));
  }

  void plan_group(int g) {
    group_now_ = g;
    list_blocks(group_[g]);
    panels_ = tasks_ = 0;
    positives_ = 0;
    for (Side<Engine>& side : side_) side.present = false;
    for (Vectors& operand : operand_) operand.in_columns = false;
    for (int b = 0; b < blocks_; b++) {
      Block& block = block_[b];
      block.panels = operand_[block.operand].panels;
      block.first_panel = panels_;
      panels_ += block.panels;
      side_[block.side].present = operand_[block.operand].in_columns = true;
      if (block.own == Own::positive && positives_++ == 0) positive_block_ = b;
    }
    // Four tasks a thread even out a busy core; fewer and larger ones would not, and smaller ones lose what a group of panels shares.
    panels_per_task_ = most((panels_ + 4 * threads_ - 1) / (4 * threads_),
                            least(Engine::kGroup, (panels_ + 2 * threads_ - 1) / (2 * threads_)));
    for (int b = 0; b < blocks_; b++) {
      block_[b].first_task = tasks_;
      block_[b].tasks = tasks_of(block_[b].panels);
      tasks_ += block_[b].tasks;
    }
  }

  int64_t tasks_of(int64_t panels) const { return (panels + panels_per_task_ - 1) / panels_per_task_; }

  void lay_out(int64_t most_panels, int64_t most_tasks) {
    const InfoNceArgs& a = args_;
    const int64_t size = sizeof(T), d = a.dimensions;
    slices_ = slices_end(widths_);
    // One task a thread: each reads all coefficients of the chunk. The tasks of columns, which follow, even out the end.
    slices_per_task_ = (slices_ + threads_ - 1) / threads_;
    slice_tasks_ = (slices_ + slices_per_task_ - 1) / slices_per_task_;
    panel_bytes_ = panel_end(widths_);
    guide_panel_bytes_ = has_guide() ? aligned(Engine::panel_bytes(a.guide_dimensions)) : 0;
    scores_bytes_ = aligned(Engine::scores_bytes(chunk_));
    if (a.wants_gradients()) slice_bytes_ = aligned(Engine::slice_bytes(chunk_));

    for (Vectors& operand : operand_) {
      const int64_t rows = operand.panels * kColumns;
      take(operand.packed, operand.is_column ? operand.panels * panel_bytes_ : 0);
      take(operand.guide_packed, operand.is_column ? operand.panels * guide_panel_bytes_ : 0);
      take(operand.pack, rows * size);
      take(operand.tile, widths_ * rows * size);
      take(operand.unit, widths_ * rows * size);
      take(operand.projection, widths_ > 1 ? widths_ * rows * size : 0);
      take(operand.penalty, rows * size);
      take(operand.guide_pack, has_guide() ? rows * size : 0);
      take(operand.guide_tile, has_guide() ? rows * size : 0);
    }
    for (Side<Engine>& side : side_) {
      const bool used = operand_[side.operand].is_row;
      const int64_t rows = used ? chunk_ : 0;
      take(side.packed, used ? rows_end(widths_) : 0);
      take(side.guide_packed, used && has_guide() ? Engine::queries_bytes(chunk_, a.guide_dimensions) : 0);
      take(side.scale, widths_ * rows * size);
      take(side.guide_scale, rows * size);
      take(side.coefficient, rows * size);
      take(side.ids, a.query_ids ? rows * static_cast<int64_t>(sizeof(int64_t)) : 0);
      take(side.slices, used ? slices_ * slice_bytes_ : 0);
      take(side.gradient, operand_[side.operand].gradient ? rows * d * size : 0);
    }
    T** const of_rows[] = {&positive_,        &maximum_,       &inverse_sum_,        &threshold_,
                           &guide_threshold_, &own_threshold_, &own_guide_threshold_};
    for (T** array : of_rows) take(*array, widths_ * chunk_ * size);
    take(partial_max_, most_tasks * widths_ * chunk_ * size);
    take(partial_sum_, most_tasks * widths_ * chunk_ * static_cast<int64_t>(sizeof(double)));
    take(partial_weighted_, most_tasks * widths_ * chunk_ * static_cast<int64_t>(sizeof(double)));
    take(partial_tally_, a.statistics ? most_tasks * kTallies * chunk_ * size : 0);
    take(own_tally_, a.statistics && own_ ? kTallies * chunk_ * size : 0);
    take(scores_, most_panels * widths_ * scores_bytes_);
    take(ones_, widths_ > 1 ? Engine::kPacked * size : 0);
    take(own_scores_, chunk_ * own_ * size);
    take(hard_logits_, a.harden_own != a.harden_others && !own_ ? chunk_ * a.negatives * size : 0);
    const bool both = group_[0].both;
    take(column_max_, both ? most_panels * kColumns * size : 0);
    take(column_sum_, both ? most_panels * kColumns * size : 0);
    T** const of_all_rows[] = {&row_max_, &row_sum_, &row_positive_};
    for (T** array : of_all_rows) take(*array, both ? a.rows * size : 0);

    const int64_t lanes_bytes = aligned(most(2, widths_ + (a.statistics ? kTallies : 0)) * chunk_ * kLanes * size);
    const int64_t guide_bytes = has_thresholds() ? Engine::kGroup * scores_bytes_ : 0;
    guide_offset_ = lanes_bytes;
    worker_bytes_ = lanes_bytes + guide_bytes;
    if (a.wants_gradients())
      worker_bytes_ = most(worker_bytes_, aligned(Engine::scratch_bytes(chunk_, d, slices_per_task_)));
    take(workers_, threads_ * worker_bytes_);
  }

  template <typename P>
  void take(P*& pointer, int64_t bytes) {
    pointer = base_ ? reinterpret_cast<P*>(base_ + bytes_) : nullptr;
    bytes_ += aligned(bytes);
  }

  const InfoNceArgs& args_;
  const int threads_;
  char* const base_;
  const int widths_;
  int64_t bytes_ = 0;

  Vectors operand_[kOperands] = {};
  Side<Engine> side_[2] = {};
  Group group_[2] = {};
  int groups_ = 0, group_now_ = 0;
  Block block_[kMostBlocks] = {};
  int blocks_ = 0, positive_block_ = 0, positives_ = 0;  // how often the positive is among the candidates
  int64_t own_ = 0;                                      // hard negatives that only their row sees, which are no block
  int64_t panels_ = 0, panels_per_task_ = 0, tasks_ = 0;
  int64_t slices_ = 0, slices_per_task_ = 0, slice_tasks_ = 0;
  int64_t panel_bytes_ = 0, guide_panel_bytes_ = 0, scores_bytes_ = 0, slice_bytes_ = 0, worker_bytes_ = 0,
          guide_offset_ = 0;
  int64_t chunk_ = 0, rows_per_task_ = 0, first_ = 0, rows_ = 0;
  char *scores_ = nullptr, *workers_ = nullptr;
  T* ones_;  // [Engine::kPacked]
  // Per row of the chunk, and for every width.
  T *positive_, *maximum_, *inverse_sum_, *threshold_, *guide_threshold_, *own_guide_threshold_, *own_threshold_;
  T *partial_max_, *own_scores_, *hard_logits_;
  T *partial_tally_, *own_tally_;  // [tasks][kTallies][chunk], and [kTallies][chunk] of own hard negatives
  double *partial_sum_, *partial_weighted_;
  // With both directions of a product at once: per column, and per row of all chunks.
  T *column_max_, *column_sum_, *row_max_, *row_sum_, *row_positive_;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
