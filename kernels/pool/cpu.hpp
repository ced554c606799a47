// Token embeddings to one vector a row: read once, summed in registers and float64, truncated and normalised where they lie.
// README.md has the formulas.
#pragma once

#include "pool/args.hpp"
#include "pool/gradients.hpp"
#include "tile/narrow.hpp"
#include "tile/pieces.hpp"
#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {
namespace pool {

// A task's tokens: much more than claiming it costs.
constexpr int64_t kTaskBytes = 256 << 10;
// Where there are fewer rows than threads their columns are shared out, in whole cache lines of every type.
constexpr int64_t kPartColumns = 64;
// Tokens that are added up in registers before their sum joins those in memory.
constexpr int kTokens = 8;
constexpr double kSmallestWeight = 1e-9;
constexpr double kSmallestNorm = 1e-12;

SIMTILE_INLINE void add_widened(double* sums, Vector<double> x) { store<double>(sums, load<double>(sums) + x); }
SIMTILE_INLINE void add_widened(double* sums, Vector<float> x) {
  constexpr int kHalf = Simd<double>::kLanes;
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  float lanes[2 * kHalf];
  store<float>(lanes, x);
  for (int i = 0; i < 2; i++)
    add_widened(sums + i * kHalf,
                __builtin_convertvector(*reinterpret_cast<const Half*>(lanes + i * kHalf), Vector<double>));
}

template <int kCount, typename V>
SIMTILE_INLINE V sum_of(V (&x)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

template <int kCount, bool kWeighted, typename T, typename Source>
SIMTILE_INLINE void add_tokens(const Source* const* tokens, const T* weights, int64_t columns, double* sums) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Vector<T> x[kCount];
    for (int i = 0; i < kCount; i++) {
      x[i] = load_widened(tokens[i] + c);
      if (kWeighted) x[i] *= weights[i];
    }
    add_widened(sums + c, sum_of(x));
  }
  for (; c < columns; c++) {
    T x[kCount];
    for (int i = 0; i < kCount; i++) x[i] = kWeighted ? widen(tokens[i][c]) * weights[i] : widen(tokens[i][c]);
    sums[c] += static_cast<double>(sum_of(x));
  }
}

// The first of equal ones stays, and so does the first NaN.
template <typename V>
SIMTILE_INLINE auto is_larger(V x, V best) {
  return (x > best) | ((x != x) & (best == best));
}

template <typename T>
struct Best {
  typedef decltype(typename Simd<T>::Integer{}[0] + 0) Word;  // as wide as T
  T* values;                                                  // of each column
  Word* positions;
};

template <int kCount, bool kPositions, typename T, typename Source>
SIMTILE_INLINE void larger_tokens(const Source* const* tokens, const int32_t* positions, int64_t columns,
                                  Best<T> best) {
  constexpr int kLanes = Simd<T>::kLanes;
  typedef typename Simd<T>::Integer Integers;
  typedef typename Best<T>::Word Word;
  typedef Word Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Vector<T> largest = load<T>(best.values + c);
    Integers where = {};
    if (kPositions) where = (Integers) * reinterpret_cast<const Unaligned*>(best.positions + c);
    for (int i = 0; i < kCount; i++) {
      const Vector<T> x = load_widened(tokens[i] + c);
      const Integers larger = (Integers)is_larger(x, largest);
      largest = larger ? x : largest;
      if (kPositions) where = larger ? Integers{} + static_cast<Word>(positions[i]) : where;
    }
    store<T>(best.values + c, largest);
    if (kPositions) *reinterpret_cast<Unaligned*>(best.positions + c) = (Unaligned)where;
  }
  for (; c < columns; c++)
    for (int i = 0; i < kCount; i++) {
      const T x = widen(tokens[i][c]);
      if (!is_larger(x, best.values[c])) continue;
      best.values[c] = x;
      if (kPositions) best.positions[c] = positions[i];
    }
}

// As torch.linalg.vector_norm, of float64.
SIMTILE_INLINE double norm(const double* x, int64_t columns) {
  constexpr int kLanes = Simd<double>::kLanes;
  Vector<double> sums[2] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
    for (int i = 0; i < 2; i++) {
      const Vector<double> v = load<double>(x + c + i * kLanes);
      sums[i] += v * v;
    }
  double sum = reduce_add<double>(sums[0] + sums[1]);
  for (; c < columns; c++) sum += x[c] * x[c];
  return __builtin_sqrt(sum);
}

