// info_nce on the CPU: loss and all gradients in one pass over the similarity matrix, by chunks of query rows (6 N M D operations).
//
//   for each chunk of rows:
//     scores       S = Q D^T for the chunk, scaled and masked while the tile is hot; row maximum; the positive taken out
//     exponentiate e = exp(S - m), in place, and its row sums
//     losses       log-sum-exp minus the positive, per row; the positive's coefficient is minus the sum of the others
//     gradients    dD += (u e)^T Q (documents split over threads), dQ = (u e) D (dimensions split over threads)
//
// The panel S of one chunk stays in cache; no thread writes what another one writes. Formula and measured numbers: README.md.
#pragma once

#include "info_nce/args.hpp"
#include "info_nce/logits.hpp"
#include "info_nce/rows.hpp"
#include "tile/amx_engine.hpp"
#include "tile/bf16.hpp"
#include "tile/float_engine.hpp"
#include "tile/parallel.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// One run of candidates: the documents, then (when every row sees them) the negatives. Panels never straddle two runs.
template <typename Engine>
struct Candidates {
  const typename Engine::Source* data;
  int64_t stride;
  int64_t count;
  int64_t first_panel;
  typename Engine::Scalar* gradient;  // [count, D] or null
};

template <typename Engine>
class InfoNce {
 public:
  using T = typename Engine::Scalar;
  using Source = typename Engine::Source;
  static constexpr int kColumns = Engine::kColumns;
  static constexpr int kLanes = Engine::kLanes;

  // With a null workspace only bytes() is meaningful.
  InfoNce(const InfoNceArgs& args, int threads, void* workspace)
      : args_(args), threads_(threads), base_(static_cast<char*>(workspace)) {
    const int64_t dimensions = args.dimensions;
    plan_chunks();
    runs_[0] = {static_cast<const Source*>(args.documents_data), args.documents_stride, args.documents, 0,
                static_cast<T*>(args.grad_documents)};
    const bool shared_negatives = args.negatives && !args.own_negatives;
    runs_[1] = {static_cast<const Source*>(args.negatives_data), args.negatives_stride,
                shared_negatives ? args.rows * args.negatives : 0, panels_of(args.documents),
                static_cast<T*>(args.grad_negatives)};
    own_ = args.own_negatives ? args.negatives : 0;
    panels_ = runs_[1].first_panel + panels_of(runs_[1].count);
    // Four tasks a thread even out a busy core; fewer and larger ones would not, and smaller ones lose what a group of panels shares.
    panels_per_task_ = most((panels_ + 4 * threads - 1) / (4 * threads),
                            least(Engine::kGroup, (panels_ + 2 * threads - 1) / (2 * threads)));
    panel_tasks_ = (panels_ + panels_per_task_ - 1) / panels_per_task_;
    slices_ = Engine::slices(dimensions);
    // One task a thread: each reads all coefficients of the chunk. The document tasks that follow even out the end.
    slices_per_task_ = (slices_ + threads - 1) / threads;
    slice_tasks_ = (slices_ + slices_per_task_ - 1) / slices_per_task_;

    panel_bytes_ = aligned(Engine::panel_bytes(dimensions));
    scores_bytes_ = aligned(Engine::scores_bytes(chunk_));
    take(packed_candidates_, panels_ * panel_bytes_);
    take(candidate_pack_, panels_ * kColumns * sizeof(T));
    take(candidate_tile_, panels_ * kColumns * sizeof(T));
    take(candidate_penalty_, panels_ * kColumns * sizeof(T));
    take(candidate_unit_, panels_ * kColumns * sizeof(T));
    take(packed_queries_, Engine::queries_bytes(chunk_, dimensions));
    take(query_scale_, chunk_ * sizeof(RowScale<T>));
    take(logit_scale_, chunk_ * sizeof(T));
    take(query_ids_, args.query_ids ? chunk_ * sizeof(int64_t) : 0);
    take(query_pack_, chunk_ * sizeof(T));
    take(query_coefficient_, chunk_ * sizeof(T));
    take(positive_, chunk_ * sizeof(T));
    take(maximum_, chunk_ * sizeof(T));
    take(inverse_sum_, chunk_ * sizeof(T));
    take(partial_max_, panel_tasks_ * chunk_ * sizeof(T));
    take(partial_sum_, panel_tasks_ * chunk_ * sizeof(double));
    take(partial_weighted_, panel_tasks_ * chunk_ * sizeof(double));
    take(scores_, panels_ * scores_bytes_);
    take(own_scores_, chunk_ * own_ * sizeof(T));
    take(own_scale_, chunk_ * own_ * sizeof(RowScale<T>));
    if (args.wants_gradients()) {
      slice_bytes_ = aligned(Engine::slice_bytes(chunk_));
      take(query_slices_, slices_ * slice_bytes_);
      scratch_bytes_ = aligned(Engine::scratch_bytes(chunk_, dimensions, slices_per_task_));
    }
    worker_bytes_ = most(scratch_bytes_, aligned(2 * chunk_ * kLanes * static_cast<int64_t>(sizeof(T))));
    take(workers_, threads * worker_bytes_);
  }

