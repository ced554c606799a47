// info_nce on the CPU: loss and all gradients in one pass over the similarity matrix, by chunks of rows (6 operations a product's
// multiply-add, for every block of blocks.hpp).
//
//   for each chunk of rows:
//     score        S = rows * columns^T, to logits and masked while the tile is hot; row maximum; the positive taken out
//     exponentiate e = exp(S - m), in place, and its row sums
//     losses       log-sum-exp minus the positive, per row; the positive's coefficient is minus the sum of the others
//     gradients    columns += (u e)^T rows (split by columns), rows = (u e) columns (split by dimensions)
//
// Where both directions of a product count, a first pass finds every row's and column's sum, and the second multiplies once more.
//
// The panel S of one chunk stays in cache; no thread writes what another one writes. Formula and measured numbers: README.md.
#pragma once

#include "info_nce/logits.hpp"
#include "info_nce/plan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
class InfoNce : public InfoNcePlan<Engine> {
 public:
  using InfoNcePlan<Engine>::InfoNcePlan;

  void run(const Executor& executor) {
    for (int64_t i = 0; i < args_.rows; i++) args_.losses[i] = 0;
    if (widths_ > 1) use_no_scales();
    for (Vectors& operand : operand_) {
      now_ = &operand;
      each<&InfoNce::pack_operand>(executor, tasks_of(operand.panels));
      if (operand.gradient && !operand.is_column) clear(operand);
    }
    for (int g = 0; g < groups_; g++) {
      this->plan_group(g);
      if (group_[g].both) measure(executor);
      if (!group_[g].both || args_.wants_gradients()) differentiate(executor);
      for (const Side<Engine>& side : side_)
        if (side.present) operand_[side.operand].touched = true;
    }
    for (Vectors& operand : operand_) {
      if (!operand.gradient || !finished_last(operand) || (!args_.normalize && widths_ == 1)) continue;
      now_ = &operand;
      each<&InfoNce::project>(executor, tasks_of(operand.panels));
    }
    *args_.grad_temperature = grad_temperature_;
    if (args_.statistics) finish_statistics();
  }

 private:
  using Base = InfoNcePlan<Engine>;
  using Base::args_, Base::widths_, Base::ones_, Base::operand_, Base::side_, Base::group_, Base::groups_,
      Base::group_now_, Base::block_, Base::blocks_, Base::positive_block_, Base::positives_, Base::own_, Base::panels_,
      Base::panels_per_task_, Base::tasks_, Base::slices_, Base::slices_per_task_, Base::slice_tasks_,
      Base::panel_bytes_, Base::guide_panel_bytes_, Base::scores_bytes_, Base::slice_bytes_, Base::worker_bytes_,
      Base::guide_offset_, Base::chunk_, Base::rows_per_task_, Base::first_, Base::rows_, Base::workers_,
      Base::positive_, Base::maximum_, Base::inverse_sum_, Base::threshold_, Base::guide_threshold_,
      Base::own_guide_threshold_, Base::own_threshold_, Base::partial_max_, Base::own_scores_, Base::hard_logits_,
      Base::partial_sum_, Base::partial_weighted_, Base::column_max_, Base::column_sum_, Base::row_max_, Base::row_sum_,
      Base::row_positive_, Base::partial_tally_, Base::own_tally_;
  using Base::kColumns, Base::kLanes, Base::kTallies;
  using Base::panel_scores, Base::has_guide, Base::has_thresholds, Base::tasks_of, Base::start, Base::length,
      Base::panel_end, Base::rows_end, Base::slices_end;
  using typename Base::Source;
  using typename Base::T;
  using typename Base::Vectors;

  template <void (InfoNce::*body)(int64_t, int)>
  void each(const Executor& executor, int64_t tasks) {
    if (tasks == 0) return;
    executor.run(
        tasks, [](void* self, int64_t task, int worker) { (static_cast<InfoNce*>(self)->*body)(task, worker); }, this);
  }

