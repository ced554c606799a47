// Float queries against integer codes: the query takes in step and offset, is rounded to 15 bits, and the dot product is an exact integer.
#pragma once

#include "topk/scores.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr double kLargestQuery = 32639;  // 127 * 256 + 127: both planes are int8

// Codes as int, eight dimensions at a time where a row is packed.
template <TopkKind kind>
struct Codes;

template <>
struct Codes<TopkKind::int8> {
  static constexpr bool kSigned = true;
  SIMTILE_INLINE static int64_t row_bytes(int64_t dimensions) { return dimensions; }
  SIMTILE_INLINE static int at(const char* row, int64_t i) { return static_cast<signed char>(row[i]); }
};
template <>
struct Codes<TopkKind::uint8> {
  SIMTILE_INLINE static int64_t row_bytes(int64_t dimensions) { return dimensions; }
  SIMTILE_INLINE static int at(const char* row, int64_t i) { return static_cast<unsigned char>(row[i]); }
};
template <>
struct Codes<TopkKind::int4> {  // the even dimension in the low half
  SIMTILE_INLINE static int64_t row_bytes(int64_t dimensions) { return (dimensions + 1) / 2; }
  SIMTILE_INLINE static int at(const char* row, int64_t i) {
    const int half = static_cast<unsigned char>(row[i / 2]) >> (4 * (i % 2)) & 15;
    return (half ^ 8) - 8;
  }
};
template <>
struct Codes<TopkKind::bits> {  // 0 and 1, that stand for -1 and 1; the first dimension in the highest bit
  SIMTILE_INLINE static int64_t row_bytes(int64_t dimensions) { return (dimensions + 7) / 8; }
  SIMTILE_INLINE static int at(const char* row, int64_t i) {
    return static_cast<unsigned char>(row[i / 8]) >> (7 - i % 8) & 1;
  }
};

// value = ((slope * dot + intercept) * factor + addend) + constant, in double.
struct FoldedQuery {
  double slope, intercept, constant;
  // dot = unit * (sum of high * code) + (sum of low * code). 256 for float queries; 1, and low = 0, for integer ones.
  int64_t unit;
  int64_t low_size;  // sum of |low|
};

template <TopkKind kind>
struct CodeScores {
  const TopkProblem& problem;
  const bool descending;
  const int64_t pitch;  // bytes of a plane

  explicit CodeScores(const TopkProblem& p)
      : problem(p), descending(is_descending(p.metric)), pitch(align_up(p.dimensions)) {}

  // [Q] FoldedQuery, then [Q] planes high and low of `pitch` bytes, zeros after the last dimension.
  int64_t score_bytes() const { return planes_offset() + problem.queries * 2 * pitch; }
  SIMTILE_INLINE const FoldedQuery& folded(const void* operands, int64_t query) const {
    return static_cast<const FoldedQuery*>(operands)[query];
  }
  SIMTILE_INLINE const int8_t* high(const void* operands, int64_t query) const {
    return reinterpret_cast<const int8_t*>(static_cast<const char*>(operands) + planes_offset() + query * 2 * pitch);
  }
  SIMTILE_INLINE const int8_t* low(const void* operands, int64_t query) const { return high(operands, query) + pitch; }

  void prepare_scores(void* operands, int64_t begin, int64_t end) const {
    for (int64_t q = begin; q < end; q++) {
      int8_t* planes = const_cast<int8_t*>(high(operands, q));
      for (int64_t i = 0; i < 2 * pitch; i++) planes[i] = 0;
      static_cast<FoldedQuery*>(operands)[q] =
          problem.integer_queries ? fold_integers(q, planes) : fold_floats(q, planes, planes + pitch);
    }
  }

  uint32_t order(const void* operands, int64_t query, int64_t document) const {
    const char* row = document_row(problem, document);
    const int8_t *high_plane = high(operands, query), *low_plane = low(operands, query);
    int64_t high_dot = 0, low_dot = 0;
    for (int64_t i = 0; i < problem.dimensions; i++) {
      const int code = Codes<kind>::at(row, i);
      high_dot += high_plane[i] * code;
      low_dot += low_plane[i] * code;
    }
    return order_of_dots(folded(operands, query), document, high_dot, low_dot);
  }

