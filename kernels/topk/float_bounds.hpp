// What a product in float32, or of rows rounded to bfloat16, proves about a score that is defined in double.
//
// A query is scaled by a power of two to a norm in [1, 2). For its computed product p with a document d
//     |p - query . d| <= slack * n + norm * r
// where n is the computed norm of d and r that of its rounding. A pair can only pass when
//     dot, l2   p >= bar + slope * squared - slack * n - norm * r        (slope is 0 for dot; squared is n^2, lowered by its error)
//     cosine    p >= bar * n - slack * n - norm * r
// and from a product that passes, bounds of the score itself follow (`estimate`).
// Bounds are those of recursive summation (N. Higham: Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, section 3.1) and,
// for rounding, Cauchy and Schwarz's with the norms of what was really rounded off.
#pragma once

#include "topk/keys.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr double power(int exponent) {
  return exponent < 0 ? 0.5 * power(exponent + 1) : exponent > 0 ? 2 * power(exponent - 1) : 1;
}

struct QueryTerms {
  double norm;   // scaled
  double scale;  // a power of two; or one of the two below
};
constexpr double kEveryPair = 0;  // nothing is known of the products
constexpr double kNoPair = -1;    // all scores are NaN

// What is known of a document. NaN, which lets all pairs pass, where sums of squares may have left the range of floats.
struct Length {
  float norm, squared, rounded;
};

// No score is worse than the one that `order` stands for, nor better than it by more than `width`.
struct Estimate {
  uint32_t order;
  float width;
};

class FloatBounds {
 public:
  // `roundings` on the way of a product into a sum, and of a square into a norm. `narrowed`: both factors were rounded to float32.
  FloatBounds(TopkMetric metric, int64_t dimensions, int64_t roundings, int64_t norm_roundings, bool narrowed)
      : metric_(metric), dimensions_(static_cast<double>(dimensions)) {
    const double rounded = narrowed ? power(-22) : 0;
    // In turn: sums; the definition's own rounding in double; squares below the smallest float.
    norm_error_ = gamma(norm_roundings) + rounded + dimensions_ * power(-46) + power(-22);
    product_error_ = (gamma(roundings) + rounded + dimensions_ * power(-51) + power(-45) +
                      __builtin_sqrt(dimensions_) * power(-32)) *
                     (1 + norm_error_) * (1 + power(-10));
    if (norm_error_ > 0.25) product_error_ = __builtin_inf();
    squared_factor_ = static_cast<float>(1 - norm_error_ - power(-20));
  }

  QueryTerms terms(double norm) const {
    if (norm != norm) return {0, kNoPair};
    // l2 needs the scale as a float.
    const int most = metric_ == TopkMetric::l2 ? 60 : 500;
    if (norm != 0 && !(norm >= power(-most) && norm <= power(most))) return {0, kEveryPair};
    double scale = 1;
    if (norm != 0) {
      uint64_t bits;
      __builtin_memcpy(&bits, &norm, 8);
      bits = (2046 - (bits >> 52)) << 52;
      __builtin_memcpy(&scale, &bits, 8);
    }
    return {norm * scale, scale};
  }

  float slope(const QueryTerms& query) const {
    return metric_ == TopkMetric::l2 && query.scale > 0 ? static_cast<float>(query.scale / 2) : 0;
  }
  // `rounded`: the norm of what rounding the query took away.
  float slack(const QueryTerms& query, double rounded) const {
    if (query.scale <= 0) return 0;
    return static_cast<float>((product_error_ * (query.norm + rounded) + rounded * (1 + norm_error_)) *
                              (1 + power(-6)));
  }
  // What multiplies the norm of a document's rounding: that of the rounded query.
  float norm(const QueryTerms& query, double rounded) const {
    return query.scale > 0 ? static_cast<float>((query.norm + rounded) * (1 + norm_error_) * (1 + power(-20))) : 0;
  }

  // What the product p proves, which cannot be further from the exact one than `error`. The query's scale is known and the length is.
  Estimate estimate(const QueryTerms& query, double p, double error, const Length& length) const {
    const double low = p - error, high = p + error;
    if (metric_ == TopkMetric::cosine) {
      const double norms = query.norm * length.norm;
      return between(low / norms, high / norms, norm_error_, true);
    }
    if (metric_ == TopkMetric::dot) return between(low / query.scale, high / query.scale, 0, true);
    const double norm = query.norm / query.scale, squared = norm * norm;
    const double definition = (squared + length.squared) * (power(-40) + dimensions_ * power(-50));
    const double longest = length.squared / squared_factor_ * (1 + norm_error_ + power(-20));
    return between(squared + longest - 2 * low / query.scale + definition,
                   squared + length.squared - 2 * high / query.scale - definition, 0, false);
  }

  // From ||d||^2, and that of its rounding.
  Length length(float squared, float rounded) const {
    const bool known = squared >= static_cast<float>(power(-60)) && squared <= static_cast<float>(power(80));
    const float s = known ? squared : __builtin_nanf("");
    return {__builtin_sqrtf(s), s * squared_factor_, __builtin_sqrtf(rounded)};
  }
  // Of a row of zeros. Its product is 0, and with a norm above 0 a positive bar keeps it out.
  Length nothing() const { return {static_cast<float>(power(-30)), 0, 0}; }

  float bar(const QueryTerms& query, uint32_t order) const {
    if (query.scale <= 0) return query.scale == kNoPair ? __builtin_inff() : -__builtin_inff();
    const bool descending = is_descending(metric_);
    const float worst = score_of(order, descending);
    // NaN is what the orders after all scores stand for.
    if (worst != worst || worst == (descending ? -__builtin_inff() : __builtin_inff())) return -__builtin_inff();
    const double score = least<double>(most<double>(worst, -3.5e38), 3.5e38), size = score < 0 ? -score : score;
    const double rounding = size * power(-23) + power(-148);  // of the score itself
    double value;
    if (metric_ == TopkMetric::dot) {
      value = (score - rounding) * query.scale;
    } else if (metric_ == TopkMetric::cosine) {
      value = query.norm * (score - rounding - (size + rounding) * norm_error_);
    } else {
      // ||q||^2 + ||d||^2 - 2 q.d <= score
      const double error = power(-40) + dimensions_ * power(-50);
      value =
          query.norm * query.norm / query.scale / 2 * (1 - error) - query.scale / 2 * (score + rounding + size * error);
    }
    // Rounding here and where it is used.
    value -= (value < 0 ? -value : value) * power(-20) + power(-100);
    if (value < -power(100)) return -__builtin_inff();
    return static_cast<float>(least<double>(value, power(100)));
  }

 private:
  // Scores between both, either of which may be off by its relative error, and by that of the score's own rounding.
  static Estimate between(double worst, double best, double relative, bool descending) {
    const double away = descending ? 1 : -1;
    relative += power(-20);
    worst -= away * ((worst < 0 ? -worst : worst) * relative + power(-140));
    best += away * ((best < 0 ? -best : best) * relative + power(-140));
    const float rounded = static_cast<float>(worst);
    const double width = away * (best - static_cast<double>(rounded)) * (1 + power(-20));
    return {order_of(rounded, descending), static_cast<float>(width)};
  }

  static double gamma(int64_t roundings) {
    const double x = static_cast<double>(roundings) * power(-24);
    return x < 0.5 ? x / (1 - x) : __builtin_inf();
  }

  TopkMetric metric_;
  double dimensions_;
  double product_error_;  // relative to both norms
  double norm_error_;     // of squared norms, relative
  float squared_factor_;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
