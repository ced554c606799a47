// The screen of integer codes: sums of the tiles against the bars of code_bars.hpp.
//
// One or a few queries: rows are read as they lie, and both planes are multiplied, which costs nothing while memory is waited for. The
// rest is then below one unit. More queries: the high plane alone, documents packed along the lanes, or in the tiles of AMX.
#pragma once

#include "tile/amx_i8.hpp"
#include "topk/code_bars.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <TopkKind kind>
struct CodeScreen : CodeBars<kind> {
  typedef CodeBars<kind> Bars;
  typedef typename Bars::Codes Codes;
  typedef typename Bars::Floats Floats;
  typedef int32_t Bar;
  using Bars::chunks;
  using Bars::descending;
  using Bars::few;
  using Bars::problem;
  using Bars::weighted;

  static constexpr int64_t kQueryGroup = 16;
  static constexpr bool kEstimates = false;
#if defined(__AMX_INT8__)
  static constexpr int64_t kGroup = kTileQueries;
  static constexpr int64_t kBlock = kTileDocuments;
  static constexpr bool kShifted = DocumentTiles<Codes>::kShifted;
  static constexpr int kTogether = 8;    // documents of which a bound is checked first
  static constexpr bool kPadded = true;  // groups are full, with queries of zeros
#else
  static constexpr int64_t kGroup = ByteTile::kRows;
  static constexpr int64_t kBlock = ByteTile::kColumns;
  static constexpr bool kShifted = true;
  static constexpr bool kPadded = false;
#endif

  const int64_t groups, group_queries, steps;

  explicit CodeScreen(const TopkProblem& p)
      : Bars(p),
        groups((p.queries + kGroup - 1) / kGroup),
#if defined(__AMX_INT8__)
        group_queries(kGroup),
#else
        group_queries((p.queries + groups - 1) / most<int64_t>(groups, 1)),
#endif
        steps(Bars::Rows::plane_bytes(p.dimensions) / 4) {
  }