  SIMTILE_INLINE uint32_t order_of_dots(const FoldedQuery& query, int64_t document, int64_t high_dot,
                                        int64_t low_dot) const {
    const double product = static_cast<double>(query.unit * high_dot + low_dot);
    double value = query.slope * product + query.intercept;
    if (problem.factor) value = value * problem.factor[document];
    if (problem.addend) value = value + problem.addend[document];
    value = value + query.constant;
    if (problem.metric == TopkMetric::l2 && value < 0) value = 0;
    return order_of(static_cast<float>(value), descending);
  }

  // The squared norm of what a row of codes stands for.
  double squared_norm(int64_t document) const {
    const char* row = document_row(problem, document);
    LaneSums sums;
    double lanes[kSums] = {};
    for (int64_t i = 0; i < problem.dimensions; i++) {
      const double x = kind == TopkKind::bits ? 1.0 : scale(i) * Codes<kind>::at(row, i) + offset(i);
      lanes[i % kSums] += x * x;
    }
    __builtin_memcpy(sums.part, lanes, sizeof lanes);
    return sums.total();
  }

 private:
  SIMTILE_INLINE int64_t planes_offset() const {
    return align_up(problem.queries * static_cast<int64_t>(sizeof(FoldedQuery)));
  }
  SIMTILE_INLINE double scale(int64_t i) const { return problem.scale ? problem.scale[i] : 1.0; }
  SIMTILE_INLINE double offset(int64_t i) const { return problem.offset ? problem.offset[i] : 0.0; }

  // `step`: what a unit of the rounded query is worth; `base`: the part of the dot product without codes.
  SIMTILE_INLINE FoldedQuery finish(double step, double base, double squared, int64_t unit, int64_t low_size) const {
    const bool bits = kind == TopkKind::bits;  // x = 2 code - 1
    double slope = bits ? 2 * step : step, intercept = base, constant = 0;
    if (problem.metric == TopkMetric::cosine) {
      const double norm = bits ? __builtin_sqrt(squared) * __builtin_sqrt(static_cast<double>(problem.dimensions))
                               : __builtin_sqrt(squared);
      slope = norm == 0 ? 0 : slope / norm;
      intercept = norm == 0 ? 0 : intercept / norm;
    } else if (problem.metric == TopkMetric::l2) {
      slope *= -2;
      intercept *= -2;
      constant = bits ? squared + static_cast<double>(problem.dimensions) : squared;
    }
    return {slope, intercept, constant, unit, low_size};
  }

  FoldedQuery fold_integers(int64_t query, int8_t* plane) const {
    const int8_t* codes = reinterpret_cast<const int8_t*>(query_row(problem, query));
    const double step = problem.query_scale ? problem.query_scale[query] : 1.0;
    double squares[kSums] = {};
    for (int64_t i = 0; i < problem.dimensions; i++) {
      plane[i] = codes[i];
      const double x = step * codes[i];
      squares[i % kSums] += x * x;
    }
    return finish(step, 0, total(squares), 1, 0);
  }

  FoldedQuery fold_floats(int64_t query, int8_t* high_plane, int8_t* low_plane) const {
    const float* x = reinterpret_cast<const float*>(query_row(problem, query));
    double base[kSums] = {}, squares[kSums] = {}, largest = 0;
    for (int64_t i = 0; i < problem.dimensions; i++) {
      const double element = x[i], weight = element * scale(i);
      const double magnitude = weight < 0 ? -weight : weight;
      if (!(magnitude <= largest)) largest = magnitude;
      base[i % kSums] += element * (kind == TopkKind::bits ? -1.0 : offset(i));
      squares[i % kSums] += element * element;
    }
    // A NaN can be overtaken by what comes after it, but not in this sum.
    const double squared = total(squares);
    if (!(squared - squared == 0) || !(largest - largest == 0)) {
      const double none = __builtin_nan("");
      return {none, none, none, 256, 0};
    }
    const double units = largest > 0 ? kLargestQuery / largest : 0;
    int64_t low_size = 0;
    for (int64_t i = 0; i < problem.dimensions; i++) {
      const int rounded = static_cast<int>(__builtin_rint(x[i] * scale(i) * units));
      const int low = ((rounded + 128) & 255) - 128;
      low_plane[i] = static_cast<int8_t>(low);
      high_plane[i] = static_cast<int8_t>((rounded - low) / 256);
      low_size += low < 0 ? -low : low;
    }
    return finish(largest / kLargestQuery, total(base), squared, 256, low_size);
  }

  SIMTILE_INLINE static double total(const double (&lanes)[kSums]) {
    LaneSums sums;
    __builtin_memcpy(sums.part, lanes, sizeof lanes);
    return sums.total();
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
