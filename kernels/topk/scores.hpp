// The definition of every score, one pair at a time: what the tiles only estimate is computed here before it counts. README.md has the
// formulas.
#pragma once

#include "topk/keys.hpp"
#include "topk/lane_sum.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

SIMTILE_INLINE const char* query_row(const TopkProblem& problem, int64_t query) {
  return static_cast<const char*>(problem.queries_data) + query * problem.queries_stride;
}
SIMTILE_INLINE const char* document_row(const TopkProblem& problem, int64_t document) {
  return static_cast<const char*>(problem.documents_data) + document * problem.documents_stride;
}

SIMTILE_INLINE int64_t align_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Each class below has: the bytes of what it computes once for the queries, `prepare` for some of them, and `order` of a pair, in which
// `operands` are those bytes.

// Hamming distance of packed bits.
struct PackedScores {
  const TopkProblem& problem;
  const int64_t row_bytes;

  explicit PackedScores(const TopkProblem& p) : problem(p), row_bytes((p.dimensions + 7) / 8) {}

  static constexpr bool kEstimates = false;

  int64_t score_bytes() const { return 0; }
  void prepare_scores(void*, int64_t, int64_t) const {}

  uint32_t order(const void*, int64_t query, int64_t document) const {
    const char* a = query_row(problem, query);
    const char* b = document_row(problem, document);
    int64_t distance = 0, at = 0;
    for (; at + 8 <= row_bytes; at += 8) {
      uint64_t x, y;
      __builtin_memcpy(&x, a + at, 8);
      __builtin_memcpy(&y, b + at, 8);
      distance += __builtin_popcountll(x ^ y);
    }
    for (; at < row_bytes; at++) distance += __builtin_popcount(static_cast<unsigned char>(a[at] ^ b[at]));
    return static_cast<uint32_t>(distance);
  }
};

// Dot products, cosines and squared distances of floats, in double.
template <typename Document, typename Query>
struct FloatScores {
  const TopkProblem& problem;
  const bool descending;

  explicit FloatScores(const TopkProblem& p) : problem(p), descending(is_descending(p.metric)) {}

  // The queries' norms.
  int64_t score_bytes() const { return align_up(problem.queries * static_cast<int64_t>(sizeof(double))); }
  void prepare_scores(void* operands, int64_t begin, int64_t end) const {
    for (int64_t q = begin; q < end; q++) {
      const Query* row = reinterpret_cast<const Query*>(query_row(problem, q));
      static_cast<double*>(operands)[q] = __builtin_sqrt(dot(row, row, problem.dimensions));
    }
  }

  uint32_t order(const void* operands, int64_t query, int64_t document) const {
    const Query* q = reinterpret_cast<const Query*>(query_row(problem, query));
    const Document* d = reinterpret_cast<const Document*>(document_row(problem, document));
    return order_of(value(q, d, static_cast<const double*>(operands)[query]), descending);
  }

 private:
  float value(const Query* q, const Document* d, double query_norm) const {
    const int64_t count = problem.dimensions;
    if (problem.metric == TopkMetric::l2) return static_cast<float>(squared_distance(q, d, count));
    if (problem.metric == TopkMetric::dot) return static_cast<float>(dot(q, d, count));
    double square;
    const double product = dot_and_square(q, d, count, square);
    const double norms = query_norm * __builtin_sqrt(square);
    return static_cast<float>(norms == 0 ? 0 * product : product / norms);  // NaN of an infinity stays
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
