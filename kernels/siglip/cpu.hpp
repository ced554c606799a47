// siglip on the CPU: loss and all gradients in one pass over the matrix of logits, by chunks of rows (6 operations a product's
// multiply-add). No logit's share depends on another's, so that a tile leaves the product as coefficients:
//
//   for each chunk of rows:
//     score      S = rows * columns^T, to ∂loss/∂logit while the tile is hot, with each row's sums
//     gradients  columns += (u c)^T rows (split by columns), rows = c (u columns) (split by dimensions)
//
// Sums are taken group of panels by group, whatever the number of threads, and joined in their order; no thread writes what another one
// writes: the results are the same for any number of threads. Formula: README.md.
#pragma once

#include "info_nce/rows.hpp"
#include "siglip/args.hpp"
#include "siglip/sigmoid.hpp"
#include "tile/amx_engine.hpp"
#include "tile/bf16.hpp"
#include "tile/float_engine.hpp"
#include "tile/pieces.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Engine>
class Siglip {
 public:
  // With a null workspace only bytes() is meaningful.
  Siglip(const SiglipArgs& args, int threads, void* workspace) : args_(args), threads_(threads) {
    plan();
    Pieces pieces(workspace);
    lay_out(pieces);
    bytes_ = pieces.used();
  }

  int64_t bytes() const { return bytes_; }

  void run(const Executor& executor) {
    for (int64_t j = 0; j < 3 * kColumns; j++) sign_[j] = j == kColumns ? -1 : 1;
    each<&Siglip::pack_documents>(executor, tasks_of_panels_);
    for (first_ = 0; first_ < args_.rows; first_ += chunk_) {
      rows_ = least(chunk_, args_.rows - first_);
      const int64_t row_tasks = (rows_ + rows_per_task_ - 1) / rows_per_task_;
      each<&Siglip::pack_rows>(executor, row_tasks);
      each<&Siglip::score>(executor, groups_);
      join_sums();
      if (!args_.wants_gradients()) continue;
      if (args_.grad_documents) each<&Siglip::pack_slices>(executor, slices_);
      each<&Siglip::accumulate>(
          executor, (args_.grad_queries ? tasks_of_slices_ : 0) + (args_.grad_documents ? tasks_of_panels_ : 0));
      if (args_.grad_queries) each<&Siglip::finish_rows>(executor, row_tasks);
    }
    if (args_.grad_documents) each<&Siglip::finish_documents>(executor, tasks_of_panels_);
    *args_.grad_temperature = -weighted_ * args_.weight / (args_.temperature * args_.temperature);
    *args_.grad_bias = sum_ * args_.weight;
  }

 private:
  using T = typename Engine::Scalar;
  using Source = typename Engine::Source;
  using Rows = typename Engine::Rows;
  static constexpr int kColumns = Engine::kColumns, kLanes = Engine::kLanes;

  // The panel of coefficients of a chunk is bounded as in info_nce.
  static constexpr int64_t kPanelBytes = 52 << 20;
  static constexpr int64_t kFewestRows = 96;
  // Groups of panels that a chunk is cut into where there are enough: tasks for so many threads.
  static constexpr int64_t kGroups = 16;

  // Per row, up to whole panels or tiles.
  struct Scales {
    T *pack, *tile, *unit;
    void take(Pieces& pieces, int64_t count) {
      pack = pieces.take<T>(count);
      tile = pieces.take<T>(count);
      unit = pieces.take<T>(count);
    }
    SIMTILE_INLINE void set(int64_t i, const RowScale<T>& scale) const {
      pack[i] = scale.pack;
      tile[i] = scale.tile;
      unit[i] = scale.unit;
    }
  };

  // Of a row of the chunk, over one group of panels.
  struct Sums {
    double loss, coefficients, weighted;
  };

  template <void (Siglip::*body)(int64_t, int)>
  void each(const Executor& executor, int64_t tasks) {
    executor.run(
        tasks, [](void* self, int64_t task, int worker) { (static_cast<Siglip*>(self)->*body)(task, worker); }, this);
  }