  // ---- what is where ----

  int64_t target(int64_t row) const { return args_.targets ? args_.targets[row] : row; }
  double row_weight(int64_t row) const {
    return args_.weight * (args_.row_weights ? args_.row_weights[row] : 1) / groups_;
  }
  int64_t negative_index(int64_t row, int64_t k) const { return (first_ + row) * args_.negatives + k; }

  // The columns of a block that belong to the pair of a row of the chunk.
  int64_t own_column(const Block& block, int64_t row) const {
    if (block.operand == kNegatives) return (first_ + row) * args_.negatives;
    return block.operand == kDocuments && block.side == 0 ? target(first_ + row) : first_ + row;
  }
  int64_t own_columns(const Block& block) const { return block.operand == kNegatives ? args_.negatives : 1; }

  const Block& block_of_task(int64_t task) const {
    int b = 0;
    while (task >= block_[b].first_task + block_[b].tasks) b++;
    return block_[b];
  }

  typename Engine::Rows columns(const Vectors& operand, int64_t panel, int64_t count, int k) const {
    const int64_t j = panel * kColumns;
    return {operand.row(j) + start(k), operand.stride, count, operand.pack + j, widths_ > 1 ? ones_ : operand.tile + j};
  }
  typename Engine::Rows rows(const Side<Engine>& side, int64_t first, int64_t count, int k) const {
    const Vectors& operand = operand_[side.operand];
    return {operand.row(first_ + first) + start(k), operand.stride, count, operand.pack + first_ + first,
            side.coefficient + first};
  }
  typename Engine::Rows guides(const Vectors& operand, int64_t first, int64_t count) const {
    return {operand.guide + first * operand.guide_stride, operand.guide_stride, count, operand.guide_pack + first,
            operand.guide_tile + first};
  }

  // Whether a gradient is complete only once everything else is: with others' contributions on both sides.
  static bool finished_last(const Vectors& operand) { return operand.is_row && operand.is_column; }
  bool last_rows() const { return first_ + rows_ == args_.rows; }
  // From the scores of a panel to those of the next, by the same width.
  int64_t panel_stride() const { return widths_ * scores_bytes_; }
  bool in_last_group(const Vectors& operand) const { return operand.last_group == group_now_; }

  // ---- from vectors to logits: scoring.hpp ----

  void pack_operand(int64_t task, int);
  void pack_rows(int64_t task, int);
  // A row's own hard negatives. What they are compared with is computed in the same way.
  void score_own(int64_t r);
  T inverse_temperature() const { return static_cast<T>(1 / args_.temperature); }
  T margin() const { return static_cast<T>(args_.margin / args_.temperature); }
  T harden(double strength) const { return static_cast<T>(1 + strength * args_.temperature); }
  // The guide's threshold from its cosine of the pair.
  T guided(T cosine) const {
    const T margin = static_cast<T>(args_.guide_margin);
    return cosine - (args_.guide_relative ? margin * __builtin_fabs(cosine) : margin);
  }

  // ---- the passes ----

  template <typename Body>
  void for_chunks(const Executor& executor, Body body) {
    for (first_ = 0; first_ < args_.rows; first_ += chunk_) {
      rows_ = least(chunk_, args_.rows - first_);
      row_tasks_ = (rows_ + rows_per_task_ - 1) / rows_per_task_;
      each<&InfoNce::pack_rows>(executor, row_tasks_);
      if (has_thresholds()) each<&InfoNce::find_positives>(executor, block_[positive_block_].tasks);
      each<&InfoNce::score>(executor, tasks_);
      if (counts()) count_rows();
      body();
    }
  }

