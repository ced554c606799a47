// What a sum of the tiles proves about the score of codes. The score is a rising function of one integer (codes.hpp), dot = unit * sum +
// rest: the sum is what the tiles know, the rest is bounded. Without factors and addends of documents the bar is an integer too, and the
// screen exact but for the rest; with them an upper bound of the score in float32 is compared.
#pragma once

#include "topk/codes.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Up to here rows are read as they lie, and both planes are multiplied.
constexpr int64_t kFewQueries = 4;

// With a document's factor and addend, ((slope * sum + intercept) * factor + addend) + slack * |factor| is an upper bound of the score less
// its constant, turned so that larger is better.
struct ScreenQuery {
  float slope, intercept, slack;
};

template <TopkKind kind>
struct CodeBars : CodeScores<kind> {
  typedef CodeScores<kind> Scores;
  typedef typename Scores::Codes Codes;
  typedef Vector<float> Floats;
  // Without factor and addend: the sum must be greater. Else the bits of a float.
  typedef int32_t Bar;
  using Scores::descending;
  using Scores::problem;

  const bool few;       // queries
  const bool weighted;  // documents have a factor or an addend

  explicit CodeBars(const TopkProblem& p) : Scores(p), few(p.queries <= kFewQueries), weighted(p.factor || p.addend) {}

  struct Bounds {
    int64_t least, most;
  };
  // Of what the screened sum leaves out.
  SIMTILE_INLINE Bounds rest(const FoldedQuery& query) const {
    if (query.unit == 1) return {0, 0};
    return few ? Bounds{0, query.unit - 1} : Bounds{query.low_least, query.low_most};
  }

  // The least integer whose score is as good as `order`, by bisection with the very function, because that rises; then the sum that it
  // takes.
  Bar integer_bar(const FoldedQuery& query, uint32_t order) const {
    constexpr int32_t kAll = INT32_MIN, kNothing = INT32_MAX;
    if (descending ? query.slope < 0 : query.slope > 0) return kAll;  // falls: a query's scale is negative
    int64_t fails = -(int64_t{1} << 40), passes = int64_t{1} << 40;   // beyond 32768 * 255 * 65536
    while (passes - fails > 1) {
      const int64_t middle = fails + (passes - fails) / 2;
      if (order_of_product(query, middle) <= order)
        passes = middle;
      else
        fails = middle;
    }
    const int64_t wanted = passes - rest(query).most;
    const int64_t sum = wanted >= 0 ? (wanted + query.unit - 1) / query.unit : -(-wanted / query.unit);
    return sum - 1 < kAll ? kAll : sum - 1 > kNothing ? kNothing : static_cast<int32_t>(sum - 1);
  }
  SIMTILE_INLINE uint32_t order_of_product(const FoldedQuery& query, int64_t product) const {
    double value = query.slope * static_cast<double>(product) + query.intercept;
    value = value + query.constant;
    if (problem.metric == TopkMetric::l2 && value < 0) value = 0;
    return order_of(static_cast<float>(value), descending);
  }

  // Twenty roundings of 2^-24 each, of terms that are no larger than the sum of the magnitudes of all.
  static constexpr double kRounding = 1.0 / (1 << 20);
  // Above what is lost where a float underflows, also where subnormals are flushed.
  static constexpr double kUnderflow = 1e-30;

  SIMTILE_INLINE static double magnitude(double x) { return x < 0 ? -x : x; }

  ScreenQuery screen_query(const FoldedQuery& query) const {
    if (!(query.slope - query.slope == 0)) return {0, 0, 0};  // NaN: see float_bar
    const double sign = descending ? 1 : -1, slope = sign * query.slope, intercept = sign * query.intercept;
    const Bounds bounds = rest(query);
    const double middle = 0.5 * static_cast<double>(bounds.least + bounds.most);
    const double radius = 0.5 * static_cast<double>(bounds.most - bounds.least);
    const double unit = static_cast<double>(query.unit);
    const double largest_code = most<int>(-Codes::kLeast, Codes::kMost);
    const double largest_sum =
        unit * (static_cast<double>(query.high_size) + static_cast<double>(query.low_size) / 256 + 1) * largest_code;
    const double all = magnitude(slope) * (largest_sum + magnitude(middle) + radius) + magnitude(intercept);
    return {static_cast<float>(slope * unit), static_cast<float>(intercept + slope * middle),
            static_cast<float>(magnitude(slope) * radius + kRounding * all + kUnderflow)};
  }

  // What (slope * sum + intercept) * factor + addend must not be below. A NaN is never above a score: it passes.
  Bar float_bar(const FoldedQuery& query, uint32_t order) const {
    const double sign = descending ? 1 : -1, score = score_of(order, descending);
    const double constant = sign * query.constant;
    float bar =
        static_cast<float>(sign * score - constant - kRounding * (magnitude(score) + magnitude(constant)) - kUnderflow);
    if (!(query.slope - query.slope == 0)) bar = __builtin_inff();  // scores nothing
    Bar bits;
    __builtin_memcpy(&bits, &bar, 4);
    return bits;
  }

  // The lanes in which a pair may be as good as its bar. What leaves the range of float32 on the way passes.
  SIMTILE_INLINE static uint32_t passing(Ints sum, Floats slope, Floats intercept, Floats slack, Floats factor,
                                         Floats addend, Floats bar) {
    const Floats absolute = factor < 0.0f ? -factor : factor;
    const Floats raised = (addend < 0.0f ? -addend : addend) * static_cast<float>(kRounding) + addend;
    const Floats score =
        (__builtin_convertvector(sum, Floats) * slope + intercept) * factor + slack * absolute + raised;
    return ~dropped(score, bar) & static_cast<uint32_t>((uint64_t{1} << kWords) - 1);
  }
  SIMTILE_INLINE static uint32_t dropped(Floats score, Floats bar) {
    const Floats lowest = broadcast<float>(-3.0e38f);
#if defined(__AVX512F__)
    const __mmask16 below = _mm512_cmp_ps_mask((__m512)score, (__m512)bar, _CMP_LT_OQ);
    return _mm512_mask_cmp_ps_mask(below, (__m512)score, (__m512)lowest, _CMP_GT_OQ);
#else
    return lanes_above((Ints)((score < bar) & (score > lowest)) & 1, Ints{});
#endif
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
