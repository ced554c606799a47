// Floats: products in float32 say how good a score is within a few units of its last places, which leaves hardly more than k pairs of a
// query to the definition in double. Products of rounded rows are cheaper and say less: what they let through is multiplied in float32.
// README.md has the bounds' story, float_bounds.hpp the bounds.
#pragma once

#include "topk/coded_tiles.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Document, typename Query, class Tiles>
struct FloatScreen : FloatScores<Document, Query> {
  typedef FloatScores<Document, Query> Scores;
  using Scores::problem;
  typedef float Bar;
  static constexpr bool kEstimates = true;

  static constexpr int64_t kQueryGroup = 16;
  static_assert(kQueryGroup % kLanes == 0, "a group is whole vectors");
  // Up to this many queries the rows are read as fast as memory gives them without a tile.
  static constexpr int64_t kFewQueries = 4;
  static constexpr int kStreamRows = 4;
  // Rows ahead that are asked for while rows are rounded, which waits for memory: the tiles after it do not.
  static constexpr int64_t kCopyAhead = 4;

  const int64_t dimensions;
  const int64_t padded;  // queries, whole groups
  const int64_t panel;   // documents
  const bool cosine;
  const FloatBounds bounds;
  const FloatBounds fine_bounds;  // of products of unrounded rows

  explicit FloatScreen(const TopkProblem& p)
      : Scores(p),
        dimensions(p.dimensions),
        padded((p.queries + kQueryGroup - 1) / kQueryGroup * kQueryGroup),
        panel(panel_of(p.dimensions)),
        cosine(p.metric == TopkMetric::cosine),
        bounds(p.metric, p.dimensions, few() ? row_roundings() : Tiles::roundings(p.dimensions), row_roundings(),
               sizeof(Document) == sizeof(double)),
        fine_bounds(p.metric, p.dimensions, row_roundings(), row_roundings(), sizeof(Document) == sizeof(double)) {}

  bool few() const { return problem.queries <= kFewQueries; }
  int64_t row_pitch() const { return (dimensions + kLanes - 1) / kLanes * kLanes; }
  int64_t row_roundings() const { return (dimensions + kLanes - 1) / kLanes + 8; }

