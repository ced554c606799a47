// Every level that this CPU has, every element type, against the formula in double. Inputs and outputs end at an unmapped page.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::Element;
using simtile::InfoNceArgs;
using simtile::KernelTable;

namespace {

struct Case {
  int64_t rows, documents, negatives, dimensions;
  bool normalize, own, masked;
  double temperature;
  unsigned directions = simtile::query_to_doc;
  bool per_direction = false;
  double harden_others = 0, harden_own = 0;
  int64_t guide_dimensions = 0;
  bool margin = false;
  std::vector<int64_t> widths = {};

  bool from_documents() const { return directions & (simtile::doc_to_query | simtile::doc_to_doc); }
};

constexpr double kMargin = 0.2;

using Matrix = std::vector<std::vector<double>>;

struct Problem {
  Matrix queries, documents, negatives;
  Matrix guide[3];  // of queries, documents, negatives
  std::vector<int64_t> targets, query_ids, document_ids;
};

struct Result {
  std::vector<double> losses;
  Matrix queries, documents, negatives;
  double temperature = 0;
};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
  return sum;
}

double inverse_norm(const std::vector<double>& x, bool normalize) {
  return normalize ? 1 / std::max(std::sqrt(dot(x, x)), 1e-12) : 1;
}

void add(std::vector<double>& to, const std::vector<double>& x, double scale) {
  for (size_t i = 0; i < to.size(); i++) to[i] += scale * x[i];
}

std::vector<double> scaled(const std::vector<double>& x, double scale) {
  std::vector<double> out(x.size());
  add(out, x, scale);
  return out;
}

// What a row's pair is compared with: a query (0) or document (1) as anchor, with a query, document or hard negative (2).
struct Candidate {
  size_t side, anchor, kind, index;
  double harden;
};

std::vector<Candidate> candidates_of(const Case& c, size_t i, size_t target, unsigned directions) {
  std::vector<Candidate> all;
  const size_t n = static_cast<size_t>(c.rows), m = static_cast<size_t>(c.documents);
  const size_t k = static_cast<size_t>(c.negatives);
  if (directions & simtile::query_to_doc) {
    for (size_t j = 0; j < m; j++)
      if (j != target) all.push_back({0, i, 1, j, c.harden_others});
    for (size_t j = 0; j < n * k; j++)
      if (j / k == i || !c.own) all.push_back({0, i, 2, j, j / k == i ? c.harden_own : c.harden_others});
  }
  for (size_t j = 0; j < n; j++) {
    if (j == i) continue;
    if (directions & simtile::query_to_query) all.push_back({0, i, 0, j, 0});
    if (directions & simtile::doc_to_query) all.push_back({1, target, 0, j, 0});
  }
  if (directions & simtile::doc_to_doc) {
    for (size_t j = 0; j < m; j++)
      if (j != target) all.push_back({1, target, 1, j, 0});
    for (size_t j = 0; j < n * k && !c.own; j++)
      if (j / k != i) all.push_back({1, target, 2, j, 0});
  }
  return all;
}

