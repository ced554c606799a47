// Every level that this CPU has, every element type, against the formula in double. Inputs and outputs end at an unmapped page.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
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
};

using Matrix = std::vector<std::vector<double>>;

struct Problem {
  Matrix queries, documents, negatives;
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

Result reference(const Problem& problem, const Case& c) {
  const size_t n = problem.queries.size(), m = problem.documents.size();
  Matrix candidates = problem.documents;
  candidates.insert(candidates.end(), problem.negatives.begin(), problem.negatives.end());
  Matrix unit_queries, unit_candidates;
  for (const auto& x : problem.queries) unit_queries.push_back(scaled(x, inverse_norm(x, c.normalize)));
  for (const auto& x : candidates) unit_candidates.push_back(scaled(x, inverse_norm(x, c.normalize)));
  Result result;
  Matrix to_queries(n, std::vector<double>(problem.queries[0].size())), to_candidates(candidates.size(), to_queries[0]);
  for (size_t i = 0; i < n; i++) {
    const size_t target = static_cast<size_t>(problem.targets[i]);
    std::vector<double> logits;
    for (size_t j = 0; j < candidates.size(); j++) {
      const bool foreign = j >= m && c.own && (j - m) / static_cast<size_t>(c.negatives) != i;
      const bool masked = j < m && c.masked && j != target && problem.query_ids[i] == problem.document_ids[j];
      logits.push_back(foreign || masked ? -std::numeric_limits<double>::infinity()
                                         : dot(unit_queries[i], unit_candidates[j]) / c.temperature);
    }
    double highest = logits[0], sum = 0;
    for (double s : logits) highest = std::max(highest, s);
    for (double s : logits) sum += std::exp(s - highest);
    result.losses.push_back(std::log(sum) - (logits[target] - highest));
    for (size_t j = 0; j < logits.size(); j++) {
      const double weight =
          (std::exp(logits[j] - highest) / sum - (j == target)) / static_cast<double>(n) / c.temperature;
      if (weight == 0) continue;
      add(to_queries[i], unit_candidates[j], weight);
      add(to_candidates[j], unit_queries[i], weight);
      result.temperature -= weight * logits[j];
    }
  }
  auto finish = [&](const std::vector<double>& x, const std::vector<double>& unit, std::vector<double>& gradient) {
    if (c.normalize) add(gradient, unit, -dot(unit, gradient));
    gradient = scaled(gradient, inverse_norm(x, c.normalize));
  };
  for (size_t i = 0; i < n; i++) finish(problem.queries[i], unit_queries[i], to_queries[i]);
  for (size_t j = 0; j < candidates.size(); j++) finish(candidates[j], unit_candidates[j], to_candidates[j]);
  result.queries = to_queries;
  result.documents.assign(to_candidates.begin(), to_candidates.begin() + static_cast<std::ptrdiff_t>(m));
  result.negatives.assign(to_candidates.begin() + static_cast<std::ptrdiff_t>(m), to_candidates.end());
  return result;
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
  for (int64_t i = 0; i < c.rows; i++) {
    problem.targets.push_back(static_cast<int64_t>(random() % static_cast<unsigned>(c.documents)));
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
  args.own_negatives = c.own;
  args.targets = problem.targets.data();
  args.query_ids = c.masked ? problem.query_ids.data() : nullptr;
  args.document_ids = c.masked ? problem.document_ids.data() : nullptr;
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
  const double loss_tolerance = wide ? 1e-12 : 1e-5, tolerance = wide ? 1e-11 : rounds_coefficients ? 2e-2 : 3e-5;
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
                 "%.2e temperature %.2e\n",
                 level.level, variant.arithmetic, static_cast<long>(c.rows), static_cast<long>(c.documents),
                 static_cast<long>(c.negatives), static_cast<long>(c.dimensions), c.normalize, c.own, c.masked, threads,
                 loss_error, worst, scale, temperature_error);
  CHECK(right);
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 0, 1, true, false, false, 0.05},     {1, 1, 0, 7, false, false, false, 1},
      {7, 7, 0, 3, true, false, false, 0.5},      {7, 9, 1, 7, true, false, true, 0.1},
      {13, 13, 2, 33, true, true, true, 0.05},    {33, 70, 0, 64, true, false, true, 0.05},
      {64, 64, 0, 384, true, false, false, 0.05}, {111, 111, 1, 111, false, false, false, 10},
      {97, 130, 3, 16, true, true, false, 0.2},   {40, 40, 0, 515, true, false, false, 0.01},
      {300, 305, 0, 40, true, false, true, 0.05},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (int threads : {1, 3}) check_case(*level, element, c, threads, ++seed);
    }
  }
  return check::report();
}
