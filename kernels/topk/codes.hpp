// Float queries against integer codes: the query takes in step and offset, is rounded to 15 bits, and the dot product is an exact integer.
#pragma once

#include "tile/i8.hpp"
#include "topk/scores.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr double kLargestQuery = 32639;  // 127 * 256 + 127: both planes are int8

template <TopkKind kind>
struct CodesOf;
template <>
struct CodesOf<TopkKind::int8> {
  typedef SignedBytes Type;
};
template <>
struct CodesOf<TopkKind::uint8> {
  typedef UnsignedBytes Type;
};
template <>
struct CodesOf<TopkKind::int4> {
  typedef SignedNibbles Type;
};
template <>
struct CodesOf<TopkKind::bits> {  // 0 and 1, that stand for -1 and 1
  typedef SingleBits Type;
};

// value = ((slope * dot + intercept) * factor + addend) + constant, in double.
struct FoldedQuery {
  double slope, intercept, constant;
  // dot = unit * (sum of high * code) + (sum of low * code). 256 for float queries; 1, and low = 0, for integer ones.
  int64_t unit;
  // What is subtracted from sums with stored codes (tile/i8.hpp) to get those with codes.
  int32_t high_shift, low_shift;
  int64_t high_size, low_size;  // sums of magnitudes
  int64_t low_least, low_most;  // bounds of the sum of low * code
};

template <TopkKind kind>
struct CodeScores {
  typedef typename CodesOf<kind>::Type Codes;
  typedef ByteRows<Codes> Rows;

  const TopkProblem& problem;
  const bool descending;
  const Chunks chunks;  // of a row
  const int64_t pitch;  // bytes of a plane

  explicit CodeScores(const TopkProblem& p)
      : problem(p),
        descending(is_descending(p.metric)),
        chunks(Rows::chunks(p.dimensions)),
        pitch(align_up(Rows::plane_bytes(p.dimensions))) {}

