// Search in every kind of documents, at every level that this CPU has, against the definition one pair at a time. Documents end at an
// unmapped page, or begin after one; rows may lie apart.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::TopkKind;
using simtile::TopkMetric;
using simtile::TopkProblem;

namespace {

struct Case {
  int64_t queries, documents, dimensions, k, gap;  // gap: elements between rows
  bool at_end, scaled, weighted, integers;
};

using Row = std::vector<double>;

// 32 interleaved sums, then halves are added.
template <typename Term>
double lane_sum(size_t count, Term term) {
  double lanes[32] = {};
  for (size_t i = 0; i < count; i++) lanes[i % 32] += term(i);
  for (int half = 16; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}
double dot(const Row& a, const Row& b) {
  return lane_sum(a.size(), [&](size_t i) { return a[i] * b[i]; });
}

struct Data {
  std::vector<Row> queries, documents;  // what is compared: of codes the codes
  std::vector<float> scale, offset, factor, addend, query_scale;
  std::vector<char> query_bytes;
};

bool is_float(TopkKind kind) { return kind <= TopkKind::bfloat16; }

int64_t row_bytes(TopkKind kind, int64_t dimensions) {
  switch (kind) {
    case TopkKind::float32:
      return dimensions * 4;
    case TopkKind::float64:
      return dimensions * 8;
    case TopkKind::float16:
    case TopkKind::bfloat16:
      return dimensions * 2;
    case TopkKind::int8:
    case TopkKind::uint8:
      return dimensions;
    case TopkKind::int4:
      return (dimensions + 1) / 2;
    case TopkKind::bits:
    case TopkKind::packed:
      return (dimensions + 7) / 8;
  }
  return 0;
}

// Writes an element and returns what was stored; halves are small multiples of 1/16, which all formats hold.
double write(TopkKind kind, char* row, int64_t i, std::mt19937& random) {
  const double x = static_cast<int>(random() % 65) / 16.0 - 2;
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  switch (kind) {
    case TopkKind::float32:
      std::memcpy(row + 4 * i, &f, 4);
      return x;
    case TopkKind::float64:
      std::memcpy(row + 8 * i, &x, 8);
      return x;
    case TopkKind::float16: {
      const uint16_t half =
          x == 0
              ? 0
              : static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff));
      std::memcpy(row + 2 * i, &half, 2);
      return x;
    }
    case TopkKind::bfloat16: {
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(row + 2 * i, &half, 2);
      return x;
    }
    case TopkKind::int8:
    case TopkKind::uint8: {
      const uint32_t drawn = random();
      const int code = drawn % 8 == 0 ? (drawn & 256 ? 255 : 0) : static_cast<int>(drawn >> 16 & 255);
      row[i] = static_cast<char>(code);
      return kind == TopkKind::uint8 ? code : static_cast<signed char>(code);
    }
    case TopkKind::int4: {
      const int code = static_cast<int>(random() % 16);
      row[i / 2] = static_cast<char>(i % 2 ? (row[i / 2] & 15) | code << 4 : (row[i / 2] & ~15) | code);
      return code < 8 ? code : code - 16;
    }
    case TopkKind::bits:
    case TopkKind::packed: {
      const int bit = static_cast<int>(random() % 2), mask = 128 >> i % 8;
      row[i / 8] = static_cast<char>(bit ? row[i / 8] | mask : row[i / 8] & ~mask);
      return bit;
    }
  }
  return 0;
}

double at(const std::vector<float>& values, size_t i, double none) { return values.empty() ? none : values[i]; }