  void differentiate(const Executor& executor) {
    for_chunks(executor, [&] {
      if (group_[group_now_].both) {
        each<&InfoNce::combine>(executor, tasks_);
        combine_rows();
      } else {
        reduce_maximum();
        each<&InfoNce::exponentiate>(executor, tasks_);
        if (widths_ > 1)
          finish_prefix_losses();
        else
          finish_losses();
      }
      if (!args_.wants_gradients()) return;
      for (Side<Engine>& side : side_) {
        if (!side.present) continue;
        side_now_ = &side;
        each<&InfoNce::pack_slices>(executor, slices_);
      }
      if (widths_ > 1) each<&InfoNce::combine_prefixes>(executor, column_tasks());
      each<&InfoNce::accumulate>(executor, gradient_tasks());
      for (Vectors& operand : operand_) operand.touched |= operand.in_columns;
      each<&InfoNce::finish_rows>(executor, row_tasks_);
    });
  }

  // The positives' logits and thresholds, from the products that the others come from.
  void find_positives(int64_t task, int worker);
  void score(int64_t task, int worker);
  LogitEpilogue<Engine> epilogue(const Block& block, int64_t panel, const int64_t* own, int k) const;
  // The positive leaves the panel: its share is added back exactly later. Logits of own hard negatives are noted where the
  // temperature's gradient needs them.
  void take_positives_out(const Block& block, int64_t first, int64_t last, int width);
  bool hardens_differently() const { return args_.harden_own != args_.harden_others; }

  void reduce_maximum() {
    const int64_t all = widths_ * chunk_;  // past rows_ they mean nothing
    for (int64_t i = 0; i < all; i++) maximum_[i] = partial_max_[i];
    for (int64_t task = 1; task < tasks_; task++)
      for (int64_t i = 0; i < all; i++) maximum_[i] = most(maximum_[i], partial_max_[task * all + i]);
    for (int64_t r = 0; r < rows_; r++) {
      for (int64_t k = 0; k < own_now(); k++) maximum_[r] = most(maximum_[r], own_scores_[r * own_ + k]);
      if (has_thresholds()) maximum_[r] = most(maximum_[r], positive_[r]);
    }
  }

  // Own hard negatives are part of query_to_doc.
  int64_t own_now() const { return group_[group_now_].directions & query_to_doc ? own_ : 0; }

  // e = exp(s - m) over the task's panels, with the row sums of e and of e (s - m): the latter is the temperature's gradient.
  void exponentiate(int64_t task, int worker) {
    const Block& block = block_of_task(task);
    T* sums = reinterpret_cast<T*>(workers_ + worker * worker_bytes_);
    T* weighted = sums + chunk_ * kLanes;
    const int64_t first = (task - block.first_task) * panels_per_task_;
    const int64_t last = least(block.panels, first + panels_per_task_);
    const bool keep = args_.wants_gradients() && !measuring_ && widths_ == 1;
    for (int k = 0; k < widths_; k++) {
      for (int64_t i = 0; i < rows_ * kLanes; i++) sums[i] = weighted[i] = 0;
      for (int64_t panel = first; panel < last; panel++)
        Engine::exponentiate(panel_scores(block.first_panel + panel, k), rows_, maximum_ + k * chunk_, keep, sums,
                             weighted);
      const int64_t at = (task * widths_ + k) * chunk_;
      for (int64_t r = 0; r < rows_; r++) {
        partial_sum_[at + r] = reduce_add<T>(load<T>(sums + r * kLanes));
        partial_weighted_[at + r] = reduce_add<T>(load<T>(weighted + r * kLanes));
      }
    }
  }

  // Of a row: the sum of e over all candidates but the positive, and that of e times (s - m), s without what hardness added.
  struct Sums {
    double others, weighted;
  };