  // [Q] FoldedQuery, then [Q] planes high and low of `pitch` bytes, in the order of tile/i8.hpp.
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
      __builtin_memset(planes, 0, static_cast<size_t>(2 * pitch));
      FoldedQuery& folded = static_cast<FoldedQuery*>(operands)[q];
      folded = problem.integer_queries ? fold_integers(q, planes) : fold_floats(q, planes, planes + pitch);
      measure(planes, folded);
    }
  }

  uint32_t order(const void* operands, int64_t query, int64_t document) const {
    ShortRows<1> copy;
    const ByteBlock block = copy.block(document_row(problem, document), 0, 1, chunks);
    Ints high_sum[1], low_sum[1];
    multiply_code_rows<Codes, 1>(block, 0, 0, high(operands, query), low(operands, query), 0, high_sum, low_sum);
    const FoldedQuery& folded_query = folded(operands, query);
    return order_of_dots(folded_query, document, int64_t{sum_of(high_sum[0])} - folded_query.high_shift,
                         int64_t{sum_of(low_sum[0])} - folded_query.low_shift);
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
    if (kind == TopkKind::bits) return static_cast<double>(problem.dimensions);
    const char* row = document_row(problem, document);
    LaneSums sums;
    int64_t at = 0;
    for (; at + kSums <= problem.dimensions; at += kSums) {
      CodeInts codes[LaneSums::kParts];
      load_codes(row, at, codes);
      add_squares(sums, codes, problem.scale ? problem.scale + at : nullptr,
                  problem.offset ? problem.offset + at : nullptr);
    }
    if (at < problem.dimensions) {
      char last[kSums] = {};
      float last_scale[kSums] = {}, last_offset[kSums] = {};
      const int64_t left = problem.dimensions - at;
      const int64_t first_byte = at / Codes::kPerByte;
      for (int64_t i = 0; i < chunks.row_bytes - first_byte; i++) last[i] = row[first_byte + i];
      for (int64_t i = 0; i < left; i++) {
        last_scale[i] = problem.scale ? problem.scale[at + i] : 1.0f;
        last_offset[i] = problem.offset ? problem.offset[at + i] : 0.0f;
      }
      CodeInts codes[LaneSums::kParts];
      load_codes(last, 0, codes);
      add_squares(sums, codes, last_scale, last_offset);  // adds 0 where there is no element
    }
    return sums.total();
  }

 private:
  SIMTILE_INLINE int64_t planes_offset() const {
    return align_up(problem.queries * static_cast<int64_t>(sizeof(FoldedQuery)));
  }
  SIMTILE_INLINE double scale(int64_t i) const { return problem.scale ? problem.scale[i] : 1.0; }
  SIMTILE_INLINE double offset(int64_t i) const { return problem.offset ? problem.offset[i] : 0.0; }

  typedef int32_t CodeInts __attribute__((vector_size(32)));

  // 32 codes from element `at` on, a multiple of 32.
  SIMTILE_INLINE static void load_codes(const char* row, int64_t at, CodeInts (&codes)[LaneSums::kParts]) {
    typedef typename CodesOf<kind>::Type C;
    if constexpr (C::kPerByte == 1) {
      typedef signed char Signed __attribute__((vector_size(8), aligned(1), may_alias));
      typedef unsigned char Unsigned __attribute__((vector_size(8), aligned(1), may_alias));
      for (int p = 0; p < LaneSums::kParts; p++) {
        const char* from = row + at + 8 * p;
        if constexpr (C::kLeast < 0)
          codes[p] = __builtin_convertvector(*reinterpret_cast<const Signed*>(from), CodeInts);
        else
          codes[p] = __builtin_convertvector(*reinterpret_cast<const Unsigned*>(from), CodeInts);
      }
    } else {  // nibbles
      for (int p = 0; p < LaneSums::kParts; p++) {
        uint32_t eight;
        __builtin_memcpy(&eight, row + at / 2 + 4 * p, 4);
        const CodeInts shifts = {28, 24, 20, 16, 12, 8, 4, 0};
        typedef uint32_t Unsigned __attribute__((vector_size(32)));
        codes[p] = (CodeInts)((eight - Unsigned{}) << (Unsigned)shifts) >> 28;
      }
    }
  }

  SIMTILE_INLINE static void add_squares(LaneSums& sums, const CodeInts (&codes)[LaneSums::kParts], const float* scale,
                                         const float* offset) {
    for (int p = 0; p < LaneSums::kParts; p++) {
      LaneSums::Part x = __builtin_convertvector(codes[p], LaneSums::Part), y;
      if (scale) {
        load_doubles(y, scale + p * LaneSums::kLanes);
        x = y * x;
      }
      if (offset) {
        load_doubles(y, offset + p * LaneSums::kLanes);
        x = x + y;
      }
      sums.part[p] += x * x;
    }
  }

  SIMTILE_INLINE void measure(const int8_t* planes, FoldedQuery& folded) const {
    int64_t sum[2] = {}, size[2] = {};
    for (int plane = 0; plane < 2; plane++)
      for (int64_t i = 0; i < pitch; i++) {
        const int8_t x = planes[plane * pitch + i];
        sum[plane] += x;
        size[plane] += x < 0 ? -x : x;
      }
    folded.high_shift = static_cast<int32_t>(Codes::kShift * sum[0]);
    folded.low_shift = static_cast<int32_t>(Codes::kShift * sum[1]);
    folded.high_size = size[0];
    folded.low_size = size[1];
    const int64_t positive = (size[1] + sum[1]) / 2, negative = (sum[1] - size[1]) / 2;
    folded.low_least = Codes::kLeast * positive + Codes::kMost * negative;
    folded.low_most = Codes::kMost * positive + Codes::kLeast * negative;
  }

  // `step`: what a unit of the rounded query is worth; `base`: the part of the dot product without codes.
  SIMTILE_INLINE FoldedQuery finish(double step, double base, double squared, int64_t unit) const {
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
    return {slope, intercept, constant, unit, 0, 0, 0, 0, 0, 0};
  }

  // All scores are NaN.
  SIMTILE_INLINE static FoldedQuery unknown() {
    const double none = __builtin_nan("");
    return {none, none, none, 256, 0, 0, 0, 0, 0, 0};
  }

  FoldedQuery fold_integers(int64_t query, int8_t* plane) const {
    const int8_t* codes = reinterpret_cast<const int8_t*>(query_row(problem, query));
    const double step = problem.query_scale ? problem.query_scale[query] : 1.0;
    if (!(step - step == 0)) return unknown();
    double squares[kSums] = {};
    for (int64_t i = 0; i < problem.dimensions; i++) {
      plane[Rows::plane_position(chunks, i)] = codes[i];
      const double x = step * codes[i];
      squares[i % kSums] += x * x;
    }
    return finish(step, 0, total(squares), 1);
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
    if (!(squared - squared == 0) || !(largest - largest == 0)) return unknown();
    const double units = largest > 0 ? kLargestQuery / largest : 0;
    for (int64_t i = 0; i < problem.dimensions; i++) {
      const int rounded = static_cast<int>(__builtin_rint(x[i] * scale(i) * units));
      const int low = ((rounded + 128) & 255) - 128;
      const int64_t at = Rows::plane_position(chunks, i);
      low_plane[at] = static_cast<int8_t>(low);
      high_plane[at] = static_cast<int8_t>((rounded - low) / 256);
    }
    return finish(largest / kLargestQuery, total(base), squared, 256);
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
