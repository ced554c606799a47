// What the gradients of pool need of every token: a copy of its row's gradient, and a product with it.
#pragma once

#include "pool/args.hpp"
#include "tile/narrow.hpp"
#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {
namespace pool {

// Tokens of a task: gradients are written, or tokens read, once.
constexpr int64_t kTokensPerTask = 64;

// The tokens of a row among all [N * L] or [T].
struct TokenSpan {
  int64_t first, length;

  SIMTILE_INLINE TokenSpan(const TokenRows& of, int64_t n) {
    first = of.offsets ? of.offsets[n] : n * of.length;
    length = of.offsets ? of.offsets[n + 1] - first : of.length;
  }
};

// Rows of different lengths are not divided: most of the pieces would be empty.
SIMTILE_INLINE int64_t tokens_per_task(const TokenRows& of) { return of.offsets ? of.longest : kTokensPerTask; }

SIMTILE_INLINE int64_t tasks_per_row(const TokenRows& of) {
  return of.longest == 0 ? 0 : (of.longest + tokens_per_task(of) - 1) / tokens_per_task(of);
}

template <typename T, typename Source>
struct Spread {
  const PoolSpreadArgs& args;

  static void some_tokens(void* context, int64_t task, int) {
    const PoolSpreadArgs& args = static_cast<Spread*>(context)->args;
    const int64_t pieces = tasks_per_row(args.of), n = task / pieces, each = tokens_per_task(args.of),
                  begin = task % pieces * each;
    const TokenSpan span(args.of, n);
    const int64_t end = least(begin + each, span.length), d = args.dimensions;
    const T* const grad = static_cast<const T*>(args.grad) + n * d;
    for (int64_t l = begin; l < end; l++) {
      Source* const out = static_cast<Source*>(args.out) + (span.first + l) * args.token_dimensions;
      if (args.positions)
        chosen(grad, args.positions + n * d, static_cast<int32_t>(l), d, out);
      else
        scaled(grad, static_cast<const T*>(args.coefficients)[span.first + l], d, out);
      __builtin_memset(static_cast<void*>(out + d), 0, static_cast<size_t>(args.token_dimensions - d) * sizeof(Source));
    }
  }

  static SIMTILE_INLINE void scaled(const T* grad, T coefficient, int64_t d, Source* out) {
    constexpr int kLanes = Simd<T>::kLanes;
    if (coefficient == 0) {  // padding: not NaN where the gradient is
      __builtin_memset(static_cast<void*>(out), 0, static_cast<size_t>(d) * sizeof(Source));
      return;
    }
    int64_t c = 0;
    for (; c + kLanes <= d; c += kLanes) store_narrowed(out + c, load<T>(grad + c) * coefficient);
    for (; c < d; c++) narrow(grad[c] * coefficient, out + c);
  }

  static SIMTILE_INLINE void chosen(const T* grad, const int32_t* positions, int32_t position, int64_t d, Source* out) {
    constexpr int kLanes = Simd<T>::kLanes;
    typedef typename Simd<T>::Integer Integers;
    typedef int32_t Positions __attribute__((vector_size(4 * Simd<T>::kLanes), aligned(4), may_alias));
    int64_t c = 0;
    for (; c + kLanes <= d; c += kLanes) {
      const Integers where = __builtin_convertvector(*reinterpret_cast<const Positions*>(positions + c), Integers);
      store_narrowed(out + c, where == position ? load<T>(grad + c) : Vector<T>{});
    }
    for (; c < d; c++) narrow(positions[c] == position ? grad[c] : T(0), out + c);
  }
};

template <typename T, typename Source>
struct Dots {
  const PoolDotsArgs& args;

  static void some_tokens(void* context, int64_t task, int) {
    const PoolDotsArgs& args = static_cast<Dots*>(context)->args;
    const int64_t pieces = tasks_per_row(args.of), n = task / pieces, each = tokens_per_task(args.of),
                  begin = task % pieces * each;
    const TokenSpan span(args.of, n);
    const int64_t end = least(begin + each, span.length);
    const T* const vector = static_cast<const T*>(args.vectors) + n * args.dimensions;
    const Source* const data = static_cast<const Source*>(args.data) +
                               (args.of.offsets ? span.first * args.token_stride : n * args.row_stride);
    T* const out = static_cast<T*>(args.out) + span.first;
    for (int64_t l = begin; l < end; l++) {
      const bool kept = !args.mask || args.mask[span.first + l] != 0;
      out[l] = kept ? dot(data + l * args.token_stride, vector, args.dimensions) : T(0);
    }
  }

  static SIMTILE_INLINE T dot(const Source* x, const T* y, int64_t d) {
    constexpr int kLanes = Simd<T>::kLanes;
    Vector<T> sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * kLanes <= d; c += 4 * kLanes)
      for (int i = 0; i < 4; i++) sums[i] += load_widened(x + c + i * kLanes) * load<T>(y + c + i * kLanes);
    for (; c + kLanes <= d; c += kLanes) sums[0] += load_widened(x + c) * load<T>(y + c);
    T sum = reduce_add<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; c < d; c++) sum += widen(x[c]) * y[c];
    return sum;
  }
};

template <typename Args>
int64_t no_bytes(const Args&, int) {
  return 0;
}

template <typename T, typename Source>
void run_spread(const PoolSpreadArgs& args, const Executor& executor, void*) {
  Spread<T, Source> spread = {args};
  executor.run(args.of.rows * tasks_per_row(args.of), &Spread<T, Source>::some_tokens, &spread);
}

template <typename T, typename Source>
void run_dots(const PoolDotsArgs& args, const Executor& executor, void*) {
  Dots<T, Source> dots = {args};
  executor.run(args.of.rows * tasks_per_row(args.of), &Dots<T, Source>::some_tokens, &dots);
}

}  // namespace pool
}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