  void plan() {
    const int64_t d = args_.dimensions, size = sizeof(T);
    panels_ = (args_.documents + kColumns - 1) / kColumns;
    group_ = most<int64_t>(1, least(Engine::kGroup, panels_ / kGroups));
    groups_ = (panels_ + group_ - 1) / group_;
    panels_per_task_ = (panels_ + 4 * threads_ - 1) / (4 * threads_);
    tasks_of_panels_ = (panels_ + panels_per_task_ - 1) / panels_per_task_;
    // Chunks are equal, so that the last is no stub.
    const int64_t most_rows = least(Engine::kChunkRows, most(kPanelBytes / (panels_ * kColumns * size), kFewestRows));
    const int64_t chunks = (args_.rows + most_rows - 1) / most_rows;
    chunk_ = Engine::round_rows((args_.rows + chunks - 1) / chunks);
    rows_per_task_ = Engine::round_rows((chunk_ + 4 * threads_ - 1) / (4 * threads_));
    slices_ = Engine::slices(d);
    // One task a thread: each reads all coefficients of the chunk. The tasks of columns, which follow, even out the end.
    slices_per_task_ = (slices_ + threads_ - 1) / threads_;
    tasks_of_slices_ = (slices_ + slices_per_task_ - 1) / slices_per_task_;
    panel_bytes_ = round_to(Engine::panel_bytes(d), 64);
    scores_bytes_ = round_to(Engine::scores_bytes(chunk_), 64);
    slice_bytes_ = args_.grad_documents ? round_to(Engine::slice_bytes(chunk_), 64) : 0;
    lanes_bytes_ = 3 * chunk_ * kLanes * size;
  }

  void lay_out(Pieces& pieces) {
    documents_.take(pieces, panels_ * kColumns);
    queries_.take(pieces, chunk_);
    penalty_ = pieces.take<T>(panels_ * kColumns);
    coefficient_ = pieces.take<T>(chunk_);
    sign_ = pieces.take<T>(3 * kColumns);
    packed_ = pieces.take<char>(panels_ * panel_bytes_);
    packed_rows_ = pieces.take<char>(Engine::queries_bytes(chunk_, args_.dimensions));
    sums_of_groups_ = pieces.take<Sums>(groups_ * chunk_);
    // Without gradients a group's coefficients are not kept.
    scores_ = pieces.take<char>(args_.wants_gradients() ? panels_ * scores_bytes_ : 0);
    row_slices_ = pieces.take<char>(args_.grad_documents ? slices_ * slice_bytes_ : 0);
    worker_bytes_ = round_to(lanes_bytes_, 64);
    worker_bytes_ += args_.wants_gradients() ? 0 : group_ * scores_bytes_;
    if (args_.wants_gradients())
      worker_bytes_ =
          most(worker_bytes_, round_to(Engine::scratch_bytes(chunk_, args_.dimensions, slices_per_task_), 64));
    workers_ = pieces.take<char>(threads_ * worker_bytes_);
  }

  const Source* query(int64_t i) const {
    return static_cast<const Source*>(args_.queries_data) + i * args_.queries_stride;
  }
  const Source* document(int64_t j) const {
    return static_cast<const Source*>(args_.documents_data) + j * args_.documents_stride;
  }
  T* query_gradient(int64_t i) const { return static_cast<T*>(args_.grad_queries) + i * args_.dimensions; }
  T* document_gradient(int64_t j) const { return static_cast<T*>(args_.grad_documents) + j * args_.dimensions; }
  char* memory(int worker) const { return workers_ + worker * worker_bytes_; }

  Rows rows(int64_t first, int64_t count) const {
    return {query(first_ + first), args_.queries_stride, count, queries_.pack + first, coefficient_ + first};
  }
  Rows columns(int64_t first, int64_t count) const {
    return {document(first), args_.documents_stride, count, documents_.pack + first, documents_.tile + first};
  }

