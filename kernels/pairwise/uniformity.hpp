// log mean exp(-t |u_i - u_j|^2) over all pairs, with its gradient: a chunk of rows against group after group of panels.
//
//   for each chunk of rows (a task):
//     for each group of panels:  x = -t |u_i - u_j|^2, the row's maximum so far, e = exp(x - m), sums += e, G += e U
//                                (what was summed before a maximum grew is scaled down)
//   value = log of all sums;  gradient of row i = -4t / sum * (u_i sum_i - G_i), through the normalisation
//
// Formula: README.md.
#pragma once

#include "pairwise/args.hpp"
#include "pairwise/rows.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Products to exponents, with the row maximum of the group.
template <typename Engine>
struct ExponentEpilogue {
  using T = typename Engine::Scalar;
  static constexpr int kColumns = Engine::kColumns, kLanes = Engine::kLanes;

  const T* scale;   // of all rows
  const T* square;  // of all rows, NaN past the end
  T t;
  int64_t first_row, first_panel, count;
  T* row_max;  // [rows of the chunk][lanes]

  template <int rows>
  SIMTILE_INLINE void tile(int64_t panel, int64_t r, T* products) {
    const int64_t column = (first_panel + panel) * kColumns, row = first_row + r;
    T* at = products;
    for (int i = 0; i < rows; i++, at += kColumns)
#pragma GCC unroll 4
      for (int v = 0; v < Engine::kVectors; v++) {
        const Vector<T> similarity = load<T>(at + v * kLanes) * load<T>(scale + column + v * kLanes) * scale[row + i];
        const Vector<T> distance = load<T>(square + column + v * kLanes) + square[row + i] - 2 * similarity;
        store<T>(at + v * kLanes, -t * (distance < 0 ? Vector<T>{} : distance));
      }
    if ((row < column + kColumns && column < row + rows) || column + kColumns > count)
      leave_out(row, rows, column, products);
    for (int i = 0; i < rows; i++, products += kColumns) {
      Vector<T> peak = load<T>(row_max + (r + i) * kLanes);
#pragma GCC unroll 4
      for (int v = 0; v < Engine::kVectors; v++) peak = maximum(peak, load<T>(products + v * kLanes));
      store<T>(row_max + (r + i) * kLanes, peak);
    }
  }

  // The row itself, and columns past the end.
  __attribute__((noinline)) void leave_out(int64_t row, int64_t rows, int64_t column, T* products) const {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < kColumns; j++)
        if (row + i == column + j || column + j >= count) products[i * kColumns + j] = -static_cast<T>(__builtin_inf());
  }
};

template <typename Engine>
class Uniformity {
 public:
  using T = typename Engine::Scalar;
  static constexpr int kColumns = Engine::kColumns, kLanes = Engine::kLanes;
  // Panels at a time: what accumulate_queries takes.
  static constexpr int64_t kPanels = Engine::kPacked / kColumns;

  // With a null workspace only bytes() is meaningful.
  Uniformity(const UniformityArgs& args, int threads, void* workspace) : args_(args) {
    rows_.plan(args.data, args.stride, args.rows, args.dimensions, threads);
    slices_ = Engine::slices(args.dimensions);
    Pieces pieces(workspace);
    rows_.take(pieces);
    units_ = pieces.take<T>(rows_.padded());
    maxima_ = pieces.take<T>(args.rows);
    sums_ = pieces.take<double>(args.rows);
    const int64_t chunk = rows_.chunk;
    lanes_ = round_to(chunk * kLanes * static_cast<int64_t>(sizeof(T)), 64);
    queries_bytes_ = round_to(Engine::queries_bytes(chunk, args.dimensions), 64);
    scores_bytes_ = round_to(Engine::scores_bytes(chunk), 64);
    scratch_bytes_ = args.grad ? round_to(Engine::scratch_bytes(chunk, args.dimensions, slices_), 64) : 0;
    worker_bytes_ = 4 * lanes_ + queries_bytes_ + kPanels * scores_bytes_ + scratch_bytes_;
    workers_ = pieces.take<char>(threads * worker_bytes_);
    bytes_ = pieces.used();
  }

  int64_t bytes() const { return bytes_; }

  void run(const Executor& executor) {
    each_task<&Uniformity::pack>(executor, rows_.row_tasks(), this);
    each_task<&Uniformity::compare>(executor, rows_.chunks, this);
    double sum = 0;
    peak_ = maxima_[0];
    for (int64_t i = 0; i < args_.rows; i++) peak_ = most<double>(peak_, maxima_[i]);
    if (peak_ == -__builtin_inf()) peak_ = 0;
    for (int64_t i = 0; i < args_.rows; i++) sum += sums_[i] * __builtin_exp(maxima_[i] - peak_);
    const double n = static_cast<double>(args_.rows);
    *args_.value = peak_ + __builtin_log(sum / (n * (n - 1)));
    factor_ = -4 * args_.t / sum;
    if (args_.grad) each_task<&Uniformity::finish>(executor, rows_.row_tasks(), this);
  }

