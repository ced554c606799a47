// Floats: products in float32 leave few pairs to the definition in double. README.md has the bounds' story, float_bounds.hpp the bounds.
#pragma once

#include "tile/rows.hpp"
#include "topk/float_bounds.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Lines of the next panel, asked for a few at a time.
struct Ahead {
  const char* at;
  const char* end;
  SIMTILE_INLINE void lines(int64_t count) {
    for (; count > 0 && at < end; count--, at += 64) prefetch(at);
  }
};

template <typename Document, typename Query>
struct FloatScreen : FloatScores<Document, Query> {
  typedef FloatScores<Document, Query> Scores;
  using Scores::problem;
  typedef float Bar;

  static constexpr int64_t kQueryGroup = 16;
  static_assert(kQueryGroup % kLanes == 0, "a group is whole vectors");
  // Up to this many queries the rows are read as fast as memory gives them without a tile.
  static constexpr int64_t kFewQueries = 4;
  static constexpr int kStreamRows = 4;
  static constexpr bool kWidened = sizeof(Document) != sizeof(float);  // rows are copied as floats

  const int64_t dimensions;
  const int64_t padded;  // queries, whole groups
  const int64_t panel;   // documents
  const bool cosine;
  const FloatBounds bounds;

  explicit FloatScreen(const TopkProblem& p)
      : Scores(p),
        dimensions(p.dimensions),
        padded((p.queries + kQueryGroup - 1) / kQueryGroup * kQueryGroup),
        panel(panel_of(p.dimensions)),
        cosine(p.metric == TopkMetric::cosine),
        bounds(p.metric, p.dimensions, roundings(p), (p.dimensions + kLanes - 1) / kLanes + 8,
               sizeof(Document) == sizeof(double)) {}

  bool few() const { return problem.queries <= kFewQueries; }
  int64_t row_pitch() const { return (dimensions + kLanes - 1) / kLanes * kLanes; }