template <typename T, typename Source>
struct Pool {
  const PoolArgs& args;
  int64_t rows_per_task;
  int64_t parts;         // of a row's columns; a task is some rows, or a part of one
  int64_t part_columns;  // a multiple of kPartColumns
  // Of each worker:
  int32_t* kept;  // [longest], the positions of a row's tokens
  T* weights;     // [longest], theirs
  T* values;      // [dimensions], the largest
  typename Best<T>::Word* where;
  double* raw;  // [dimensions]; [rows][dimensions] for all where there are parts

  Pool(const PoolArgs& args, int threads) : args(args) {
    const int64_t bytes = args.of.longest * args.dimensions * static_cast<int64_t>(sizeof(Source));
    rows_per_task = most<int64_t>(kTaskBytes / most<int64_t>(bytes, 1), 1);
    const int64_t wanted = args.of.rows < threads ? (threads + args.of.rows - 1) / args.of.rows : 1;
    part_columns = round_to((args.dimensions + wanted - 1) / wanted, kPartColumns);
    parts = (args.dimensions + part_columns - 1) / part_columns;
    if (wanted == 1) parts = 1;
    if (parts > 1) rows_per_task = 1;
  }

  int64_t lay_out(void* memory, int threads) {
    Pieces pieces(memory);
    const int64_t each = args.how == Pooling::largest ? args.dimensions : 0;
    kept = pieces.take<int32_t>(threads * args.of.longest);
    weights = pieces.take<T>(args.weights ? threads * args.of.longest : 0);
    values = pieces.take<T>(threads * each);
    where = pieces.take<typename Best<T>::Word>(threads * each);
    raw = pieces.take<double>((parts > 1 ? args.of.rows : threads) * args.dimensions);
    return pieces.used();
  }

  static void some_rows(void* context, int64_t task, int worker) {
    Pool& self = *static_cast<Pool*>(context);
    double* const raw = self.raw + worker * self.args.dimensions;
    const int64_t first = task * self.rows_per_task, end = least(first + self.rows_per_task, self.args.of.rows);
    for (int64_t n = first; n < end; n++) {
      self.pool_columns(n, 0, self.args.dimensions, raw, worker);
      self.finish(n, raw);
    }
  }

  static void one_part(void* context, int64_t task, int worker) {
    Pool& self = *static_cast<Pool*>(context);
    const int64_t n = task / self.parts, first = task % self.parts * self.part_columns;
    const int64_t columns = least(self.part_columns, self.args.dimensions - first);
    self.pool_columns(n, first, columns, self.raw + n * self.args.dimensions + first, worker);
  }

  static void one_finish(void* context, int64_t n, int) {
    Pool& self = *static_cast<Pool*>(context);
    self.finish(n, self.raw + n * self.args.dimensions);
  }

  // Columns [first, first + columns) of a row's pooled vector.
  void pool_columns(int64_t n, int64_t first, int64_t columns, double* out, int worker) {
    const TokenSpan span(args.of, n);
    const Source* const data = static_cast<const Source*>(args.data) + first +
                               (args.of.offsets ? span.first * args.token_stride : n * args.row_stride);
    int32_t* const own = kept + worker * args.of.longest;
    const int64_t count = find_kept(span, own);
    if (args.how == Pooling::mean) {
      const T* const own_weights = args.weights ? weights + worker * args.of.longest : nullptr;
      double total = static_cast<double>(count);
      if (args.weights) total = gather_weights(span, own, count, weights + worker * args.of.longest);
      __builtin_memset(out, 0, static_cast<size_t>(columns) * sizeof(double));
      if (args.weights)
        sum<true>(data, own, count, own_weights, columns, out);
      else
        sum<false>(data, own, count, own_weights, columns, out);
      const double divisor = total < kSmallestWeight ? kSmallestWeight : total;  // NaN stays
      for (int64_t c = 0; c < columns; c++) out[c] /= divisor;
      if (args.totals && first == 0) static_cast<T*>(args.totals)[n] = static_cast<T>(total);
      return;
    }
    if (args.totals && first == 0) static_cast<T*>(args.totals)[n] = static_cast<T>(count);
    if (args.how == Pooling::largest) {
      const Best<T> best = {values + worker * args.dimensions, where + worker * args.dimensions};
      int32_t* const positions = args.positions ? args.positions + n * args.dimensions + first : nullptr;
      if (positions)
        find_largest<true>(data, own, count, columns, best);
      else
        find_largest<false>(data, own, count, columns, best);
      for (int64_t c = 0; c < columns; c++) out[c] = static_cast<double>(best.values[c]);
      if (positions)
        for (int64_t c = 0; c < columns; c++) positions[c] = static_cast<int32_t>(best.positions[c]);
      return;
    }
    const int32_t position = count == 0 ? -1 : args.how == Pooling::first ? own[0] : own[count - 1];
    if (args.positions && first == 0) args.positions[n] = position;
    const Source* const token = data + (count ? position : 0) * args.token_stride;
    for (int64_t c = 0; c < columns; c++) out[c] = count ? static_cast<double>(widen(token[c])) : 0.0;
  }