Result full_reference(const Problem& problem, const Case& c) {
  const Matrix* const inputs[3] = {&problem.queries, &problem.documents, &problem.negatives};
  Matrix unit[3], guide[3], gradient[3];
  for (size_t kind = 0; kind < 3; kind++) {
    for (const auto& x : *inputs[kind]) {
      unit[kind].push_back(scaled(x, inverse_norm(x, c.normalize)));
      gradient[kind].emplace_back(x.size());
    }
    for (const auto& x : problem.guide[kind]) guide[kind].push_back(scaled(x, inverse_norm(x, true)));
  }
  std::vector<unsigned> groups = {c.directions};
  if (c.per_direction) groups = {simtile::query_to_doc, simtile::doc_to_query};
  Result result;
  for (size_t i = 0; i < problem.queries.size(); i++) {
    const size_t target = static_cast<size_t>(problem.targets[i]);
    const double positive = dot(unit[0][i], unit[1][target]);
    double loss = 0;
    for (const unsigned directions : groups) {
      std::vector<Candidate> kept;
      std::vector<double> logits;
      for (const Candidate& x : candidates_of(c, i, target, directions)) {
        const auto id = [&](size_t kind, size_t j) { return kind ? problem.document_ids[j] : problem.query_ids[j]; };
        if (c.masked && x.kind < 2 && id(x.side, x.anchor) == id(x.kind, x.index)) continue;
        if (c.guide_dimensions &&
            dot(guide[x.side][x.anchor], guide[x.kind][x.index]) > dot(guide[0][i], guide[1][target]))
          continue;
        const double s = dot(unit[x.side][x.anchor], unit[x.kind][x.index]);
        if (c.margin && s > positive - kMargin) continue;
        kept.push_back(x);
        logits.push_back(s / c.temperature + x.harden * s);
      }
      const bool to_document = directions & simtile::query_to_doc, to_query = directions & simtile::doc_to_query;
      const double own = positive / c.temperature, copies = to_document + to_query;
      double highest = own;
      for (double s : logits) highest = std::max(highest, s);
      double sum = copies * std::exp(own - highest);
      for (double s : logits) sum += std::exp(s - highest);
      const double share = 1 / static_cast<double>(groups.size());
      loss += share * (std::log(sum) - (own - highest));
      kept.push_back({0, i, 1, target, 0});
      logits.push_back(own);
      double others = 0;
      for (size_t j = 0; j < kept.size(); j++) {
        const Candidate& x = kept[j];
        const bool last = j + 1 == kept.size();
        const double p = last ? -others : std::exp(logits[j] - highest) / sum;
        others += p;
        const double weight = share * p / static_cast<double>(c.rows) / c.temperature;
        add(gradient[x.side][x.anchor], unit[x.kind][x.index], weight);
        add(gradient[x.kind][x.index], unit[x.side][x.anchor], weight);
        result.temperature -= weight * dot(unit[x.side][x.anchor], unit[x.kind][x.index]) / c.temperature;
      }
    }
    result.losses.push_back(loss);
  }
  for (size_t kind = 0; kind < 3; kind++) {
    for (size_t j = 0; j < gradient[kind].size(); j++) {
      std::vector<double>& g = gradient[kind][j];
      if (c.normalize) add(g, unit[kind][j], -dot(unit[kind][j], g));
      g = scaled(g, inverse_norm((*inputs[kind])[j], c.normalize));
    }
  }
  result.queries = gradient[0];
  result.documents = gradient[1];
  result.negatives = gradient[2];
  return result;
}

void cut(Matrix& matrix, int64_t width) {
  for (auto& row : matrix) row.resize(static_cast<size_t>(width));
}

double share_of(size_t width) { return 0.5 + static_cast<double>(width); }

// The losses of prefixes, weighted.
Result reference(const Problem& problem, const Case& c) {
  if (c.widths.empty()) return full_reference(problem, c);
  Result sum;
  for (size_t w = c.widths.size(); w-- > 0;) {
    Problem prefixes = problem;
    for (Matrix* matrix : {&prefixes.queries, &prefixes.documents, &prefixes.negatives}) cut(*matrix, c.widths[w]);
    Result one = full_reference(prefixes, c);
    if (sum.losses.empty()) {
      sum.losses.resize(one.losses.size());
      for (auto [matrix, like] : {std::pair(&sum.queries, &one.queries), std::pair(&sum.documents, &one.documents),
                                  std::pair(&sum.negatives, &one.negatives)})
        matrix->assign(like->size(), std::vector<double>(static_cast<size_t>(c.dimensions)));
    }
    add(sum.losses, one.losses, share_of(w));
    sum.temperature += share_of(w) * one.temperature;
    for (auto [matrix, of_width] : {std::pair(&sum.queries, &one.queries), std::pair(&sum.documents, &one.documents),
                                    std::pair(&sum.negatives, &one.negatives)})
      for (size_t i = 0; i < matrix->size(); i++)
        for (size_t d = 0; d < (*of_width)[i].size(); d++) (*matrix)[i][d] += share_of(w) * (*of_width)[i][d];
  }
  return sum;
}

void fill(Element element, const Guarded& memory, int64_t rows, int64_t columns, std::mt19937& random, Matrix& values) {
  std::uniform_real_distribution<double> magnitude(0.05, 2);
  char* at = static_cast<char*>(memory.data());
  values.assign(static_cast<size_t>(rows), std::vector<double>(static_cast<size_t>(columns)));
  for (auto& row : values) {
    for (double& x : row) {
      x = write(element, at, (random() & 1 ? 1 : -1) * magnitude(random));
      at += element_bytes(element);
    }
  }
}

double largest(const Matrix& values) {
  double most = 0;
  for (const auto& row : values)
    for (double x : row) most = std::max(most, std::fabs(x));
  return most;
}