  Sums sums_of(int64_t r) {
    Sums sums = {0, 0};
    const double m = maximum_[r];
    const double others_factor = 1 / static_cast<double>(harden(args_.harden_others)),
                 own_factor = 1 / static_cast<double>(harden(args_.harden_own));
    for (int b = 0; b < blocks_; b++) {
      double sum = 0, weighted = 0;
      for (int64_t task = block_[b].first_task; task < block_[b].first_task + block_[b].tasks; task++) {
        sum += partial_sum_[task * chunk_ + r];
        weighted += partial_weighted_[task * chunk_ + r];
      }
      sums.others += sum;
      // e (s/f - m) = e (s - m)/f + e m (1/f - 1)
      if (block_[b].hardened && args_.harden_others != 0)
        weighted = weighted * others_factor + (sum == 0 ? 0 : sum * m * (others_factor - 1));
      sums.weighted += weighted;
      if (block_[b].hardened && block_[b].operand == kNegatives && hardens_differently()) {
        for (int64_t k = 0; k < args_.negatives; k++) {
          const double s = hard_logits_[r * args_.negatives + k], e = __builtin_exp(s - m);
          sums.weighted += e == 0 ? 0 : e * s * (own_factor - others_factor);
        }
      }
    }
    for (int64_t k = 0; k < own_now(); k++) {
      const double s = own_scores_[r * own_ + k], e = __builtin_exp(s - m);
      own_scores_[r * own_ + k] = static_cast<T>(e);
      sums.others += e;
      sums.weighted += e == 0 ? 0 : e * (s * own_factor - m);
    }
    return sums;
  }

  // log(others + copies exp(x)) - x for logits less their maximum; exact near 0, where the positive is the maximum (x = 0).
  double loss_of(double others, double x) const {
    return positives_ == 1 ? __builtin_log1p(others + __builtin_expm1(x)) - x
                           : __builtin_log(others + positives_ * __builtin_exp(x)) - x;
  }

  // Losses and coefficient scales of the chunk.
  void finish_losses() {
    for (int64_t r = 0; r < rows_; r++) {
      const Sums sums = sums_of(r);
      const double x = static_cast<double>(positive_[r]) - maximum_[r];
      const double sum = sums.others + positives_ * __builtin_exp(x);
      args_.losses[first_ + r] += loss_of(sums.others, x) / groups_;
      const double scale = row_weight(first_ + r) / (args_.temperature * sum);
      grad_temperature_ -= scale * (sums.weighted - sums.others * x);
      if (!args_.wants_gradients()) continue;
      set_row_scale(r, scale);
      // Every copy of the positive is at one place, as minus the others.
      set_positive(r, static_cast<T>(-sums.others));
    }
  }

  void set_row_scale(int64_t r, double scale) {
    inverse_sum_[r] = static_cast<T>(scale);
    for (const Side<Engine>& side : side_)
      if (side.present) side.coefficient[r] = static_cast<T>(scale * operand_[side.operand].tile[first_ + r]);
  }

  void set_positive(int64_t r, T coefficient) {
    const Block& block = block_[positive_block_];
    const int64_t j = own_column(block, r);
    Engine::set_coefficient(panel_scores(block.first_panel + j / kColumns), r, static_cast<int>(j % kColumns),
                            coefficient);
  }

  // ---- both directions of one product: both.hpp ----

  // The first pass: the sums of every row and every column, and the losses.
  void measure(const Executor& executor);
  // The maximum of a column including its positive, which was taken out.
  void raise_column(int64_t j);
  double row_share(int64_t i) const { return share(i, row_sum_[i], row_max_[i]); }
  double column_share(int64_t i) const { return share(i, column_sum_[i], column_max_[i]); }
  double share(int64_t i, double others, double maximum) const;
  // The second pass: coefficients of both directions at once.
  void combine(int64_t task, int worker);
  void combine_rows();

  // ---- statistics, on request: statistics.hpp ----

  // Products that come twice are counted the first time.
  bool counts() const { return args_.statistics && (measuring_ || !group_[group_now_].both); }
  auto start_tally(T* lanes) const -> RowTally<T>;
  void finish_tally(const RowTally<T>& tally, T* partial) const;
  void count_own(int64_t r, int64_t k, T logit, T positive, bool known_false, bool looks_false);
  void count_rows();
  void count_columns();
  void finish_statistics();

  // ---- prefixes of the vectors: matryoshka.hpp ----