  // After the scores' operands: slopes, intercepts, slacks, what the sums start with, [4][padded Q], and the packed queries of all
  // groups.
  int64_t operand_bytes() const {
    return packed_offset() + (few ? 0 : groups * group_queries * steps * kOperandInts * 4);
  }
  int64_t panel_documents() const { return 256; }
  int64_t panel_bytes() const { return few ? 0 : align_up(kBlock * steps * 4); }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    Bars::prepare_scores(operands, begin, end);
    for (int64_t q = begin; q < end; q++) {
      const FoldedQuery& query = Bars::folded(operands, q);
      const ScreenQuery coefficients = Bars::screen_query(query);
      float* to = coefficients_of(operands) + q;
      to[0] = coefficients.slope;
      to[padded()] = coefficients.intercept;
      to[2 * padded()] = coefficients.slack;
      starts(operands)[q] = kShifted ? -query.high_shift : 0;
      if (!few) pack_query(operands, q);
    }
    if (end == problem.queries && begin < end)
      for (int64_t q = end; q < padded(); q++) {
        starts(operands)[q] = 0;
        for (int i = 0; i < 3; i++) coefficients_of(operands)[i * padded() + q] = 0;
        if (!few && kPadded) pack_query(operands, q);
      }
  }

  Bar bar(const void* operands, int64_t q, uint32_t order) const {
    const FoldedQuery& query = Bars::folded(operands, q);
    return weighted ? Bars::float_bar(query, order) : Bars::integer_bar(query, order);
  }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void* panel, const Bar* bars, Found& found) const {
    if (few)
      scan_rows(operands, begin, end, bars, found);
    else
      scan_tiles(operands, begin, end, static_cast<uint8_t*>(panel), bars, found);
  }

 private:
  SIMTILE_INLINE int64_t padded() const { return (problem.queries + 15) / 16 * 16; }
  SIMTILE_INLINE int64_t screen_offset() const { return align_up(Bars::score_bytes()); }
  SIMTILE_INLINE int64_t packed_offset() const { return screen_offset() + 16 * padded(); }
  SIMTILE_INLINE float* coefficients_of(const void* operands) const {
    return reinterpret_cast<float*>(static_cast<char*>(const_cast<void*>(operands)) + screen_offset());
  }
  SIMTILE_INLINE int32_t* starts(const void* operands) const {
    return reinterpret_cast<int32_t*>(coefficients_of(operands) + 3 * padded());
  }
  SIMTILE_INLINE int32_t* packed(const void* operands, int64_t group) const {
    return reinterpret_cast<int32_t*>(static_cast<char*>(const_cast<void*>(operands)) + packed_offset()) +
           group * group_queries * steps * kOperandInts;
  }
  SIMTILE_INLINE int queries_of(int64_t group) const {
#if defined(__AMX_INT8__)
    (void)group;
    return kTileQueries;
#else
    return static_cast<int>(least<int64_t>(group_queries, problem.queries - group * group_queries));
#endif
  }

  // Step by step, the queries of a group beside each other. Zeros where there is no query.
  void pack_query(void* operands, int64_t q) const {
    const int64_t group = q / group_queries, count = queries_of(group);
    int32_t* to = packed(operands, group) + q % group_queries * kOperandInts;
    static const int8_t none[4] = {};
    const bool present = q < problem.queries;
    const int8_t* plane = present ? Bars::high(operands, q) : none;
    for (int64_t step = 0; step < steps; step++, to += count * kOperandInts)
      store_operand(to, present ? plane + 4 * step : none);
  }

  SIMTILE_INLINE Floats document_floats(const float* values, float none, int64_t first, int count) const {
    if (!values) return broadcast<float>(none);
    return count == kWords ? load<float>(values + first) : load_first<float>(values + first, count);
  }

  // The lanes that pass where documents lie along the lanes.
  SIMTILE_INLINE uint32_t passing_documents(const void* operands, int64_t q, Ints sum, Bar bar, Floats factor,
                                            Floats addend) const {
    if (!weighted) return lanes_above(sum, broadcast_int(bar));
    const float* coefficients = coefficients_of(operands) + q;
    return Bars::passing(sum, broadcast<float>(coefficients[0]), broadcast<float>(coefficients[padded()]),
                         broadcast<float>(coefficients[2 * padded()]), factor, addend, (Floats)broadcast_int(bar));
  }

  SIMTILE_INLINE Floats factors(int64_t d, int count) const {
    return weighted ? document_floats(problem.factor, 1, d, count) : Floats{};
  }
  SIMTILE_INLINE Floats addends(int64_t d, int count) const {
    if (!weighted) return Floats{};
    const Floats addend = document_floats(problem.addend, 0, d, count);
    return descending ? addend : -addend;
  }

  // ---- few queries

  template <class Found>
  void scan_rows(const void* operands, int64_t begin, int64_t end, const Bar* bars, Found& found) const {
    ShortRows<kWords> copy;
    for (int64_t d = begin; d < end; d += kWords) {
      const int count = static_cast<int>(least<int64_t>(kWords, end - d));
      const uint32_t present = static_cast<uint32_t>((uint64_t{1} << count) - 1);
      const ByteBlock block = copy.block(document_row(problem, d), problem.documents_stride, count, chunks);
      const Floats factor = factors(d, count), addend = addends(d, count);
      for (int64_t q = 0; q < problem.queries; q++) {
        const FoldedQuery& query = Bars::folded(operands, q);
        Ints high_sum, low_sum;
        multiply_row_vector<Codes>(block, count, Bars::high(operands, q), Bars::low(operands, q), high_sum, low_sum);
        high_sum -= query.high_shift;
        low_sum -= query.low_shift;
        const Ints sum = query.unit == 1 ? high_sum : high_sum + (low_sum >> 8);
        uint32_t lanes = passing_documents(operands, q, sum, bars[q], factor, addend) & present;
        if (__builtin_expect(lanes == 0, 1)) continue;
        int32_t high_dots[kWords], low_dots[kWords];
        store_ints(high_dots, high_sum);
        store_ints(low_dots, low_sum);
        for (; lanes; lanes &= lanes - 1) {
          const int i = __builtin_ctz(lanes);
          found.exact(q, d + i, Bars::order_of_dots(query, d + i, high_dots[i], low_dots[i]));
        }
      }
    }
  }

  // ---- many queries

