// Of every row the furthest row with its label and the nearest with another: running bests of each row while the tile is hot.
//
//   for each chunk of rows (a task):
//     for each group of panels:  S = U U^T, and per row and lane the largest and the least half distance so far with their columns
//     the best of each row's lanes, ties to the lowest column
//   then the distances of the chosen pairs in double, from the rows themselves
//
// What is compared is |u_j|^2 / 2 - u_i.u_j = (|u_i - u_j|^2 - |u_i|^2) / 2, with cosine -u_i.u_j.
#pragma once

#include "pairwise/args.hpp"
#include "pairwise/rows.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Lanes of integers as wide as the numbers, so that comparisons of one select in the other.
template <typename T>
struct IndexLanes;
template <>
struct IndexLanes<float> {
  typedef int32_t Index;
};
template <>
struct IndexLanes<double> {
  typedef int64_t Index;
};

// Running bests of one row, lane by lane, and the first column that has them.
template <typename T>
struct BestLanes {
  typedef typename Simd<T>::Integer Integer;
  Vector<T> furthest, nearest;
  Integer furthest_at, nearest_at;
};

template <typename Engine>
struct HardestEpilogue {
  using T = typename Engine::Scalar;
  using Index = typename IndexLanes<T>::Index;
  typedef typename Simd<T>::Integer Integer;
  static constexpr int kColumns = Engine::kColumns, kLanes = Engine::kLanes;

  const T* scale;       // of all rows: products to similarities
  const T* half;        // of all rows: |u|^2 / 2, or 0 with cosine; NaN where there is nothing to compare with
  const Index* labels;  // of all rows
  int64_t first_row, first_panel;
  BestLanes<T>* best;  // of the chunk's rows

  template <int rows>
  SIMTILE_INLINE void tile(int64_t panel, int64_t r, T* products) {
    const int64_t column = (first_panel + panel) * kColumns, row = first_row + r;
    if (row < column + kColumns && column < row + rows) leave_out_diagonal(row, rows, column, products);
    Integer lane{};
    for (int i = 0; i < kLanes; i++) lane[i] = i;
    for (int i = 0; i < rows; i++, products += kColumns) {
      BestLanes<T>& of = best[r + i];
      Vector<T> furthest = of.furthest, nearest = of.nearest;
      Integer furthest_at = of.furthest_at, nearest_at = of.nearest_at;
      const Index own = labels[row + i];
      const T own_scale = scale[row + i];
#pragma GCC unroll 4
      for (int v = 0; v < Engine::kVectors; v++) {
        const int64_t at = column + v * kLanes;
        Integer label;
        __builtin_memcpy(&label, labels + at, sizeof(label));
        const Vector<T> value = load<T>(half + at) - load<T>(products + v * kLanes) * load<T>(scale + at) * own_scale;
        const Integer index = lane + static_cast<Index>(at), other = label != own;
        // Nothing compares with NaN.
        const Integer further = (Integer)(value > furthest) & ~other, nearer = (Integer)(value < nearest) & other;
        furthest = further ? value : furthest;
        furthest_at = further ? index : furthest_at;
        nearest = nearer ? value : nearest;
        nearest_at = nearer ? index : nearest_at;
      }
      of.furthest = furthest;
      of.nearest = nearest;
      of.furthest_at = furthest_at;
      of.nearest_at = nearest_at;
    }
  }

  // A row is not its own positive.
  __attribute__((noinline)) static void leave_out_diagonal(int64_t row, int64_t rows, int64_t column, T* products) {
    const int64_t end = least<int64_t>(row + rows, column + kColumns);
    for (int64_t i = most(row, column); i < end; i++)
      products[(i - row) * kColumns + i - column] = static_cast<T>(kNaN);
  }
};

template <typename Engine>
class HardestPairs {
 public:
  using T = typename Engine::Scalar;
  using Index = typename IndexLanes<T>::Index;

  // With a null workspace only bytes() is meaningful.
  HardestPairs(const HardestPairsArgs& args, int threads, void* workspace) : args_(args) {
    rows_.plan(args.data, args.stride, args.rows, args.dimensions, threads);
    Pieces pieces(workspace);
    rows_.take(pieces);
    labels_ = pieces.take<Index>(rows_.padded());
    best_bytes_ = round_to(rows_.chunk * static_cast<int64_t>(sizeof(BestLanes<T>)), 64);
    queries_bytes_ = round_to(Engine::queries_bytes(rows_.chunk, args.dimensions), 64);
    scores_bytes_ = round_to(Engine::scores_bytes(rows_.chunk), 64);
    worker_bytes_ = best_bytes_ + queries_bytes_ + Engine::kGroup * scores_bytes_;
    workers_ = pieces.take<char>(threads * worker_bytes_);
    bytes_ = pieces.used();
  }

  int64_t bytes() const { return bytes_; }

  void run(const Executor& executor) {
    each_task<&HardestPairs::measure>(executor, rows_.row_tasks(), this);
    find_common_scale();
    each_task<&HardestPairs::pack>(executor, rows_.row_tasks(), this);
    each_task<&HardestPairs::compare>(executor, rows_.chunks, this);
    if (!all_finite_) choose_not_finite();
    each_task<&HardestPairs::finish>(executor, rows_.row_tasks(), this);
  }

 private:
  bool is_cosine() const { return args_.distance == PairDistance::cosine; }
  bool is_normalized() const { return args_.normalize || is_cosine(); }
  bool is_finite(int64_t i) const { return rows_.norms[i] < __builtin_inf(); }
  int64_t task_end(int64_t task) const { return least(args_.rows, (task + 1) * rows_.task_rows); }