  // Coefficients have all scales in them.
  void use_no_scales() {
    for (int64_t i = 0; i < Engine::kPacked; i++) ones_[i] = 1;
    for (const Side<Engine>& side : side_)
      for (int64_t r = 0; operand_[side.operand].is_row && r < chunk_; r++) side.coefficient[r] = 1;
  }
  void scale_prefixes(const Vectors& operand, int64_t i);
  void finish_prefix_losses();
  void add_projection(const Vectors& operand, int k, int64_t i, double along);
  int64_t column_tasks() const;
  // From logits by every width to the coefficients of every segment of dimensions, and at once the columns' gradients.
  void combine_prefixes(int64_t task, int worker);
  void combine_panel(const Block& block, const Vectors& operand, int64_t panel, T* weighted);
  void finish_prefixes(const Vectors& operand, int64_t i);
  int prefix_of(int64_t slice) const {
    int k = 0;
    while (slice >= slices_end(k + 1)) k++;
    return k;
  }

  // ---- gradients: gradients.hpp ----

  void pack_slices(int64_t slice, int);
  bool wants_rows(const Side<Engine>& side) const { return side.present && operand_[side.operand].gradient; }
  // Those by prefixes are accumulated as they are combined.
  bool wants_columns(const Vectors& operand) const { return operand.in_columns && operand.gradient && widths_ == 1; }

  int64_t gradient_tasks() const;
  // The larger tasks first: what is left over at the end is then small.
  void accumulate(int64_t task, int worker);
  void accumulate_columns(const Vectors& operand, int64_t panel, int64_t last, int worker);
  void accumulate_rows(int side, int64_t task, int worker);
  // Own negatives, and the rows' gradients to where they belong, with the rows' scale.
  void finish_rows(int64_t task, int);
  void finish_own(int64_t r);
  // From the gradient of the normalised vector, in place, to that of the vector.
  void finish(const Vectors& operand, int64_t i);
  void project(int64_t task, int);
  // The gradients of what takes part in nothing.
  void clear(const Vectors& operand);
  Vectors* now_ = nullptr;
  Side<Engine>* side_now_ = nullptr;
  int64_t row_tasks_ = 0;
  bool measuring_ = false;
  double grad_temperature_ = 0;
  double tally_[tally_size] = {};
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#include "info_nce/both.hpp"
#include "info_nce/gradients.hpp"
#include "info_nce/matryoshka.hpp"
#include "info_nce/scoring.hpp"
#include "info_nce/statistics.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
int64_t workspace_bytes(const InfoNceArgs& args, int threads) {
  return InfoNce<Engine>(args, threads, nullptr).bytes();
}

template <typename Engine>
void run_info_nce(const InfoNceArgs& args, const Executor& executor, void* workspace) {
  InfoNce<Engine>(args, executor.threads, workspace).run(executor);
}

template <typename Engine>
constexpr InfoNceVariant info_nce_variant(const char* arithmetic) {
  return {workspace_bytes<Engine>, run_info_nce<Engine>, arithmetic};
}

// By Element. What each level has is chosen here, nowhere else.
constexpr InfoNceKernel info_nce_kernel = {{
#if defined(__AMX_BF16__)
    info_nce_variant<AmxEngine<3, float>>("amx_bf16x3"),
    info_nce_variant<FloatEngine<double, double>>("float64"),
    info_nce_variant<AmxEngine<1, bf16>>("amx_bf16"),
    info_nce_variant<AmxEngine<3, f16>>("amx_bf16x3"),
#else
    info_nce_variant<FloatEngine<float, float>>("float32"),
    info_nce_variant<FloatEngine<double, double>>("float64"),
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    info_nce_variant<Bf16Engine<bf16>>("bf16"),
#else
    info_nce_variant<FloatEngine<float, bf16>>("float32"),
#endif
    info_nce_variant<FloatEngine<float, f16>>("float32"),
#endif
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