#if defined(__AMX_INT8__)
  template <class Found>
  void scan_tiles(const void* operands, int64_t begin, int64_t end, uint8_t* panel, const Bar* bars,
                  Found& found) const {
    typedef DocumentTiles<Codes> Tiles;
    const TileScope tiles;
    ShortRows<kTileDocuments> copy;
    alignas(64) int32_t sums[kPairs * kPairSums];
    for (int64_t d = begin; d < end; d += kBlock) {
      const int count = static_cast<int>(least<int64_t>(kBlock, end - d));
      const ByteBlock block = copy.block(document_row(problem, d), problem.documents_stride, count, chunks);
      Tiles::pack(block, count, panel);
      Weights weights[kBlock / kTogether];
      for (int i = 0; weighted && i < count; i += kTogether)
        weights[i / kTogether] = weights_of(d + i, d + least(i + kTogether, count));
      multiply_documents<Tiles::kSigned>(
          panel, steps / 16, packed(operands, 0), groups, starts(operands), sums,
          [&](int64_t first, const int32_t* of_group, int width) __attribute__((always_inline)) {
            check_tile(operands, of_group, width, d, count, weights, first, bars, found);
          });
    }
  }

  // What some documents' factors and turned addends lie between.
  struct Weights {
    float least, most, addend;
    bool bounded;  // else no bound is known: a factor is negative, or there is a NaN
  };
  SIMTILE_INLINE Weights weights_of(int64_t first, int64_t last) const {
    Weights weights = {1, 1, 0, true};
    for (int64_t d = first; d < last; d++) {
      const float factor = factor_of(d), addend = addend_of(d);
      weights.least = d == first ? factor : least(weights.least, factor);
      weights.most = d == first ? factor : most(weights.most, factor);
      weights.addend = d == first ? addend : most(weights.addend, addend);
      weights.bounded = weights.bounded && factor >= 0 && addend == addend;
    }
    return weights;
  }
  SIMTILE_INLINE float factor_of(int64_t d) const { return problem.factor ? problem.factor[d] : 1.0f; }
  SIMTILE_INLINE float addend_of(int64_t d) const {
    const float addend = problem.addend ? problem.addend[d] : 0.0f;
    return descending ? addend : -addend;
  }

  // The queries, along the lanes, that a document may pass with this sum.
  SIMTILE_INLINE uint32_t passing_queries(const float* coefficients, Ints sum, float factor, float addend,
                                          Ints bar) const {
    return Bars::passing(sum, load<float>(coefficients), load<float>(coefficients + padded()),
                         load<float>(coefficients + 2 * padded()), broadcast<float>(factor), broadcast<float>(addend),
                         (Floats)bar);
  }

  // Those that one of several documents may pass whose largest sums these are. For each query the compared bound rises with the sum unless its
  // slope is negative, and is convex in the factor: it is largest at one of the ends.
  SIMTILE_INLINE uint32_t passing_some(const float* coefficients, Ints largest, const Weights& weights,
                                       Ints bar) const {
    if (!weighted) return lanes_above(largest, bar);
    if (!weights.bounded) return ~uint32_t{0};
    uint32_t lanes = passing_queries(coefficients, largest, weights.most, weights.addend, bar) |
                     lanes_above((Ints)(load<float>(coefficients) < 0.0f) & 1, Ints{});
    if (weights.least != weights.most)
      lanes |= passing_queries(coefficients, largest, weights.least, weights.addend, bar);
    return lanes;
  }

  // Sums of `count` documents, `width` apart, with 16 queries along the lanes. Few pass: bounds of some documents say where one may.
  template <class Found>
  SIMTILE_INLINE void check_tile(const void* operands, const int32_t* sums, int width, int64_t d, int count,
                                 const Weights* weights, int64_t first, const Bar* bars, Found& found) const {
    const int64_t left = problem.queries - first;
    const uint32_t present = left >= kTileQueries ? 0xffff : (1u << left) - 1;
    const float* coefficients = coefficients_of(operands) + first;
    for (int begin = 0; begin < count; begin += kTogether, weights++) {
      const int stop = least(begin + kTogether, count);
      Ints largest = load_ints(sums + begin * width);
      for (int i = begin + 1; i < stop; i++) largest = maximum(largest, load_ints(sums + i * width));
      const uint32_t some = passing_some(coefficients, largest, *weights, load_ints(bars + first)) & present;
      if (__builtin_expect(some == 0, 1)) continue;
      for (int i = begin; i < stop; i++) {
        const Ints sum = load_ints(sums + i * width), bar = load_ints(bars + first);
        uint32_t lanes = weighted ? passing_queries(coefficients, sum, factor_of(d + i), addend_of(d + i), bar)
                                  : lanes_above(sum, bar);
        for (lanes &= some; lanes; lanes &= lanes - 1) found.check(first + __builtin_ctz(lanes), d + i);
      }
    }
  }
