// Gradients of chosen pairs without atomics: a row gathers its own two pairs and, by a counting sort, those in which it was chosen, in
// the order of the rows that chose it. Sums are in double.
#pragma once

#include "pairwise/args.hpp"
#include "pairwise/rows.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename T, typename Source>
class PairGradients {
 public:
  // With a null workspace only bytes() is meaningful.
  PairGradients(const PairGradientsArgs& args, int threads, void* workspace) : args_(args) {
    Pieces pieces(workspace);
    units_ = pieces.take<double>(args.rows);
    starts_ = pieces.take<int64_t>(args.rows + 1);
    chosen_by_ = pieces.take<int64_t>(2 * args.rows);
    own_bytes_ = round_to(args.dimensions, 8);
    workers_ = pieces.take<double>(threads * 2 * own_bytes_);
    bytes_ = pieces.used();
    task_rows_ = most<int64_t>(1, (args.rows + 4 * threads - 1) / (4 * threads));
  }

  int64_t bytes() const { return bytes_; }

  void run(const Executor& executor) {
    const int64_t tasks = (args_.rows + task_rows_ - 1) / task_rows_;
    if (is_normalized()) each_task<&PairGradients::measure>(executor, tasks, this);
    sort_by_chosen();
    each_task<&PairGradients::gather>(executor, tasks, this);
  }

 private:
  bool is_cosine() const { return args_.distance == PairDistance::cosine; }
  bool is_normalized() const { return args_.normalize || is_cosine(); }
  const Source* row(int64_t i) const { return static_cast<const Source*>(args_.data) + i * args_.stride; }
  double unit(int64_t i) const { return is_normalized() ? units_[i] : 1; }

  // Pair 2 i is row i's positive, 2 i + 1 its negative. Not (c ? a : b)[i]: with -fsanitize=undefined GCC 12 then reads [0].
  int64_t chosen(int64_t pair) const { return pair % 2 ? args_.negative[pair / 2] : args_.positive[pair / 2]; }
  double coefficient(int64_t pair) const {
    if (chosen(pair) < 0) return 0;
    return pair % 2 ? args_.negative_coefficient[pair / 2] : args_.positive_coefficient[pair / 2];
  }

  void measure(int64_t task, int) {
    const int64_t last = least(args_.rows, (task + 1) * task_rows_);
    for (int64_t i = task * task_rows_; i < last; i++) {
      const double norm = __builtin_sqrt(squared_norm<T>(row(i), args_.dimensions));
      units_[i] = 1 / (norm <= kNormFloor ? kNormFloor : norm);
    }
  }

  void sort_by_chosen() {
    for (int64_t i = 0; i <= args_.rows; i++) starts_[i] = 0;
    for (int64_t pair = 0; pair < 2 * args_.rows; pair++)
      if (coefficient(pair) != 0) starts_[chosen(pair)]++;
    int64_t total = 0;
    for (int64_t i = 0; i <= args_.rows; i++) {
      const int64_t count = starts_[i];
      starts_[i] = total;
      total += count;
    }
    for (int64_t pair = 0; pair < 2 * args_.rows; pair++)
      if (coefficient(pair) != 0) chosen_by_[starts_[chosen(pair)]++] = pair;
    for (int64_t i = args_.rows; i > 0; i--) starts_[i] = starts_[i - 1];
    starts_[0] = 0;
  }

  void gather(int64_t task, int worker) {
    double* own = workers_ + worker * 2 * own_bytes_;
    double* sum = own + own_bytes_;
    const int64_t last = least(args_.rows, (task + 1) * task_rows_);
    for (int64_t i = task * task_rows_; i < last; i++) {
      for (int64_t c = 0; c < args_.dimensions; c++) {
        own[c] = widen(row(i)[c]) * unit(i);
        sum[c] = 0;
      }
      for (int64_t pair = 2 * i; pair < 2 * i + 2; pair++)
        if (coefficient(pair) != 0) add(chosen(pair), coefficient(pair), own, sum);
      for (int64_t at = starts_[i]; at < starts_[i + 1]; at++)
        add(chosen_by_[at] / 2, coefficient(chosen_by_[at]), own, sum);
      write(i, own, sum);
    }
  }

  void add(int64_t other, double weight, const double* own, double* sum) const {
    const Source* them = row(other);
    const double of_them = unit(other), of_own = is_cosine() ? 0 : 1;
    for (int64_t c = 0; c < args_.dimensions; c++) sum[c] += weight * (of_own * own[c] - widen(them[c]) * of_them);
  }

  // Through the normalisation: (g - u (u.g)) / norm, and only the quotient of a row at the floor.
  void write(int64_t i, const double* own, const double* sum) const {
    double along = 0;
    if (is_normalized() && units_[i] < 1 / kNormFloor)
      for (int64_t c = 0; c < args_.dimensions; c++) along += own[c] * sum[c];
    T* out = static_cast<T*>(args_.grad) + i * args_.dimensions;
    for (int64_t c = 0; c < args_.dimensions; c++) out[c] = static_cast<T>((sum[c] - own[c] * along) * unit(i));
  }

  const PairGradientsArgs& args_;
  double *units_, *workers_;
  int64_t *starts_, *chosen_by_;
  int64_t bytes_, own_bytes_, task_rows_;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