  struct Operands {
    QueryTerms* terms;
    float* slope;
    float* slack;
    float* packed;  // [vector of queries][dimension][lane]; for few queries [query][row_pitch]
  };
  Operands operands_at(const void* operands) const {
    char* at = static_cast<char*>(const_cast<void*>(operands)) + Scores::score_bytes();
    Operands o;
    o.terms = reinterpret_cast<QueryTerms*>(at);
    o.slope = reinterpret_cast<float*>(at + align_up(padded * static_cast<int64_t>(sizeof(QueryTerms))));
    o.slack = o.slope + padded;
    o.packed = o.slack + padded;
    return o;
  }
  int64_t operand_bytes() const {
    const int64_t packed = few() ? problem.queries * row_pitch() : padded * dimensions;
    return Scores::score_bytes() + align_up(padded * static_cast<int64_t>(sizeof(QueryTerms))) +
           (2 * padded + packed) * static_cast<int64_t>(sizeof(float));
  }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    Scores::prepare_scores(operands, begin, end);
    const double* norms = static_cast<const double*>(operands);
    const Operands o = operands_at(operands);
    for (int64_t q = begin; q < begin + kQueryGroup; q++) {
      o.terms[q] = q < end ? bounds.terms(norms[q]) : QueryTerms{0, kNoPair};
      o.slope[q] = bounds.slope(o.terms[q]);
      o.slack[q] = bounds.slack(o.terms[q]);
      if (few()) {
        if (q < end) pack(q, o.terms[q].scale, o.packed + q * row_pitch(), 1, row_pitch());
      } else {
        pack(q, o.terms[q].scale, o.packed + q / kLanes * kLanes * dimensions + q % kLanes, kLanes, dimensions);
      }
    }
  }

  Bar bar(const void* operands, int64_t query, uint32_t order) const {
    return bounds.bar(operands_at(operands).terms[query], order);
  }

  int64_t panel_documents() const { return panel; }
  int64_t panel_bytes() const {
    if (few()) return 0;
    return panel * (static_cast<int64_t>(sizeof(Length)) + kTileVectors * kVectorBytes) +
           (kWidened ? panel * row_pitch() * static_cast<int64_t>(sizeof(float)) : 0);
  }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void* scratch, const Bar* bars, Found& found) const {
    const Operands o = operands_at(operands);
    if (few()) {
      int64_t d = begin;
      for (; d + kStreamRows <= end; d += kStreamRows) stream<kStreamRows>(o, d, bars, found);
      for (; d < end; d++) stream<1>(o, d, bars, found);
      return;
    }
    Panel p;
    p.begin = begin;
    p.count = end - begin;
    p.scores = static_cast<float*>(scratch);
    float* widened = p.scores + panel * kTileVectors * kLanes;
    p.lengths = reinterpret_cast<Length*>(widened + (kWidened ? panel * row_pitch() : 0));
    p.rows = kWidened ? widened : reinterpret_cast<const float*>(document_row(problem, begin));
    p.stride = kWidened ? row_pitch() : problem.documents_stride / static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < p.count; i++) {
      const Document* row = reinterpret_cast<const Document*>(document_row(problem, begin + i));
      p.lengths[i] = bounds.length(widen_row(row, dimensions, kWidened ? widened + i * row_pitch() : nullptr));
    }
    const int64_t tiles = (padded / kLanes + kTileVectors - 1) / kTileVectors * (panel / kRowTile) *
                          ((dimensions + kRowDepth - 1) / kRowDepth);
    const char* next = document_row(problem, end);
    // Rows with wide gaps are left to the hardware.
    const int64_t bytes = problem.documents_stride <= 2 * dimensions * static_cast<int64_t>(sizeof(Document))
                              ? least<int64_t>(panel, problem.documents - end) * problem.documents_stride
                              : 0;
    p.ahead = {next, next + bytes};
    p.ahead_lines = bytes / 64 / tiles + 1;
    int64_t q = 0;
    for (; q + kTileVectors * kLanes <= problem.queries; q += kTileVectors * kLanes)
      scan_queries<kTileVectors>(o, p, q, bars, found);
    const int64_t left = problem.queries - q;
    if (kTileVectors > 2 && left > 2 * kLanes)
      scan_queries<kTileVectors>(o, p, q, bars, found);
    else if (left > kLanes)
      scan_queries<2>(o, p, q, bars, found);
    else if (left > 0)
      scan_queries<1>(o, p, q, bars, found);
  }

 private:
  struct Panel {
    int64_t begin, count;
    const float* rows;
    int64_t stride;
    Length* lengths;
    float* scores;  // [document][vectors * kLanes]
    Ahead ahead;
    int64_t ahead_lines;
  };

  // Rows of a panel stay in L2 while all queries pass: up to 256 KiB, and few enough for their scores to stay in L1.
  static int64_t panel_of(int64_t dimensions) {
    const int64_t fit = (256 << 10) / (dimensions * static_cast<int64_t>(sizeof(float))) / 64 * 64;
    return least<int64_t>(most<int64_t>(fit, 64), 128);
  }

  static int64_t roundings(const TopkProblem& p) {
    if (p.queries <= kFewQueries) return (p.dimensions + kLanes - 1) / kLanes + 8;
    return least<int64_t>(p.dimensions, kRowDepth) + p.dimensions / kRowDepth + 3;
  }

  // A query times its scale, elements `step` apart, zeros after the last and for queries that are not there.
  void pack(int64_t query, double scale, float* out, int64_t step, int64_t count) const {
    const Query* row = reinterpret_cast<const Query*>(query_row(problem, query));
    const int64_t present = scale > 0 ? dimensions : 0;
    for (int64_t i = 0; i < present; i++) out[i * step] = static_cast<float>(row[i] * scale);
    for (int64_t i = present; i < count; i++) out[i * step] = 0;
  }

  SIMTILE_INLINE Vector<float> least_product(const float* bars, const Operands& o, int64_t query,
                                             const Length& length) const {
    const Vector<float> bar = load<float>(bars + query), norm = broadcast<float>(length.norm);
    if (cosine) return bar * norm;
    return fused(fused(bar, load<float>(o.slope + query), broadcast<float>(length.squared)),
                 -load<float>(o.slack + query), norm);
  }

  template <int vectors, class Found>
  void scan_queries(const Operands& o, Panel& p, int64_t query, const Bar* bars, Found& found) const {
    constexpr int kWidth = vectors * kLanes;
    for (int64_t k = 0; k < dimensions; k += kRowDepth) {
      const int64_t depth = least<int64_t>(kRowDepth, dimensions - k);
      const float* b = o.packed + query * dimensions + k * kLanes;
      for (int64_t d = 0; d < p.count; d += kRowTile) {
        const float* a = p.rows + d * p.stride + k;
        float* out = p.scores + d * kWidth;
        p.ahead.lines(p.ahead_lines);
        if (d + kRowTile <= p.count) {
          multiply_rows<kRowTile, vectors>(a, p.stride, b, kLanes * dimensions, depth, k > 0, out);
        } else {
          for (int64_t i = 0; i < p.count - d; i++)
            multiply_rows<1, vectors>(a + i * p.stride, p.stride, b, kLanes * dimensions, depth, k > 0,
                                      out + i * kWidth);
        }
        if (k + depth == dimensions)
          compare<vectors>(o, p, d, least<int64_t>(kRowTile, p.count - d), query, bars, found);
      }
    }
  }

  template <int vectors, class Found>
  SIMTILE_INLINE void compare(const Operands& o, const Panel& p, int64_t first, int64_t rows, int64_t query,
                              const Bar* bars, Found& found) const {
    for (int v = 0; v < vectors; v++, query += kLanes) {
      const int64_t present = problem.queries - query;
      if (present <= 0) return;
      const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << least<int64_t>(present, kLanes)) - 1);
      for (int64_t i = first; i < first + rows; i++) {
        const Vector<float> product = load<float>(p.scores + (i * vectors + v) * kLanes);
        uint32_t hits = not_less(product, least_product(bars, o, query, p.lengths[i])) & mask;
        for (; __builtin_expect(hits != 0, 0); hits &= hits - 1) found.check(query + __builtin_ctz(hits), p.begin + i);
      }
    }
  }

  template <int rows, class Found>
  SIMTILE_INLINE void stream(const Operands& o, int64_t document, const Bar* bars, Found& found) const {
    int64_t q = 0;
    for (; q + 2 <= problem.queries; q += 2) stream_queries<rows, 2>(o, document, q, bars, found);
    if (q < problem.queries) stream_queries<rows, 1>(o, document, q, bars, found);
  }

  template <int rows, int queries, class Found>
  SIMTILE_INLINE void stream_queries(const Operands& o, int64_t document, int64_t query, const Bar* bars,
                                     Found& found) const {
    float products[rows][queries], squares[rows];
    dot_rows<rows, queries, Document>(document_row(problem, document), problem.documents_stride,
                                      o.packed + query * row_pitch(), row_pitch(), dimensions,
                                      rows * problem.documents_stride, products, squares);
    for (int i = 0; i < rows; i++) {
      const Length length = bounds.length(squares[i]);
      for (int j = 0; j < queries; j++) {
        const int64_t q = query + j;
        const float least_product =
            cosine ? bars[q] * length.norm : bars[q] + o.slope[q] * length.squared - o.slack[q] * length.norm;
        if (!(products[i][j] < least_product)) found.check(q, document + i);
      }
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