#else
  // A part of the block that comes next, so that memory works while this one is multiplied.
  SIMTILE_INLINE NextRows next_rows(int64_t first, int64_t part, int64_t parts) const {
    const int64_t each = (kBlock + parts - 1) / parts, begin = part * each;
    const int64_t count = least(least(each, kBlock - begin), problem.documents - first - begin);
    constexpr int64_t kSteps = kWords * Codes::kPerByte;
    if (count <= 0) return {nullptr, 0, 0, kSteps};
    return {document_row(problem, first + begin), problem.documents_stride, static_cast<int>(count), kSteps};
  }

  template <class Found>
  void scan_tiles(const void* operands, int64_t begin, int64_t end, uint8_t* panel, const Bar* bars,
                  Found& found) const {
    ShortRows<kBlock> copy;
    alignas(64) int32_t sums[ByteTile::kRows * ByteTile::kColumns];
    for (int64_t d = begin; d < end; d += kBlock) {
      const int count = static_cast<int>(least<int64_t>(kBlock, end - d));
      const ByteBlock block = copy.block(document_row(problem, d), problem.documents_stride, count, chunks);
      pack_byte_panel<Codes>(block, count, panel);
      Floats factor[ByteTile::kColumnVectors], addend[ByteTile::kColumnVectors];
      uint32_t present[ByteTile::kColumnVectors];
      for (int v = 0; v < ByteTile::kColumnVectors; v++) {
        const int lanes = most(least(count - v * kWords, kWords), 0);
        present[v] = static_cast<uint32_t>((uint64_t{1} << lanes) - 1);
        factor[v] = factors(d + v * kWords, lanes);
        addend[v] = addends(d + v * kWords, lanes);
      }
      for (int64_t group = 0; group < groups; group++) {
        const NextRows next = next_rows(d + kBlock, group, groups);
        const int64_t first = group * group_queries;
        const int queries = queries_of(group);
        multiply_byte_tile(queries, packed(operands, group), panel, steps, starts(operands) + first, next, sums);
        for (int i = 0; i < queries; i++)
          for (int v = 0; v < ByteTile::kColumnVectors; v++) {
            const Ints sum = load_ints(sums + i * ByteTile::kColumns + v * kWords);
            uint32_t lanes =
                passing_documents(operands, first + i, sum, bars[first + i], factor[v], addend[v]) & present[v];
            for (; __builtin_expect(lanes != 0, 0); lanes &= lanes - 1)
              found.check(first + i, d + v * kWords + __builtin_ctz(lanes));
          }
      }
    }
  }
#endif
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