  int64_t bytes() const { return bytes_; }

  void run(const Executor& executor) {
    each<&InfoNce::pack_documents>(executor, panel_tasks_);
    double grad_temperature = 0;
    for (first_ = 0; first_ < args_.rows; first_ += chunk_) {
      rows_ = least(chunk_, args_.rows - first_);
      const int64_t row_tasks = (rows_ + rows_per_task_ - 1) / rows_per_task_;
      each<&InfoNce::pack_queries>(executor, row_tasks);
      each<&InfoNce::score>(executor, panel_tasks_);
      reduce_maximum();
      each<&InfoNce::exponentiate>(executor, panel_tasks_);
      grad_temperature += finish_losses();
      if (!args_.wants_gradients()) continue;
      each<&InfoNce::pack_query_slices>(executor, slices_);
      each<&InfoNce::accumulate>(executor, gradient_tasks());
      if (args_.grad_queries || own_) each<&InfoNce::finish_rows>(executor, row_tasks);
    }
    *args_.grad_temperature = grad_temperature;
  }

 private:
  // The score panel's memory is bounded: with many candidates, chunks get shorter, down to where reading the documents would cost more
  // than multiplying them.
  static constexpr int64_t kPanelBytes = 52 << 20;
  static constexpr int64_t kFewestRows = 96;

  static int64_t panels_of(int64_t rows) { return (rows + kColumns - 1) / kColumns; }
  static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  template <typename P>
  void take(P*& pointer, int64_t bytes) {
    pointer = base_ ? reinterpret_cast<P*>(base_ + bytes_) : nullptr;
    bytes_ += aligned(bytes);
  }

  // Rows per chunk: every chunk reads the documents twice and reads and writes their gradient once, so more rows mean less traffic;
  // but the score panel (rows x candidates) should stay near the cores. Chunks are equal, so that the last is no stub.
  void plan_chunks() {
    const int64_t candidates = args_.documents + (args_.own_negatives ? 0 : args_.rows * args_.negatives);
    const int64_t most_rows =
        least(Engine::kChunkRows, most(kPanelBytes / (candidates * static_cast<int64_t>(sizeof(T))), kFewestRows));
    const int64_t chunks = (args_.rows + most_rows - 1) / most_rows;
    chunk_ = Engine::round_rows((args_.rows + chunks - 1) / chunks);
    rows_per_task_ = Engine::round_rows((chunk_ + 4 * threads_ - 1) / (4 * threads_));
  }

  template <void (InfoNce::*body)(int64_t, int)>
  void each(const Executor& executor, int64_t tasks) {
    executor.run(
        tasks, [](void* self, int64_t task, int worker) { (static_cast<InfoNce*>(self)->*body)(task, worker); }, this);
  }

  const Candidates<Engine>& run_of(int64_t panel) const { return runs_[panel >= runs_[1].first_panel]; }
  int64_t target(int64_t row) const { return args_.targets ? args_.targets[row] : row; }
  double row_weight(int64_t row) const { return args_.weight * (args_.row_weights ? args_.row_weights[row] : 1); }
  char* panel_scores(int64_t panel) const { return scores_ + panel * scores_bytes_; }
  const Source* query(int64_t row) const {
    return static_cast<const Source*>(args_.queries_data) + (first_ + row) * args_.queries_stride;
  }
  int64_t negative_index(int64_t row, int64_t k) const { return (first_ + row) * args_.negatives + k; }
  const Source* negative(int64_t row, int64_t k) const {
    return static_cast<const Source*>(args_.negatives_data) + negative_index(row, k) * args_.negatives_stride;
  }

