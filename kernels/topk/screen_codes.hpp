// The screen of integer codes. A pair's score is a rising function of one integer (codes.hpp), dot = unit * sum + rest: the sum is what
// the tiles know, the rest is bounded. Without factors and addends of documents the bar is an integer too, and the screen exact but for
// the rest; with them an upper bound of the score in float32 is compared.
//
// One or a few queries: rows are read as they lie, and both planes are multiplied, which costs nothing while memory is waited for. The
// rest is then below one unit. More queries: the high plane alone, documents packed along the lanes, or in the tiles of AMX.
#pragma once

#include "tile/amx_i8.hpp"
#include "topk/codes.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Up to here rows are read as they lie.
constexpr int64_t kFewQueries = 4;

// What a score is compared through: at least (slope * sum + intercept) * factor + addend is passed by a pair, turned so that larger is
// better.
struct ScreenQuery {
  float slope, intercept, slack;
};

template <TopkKind kind>
struct CodeScreen : CodeScores<kind> {
  typedef CodeScores<kind> Scores;
  typedef typename Scores::Codes Codes;
  using Scores::chunks;
  using Scores::descending;
  using Scores::pitch;
  using Scores::problem;

  // Without factor and addend: the sum must be greater. Else the bits of a float.
  typedef int32_t Bar;
  static constexpr int64_t kQueryGroup = 16;
#if defined(__AMX_INT8__)
  static constexpr int64_t kGroup = kTileQueries;
  static constexpr int64_t kBlock = kTileDocuments;
  static constexpr bool kShifted = DocumentTiles<Codes>::kShifted;
  static constexpr bool kPadded = true;  // groups are full, with queries of zeros
#else
  static constexpr int64_t kGroup = ByteTile::kRows;
  static constexpr int64_t kBlock = ByteTile::kColumns;
  static constexpr bool kShifted = true;
  static constexpr bool kPadded = false;
#endif

  const bool few;       // queries
  const bool weighted;  // documents have a factor or an addend
  const int64_t groups, group_queries, steps;

  explicit CodeScreen(const TopkProblem& p)
      : Scores(p),
        few(p.queries <= kFewQueries),
        weighted(p.factor || p.addend),
        groups((p.queries + kGroup - 1) / kGroup),
#if defined(__AMX_INT8__)
        group_queries(kGroup),
#else
        group_queries((p.queries + groups - 1) / most<int64_t>(groups, 1)),
#endif
        steps(Scores::Rows::plane_bytes(p.dimensions) / 4) {
  }

  // After the scores' operands: slopes, intercepts, slacks, what the sums start with, [4][padded Q], and the packed queries of all
  // groups.
  int64_t operand_bytes() const {
    return packed_offset() + (few ? 0 : groups * group_queries * steps * kOperandInts * 4);
  }
  int64_t panel_documents() const { return 256; }
  int64_t panel_bytes() const { return few ? 0 : align_up(kBlock * steps * 4); }

  void prepare(void* operands, int64_t begin, int64_t end) const {
    Scores::prepare_scores(operands, begin, end);
    for (int64_t q = begin; q < end; q++) {
      const FoldedQuery& query = Scores::folded(operands, q);
      const ScreenQuery coefficients = screen_query(query);
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
    const FoldedQuery& query = Scores::folded(operands, q);
    return weighted ? float_bar(query, order) : integer_bar(query, order);
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
  SIMTILE_INLINE int64_t screen_offset() const { return align_up(Scores::score_bytes()); }
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
    const int8_t* plane = present ? Scores::high(operands, q) : none;
    for (int64_t step = 0; step < steps; step++, to += count * kOperandInts)
      store_operand(to, present ? plane + 4 * step : none);
  }

  // ---- bars

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
    const double largest_sum = unit * static_cast<double>(query.high_size + query.low_size / 256 + 1) * largest_code;
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

  typedef Vector<float> Floats;
  typedef Simd<float>::Integer FloatMask;

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

  SIMTILE_INLINE Floats document_floats(const float* values, float none, int64_t first, int count) const {
    if (!values) return broadcast<float>(none);
    return count == kWords ? load<float>(values + first) : load_first<float>(values + first, count);
  }

  // The lanes that pass where documents lie along the lanes.
  SIMTILE_INLINE uint32_t passing_documents(const void* operands, int64_t q, Ints sum, Bar bar, Floats factor,
                                            Floats addend) const {
    if (!weighted) return lanes_above(sum, broadcast_int(bar));
    const float* coefficients = coefficients_of(operands) + q;
    return passing(sum, broadcast<float>(coefficients[0]), broadcast<float>(coefficients[padded()]),
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
        const FoldedQuery& query = Scores::folded(operands, q);
        Ints high_sum, low_sum;
        multiply_row_vector<Codes>(block, count, Scores::high(operands, q), Scores::low(operands, q), high_sum,
                                   low_sum);
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
          found.exact(q, d + i, Scores::order_of_dots(query, d + i, high_dots[i], low_dots[i]));
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
    alignas(64) int32_t sums[kTileDocuments * 2 * kTileQueries];
    for (int64_t d = begin; d < end; d += kBlock) {
      const int count = static_cast<int>(least<int64_t>(kBlock, end - d));
      const ByteBlock block = copy.block(document_row(problem, d), problem.documents_stride, count, chunks);
      Tiles::pack(block, count, panel);
      for (int64_t group = 0; group < groups; group += 2) {
        const int64_t first = group * kTileQueries;
        const bool two = group + 1 < groups;
        if (two)
          multiply_byte_tiles<Tiles::kSigned, 2>(panel, packed(operands, group), steps / 16, starts(operands) + first,
                                                 sums);
        else
          multiply_byte_tiles<Tiles::kSigned, 1>(panel, packed(operands, group), steps / 16, starts(operands) + first,
                                                 sums);
        const int width = two ? 2 * kTileQueries : kTileQueries;
        for (int part = 0; part < width; part += kTileQueries)
          check_tile(operands, sums + part, width, d, count, first + part, bars, found);
      }
    }
  }

  // Sums of `count` documents, `width` apart, with 16 queries along the lanes.
  template <class Found>
  SIMTILE_INLINE void check_tile(const void* operands, const int32_t* sums, int width, int64_t d, int count,
                                 int64_t first, const Bar* bars, Found& found) const {
    const int64_t left = problem.queries - first;
    const uint32_t present = left >= kTileQueries ? 0xffff : (1u << left) - 1;
    const float* coefficients = coefficients_of(operands) + first;
    for (int i = 0; i < count; i++) {
      const Ints sum = load_ints(sums + i * width), bar = load_ints(bars + first);
      uint32_t lanes;
      if (!weighted) {
        lanes = lanes_above(sum, bar);
      } else {
        const float addend = problem.addend ? problem.addend[d + i] : 0.0f;
        lanes = passing(sum, load<float>(coefficients), load<float>(coefficients + padded()),
                        load<float>(coefficients + 2 * padded()),
                        broadcast<float>(problem.factor ? problem.factor[d + i] : 1.0f),
                        broadcast<float>(descending ? addend : -addend), (Floats)bar);
      }
      for (lanes &= present; lanes; lanes &= lanes - 1) found.check(first + __builtin_ctz(lanes), d + i);
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