  void pack_documents(int64_t task, int) {
    const int64_t last = least(panels_, (task + 1) * panels_per_task_);
    for (int64_t panel = task * panels_per_task_; panel < last; panel++) {
      const int64_t first = panel * kColumns, count = least<int64_t>(kColumns, args_.documents - first);
      for (int64_t j = first; j < first + kColumns; j++) {
        const bool there = j < args_.documents;
        documents_.set(j, there ? row_scale<T>(document(j), args_.dimensions, args_.normalize) : RowScale<T>{});
        penalty_[j] = there ? 0 : -static_cast<T>(__builtin_inf());
      }
      Engine::pack_panel(columns(first, count), args_.dimensions, packed_ + panel * panel_bytes_);
    }
  }

  void pack_rows(int64_t task, int) {
    const int64_t last = least(rows_, (task + 1) * rows_per_task_);
    for (int64_t first = task * rows_per_task_; first < last; first += Engine::kRows) {
      const int64_t count = least<int64_t>(Engine::kRows, last - first);
      for (int64_t r = first; r < first + Engine::kRows; r++) {
        queries_.set(r, r < last ? row_scale<T>(query(first_ + r), args_.dimensions, args_.normalize) : RowScale<T>{});
        coefficient_[r] = static_cast<T>(args_.weight / args_.temperature * static_cast<double>(queries_.tile[r]));
      }
      Engine::pack_queries(rows(first, count), first, rows_, args_.dimensions, packed_rows_);
    }
  }

  void score(int64_t group, int worker) {
    const int64_t first = group * group_, panels = least(group_, panels_ - first);
    const int64_t padded = Engine::round_rows(rows_);
    T* lanes = reinterpret_cast<T*>(memory(worker));
    T *losses = lanes, *sums = lanes + padded * kLanes, *weighted = sums + padded * kLanes;
    for (int64_t i = 0; i < 3 * padded * kLanes; i++) lanes[i] = 0;
    char* scores =
        args_.wants_gradients() ? scores_ + first * scores_bytes_ : memory(worker) + round_to(lanes_bytes_, 64);
    SigmoidEpilogue<Engine> epilogue{queries_.tile,
                                     documents_.tile + first * kColumns,
                                     penalty_ + first * kColumns,
                                     sign_,
                                     static_cast<T>(1 / args_.temperature),
                                     static_cast<T>(args_.bias),
                                     first_ - first * kColumns,
                                     losses,
                                     sums,
                                     weighted};
    Engine::scores(packed_rows_, packed_ + first * panel_bytes_, panel_bytes_, panels, rows_, args_.dimensions, scores,
                   scores_bytes_, epilogue);
    for (int64_t r = 0; r < rows_; r++)
      sums_of_groups_[group * chunk_ + r] = {reduce_add<T>(load<T>(losses + r * kLanes)),
                                             reduce_add<T>(load<T>(sums + r * kLanes)),
                                             reduce_add<T>(load<T>(weighted + r * kLanes))};
  }

  void join_sums() {
    for (int64_t r = 0; r < rows_; r++) {
      Sums row = {0, 0, 0};
      for (int64_t group = 0; group < groups_; group++) {
        const Sums& of = sums_of_groups_[group * chunk_ + r];
        row = {row.loss + of.loss, row.coefficients + of.coefficients, row.weighted + of.weighted};
      }
      args_.losses[first_ + r] = row.loss;
      sum_ += row.coefficients;
      weighted_ += row.weighted;
    }
  }

  void pack_slices(int64_t slice, int) {
    Engine::pack_query_slice(rows(0, rows_), slice, args_.dimensions, row_slices_ + slice * slice_bytes_);
  }

  // The larger tasks first: what is left over at the end is then small.
  void accumulate(int64_t task, int worker) {
    const int64_t of_rows = args_.grad_queries ? tasks_of_slices_ : 0;
    if (task < of_rows)
      accumulate_rows(task, worker);
    else
      accumulate_documents(task - of_rows, worker);
  }