  // `count` candidates from the first of a panel on.
  typename Engine::Rows documents(int64_t panel, int64_t count) const {
    const Candidates<Engine>& run = run_of(panel);
    return {run.data + (panel - run.first_panel) * kColumns * run.stride, run.stride, count,
            candidate_pack_ + panel * kColumns, candidate_tile_ + panel * kColumns};
  }
  typename Engine::Rows queries(int64_t first, int64_t count) const {
    return {query(first), args_.queries_stride, count, query_pack_ + first, query_coefficient_ + first};
  }

  void pack_documents(int64_t task, int) {
    const int64_t last = least(panels_, (task + 1) * panels_per_task_);
    for (int64_t panel = task * panels_per_task_; panel < last; panel++) {
      const Candidates<Engine>& run = run_of(panel);
      const int64_t first = (panel - run.first_panel) * kColumns;
      const int count = static_cast<int>(least<int64_t>(kColumns, run.count - first));
      for (int j = 0; j < kColumns; j++) {
        RowScale<T> scale = {};
        if (j < count) scale = row_scale<T>(run.data + (first + j) * run.stride, args_.dimensions, args_.normalize);
        candidate_pack_[panel * kColumns + j] = scale.pack;
        candidate_tile_[panel * kColumns + j] = scale.tile;
        candidate_unit_[panel * kColumns + j] = scale.unit;
        candidate_penalty_[panel * kColumns + j] = j < count ? 0 : -static_cast<T>(__builtin_inf());
      }
      Engine::pack_panel(documents(panel, count), args_.dimensions, packed_candidates_ + panel * panel_bytes_);
    }
  }

  void pack_queries(int64_t task, int) {
    const int64_t last = least(rows_, (task + 1) * rows_per_task_);
    for (int64_t r = task * rows_per_task_; r < last; r += Engine::kRows) {
      const int count = static_cast<int>(least<int64_t>(Engine::kRows, last - r));
      for (int i = 0; i < count; i++) {
        const RowScale<T> scale = row_scale<T>(query(r + i), args_.dimensions, args_.normalize);
        query_scale_[r + i] = scale;
        query_pack_[r + i] = scale.pack;
        logit_scale_[r + i] = static_cast<T>(scale.tile / args_.temperature);
        for (int64_t k = 0; k < own_; k++) {
          const int64_t at = (r + i) * own_ + k;
          own_scale_[at] = row_scale<T>(negative(r + i, k), args_.dimensions, args_.normalize);
          own_scores_[at] =
              dot<T>(query(r + i), scale.pack, negative(r + i, k), own_scale_[at].pack, args_.dimensions) *
              own_scale_[at].tile * logit_scale_[r + i];
        }
      }
      for (int i = count; i < Engine::kRows; i++) logit_scale_[r + i] = 0;
      for (int i = 0; i < Engine::kRows && args_.query_ids; i++)
        query_ids_[r + i] = i < count ? args_.query_ids[first_ + r + i] : 0;
      Engine::pack_queries(queries(r, count), r, rows_, args_.dimensions, packed_queries_);
    }
  }

  void score(int64_t task, int worker) {
    const T lowest = -static_cast<T>(__builtin_inf());
    T* row_max = reinterpret_cast<T*>(workers_ + worker * worker_bytes_);
    const int64_t padded = Engine::round_rows(rows_);
    for (int64_t i = 0; i < padded * kLanes; i++) row_max[i] = lowest;
    const int64_t first = task * panels_per_task_, last = least(panels_, first + panels_per_task_);
    int64_t targets[Engine::kChunkRows + Engine::kRows];
    for (int64_t r = 0; r < padded; r++) targets[r] = r < rows_ ? target(first_ + r) - first * kColumns : -1;
    LogitEpilogue<Engine> epilogue;
    epilogue.query_scale = logit_scale_;
    epilogue.candidate_scale = candidate_tile_ + first * kColumns;
    epilogue.candidate_penalty = candidate_penalty_ + first * kColumns;
    epilogue.row_max = row_max;
    epilogue.query_ids = args_.query_ids ? query_ids_ : nullptr;
    epilogue.document_ids = args_.document_ids ? args_.document_ids + first * kColumns : nullptr;
    epilogue.documents = args_.documents - first * kColumns;
    epilogue.targets = targets;
    Engine::scores(packed_queries_, packed_candidates_ + first * panel_bytes_, panel_bytes_, last - first, rows_,
                   args_.dimensions, panel_scores(first), scores_bytes_, epilogue);
    // The positive leaves the panel: its share is added back exactly in finish_losses.
    for (int64_t r = 0; r < rows_; r++)
      if (targets[r] >= 0 && targets[r] < (last - first) * kColumns)
        positive_[r] = Engine::exchange_score(panel_scores(first + targets[r] / kColumns), r,
                                              static_cast<int>(targets[r] % kColumns), lowest);
    for (int64_t r = 0; r < rows_; r++) partial_max_[task * chunk_ + r] = reduce_max<T>(load<T>(row_max + r * kLanes));
  }

