// Scores of float documents: the definition in double by a warp, and bounds of it from float32.
#pragma once

#include "topk/block.cuh"
#include "topk/fold.cuh"

namespace simtile::cuda::topk {

// Elements of a document, widened exactly.
struct Float32 {
  static constexpr int bytes = 4;
  static __device__ float at(const uint8_t* row, int i) { return reinterpret_cast<const float*>(row)[i]; }
  static __device__ float of(const unsigned* words, int i) { return __uint_as_float(words[i]); }
};

struct Float16 {
  static constexpr int bytes = 2;
  static __device__ float at(const uint8_t* row, int i) {
    return half_to_float(reinterpret_cast<const unsigned short*>(row)[i]);
  }
  static __device__ float of(const unsigned* words, int i) {
    return half_to_float(static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2)));
  }
};

struct BFloat16 {
  static constexpr int bytes = 2;
  static __device__ float at(const uint8_t* row, int i) {
    return __uint_as_float(static_cast<unsigned>(reinterpret_cast<const unsigned short*>(row)[i]) << 16);
  }
  static __device__ float of(const unsigned* words, int i) {
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
};

// What a query has in its Terms: its norm is the slope, the rest is for bounds.
struct NormsArgs {
  const uint8_t* queries;  // float32 [Q, D]
  int64_t queries_stride;
  int64_t query_count;
  int dim;
  TopkMetric metric;
  Terms* terms;  // [Q] out
};

// One warp a query.
static __global__ void __launch_bounds__(fold_threads) topk_norms(const NormsArgs args) {
  const int64_t query = static_cast<int64_t>(blockIdx.x) * (fold_threads / warp_size) + threadIdx.x / warp_size;
  if (query >= args.query_count) return;
  const float* row = reinterpret_cast<const float*>(args.queries + query * args.queries_stride);
  const double squares =
      lane_sum(args.dim, [&](int i) { return __dmul_rn(static_cast<double>(row[i]), static_cast<double>(row[i])); });
  if (lane_index() > 0) return;
  const double norm = __dsqrt_rn(squares);
  Terms terms = {};
  terms.slope = norm;
  terms.most_slope = at_least(norm);
  terms.cost_constant = __double2float_rn(squares);
  // Outside of what float32 can divide by, NaN: no bound.
  const bool usable = norm > 0x1p-40 && norm < 0x1p60;
  terms.cost_slope = usable ? __double2float_rn(__ddiv_rn(1.0, norm)) : __uint_as_float(0x7fffffffu);
  args.terms[query] = terms;
}

// The order of one document for one query, by the whole warp; every lane gets it.
template <class Element>
__device__ inline unsigned float_order(const Corpus& corpus, const float* query, double query_norm, int64_t document) {
  const uint8_t* row = corpus.documents + document * corpus.documents_stride;
  const auto q = [&](int i) { return static_cast<double>(query[i]); };
  const auto d = [&](int i) { return static_cast<double>(Element::at(row, i)); };
  if (corpus.metric == TopkMetric::l2) {
    const double sum = lane_sum(corpus.dim, [&](int i) {
      const double difference = __dadd_rn(q(i), -d(i));
      return __dmul_rn(difference, difference);
    });
    return order_score(sum, TopkMetric::l2);
  }
  double score = lane_sum(corpus.dim, [&](int i) { return __dmul_rn(q(i), d(i)); });
  if (corpus.metric == TopkMetric::cosine) {
    const double squares = lane_sum(corpus.dim, [&](int i) { return __dmul_rn(d(i), d(i)); });
    const double norms = __dmul_rn(query_norm, __dsqrt_rn(squares));
    score = norms == 0 ? 0 : __ddiv_rn(score, norms);
  }
  return order_score(score, corpus.metric);
}

// Of sums in float32: how far they are off, relative to the sum of magnitudes. A lane adds an eighth of the terms one by one, and then
// lanes are added in three steps; 2^-24 for each, and room for what the bounds themselves round.
__host__ __device__ inline float sum_error(int dim) { return static_cast<float>(dim / 8 + 32) * 0x1.1p-24f; }

// No more than the cost of a document, or NaN where float32 cannot say. dot and squares are Σ q d and Σ d d in float32, off by at most
// error ‖q‖ ‖d‖ and error ‖d‖², and by 2^-149 for each product that underflows: less than 2^-126 in all, as no row has more than 2^15.
__device__ inline float least_float_cost(const Terms& terms, float dot, float squares, float error, TopkMetric metric) {
  if (metric == TopkMetric::l2) {
    // ‖q‖² + ‖d‖² - 2 q d: 2.25 error (‖q‖² + ‖d‖²), with 2 ‖q‖ ‖d‖ at most that sum and the four roundings here.
    const float both = terms.cost_constant + squares;
    return fmaf(-2.0f, dot, both) - fmaf(3 * error, both, 0x1p-125f);
  }
  if (metric == TopkMetric::cosine) {
    // Within these limits neither underflow nor overflow reaches the result; |cosine| is at most 1.
    if (!(squares > 0x1p-60f && squares < 0x1p120f)) return __uint_as_float(0x7fffffffu);
    return -dot * terms.cost_slope / sqrtf(squares) - 3 * error;
  }
  // ‖d‖ is at most sqrt(squares (1 + 2 error) + 2^-126).
  const float norm = sqrtf(fmaf(squares, 1 + 2 * error, 0x1p-125f));
  return -dot - fmaf(1.01f * error * terms.most_slope, norm, 0x1p-125f);
}

}  // namespace simtile::cuda::topk
