// What is computed of the queries before any document is read: integers and terms for codes, norms for floats; and masks as bits.
#pragma once

#include "topk/score.cuh"

namespace simtile::cuda::topk {

constexpr int fold_threads = 256;  // not measured

// The definition's order of a sum, in double: element i is added to lane i % 32, then the upper half of the lanes to the lower, and so
// on. Every lane gets it.
template <class Term>
__device__ inline double lane_sum(int dim, const Term& term) {
  double sum = 0;
#pragma unroll 4
  for (int i = lane_index(); i < dim; i += warp_size) sum = __dadd_rn(sum, term(i));
#pragma unroll
  for (int apart = warp_size / 2; apart > 0; apart /= 2) sum = __dadd_rn(sum, __shfl_xor_sync(full_warp, sum, apart));
  return sum;
}

struct FoldArgs {
  const uint8_t* queries;    // float32 [Q, D], or int8 with query_scale
  int64_t queries_stride;    // bytes
  const float* scale;        // [D], or null: 1
  const float* offset;       // [D], or null: 0
  const float* query_scale;  // [Q], or null
  int dim;
  TopkKind kind;
  TopkMetric metric;
  int parts;
  int planes;     // 2: hi and lo; 1: lo alone, of int8 queries
  int row_pitch;  // bytes of a row of the planes, zeros from a document's last byte on
  uint8_t* rows;  // [Q, planes, parts, row_pitch] out
  Terms* terms;   // [Q] out
};

__device__ inline float at_least(double magnitude) {
  // 1 + 2^-23 more than makes up for the rounding to float32.
  return fmaxf(__double2float_rn(magnitude) * 1.0000002f, 0x1p-126f);
}

__device__ inline void set_terms(Terms& terms, double slope, double level, double constant, long long shift,
                                 TopkMetric metric) {
  const float sign = metric == TopkMetric::l2 ? 1.0f : -1.0f;
  terms.slope = slope, terms.level = level, terms.constant = constant, terms.shift = shift;
  terms.cost_slope = sign * __double2float_rn(slope), terms.most_slope = at_least(fabs(slope));
  terms.cost_level = sign * __double2float_rn(level), terms.most_level = at_least(fabs(level));
  terms.cost_constant = sign * __double2float_rn(constant), terms.most_constant = at_least(fabs(constant));
  terms.cost_shift = static_cast<float>(shift);
  terms.sign = sign;
}

// One query: its weights q * scale become integers z = 256 hi + lo of at most 32639 = 127 * 256 + 127, lo from -128 to 127.
static __global__ void __launch_bounds__(fold_threads) topk_fold(const FoldArgs args) {
  SIMTILE_DYNAMIC_SHARED(double, shared);  // the two sums; then a 64-bit integer of each warp
  long long* const of_warps = reinterpret_cast<long long*>(shared + 2);
  constexpr int warps = fold_threads / warp_size;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_index(), warp = thread / warp_size;
  const int64_t query = blockIdx.x;
  const uint8_t* row = args.queries + query * args.queries_stride;
  const bool whole = args.query_scale;
  const double query_scale = whole ? static_cast<double>(args.query_scale[query]) : 1.0;
  const auto value = [&](int i) {
    if (whole) return __dmul_rn(static_cast<double>(reinterpret_cast<const int8_t*>(row)[i]), query_scale);
    return static_cast<double>(reinterpret_cast<const float*>(row)[i]);
  };
  const auto weight = [&](int i) {
    return args.scale ? __dmul_rn(value(i), static_cast<double>(args.scale[i])) : value(i);
  };

  // The largest magnitude: as integers, non-negative doubles have the same order, and NaN is the largest.
  long long largest_bits = 0;
  if (!whole) {
    for (int i = thread; i < args.dim; i += fold_threads)
      largest_bits = max(largest_bits, __double_as_longlong(fabs(weight(i))));
  }
  for (int apart = warp_size / 2; apart > 0; apart /= 2)
    largest_bits = max(largest_bits, __shfl_xor_sync(full_warp, largest_bits, apart));
  if (lane == 0) of_warps[warp] = largest_bits;
  if (warp == 0) {
    const double squares = lane_sum(args.dim, [&](int i) { return __dmul_rn(value(i), value(i)); });
    if (lane == 0) shared[0] = squares;
  } else if (warp == 1) {
    double level = 0;
    if (args.kind == TopkKind::bits) {
      level = -lane_sum(args.dim, value);
    } else if (args.offset) {
      level = lane_sum(args.dim, [&](int i) { return __dmul_rn(value(i), static_cast<double>(args.offset[i])); });
    }
    if (lane == 0) shared[1] = level;
  }
  __syncthreads();
  for (int w = 0; w < warps; ++w) largest_bits = max(largest_bits, of_warps[w]);
  const double squares = shared[0], level = shared[1], largest = __longlong_as_double(largest_bits);
  __syncthreads();

  const double infinity = __longlong_as_double(0x7ff0000000000000ll);
  const double step = whole ? query_scale : __ddiv_rn(largest, 32639.0);
  const bool finite = fabs(step) < infinity;
  const double inverse = !whole && finite && largest > 0 ? __ddiv_rn(32639.0, largest) : 0.0;
  long long sum = 0;
  uint8_t* hi_rows = args.rows + query * args.planes * args.parts * args.row_pitch;
  uint8_t* lo_rows = hi_rows + (args.planes - 1) * args.parts * args.row_pitch;
  for (int i = thread; i < args.parts * args.row_pitch; i += fold_threads) {
    const int part = i / args.row_pitch, byte = i % args.row_pitch;
    // The first element of a byte is the lower half of int4, but the highest of eight bits.
    const int element = args.parts * byte + (args.kind == TopkKind::bits ? 7 - part : part);
    int z = 0;
    if (element < args.dim && finite) {
      z = whole ? reinterpret_cast<const int8_t*>(row)[element] : __double2int_rn(__dmul_rn(weight(element), inverse));
    }
    const int lo = ((z + 128) & 255) - 128;
    lo_rows[i] = static_cast<uint8_t>(lo);
    if (args.planes == 2) hi_rows[i] = static_cast<uint8_t>((z - lo) / 256);
    sum += z;
  }
  for (int apart = warp_size / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(full_warp, sum, apart);
  if (lane == 0) of_warps[warp] = sum;
  __syncthreads();
  if (thread > 0) return;

  sum = 0;
  for (int w = 0; w < warps; ++w) sum += of_warps[w];
  const long long shift = args.kind == TopkKind::uint8 ? 128 * sum : 0;
  const bool bits = args.kind == TopkKind::bits;
  const double slope = bits ? 2 * step : step, length = bits ? static_cast<double>(args.dim) : 1.0;
  Terms& terms = args.terms[query];
  if (!finite) {
    const double nan = __longlong_as_double(0x7ff8000000000000ll);
    set_terms(terms, nan, nan, nan, 0, args.metric);
  } else if (args.metric == TopkMetric::dot) {
    set_terms(terms, slope, level, 0, shift, args.metric);
  } else if (args.metric == TopkMetric::l2) {
    set_terms(terms, -2 * slope, -2 * level, bits ? __dadd_rn(squares, length) : squares, shift, args.metric);
  } else {
    const double norm = __dmul_rn(__dsqrt_rn(squares), __dsqrt_rn(length));
    const bool zero = norm == 0;
    set_terms(terms, zero ? 0 : __ddiv_rn(slope, norm), zero ? 0 : __ddiv_rn(level, norm), 0, shift, args.metric);
  }
}

// Bool masks [rows, N] as words of 32 documents, bit i % 32 of word i / 32; zeros beyond N. A warp makes a word.
struct PackArgs {
  const uint8_t* allow;
  int64_t stride;
  int64_t rows;
  int64_t documents;
  int64_t words;  // of a row
  uint32_t* packed;
};

static __global__ void __launch_bounds__(fold_threads) topk_pack_allow(const PackArgs args) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (fold_threads / warp_size) + threadIdx.x / warp_size;
  const int64_t row = at / args.words, document = at % args.words * warp_size + lane_index();
  const bool there = row < args.rows && document < args.documents;
  const unsigned bits = __ballot_sync(full_warp, there && args.allow[row * args.stride + document]);
  if (lane_index() == 0 && row < args.rows) args.packed[at] = bits;
}

}  // namespace simtile::cuda::topk