  void reduce_maximum() {
    for (int64_t r = 0; r < rows_; r++) maximum_[r] = partial_max_[r];
    for (int64_t task = 1; task < panel_tasks_; task++)
      for (int64_t r = 0; r < rows_; r++) maximum_[r] = most(maximum_[r], partial_max_[task * chunk_ + r]);
    for (int64_t r = 0; r < rows_; r++)
      for (int64_t k = 0; k < own_; k++) maximum_[r] = most(maximum_[r], own_scores_[r * own_ + k]);
  }

  // e = exp(s - m) over the task's panels, with the row sums of e and of e (s - m): the latter is the temperature's gradient.
  void exponentiate(int64_t task, int worker) {
    T* sums = reinterpret_cast<T*>(workers_ + worker * worker_bytes_);
    T* weighted = sums + chunk_ * kLanes;
    for (int64_t i = 0; i < rows_ * kLanes; i++) sums[i] = weighted[i] = 0;
    const int64_t last = least(panels_, (task + 1) * panels_per_task_);
    for (int64_t panel = task * panels_per_task_; panel < last; panel++)
      Engine::exponentiate(panel_scores(panel), rows_, maximum_, args_.wants_gradients(), sums, weighted);
    for (int64_t r = 0; r < rows_; r++) {
      partial_sum_[task * chunk_ + r] = reduce_add<T>(load<T>(sums + r * kLanes));
      partial_weighted_[task * chunk_ + r] = reduce_add<T>(load<T>(weighted + r * kLanes));
    }
  }

  // Losses and coefficient scales of the chunk; returns its share of the temperature's gradient.
  double finish_losses() {
    double grad_temperature = 0;
    for (int64_t r = 0; r < rows_; r++) {
      double others = 0, weighted = 0;  // sums over all candidates but the positive
      for (int64_t task = 0; task < panel_tasks_; task++) {
        others += partial_sum_[task * chunk_ + r];
        weighted += partial_weighted_[task * chunk_ + r];
      }
      for (int64_t k = 0; k < own_; k++) {
        const double x = static_cast<double>(own_scores_[r * own_ + k]) - maximum_[r];
        const double e = __builtin_exp(x);
        own_scores_[r * own_ + k] = static_cast<T>(e);
        others += e;
        weighted += e == 0 ? 0 : e * x;
      }
      const double x = static_cast<double>(positive_[r]) - maximum_[r];
      const double sum = others + __builtin_exp(x);
      // log(sum) - x, exact for a loss near 0, where the positive is the maximum (x = 0).
      args_.losses[first_ + r] = __builtin_log1p(others + __builtin_expm1(x)) - x;
      const double scale = row_weight(first_ + r) / (args_.temperature * sum);
      grad_temperature -= scale * (weighted - others * x);
      if (!args_.wants_gradients()) continue;
      inverse_sum_[r] = static_cast<T>(scale);
      query_coefficient_[r] = static_cast<T>(scale * query_scale_[r].tile);
      const int64_t positive = target(first_ + r);
      Engine::set_coefficient(panel_scores(positive / kColumns), r, static_cast<int>(positive % kColumns),
                              static_cast<T>(-others));
    }
    return grad_temperature;
  }

  void pack_query_slices(int64_t slice, int) {
    Engine::pack_query_slice(queries(0, rows_), slice, args_.dimensions, query_slices_ + slice * slice_bytes_);
  }

  int64_t gradient_tasks() const { return panel_tasks_ + (args_.grad_queries ? slice_tasks_ : 0); }

  void accumulate(int64_t task, int worker) {
    // The larger tasks first: what is left over at the end is then small.
    const int64_t queries = gradient_tasks() - panel_tasks_;
    if (task < queries) {
      accumulate_queries(task, worker);
    } else {
      accumulate_documents(task - queries, worker);
    }
  }