  int64_t find_kept(const TokenSpan& span, int32_t* out) const {
    int64_t count = 0;
    if (!args.mask) {
      for (; count < span.length; count++) out[count] = static_cast<int32_t>(count);
      return count;
    }
    for (int64_t l = 0; l < span.length; l++) {
      out[count] = static_cast<int32_t>(l);
      count += args.mask[span.first + l] != 0;
    }
    return count;
  }

  double gather_weights(const TokenSpan& span, const int32_t* own, int64_t count, T* out) const {
    const T* const given = static_cast<const T*>(args.weights) + span.first;
    double total = 0;
    for (int64_t i = 0; i < count; i++) {
      out[i] = given[own[i]];
      total += static_cast<double>(out[i]);
    }
    return total;
  }

  template <bool kWeighted>
  void sum(const Source* data, const int32_t* own, int64_t count, const T* w, int64_t columns, double* out) const {
    int64_t i = 0;
    const Source* tokens[kTokens];
    for (; i + kTokens <= count; i += kTokens) {
      for (int j = 0; j < kTokens; j++) tokens[j] = data + own[i + j] * args.token_stride;
      add_tokens<kTokens, kWeighted>(tokens, kWeighted ? w + i : w, columns, out);
    }
    for (; i < count; i++) {
      tokens[0] = data + own[i] * args.token_stride;
      add_tokens<1, kWeighted>(tokens, kWeighted ? w + i : w, columns, out);
    }
  }

  template <bool kPositions>
  void find_largest(const Source* data, const int32_t* own, int64_t count, int64_t columns, Best<T> best) const {
    const Source* tokens[kTokens];
    const Source* const token = data + (count ? own[0] : 0) * args.token_stride;
    for (int64_t c = 0; c < columns; c++) {
      best.values[c] = count ? widen(token[c]) : T(0);
      best.positions[c] = count ? own[0] : -1;
    }
    int64_t i = 1;
    for (; i + kTokens <= count; i += kTokens) {
      for (int j = 0; j < kTokens; j++) tokens[j] = data + own[i + j] * args.token_stride;
      larger_tokens<kTokens, kPositions>(tokens, own + i, columns, best);
    }
    for (; i < count; i++) {
      tokens[0] = data + own[i] * args.token_stride;
      larger_tokens<1, kPositions>(tokens, own + i, columns, best);
    }
  }

  void finish(int64_t n, const double* x) const {
    const int64_t d = args.dimensions;
    if (args.raw) {
      T* const out = static_cast<T*>(args.raw) + n * d;
      for (int64_t c = 0; c < d; c++) out[c] = static_cast<T>(x[c]);
    }
    double divisor = 1;
    if (args.normalize) {
      divisor = norm(x, d);
      if (divisor < kSmallestNorm) divisor = kSmallestNorm;
      divisor = divisor - divisor == 0 ? divisor : __builtin_nan("");  // an infinity has no direction
    }
    Source* const out = static_cast<Source*>(args.out) + n * d;
    for (int64_t c = 0; c < d; c++) narrow(static_cast<T>(x[c] / divisor), out + c);
  }
};

template <typename T, typename Source>
int64_t pool_bytes(const PoolArgs& args, int threads) {
  return Pool<T, Source>(args, threads).lay_out(nullptr, threads);
}

template <typename T, typename Source>
void run_pool(const PoolArgs& args, const Executor& executor, void* workspace) {
  typedef Pool<T, Source> P;
  P pool(args, executor.threads);
  pool.lay_out(workspace, executor.threads);
  if (pool.parts == 1) {
    executor.run((args.of.rows + pool.rows_per_task - 1) / pool.rows_per_task, &P::some_rows, &pool);
    return;
  }
  executor.run(args.of.rows * pool.parts, &P::one_part, &pool);
  executor.run(args.of.rows, &P::one_finish, &pool);
}

template <typename T, typename Source>
constexpr PoolVariant variant = {{pool_bytes<T, Source>, run_pool<T, Source>},
                                 {no_bytes<PoolSpreadArgs>, run_spread<T, Source>},
                                 {no_bytes<PoolDotsArgs>, run_dots<T, Source>}};

}  // namespace pool

constexpr PoolKernel pool_kernel = {{
    pool::variant<float, float>,
    pool::variant<double, double>,
    pool::variant<float, bf16>,
    pool::variant<float, f16>,
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