  void measure(int64_t task, int) {
    for (int64_t i = task * rows_.task_rows; i < task_end(task); i++) rows_.measure(i);
  }

  // Distances of rows as they are compare only when all are scaled alike: by a power of two, and not at all unless the largest is extreme.
  void find_common_scale() {
    double largest = 0;
    all_finite_ = true;
    for (int64_t i = 0; i < args_.rows; i++) {
      if (is_finite(i)) {
        largest = most(largest, rows_.norms[i]);
      } else {
        all_finite_ = false;
      }
    }
    common_ = 1;
    if (largest != 0 && (largest < 0x1p-40 || largest > 0x1p40))
      common_ = __builtin_ldexp(1.0, most(-126, least(126, -__builtin_ilogb(largest))));
  }

  void pack(int64_t task, int) {
    rows_.pack_task(task, [&](int64_t i) {
      if (is_normalized()) return row_scale<T>(rows_.row(i), args_.dimensions, true);
      return RowScale<T>{static_cast<T>(common_), 1, 1};
    });
    const int64_t last = round_to(task_end(task), Engine::kColumns);
    for (int64_t i = task * rows_.task_rows; i < last; i++) {
      labels_[i] = i < args_.rows ? static_cast<Index>(args_.labels[i]) : -1;
      if (is_cosine()) rows_.square[i] *= 0;  // NaN stays
      rows_.square[i] *= static_cast<T>(0.5);
    }
  }

  void compare(int64_t task, int worker) {
    const int64_t first = task * rows_.chunk, rows = least(rows_.chunk, args_.rows - first);
    char* memory = workers_ + worker * worker_bytes_;
    BestLanes<T>* best = reinterpret_cast<BestLanes<T>*>(memory);
    char* queries = memory + best_bytes_;
    char* scores = queries + queries_bytes_;
    rows_.pack_chunk(first, rows, queries);
    const T infinity = static_cast<T>(__builtin_inf());
    for (int64_t r = 0; r < Engine::round_rows(rows); r++) {
      best[r].furthest = broadcast<T>(-infinity);
      best[r].nearest = broadcast<T>(infinity);
      best[r].furthest_at = best[r].nearest_at = typename Simd<T>::Integer{} - 1;
    }
    HardestEpilogue<Engine> epilogue{rows_.tile, rows_.square, labels_, first, 0, best};
    for (int64_t& panel = epilogue.first_panel; panel < rows_.panels; panel += Engine::kGroup)
      Engine::scores(queries, rows_.packed + panel * rows_.panel_bytes, rows_.panel_bytes,
                     least(Engine::kGroup, rows_.panels - panel), rows, args_.dimensions, scores, scores_bytes_,
                     epilogue);
    for (int64_t r = 0; r < rows; r++) {
      args_.positive[first + r] = first_of(-best[r].furthest, best[r].furthest_at);
      args_.negative[first + r] = first_of(best[r].nearest, best[r].nearest_at);
    }
  }

  // The least value's column, the lowest of equals; -1 where there is none.
  static int64_t first_of(Vector<T> value, typename Simd<T>::Integer at) {
    int64_t found = -1;
    T least_value = 0;
    for (int lane = 0; lane < Engine::kLanes; lane++) {
      if (at[lane] < 0) continue;
      if (found < 0 || value[lane] < least_value || (value[lane] == least_value && at[lane] < found)) {
        least_value = value[lane];
        found = at[lane];
      }
    }
    return found;
  }

  // A row with a NaN or an infinity is both further and nearer than any other, the first of them before the rest.
  void choose_not_finite() {
    for (int64_t i = 0; i < args_.rows; i++) {
      bool positive = false, negative = false;
      for (int64_t j = 0; j < args_.rows && !(positive && negative); j++) {
        if (j == i || (is_finite(i) && is_finite(j))) continue;
        const bool same = args_.labels[i] == args_.labels[j];
        if (same && !positive) args_.positive[i] = j;
        if (!same && !negative) args_.negative[i] = j;
        (same ? positive : negative) = true;
      }
    }
  }

  void finish(int64_t task, int) {
    for (int64_t i = task * rows_.task_rows; i < task_end(task); i++) {
      args_.positive_distance[i] = distance(i, args_.positive[i]);
      args_.negative_distance[i] = distance(i, args_.negative[i]);
    }
  }

  double unit(int64_t i) const { return is_normalized() ? 1 / most(rows_.norms[i], kNormFloor) : 1; }

  double distance(int64_t i, int64_t j) const {
    if (j < 0 || !is_finite(i) || !is_finite(j)) return kNaN;
    const typename Engine::Source *a = rows_.row(i), *b = rows_.row(j);
    const double of_a = unit(i), of_b = unit(j);
    double sum = 0;
    for (int64_t c = 0; c < args_.dimensions; c++) {
      const double x = widen(a[c]) * of_a, y = widen(b[c]) * of_b;
      sum += is_cosine() ? x * y : (x - y) * (x - y);
    }
    return is_cosine() ? 1 - sum : sum;
  }

  const HardestPairsArgs& args_;
  AllRows<Engine> rows_ = {};
  Index* labels_;
  char* workers_;
  int64_t bytes_, best_bytes_, queries_bytes_, scores_bytes_, worker_bytes_;
  double common_ = 1;
  bool all_finite_ = true;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