  void accumulate_rows(int64_t task, int worker) {
    const int64_t first_slice = task * slices_per_task_, last_slice = least(slices_, first_slice + slices_per_task_);
    for (int64_t j = 0; j < args_.documents; j += Engine::kPacked)
      Engine::accumulate_queries(scores_ + j / kColumns * scores_bytes_, scores_bytes_,
                                 columns(j, least<int64_t>(Engine::kPacked, args_.documents - j)), rows_, first_slice,
                                 last_slice, args_.dimensions, memory(worker), query_gradient(first_), args_.dimensions,
                                 j > 0);
  }

  void accumulate_documents(int64_t task, int worker) {
    const int64_t panel = task * panels_per_task_, first = panel * kColumns;
    const int64_t count = least(args_.documents, first + panels_per_task_ * kColumns) - first;
    Engine::accumulate_documents(scores_ + panel * scores_bytes_, scores_bytes_, row_slices_, slice_bytes_,
                                 rows(0, rows_), count, args_.dimensions, memory(worker), document_gradient(first),
                                 args_.dimensions, first_ > 0);
  }

  void finish_rows(int64_t task, int) {
    const T scale = static_cast<T>(args_.weight / args_.temperature);
    const int64_t last = least(rows_, (task + 1) * rows_per_task_);
    for (int64_t r = task * rows_per_task_; r < last; r++) {
      T* out = query_gradient(first_ + r);
      for (int64_t c = 0; c < args_.dimensions; c++) out[c] *= scale;
      finish_gradient<T>(query(first_ + r), RowScale<T>{0, 0, queries_.unit[r]}, args_.normalize, args_.dimensions,
                         out);
    }
  }

  void finish_documents(int64_t task, int) {
    const int64_t last = least(args_.documents, (task + 1) * panels_per_task_ * kColumns);
    for (int64_t j = task * panels_per_task_ * kColumns; j < last; j++)
      finish_gradient<T>(document(j), RowScale<T>{0, 0, documents_.unit[j]}, args_.normalize, args_.dimensions,
                         document_gradient(j));
  }

  const SiglipArgs& args_;
  const int threads_;
  int64_t bytes_ = 0;
  int64_t panels_, group_, groups_, panels_per_task_, tasks_of_panels_;
  int64_t chunk_, rows_per_task_, slices_, slices_per_task_, tasks_of_slices_;
  int64_t panel_bytes_, scores_bytes_, slice_bytes_, lanes_bytes_, worker_bytes_;
  Scales documents_, queries_;  // the queries' of the chunk
  T* penalty_;                  // per document: 0, and -inf past the end
  T* coefficient_;              // per row of the chunk: what multiplies it in the documents' gradients
  T* sign_;
  char *packed_, *packed_rows_, *scores_, *row_slices_, *workers_;
  Sums* sums_of_groups_;           // [groups][rows of the chunk]
  int64_t first_ = 0, rows_ = 0;   // of the chunk
  double sum_ = 0, weighted_ = 0;  // of all coefficients, and of coefficients times similarity
};

template <typename Engine>
int64_t siglip_bytes(const SiglipArgs& args, int threads) {
  return Siglip<Engine>(args, threads, nullptr).bytes();
}

template <typename Engine>
void run_siglip(const SiglipArgs& args, const Executor& executor, void* workspace) {
  Siglip<Engine>(args, executor.threads, workspace).run(executor);
}

template <typename Engine>
constexpr SiglipVariant siglip_variant() {
  return {siglip_bytes<Engine>, run_siglip<Engine>};
}

// By Element; what each level multiplies with, as in info_nce.
constexpr SiglipKernel siglip_kernel = {{
#if defined(__AMX_BF16__)
    siglip_variant<AmxEngine<3, float>>(),
    siglip_variant<FloatEngine<double, double>>(),
    siglip_variant<AmxEngine<1, bf16>>(),
    siglip_variant<AmxEngine<3, f16>>(),
#else
    siglip_variant<FloatEngine<float, float>>(),
    siglip_variant<FloatEngine<double, double>>(),
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    siglip_variant<Bf16Engine<bf16>>(),
#else
    siglip_variant<FloatEngine<float, bf16>>(),
#endif
    siglip_variant<FloatEngine<float, f16>>(),
#endif
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