  void accumulate_documents(int64_t task, int worker) {
    const int64_t first = task * panels_per_task_, last = least(panels_, first + panels_per_task_);
    for (const Candidates<Engine>& run : runs_) {
      const int64_t from = most(first, run.first_panel), to = least(last, run.first_panel + panels_of(run.count));
      if (!run.gradient || from >= to) continue;
      const int64_t row = (from - run.first_panel) * kColumns, count = least(run.count - row, (to - from) * kColumns);
      T* out = run.gradient + row * args_.dimensions;
      Engine::accumulate_documents(panel_scores(from), scores_bytes_, query_slices_, slice_bytes_, queries(0, rows_),
                                   count, args_.dimensions, workers_ + worker * worker_bytes_, out, first_ > 0);
      if (first_ + rows_ < args_.rows) continue;
      for (int64_t j = 0; j < count; j++)
        finish_gradient<T>(run.data + (row + j) * run.stride, RowScale<T>{0, 0, candidate_unit_[from * kColumns + j]},
                           args_.normalize, args_.dimensions, out + j * args_.dimensions);
    }
  }

  void accumulate_queries(int64_t task, int worker) {
    const int64_t first_slice = task * slices_per_task_, last_slice = least(slices_, first_slice + slices_per_task_);
    T* out = static_cast<T*>(args_.grad_queries) + first_ * args_.dimensions;
    bool accumulate = false;
    for (const Candidates<Engine>& run : runs_) {
      for (int64_t j = 0; j < run.count; j += Engine::kPacked, accumulate = true) {
        const int64_t panel = run.first_panel + j / kColumns;
        Engine::accumulate_queries(panel_scores(panel), scores_bytes_,
                                   documents(panel, least<int64_t>(Engine::kPacked, run.count - j)), rows_, first_slice,
                                   last_slice, args_.dimensions, workers_ + worker * worker_bytes_, out, accumulate);
      }
    }
  }

  // Own negatives, the row's softmax scale, and the normalisation's rank-one term.
  void finish_rows(int64_t task, int) {
    const int64_t dimensions = args_.dimensions;
    const int64_t last = least(rows_, (task + 1) * rows_per_task_);
    for (int64_t r = task * rows_per_task_; r < last; r++) {
      for (int64_t k = 0; k < own_ && args_.grad_negatives; k++) {
        T* out = static_cast<T*>(args_.grad_negatives) + negative_index(r, k) * dimensions;
        for (int64_t c = 0; c < dimensions; c++) out[c] = 0;
        add_row<T>(query(r), query_scale_[r].unit, own_scores_[r * own_ + k] * inverse_sum_[r], dimensions, out);
        finish_gradient<T>(negative(r, k), own_scale_[r * own_ + k], args_.normalize, dimensions, out);
      }
      if (!args_.grad_queries) continue;
      T* out = static_cast<T*>(args_.grad_queries) + (first_ + r) * dimensions;
      for (int64_t k = 0; k < own_; k++)
        add_row<T>(negative(r, k), own_scale_[r * own_ + k].unit, own_scores_[r * own_ + k], dimensions, out);
      for (int64_t c = 0; c < dimensions; c++) out[c] *= inverse_sum_[r];
      finish_gradient<T>(query(r), query_scale_[r], args_.normalize, dimensions, out);
    }
  }

  const InfoNceArgs& args_;
  const int threads_;
  char* const base_;
  int64_t bytes_ = 0;
  Candidates<Engine> runs_[2];
  int64_t own_, panels_, panels_per_task_, panel_tasks_, slices_, slices_per_task_, slice_tasks_;
  int64_t panel_bytes_, scores_bytes_, scratch_bytes_ = 0, slice_bytes_ = 0, worker_bytes_;
  int64_t chunk_, rows_per_task_, first_ = 0, rows_ = 0;
  char *packed_candidates_, *packed_queries_, *scores_, *query_slices_ = nullptr, *workers_;
  T *candidate_pack_, *candidate_tile_, *candidate_penalty_, *candidate_unit_, *query_pack_, *query_coefficient_,
      *logit_scale_, *positive_, *maximum_, *inverse_sum_, *partial_max_, *own_scores_;
  int64_t* query_ids_;
  double *partial_sum_, *partial_weighted_;
  RowScale<T>*query_scale_, *own_scale_;
};

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