  struct Operands {
    QueryTerms* terms;
    float* slope;
    float* slack;
    float* norm;
    float* fine_slack;
    float* rows;   // [query][row_pitch], scaled; for few queries and for rounded tiles
    void* packed;  // as Tiles has them, for many
  };
  // Queries whose rows are kept; others need one of a group at a time.
  int64_t kept_rows() const { return few() || Tiles::kRounded ? padded : 0; }
  int64_t terms_bytes() const { return align_up(padded * static_cast<int64_t>(sizeof(QueryTerms))); }
  Operands operands_at(const void* operands) const {
    char* at = static_cast<char*>(const_cast<void*>(operands)) + Scores::score_bytes();
    float* floats = reinterpret_cast<float*>(at + terms_bytes());
    float* rows = floats + 4 * padded;
    return {reinterpret_cast<QueryTerms*>(at), floats, floats + padded, floats + 2 * padded, floats + 3 * padded, rows,
            rows + kept_rows() * row_pitch()};
  }
  int64_t operand_bytes() const {
    return Scores::score_bytes() + terms_bytes() +
           (4 * padded + kept_rows() * row_pitch()) * static_cast<int64_t>(sizeof(float)) +
           (few() ? 0 : padded * Tiles::query_bytes(dimensions));
  }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    Scores::prepare_scores(operands, begin, end);
    const double* norms = static_cast<const double*>(operands);
    const Operands o = operands_at(operands);
    for (int64_t q = begin; q < begin + kQueryGroup; q++) {
      o.terms[q] = q < end ? bounds.terms(norms[q]) : QueryTerms{0, kNoPair};
      o.slope[q] = bounds.slope(o.terms[q]);
      const double rounded = pack(o, q);
      o.norm[q] = bounds.norm(o.terms[q], rounded);
      o.slack[q] = bounds.slack(o.terms[q], rounded);
      o.fine_slack[q] = fine_bounds.slack(o.terms[q], 0);
    }
  }

  Bar bar(const void* operands, int64_t query, uint32_t order) const {
    return bounds.bar(operands_at(operands).terms[query], order);
  }

  int64_t panel_documents() const { return panel; }
  int64_t panel_bytes() const {
    if (few()) return 0;
    return panel *
           (Tiles::row_bytes(dimensions) + Tiles::kVectors * kVectorBytes + static_cast<int64_t>(sizeof(Length)));
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
    p.hits = 0;
    char* copies = static_cast<char*>(scratch);
    p.scores = reinterpret_cast<float*>(copies + panel * Tiles::row_bytes(dimensions));
    p.lengths = reinterpret_cast<Length*>(p.scores + panel * Tiles::kVectors * kLanes);
    p.rows = Tiles::kCopied ? PanelRows{copies, Tiles::row_bytes(dimensions)}
                            : PanelRows{document_row(problem, begin), problem.documents_stride};
    if (!Tiles::kRounded) look_ahead(p, end);
    for (int64_t i = 0; i < p.count; i++) {
      float rounded;
      const float squared =
          Tiles::copy(reinterpret_cast<const Document*>(document_row(problem, begin + i)), dimensions,
                      kCopyAhead * problem.documents_stride, copies + i * Tiles::row_bytes(dimensions), rounded);
      p.lengths[i] = length(begin + i, squared, rounded);
    }
    [[maybe_unused]] const typename Tiles::Scope scope;
    int64_t q = 0;
    for (; q + Tiles::kVectors * kLanes <= problem.queries; q += Tiles::kVectors * kLanes)
      scan_queries<Tiles::kVectors>(o, p, q, bars, found);
    const int64_t left = problem.queries - q;
    if (left > 2 * kLanes)
      scan_queries<Tiles::kVectors>(o, p, q, bars, found);
    else if (left > kLanes)
      scan_queries<2>(o, p, q, bars, found);
    else if (left > 0)
      scan_queries<1>(o, p, q, bars, found);
  }

 private:
  struct Panel {
    int64_t begin, count;
    PanelRows rows;
    Length* lengths;
    float* scores;  // [document][vectors * kLanes]
    Ahead ahead;
    int64_t ahead_lines;  // with each tile
    int64_t hits;         // pairs of the last queries that were not excluded
  };

  // Rows of a panel stay in L2 while all queries pass: up to 256 KiB, and few enough for their scores to stay in L1.
  static int64_t panel_of(int64_t dimensions) {
    const int64_t fit = (256 << 10) / (dimensions * static_cast<int64_t>(sizeof(float))) / 64 * 64;
    return least<int64_t>(most<int64_t>(fit, 64), 128);
  }

  // The next panel's lines, spread over the tiles of this one: all at once they would wait for each other. Rows with wide gaps are left to
  // the hardware.
  void look_ahead(Panel& p, int64_t end) const {
    int64_t bytes = least<int64_t>(panel, problem.documents - end) * problem.documents_stride;
    if (problem.documents_stride > 2 * dimensions * static_cast<int64_t>(sizeof(Document))) bytes = 0;
    const char* next = document_row(problem, end);
    p.ahead = {next, next + bytes};
    const int64_t query_tiles = (padded / kLanes + Tiles::kVectors - 1) / Tiles::kVectors;
    const int64_t document_tiles = (p.count + Tiles::kRows - 1) / Tiles::kRows;
    p.ahead_lines = bytes / 64 / (query_tiles * document_tiles * ((dimensions - 1) / Tiles::kDepth + 1)) + 1;
  }

  // Where pairs are multiplied exactly, they will be for the next queries as well: their rows, which all panels need again.
  void look_ahead(const Operands& o, Panel& p, int64_t query) const {
    const int64_t queries = p.hits > 0 ? least<int64_t>(Tiles::kVectors * kLanes, padded - query) : 0;
    const char* next = reinterpret_cast<const char*>(o.rows + query * row_pitch());
    p.ahead = {next, next + most<int64_t>(queries, 0) * row_pitch() * static_cast<int64_t>(sizeof(float))};
    p.ahead_lines = (p.ahead.end - p.ahead.at) / 64 / ((p.count + Tiles::kRows - 1) / Tiles::kRows) + 1;
    p.hits = 0;
  }

  SIMTILE_INLINE Length length(int64_t document, float squared, float rounded) const {
    return __builtin_expect(squared == 0, 0) && is_zero(document) ? bounds.nothing() : bounds.length(squared, rounded);
  }
  bool is_zero(int64_t document) const {
    const Document* row = reinterpret_cast<const Document*>(document_row(problem, document));
    for (int64_t i = 0; i < dimensions; i++)
      if (widen(row[i]) != 0) return false;
    return true;
  }

  SIMTILE_INLINE float element(int64_t query, double scale, int64_t i) const {
    if (scale <= 0 || i >= dimensions) return 0;
    return static_cast<float>(reinterpret_cast<const Query*>(query_row(problem, query))[i] * scale);
  }
  // The norm of what rounding takes away.
  double pack(const Operands& o, int64_t query) const {
    if constexpr (!Tiles::kRounded)
      if (!few()) {
        Tiles::pack(o.packed, dimensions, query, [&](int64_t i) { return element(query, o.terms[query].scale, i); });
        return 0;
      }
    float* row = o.rows + query * row_pitch();
    for (int64_t i = 0; i < row_pitch(); i++) row[i] = element(query, o.terms[query].scale, i);
    if constexpr (Tiles::kRounded)
      if (!few()) return __builtin_sqrt(Tiles::pack(o.packed, dimensions, query, row));
    return 0;
  }

  SIMTILE_INLINE Vector<float> least_product(const float* bars, const Operands& o, int64_t query,
                                             const Length& length) const {
    const Vector<float> bar = load<float>(bars + query), norm = broadcast<float>(length.norm);
    Vector<float> product =
        cosine ? bar * norm : fused(bar, load<float>(o.slope + query), broadcast<float>(length.squared));
    product = fused(product, -load<float>(o.slack + query), norm);
    if (Tiles::kRounded) product = fused(product, -load<float>(o.norm + query), broadcast<float>(length.rounded));
    return product;
  }

  template <int vectors, class Found>
  void scan_queries(const Operands& o, Panel& p, int64_t query, const Bar* bars, Found& found) const {
    if (Tiles::kRounded) look_ahead(o, p, query + vectors * kLanes);
    for (int64_t k = 0; k < dimensions; k += Tiles::kDepth)
      for (int64_t d = 0; d < p.count; d += Tiles::kRows) {
        const int64_t rows = least<int64_t>(Tiles::kRows, p.count - d);
        p.ahead.lines(p.ahead_lines);
        Tiles::template multiply<vectors>(p.rows, d, rows, o.packed, query, dimensions, k,
                                          p.scores + d * vectors * kLanes);
        if (k + Tiles::kDepth >= dimensions) compare<vectors>(o, p, d, rows, query, bars, found);
      }
  }

  template <int vectors, class Found>
  SIMTILE_INLINE void compare(const Operands& o, Panel& p, int64_t first, int64_t rows, int64_t query, const Bar* bars,
                              Found& found) const {
    for (int v = 0; v < vectors; v++, query += kLanes) {
      const int64_t present = problem.queries - query;
      if (present <= 0) return;
      const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << least<int64_t>(present, kLanes)) - 1);
      for (int64_t i = first; i < first + rows; i++) {
        const Vector<float> product = load<float>(p.scores + (i * vectors + v) * kLanes);
        uint32_t hits = not_less(product, least_product(bars, o, query, p.lengths[i])) & mask;
        for (; __builtin_expect(hits != 0, 0); hits &= hits - 1) {
          const int64_t lane = __builtin_ctz(hits), q = query + lane;
          p.hits++;
          if (Tiles::kRounded)
            multiply_exactly(o, q, p.begin + i, p.lengths[i], bars, found);
          else
            passed(o, q, p.begin + i, product[lane], o.slack[q], p.lengths[i], found);
        }
      }
    }
  }

  // A pair that the rounded rows' product does not exclude.
  template <class Found>
  void multiply_exactly(const Operands& o, int64_t query, int64_t document, const Length& length, const Bar* bars,
                        Found& found) const {
    const Document* row = reinterpret_cast<const Document*>(document_row(problem, document));
    const float product = dot_row(row, o.rows + query * row_pitch(), dimensions);
    if (product < least_product(bars[query], o.slope[query], o.fine_slack[query], length)) return;
    passed(o, query, document, product, o.fine_slack[query], length, found);
  }

  SIMTILE_INLINE float least_product(float bar, float slope, float slack, const Length& length) const {
    return (cosine ? bar * length.norm : bar + slope * length.squared) - slack * length.norm;
  }

  template <class Found>
  SIMTILE_INLINE void passed(const Operands& o, int64_t query, int64_t document, float product, float slack,
                             const Length& length, Found& found) const {
    const QueryTerms& terms = o.terms[query];
    // Where nothing is known, or a cosine is 0 by definition.
    if (!(terms.norm > 0 && length.norm > 0 && terms.scale > 0)) return found.check(query, document);
    const Estimate estimate = fine_bounds.estimate(terms, product, static_cast<double>(slack) * length.norm, length);
    found.estimate(query, document, estimate.order, estimate.width);
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
                                      o.rows + query * row_pitch(), row_pitch(), dimensions,
                                      rows * problem.documents_stride, products, squares);
    for (int i = 0; i < rows; i++) {
      const Length length = this->length(document + i, squares[i], 0);
      for (int j = 0; j < queries; j++) {
        const int64_t q = query + j;
        if (!(products[i][j] < least_product(bars[q], o.slope[q], o.slack[q], length)))
          passed(o, q, document + i, products[i][j], o.slack[q], length, found);
      }
    }
  }
};

// Which tiles are the fastest for a problem: `Screens::Many` if it suits.
template <typename Document, typename Query>
struct FloatScreens {
#if defined(__AMX_BF16__)
  typedef FloatScreen<Document, Query, RoundedTiles<Document>> Few;
  typedef Few Many;
  static bool many(const TopkProblem&) { return false; }
#elif defined(__AVX2__)
  typedef FloatScreen<Document, Query, Float32Tiles<Document>> Few;
  typedef FloatScreen<Document, Query, CodedTiles<Document>> Many;
  static bool many(const TopkProblem& problem) { return CodedTiles<Document>::suit(problem); }
#else
  typedef FloatScreen<Document, Query, Float32Tiles<Document>> Few;
  typedef Few Many;
  static bool many(const TopkProblem&) { return false; }
#endif
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