double error(const Guarded& memory, bool wide, const Matrix& expected) {
  double most = 0;
  size_t at = 0;
  for (const auto& row : expected) {
    for (double x : row) {
      const double got =
          wide ? static_cast<const double*>(memory.data())[at] : static_cast<const float*>(memory.data())[at];
      at++;
      if (!(std::fabs(got - x) <= most))
        most = std::isnan(got) ? std::numeric_limits<double>::infinity() : std::fabs(got - x);
    }
  }
  return most;
}

void check_case(const KernelTable& level, Element element, const Case& c, int threads, unsigned seed) {
  std::mt19937 random(seed);
  const bool wide = element == Element::float64;
  const size_t bytes = element_bytes(element), wide_bytes = wide ? 8 : 4;
  const int64_t negatives = c.rows * c.negatives;
  auto inputs = [&](int64_t rows) { return static_cast<size_t>(rows * c.dimensions) * bytes; };
  auto outputs = [&](int64_t rows) { return static_cast<size_t>(rows * c.dimensions) * wide_bytes; };
  const Guarded queries(inputs(c.rows)), documents(inputs(c.documents)), hard(inputs(negatives)),
      losses(static_cast<size_t>(c.rows) * 8), to_queries(outputs(c.rows)), to_documents(outputs(c.documents)),
      to_hard(outputs(negatives));
  Problem problem;
  fill(element, queries, c.rows, c.dimensions, random, problem.queries);
  fill(element, documents, c.documents, c.dimensions, random, problem.documents);
  fill(element, hard, negatives, c.dimensions, random, problem.negatives);
  auto guides = [&](int64_t rows) { return static_cast<size_t>(rows * c.guide_dimensions) * bytes; };
  const Guarded guide_queries(guides(c.rows)), guide_documents(guides(c.documents)), guide_hard(guides(negatives));
  if (c.guide_dimensions) {
    fill(element, guide_queries, c.rows, c.guide_dimensions, random, problem.guide[0]);
    fill(element, guide_documents, c.documents, c.guide_dimensions, random, problem.guide[1]);
    fill(element, guide_hard, negatives, c.guide_dimensions, random, problem.guide[2]);
  }
  for (int64_t i = 0; i < c.rows; i++) {
    problem.targets.push_back(c.from_documents() ? i
                                                 : static_cast<int64_t>(random() % static_cast<unsigned>(c.documents)));
    problem.query_ids.push_back(random() % 5);
  }
  for (int64_t j = 0; j < c.documents; j++) problem.document_ids.push_back(random() % 5);

  double to_temperature = 0;
  InfoNceArgs args = {};
  args.element = element;
  args.rows = c.rows;
  args.documents = c.documents;
  args.negatives = c.negatives;
  args.dimensions = c.dimensions;
  args.queries_data = queries.data();
  args.documents_data = documents.data();
  args.negatives_data = c.negatives ? hard.data() : nullptr;
  args.queries_stride = args.documents_stride = args.negatives_stride = c.dimensions;
  args.temperature = c.temperature;
  args.normalize = c.normalize;
  args.directions = c.directions;
  args.per_direction = c.per_direction;
  args.scope = c.own ? simtile::Scope::own : simtile::Scope::all;
  args.harden_others = c.harden_others;
  args.harden_own = c.harden_own;
  args.has_margin = c.margin;
  args.margin = kMargin;
  if (c.guide_dimensions) {
    args.guide_queries = guide_queries.data();
    args.guide_documents = guide_documents.data();
    args.guide_negatives = guide_hard.data();
    args.guide_queries_stride = args.guide_documents_stride = args.guide_negatives_stride = args.guide_dimensions =
        c.guide_dimensions;
  }
  args.targets = c.from_documents() ? nullptr : problem.targets.data();
  args.query_ids = c.masked ? problem.query_ids.data() : nullptr;
  args.document_ids = c.masked ? problem.document_ids.data() : nullptr;
  std::vector<double> shares;
  for (size_t w = 0; w < c.widths.size(); w++) shares.push_back(share_of(w));
  if (!c.widths.empty()) {
    args.widths = c.widths.data();
    args.shares = shares.data();
    args.width_count = static_cast<int64_t>(shares.size());
  }
  args.weight = 1.0 / static_cast<double>(c.rows);
  args.losses = static_cast<double*>(losses.data());
  args.grad_queries = to_queries.data();
  args.grad_documents = to_documents.data();
  args.grad_negatives = c.negatives ? to_hard.data() : nullptr;
  args.grad_temperature = &to_temperature;

  const simtile::InfoNceVariant& variant = level.info_nce.by_element[static_cast<int>(element)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, threads)));
  variant.run(args, run.executor(), workspace.data());

  const Result expected = reference(problem, c);
  // bfloat16 units round the coefficients of the gradient to 8 bits; everything else is at least float32.
  const bool rounds_coefficients = std::strstr(variant.arithmetic, "bf16") && !std::strstr(variant.arithmetic, "x3");
  double shares_sum = c.widths.empty() ? 1 : 0;  // as much as one loss has the weighted sum
  for (double share : shares) shares_sum += share;
  const double loss_tolerance = shares_sum * (wide ? 1e-12 : 1e-5), tolerance = wide                  ? 1e-11
                                                                                : rounds_coefficients ? 2e-2
                                                                                                      : 3e-5;
  double loss_error = 0;
  for (int64_t i = 0; i < c.rows; i++) {
    const double difference = std::fabs(args.losses[i] - expected.losses[static_cast<size_t>(i)]);
    if (!(difference <= loss_error))
      loss_error = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
  }
  const double scale =
      std::max({largest(expected.queries), largest(expected.documents), largest(expected.negatives), 1e-3});
  const double worst =
      std::max({error(to_queries, wide, expected.queries), error(to_documents, wide, expected.documents),
                error(to_hard, wide, expected.negatives)});
  const double temperature_error =
      std::fabs(to_temperature - expected.temperature) / (1 + std::fabs(expected.temperature));
  const bool right = loss_error <= loss_tolerance * 10 && worst <= tolerance * scale && temperature_error <= tolerance;
  if (!right)
    std::fprintf(stderr,
                 "%s %s: N=%ld M=%ld K=%ld D=%ld normalize=%d own=%d masked=%d threads=%d: loss %.2e gradient %.2e of "
                 "%.2e temperature %.2e directions=%u per_direction=%d guide=%ld margin=%d widths=%zu\n",
                 level.level, variant.arithmetic, static_cast<long>(c.rows), static_cast<long>(c.documents),
                 static_cast<long>(c.negatives), static_cast<long>(c.dimensions), c.normalize, c.own, c.masked, threads,
                 loss_error, worst, scale, temperature_error, c.directions, c.per_direction,
                 static_cast<long>(c.guide_dimensions), c.margin, c.widths.size());
  CHECK(right);
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {
      {1, 1, 0, 1, true, false, false, 0.05},
      {1, 1, 0, 7, false, false, false, 1},
      {7, 7, 0, 3, true, false, false, 0.5},
      {7, 9, 1, 7, true, false, true, 0.1},
      {13, 13, 2, 33, true, true, true, 0.05},
      {33, 70, 0, 64, true, false, true, 0.05},
      {64, 64, 0, 384, true, false, false, 0.05},
      {111, 111, 1, 111, false, false, false, 10},
      {97, 130, 3, 16, true, true, false, 0.2},
      {40, 40, 0, 515, true, false, false, 0.01},
      {300, 305, 0, 40, true, false, true, 0.05},
      // all directions in one log-sum-exp, then two of them apart, from the same products and from their own
      {33, 37, 2, 40, true, false, true, 0.1, 15},
      {300, 303, 1, 24, true, true, false, 0.2, 15, false, 1.5, 0.5},
      {310, 333, 1, 33, true, false, true, 0.1, 5, true},
      {40, 40, 2, 17, false, true, false, 4, 5, true},
      {29, 33, 2, 40, true, false, false, 0.1, 5, true, 2, 2},
      {45, 50, 1, 40, true, false, true, 0.1, 11, false, 0, 0, 12},
      {45, 45, 2, 40, true, true, false, 0.1, 1, false, 0, 3, 7, true},
      {70, 70, 2, 40, true, false, false, 0.2, 6, false, 0, 0, 0, true},
      // Matryoshka: on vector boundaries and off them; all directions; apart
      {1, 1, 0, 2, true, false, false, 0.05, 1, false, 0, 0, 0, false, {1, 2}},
      {64, 64, 0, 384, true, false, false, 0.05, 1, false, 0, 0, 0, false, {64, 128, 384}},
      {33, 70, 2, 111, true, false, true, 0.1, 1, false, 0, 0, 0, false, {3, 7, 111}},
      {300, 305, 1, 40, false, false, true, 4, 15, false, 0, 0, 0, false, {1, 17, 32, 40}},
      {45, 50, 1, 70, true, false, false, 0.1, 5, true, 0, 0, 0, false, {33, 64, 70}},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (const int threads : check::thread_counts(argc, argv)) check_case(*level, element, c, threads, ++seed);
    }
  }
  return check::report();
}