// Score of every document, by the formulas of kernels/topk/README.md.
std::vector<float> reference(TopkKind kind, TopkMetric metric, const Data& data, size_t query) {
  const Row& q = data.queries[query];
  std::vector<float> scores;
  if (is_float(kind) || kind == TopkKind::packed) {
    const double norm = std::sqrt(dot(q, q));
    for (const Row& d : data.documents) {
      const double product = dot(q, d), norms = norm * std::sqrt(dot(d, d));
      const double distance = lane_sum(q.size(), [&](size_t i) { return (q[i] - d[i]) * (q[i] - d[i]); });
      scores.push_back(static_cast<float>(metric == TopkMetric::dot      ? product
                                          : metric == TopkMetric::cosine ? (norms == 0 ? 0 : product / norms)
                                                                         : distance));
    }
    return scores;
  }
  const bool bits = kind == TopkKind::bits, integers = !data.query_scale.empty();
  const double query_scale = at(data.query_scale, query, 1);
  double largest = 0;
  for (size_t i = 0; i < q.size(); i++) largest = std::max(largest, std::fabs(q[i] * at(data.scale, i, 1)));
  std::vector<int64_t> z(q.size());
  for (size_t i = 0; i < q.size(); i++)
    z[i] = static_cast<int64_t>(integers      ? q[i]
                                : largest > 0 ? std::nearbyint(q[i] * at(data.scale, i, 1) * (32639 / largest))
                                              : 0);
  const double step = integers ? query_scale : largest / 32639;
  const double square = lane_sum(q.size(), [&](size_t i) { return (q[i] * query_scale) * (q[i] * query_scale); });
  double a = bits ? 2 * step : step, c = 0;
  double b = lane_sum(q.size(), [&](size_t i) { return q[i] * (bits ? -1 : at(data.offset, i, 0)); });
  if (integers) b = 0;
  if (metric == TopkMetric::cosine) {
    const double norm = bits ? std::sqrt(square) * std::sqrt(static_cast<double>(q.size())) : std::sqrt(square);
    a = norm == 0 ? 0 : a / norm;
    b = norm == 0 ? 0 : b / norm;
  } else if (metric == TopkMetric::l2) {
    a *= -2;
    b *= -2;
    c = bits ? square + static_cast<double>(q.size()) : square;
  }
  for (size_t d = 0; d < data.documents.size(); d++) {
    int64_t product = 0;
    for (size_t i = 0; i < q.size(); i++) product += z[i] * static_cast<int64_t>(data.documents[d][i]);
    double value = a * static_cast<double>(product) + b;
    if (!data.factor.empty()) value = value * data.factor[d];
    if (!data.addend.empty()) value = value + data.addend[d];
    value = value + c;
    if (metric == TopkMetric::l2 && value < 0) value = 0;
    scores.push_back(static_cast<float>(value) + 0.0f);
  }
  return scores;
}

std::vector<float> draw(size_t count, double least, double most, std::mt19937& random) {
  std::uniform_real_distribution<float> from(static_cast<float>(least), static_cast<float>(most));
  std::vector<float> values(count);
  for (float& x : values) x = from(random);
  return values;
}

struct Expected {
  std::vector<float> scores;
  std::vector<int64_t> rows;  // best first
};

Expected expected_of(TopkKind kind, TopkMetric metric, const Data& data, size_t query,
                     const std::vector<uint32_t>& rank) {
  Expected expected{reference(kind, metric, data, query), {}};
  for (size_t d = 0; d < data.documents.size(); d++) expected.rows.push_back(static_cast<int64_t>(d));
  const bool descending = metric == TopkMetric::dot || metric == TopkMetric::cosine;
  std::sort(expected.rows.begin(), expected.rows.end(), [&](int64_t x, int64_t y) {
    const float a = expected.scores[static_cast<size_t>(x)], b = expected.scores[static_cast<size_t>(y)];
    if (a != b) return descending ? a > b : a < b;
    return rank[static_cast<size_t>(x)] < rank[static_cast<size_t>(y)];
  });
  return expected;
}

// Of hamming int32, else float32; both are exact here.
float score_at(TopkMetric metric, const std::vector<char>& scores, size_t i) {
  int32_t whole;
  float score;
  std::memcpy(&whole, scores.data() + 4 * i, 4);
  std::memcpy(&score, scores.data() + 4 * i, 4);
  return metric == TopkMetric::hamming ? static_cast<float>(whole) : score;
}