 private:
  void pack(int64_t task, int) {
    const int64_t last = least(args_.rows, (task + 1) * rows_.task_rows);
    for (int64_t i = task * rows_.task_rows; i < last; i++) rows_.measure(i);
    rows_.pack_task(task, [&](int64_t i) {
      const RowScale<T> scale = row_scale<T>(rows_.row(i), args_.dimensions, args_.normalize);
      units_[i] = scale.unit;
      return scale;
    });
  }

  T* grad(int64_t row) const { return static_cast<T*>(args_.grad) + row * args_.dimensions; }

  void compare(int64_t task, int worker) {
    const int64_t first = task * rows_.chunk, rows = least(rows_.chunk, args_.rows - first);
    char* memory = workers_ + worker * worker_bytes_;
    T* row_max = reinterpret_cast<T*>(memory);
    T* sums = reinterpret_cast<T*>(memory + lanes_);
    T* weighted = reinterpret_cast<T*>(memory + 2 * lanes_);
    T* shift = reinterpret_cast<T*>(memory + 3 * lanes_);
    char* queries = memory + 4 * lanes_;
    char* scores = queries + queries_bytes_;
    char* scratch = scores + kPanels * scores_bytes_;
    rows_.pack_chunk(first, rows, queries);
    const T lowest = -static_cast<T>(__builtin_inf());
    for (int64_t r = 0; r < rows; r++) {
      maxima_[first + r] = lowest;
      sums_[first + r] = 0;
    }
    ExponentEpilogue<Engine> epilogue{rows_.tile, rows_.square, static_cast<T>(args_.t), first, 0, args_.rows, row_max};
    for (int64_t& panel = epilogue.first_panel; panel < rows_.panels; panel += kPanels) {
      const int64_t panels = least(kPanels, rows_.panels - panel), column = panel * kColumns;
      for (int64_t i = 0; i < Engine::round_rows(rows) * kLanes; i++) row_max[i] = lowest;
      Engine::scores(queries, rows_.packed + panel * rows_.panel_bytes, rows_.panel_bytes, panels, rows,
                     args_.dimensions, scores, scores_bytes_, epilogue);
      for (int64_t r = 0; r < rows; r++) {
        raise(first + r, reduce_max<T>(load<T>(row_max + r * kLanes)), panel > 0);
        shift[r] = maxima_[first + r] == lowest ? 0 : maxima_[first + r];
      }
      for (int64_t i = 0; i < rows * kLanes; i++) sums[i] = weighted[i] = 0;
      for (int64_t p = 0; p < panels; p++)
        Engine::exponentiate(scores + p * scores_bytes_, rows, shift, args_.grad != nullptr, sums, weighted);
      for (int64_t r = 0; r < rows; r++) sums_[first + r] += reduce_add<T>(load<T>(sums + r * kLanes));
      if (!args_.grad) continue;
      const int64_t documents = least<int64_t>(panels * kColumns, args_.rows - column);
      Engine::accumulate_queries(scores, scores_bytes_,
                                 {rows_.row(column), rows_.stride, documents, rows_.pack + column, rows_.tile + column},
                                 rows, 0, slices_, args_.dimensions, scratch, grad(first), args_.dimensions, panel > 0);
    }
  }

  // A new maximum of a row, and what was summed under the old one.
  void raise(int64_t row, T largest, bool has_sums) {
    const T old = maxima_[row];
    if (!(largest > old)) return;
    maxima_[row] = largest;
    if (!has_sums) return;
    const double factor = __builtin_exp(static_cast<double>(old) - static_cast<double>(largest));
    sums_[row] *= factor;
    if (!args_.grad) return;
    T* out = grad(row);
    for (int64_t c = 0; c < args_.dimensions; c++) out[c] *= static_cast<T>(factor);
  }

  void finish(int64_t task, int) {
    const int64_t last = least(args_.rows, (task + 1) * rows_.task_rows);
    for (int64_t i = task * rows_.task_rows; i < last; i++) {
      T* out = grad(i);
      const double share = factor_ * __builtin_exp(maxima_[i] - peak_), unit = units_[i], own = unit * sums_[i];
      for (int64_t c = 0; c < args_.dimensions; c++)
        out[c] = static_cast<T>(share * (own * widen(rows_.row(i)[c]) - static_cast<double>(out[c])));
      finish_gradient<T>(rows_.row(i), RowScale<T>{0, 0, units_[i]}, args_.normalize, args_.dimensions, out);
    }
  }

  const UniformityArgs& args_;
  AllRows<Engine> rows_ = {};
  T *units_, *maxima_;
  double* sums_;
  char* workers_;
  int64_t slices_, lanes_, queries_bytes_, scores_bytes_, scratch_bytes_, worker_bytes_, bytes_;
  double peak_ = 0, factor_ = 0;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