void check_case(const KernelTable& level, TopkKind kind, TopkMetric metric, const Case& c, int threads, unsigned seed) {
  std::mt19937 random(seed);
  const bool codes = !is_float(kind) && kind != TopkKind::packed, bits = kind == TopkKind::bits;
  const int64_t bytes = row_bytes(kind, c.dimensions), stride = bytes + c.gap * row_bytes(kind, 1);
  const size_t q = static_cast<size_t>(c.queries), n = static_cast<size_t>(c.documents),
               d = static_cast<size_t>(c.dimensions);
  const Guarded documents(static_cast<size_t>((c.documents - 1) * stride + bytes), c.at_end);
  Data data;
  for (int64_t i = 0; i < c.documents; i++) {
    data.documents.emplace_back();
    for (int64_t j = 0; j < c.dimensions; j++)
      data.documents.back().push_back(write(kind, documents.bytes() + i * stride, j, random));
    if (kind == TopkKind::packed)  // bits after the last dimension are 0
      for (int64_t j = c.dimensions; j < bytes * 8; j++)
        documents.bytes()[i * stride + j / 8] =
            static_cast<char>(documents.bytes()[i * stride + j / 8] & ~(128 >> j % 8));
  }
  TopkProblem problem = {};
  const bool integers = codes && !bits && c.integers;
  const TopkKind query_kind = kind == TopkKind::packed    ? kind
                              : integers                  ? TopkKind::int8
                              : kind == TopkKind::float64 ? kind
                                                          : TopkKind::float32;
  problem.queries_stride = row_bytes(query_kind, c.dimensions);
  const Guarded queries(q * static_cast<size_t>(problem.queries_stride), c.at_end);
  std::memset(queries.bytes(), 0, q * static_cast<size_t>(problem.queries_stride));
  for (int64_t i = 0; i < c.queries; i++) {
    data.queries.emplace_back();
    for (int64_t j = 0; j < c.dimensions; j++)
      data.queries.back().push_back(write(query_kind, queries.bytes() + i * problem.queries_stride, j, random));
  }
  if (codes && !bits && c.scaled && !integers) {
    data.scale = draw(d, -0.1, 0.1, random);
    data.offset = draw(d, -3, 3, random);
  }
  if (codes && c.weighted) {
    data.factor = draw(n, 0.01, 2, random);
    data.addend = draw(n, 0, 9, random);
  }
  if (integers) data.query_scale = draw(q, 0.001, 3, random);

  problem.kind = kind;
  problem.metric = metric;
  problem.queries = c.queries;
  problem.documents = c.documents;
  problem.dimensions = c.dimensions;
  problem.queries_data = queries.bytes();
  problem.documents_data = documents.bytes();
  problem.documents_stride = stride;
  const auto data_or_null = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
  problem.scale = data_or_null(data.scale);
  problem.offset = data_or_null(data.offset);
  problem.factor = data_or_null(data.factor);
  problem.addend = data_or_null(data.addend);
  problem.integer_queries = integers;
  problem.query_scale = data_or_null(data.query_scale);

  std::vector<uint32_t> rank(n);
  for (size_t i = 0; i < n; i++) rank[i] = static_cast<uint32_t>(i);
  if (seed % 2) std::shuffle(rank.begin(), rank.end(), random);
  std::vector<uint64_t> allow((n + 63) / 64);
  for (uint64_t& word : allow) word = seed % 3 == 0 ? static_cast<uint64_t>(random()) << 32 | random() : ~uint64_t{0};

  simtile::Run run(threads, nullptr, nullptr);
  const simtile::TopkVariant& variant = level.topk().by_kind[static_cast<int>(kind)];
  const size_t k = static_cast<size_t>(c.k);
  std::vector<char> scores(q * k * 4);
  std::vector<int64_t> ids(q * k, -7);
  simtile::TopkArgs args = {problem, {allow.data(), 0, rank.data()}, nullptr, 0, c.k, scores.data(), ids.data()};
  {
    const simtile::Workspace workspace(static_cast<size_t>(variant.topk_workspace_bytes(args, threads)));
    variant.topk(args, run.executor(), workspace.data());
  }
  // Scores of some rows, and of none.
  std::vector<int64_t> rows(q * 5);
  for (int64_t& row : rows) row = static_cast<int64_t>(random() % (n + 1)) - 1;
  std::vector<char> row_scores(rows.size() * 4);
  const simtile::TopkScoreArgs score_args = {problem, rows.data(), 5, row_scores.data()};
  {
    const simtile::Workspace workspace(static_cast<size_t>(variant.score_workspace_bytes(score_args, threads)));
    variant.score(score_args, run.executor(), workspace.data());
  }
  bool right = true;
  for (size_t i = 0; i < q; i++) {
    const Expected expected = expected_of(kind, metric, data, i, rank);
    size_t found = 0;
    for (int64_t row : expected.rows) {
      const size_t r = static_cast<size_t>(row);
      if (found == k || !(allow[r / 64] >> r % 64 & 1)) continue;
      right = right && ids[i * k + found] == rank[r] && score_at(metric, scores, i * k + found) == expected.scores[r];
      check::same_everywhere(scores.data() + 4 * (i * k + found), 4);
      found++;
    }
    for (; found < k; found++) right = right && ids[i * k + found] == -1;
    for (size_t j = i * 5; j < i * 5 + 5; j++)
      if (rows[j] >= 0) {
        right = right && score_at(metric, row_scores, j) == expected.scores[static_cast<size_t>(rows[j])];
        check::same_everywhere(row_scores.data() + 4 * j, 4);
      }
    // The third best as the threshold: with its ties and all that are better.
    simtile::TopkRangeArgs range = {};
    range.problem = problem;
    range.problem.queries_data = queries.bytes() + static_cast<int64_t>(i) * problem.queries_stride;
    range.problem.queries = 1;
    if (range.problem.query_scale) range.problem.query_scale += i;
    range.filter = {nullptr, 0, nullptr};
    range.threshold = expected.scores[static_cast<size_t>(expected.rows[std::min<size_t>(2, n - 1)])];
    std::vector<std::vector<int64_t>> hits(static_cast<size_t>(threads));
    range.context = &hits;
    range.found = [](void* context, int worker, int64_t, uint64_t key) {
      (*static_cast<std::vector<std::vector<int64_t>>*>(context))[static_cast<size_t>(worker)].push_back(
          static_cast<int64_t>(key & 0xffffffffu));
    };
    const simtile::Workspace workspace(static_cast<size_t>(variant.range_workspace_bytes(range, threads)));
    variant.range(range, run.executor(), workspace.data());
    std::vector<int64_t> all, wanted;
    for (const auto& part : hits) all.insert(all.end(), part.begin(), part.end());
    std::sort(all.begin(), all.end());
    const bool descending = metric == TopkMetric::dot || metric == TopkMetric::cosine;
    for (size_t r = 0; r < n; r++)
      if (descending ? expected.scores[r] >= range.threshold : expected.scores[r] <= range.threshold)
        wanted.push_back(static_cast<int64_t>(r));
    right = right && all == wanted;
    check::same_everywhere(all.data(), all.size());
  }
  check::same_everywhere(ids.data(), ids.size());
  if (codes) {
    std::vector<float> norms(n);
    variant.norms({problem, false, norms.data()}, run.executor());
    check::same_everywhere(norms.data(), n);
    for (size_t r = 0; r < n; r++) {
      const double square = lane_sum(d, [&](size_t i) {
        const double x = bits ? 1.0 : at(data.scale, i, 1) * data.documents[r][i] + at(data.offset, i, 0);
        return x * x;
      });
      right = right && norms[r] == static_cast<float>(square);
    }
  }
  if (!right)
    std::fprintf(
        stderr,
        "%s kind %d metric %d: Q=%ld N=%ld D=%ld k=%ld gap=%ld end=%d scaled=%d weighted=%d integers=%d threads=%d\n",
        level.level, static_cast<int>(kind), static_cast<int>(metric), static_cast<long>(c.queries),
        static_cast<long>(c.documents), static_cast<long>(c.dimensions), static_cast<long>(c.k),
        static_cast<long>(c.gap), c.at_end, c.scaled, c.weighted, c.integers, threads);
  CHECK(right);
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, 1, 0, true, false, false, false},
      {2, 7, 3, 3, 0, true, true, false, false},
      {1, 70, 7, 5, 0, true, true, true, false},
      {3, 200, 64, 10, 0, false, true, true, false},
      {1, 130, 65, 4, 0, true, false, true, true},
      {5, 100, 63, 200, 1, true, true, false, false},
      {9, 333, 111, 10, 0, true, true, true, false},
      {13, 65, 129, 3, 3, false, true, false, false},
      {17, 97, 200, 7, 0, true, false, true, true},
      {37, 129, 515, 5, 0, true, true, true, false},
      {6, 64, 16, 2, 0, false, false, false, true},
      {4, 41, 1030, 6, 0, true, true, false, false},
      {12, 33, 32, 3, 0, true, false, true, false},
      {25, 300, 96, 33, 5, true, true, true, false},
      // Enough queries that floats are screened in small integers.
      {50, 700, 33, 10, 0, true, true, true, false},
      {97, 401, 111, 3, 3, false, true, false, false},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    unsigned seed = 0;
    for (int kind = 0; kind < simtile::kTopkKinds; kind++)
      for (const TopkMetric metric : {TopkMetric::dot, TopkMetric::cosine, TopkMetric::l2, TopkMetric::hamming}) {
        if ((static_cast<TopkKind>(kind) == TopkKind::packed) != (metric == TopkMetric::hamming)) continue;
        for (const Case& c : cases) {
          seed++;
          check_case(*level, static_cast<TopkKind>(kind), metric, c, seed % 4 ? 1 : 3, seed);
        }
      }
    check::print_digest(level->level);
  }
  return check::report();
}
