// The sigmoid loss at every level that this CPU has, in every element type, against the formula in double. Inputs and outputs end at an
// unmapped page, outputs are full of NaN before.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::SiglipArgs;

namespace {

struct Case {
  int64_t rows, documents, dimensions;
  bool normalize;
  double temperature, bias;
};

typedef std::vector<double> Vector;

struct Result {
  Vector losses, queries, documents;
  double temperature = 0, bias = 0;
};

// Rows as the loss sees them, and what they were multiplied by.
Vector units(const Vector& x, int64_t dimensions, bool normalize, Vector& inverse) {
  Vector u = x;
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(dimensions)) {
    double square = 0;
    for (size_t d = first; d < first + static_cast<size_t>(dimensions); d++) square += x[d] * x[d];
    inverse.push_back(normalize ? 1 / std::max(std::sqrt(square), 1e-12) : 1);
    for (size_t d = first; d < first + static_cast<size_t>(dimensions); d++) u[d] *= inverse.back();
  }
  return u;
}

void through_units(Vector& gradient, const Vector& u, const Vector& inverse, int64_t dimensions, bool normalize) {
  for (size_t i = 0; normalize && i < inverse.size(); i++) {
    double along = 0;
    const size_t first = i * static_cast<size_t>(dimensions), last = first + static_cast<size_t>(dimensions);
    for (size_t d = first; d < last; d++) along += u[d] * gradient[d];
    for (size_t d = first; d < last; d++) gradient[d] = (gradient[d] - u[d] * along) * inverse[i];
  }
}

Result reference(const Case& c, const Vector& queries, const Vector& documents, double weight) {
  Result result;
  Vector of_queries, of_documents;
  const Vector q = units(queries, c.dimensions, c.normalize, of_queries),
               d = units(documents, c.dimensions, c.normalize, of_documents);
  result.queries.assign(q.size(), 0);
  result.documents.assign(d.size(), 0);
  const size_t dimensions = static_cast<size_t>(c.dimensions);
  for (size_t i = 0; i < static_cast<size_t>(c.rows); i++) {
    double loss = 0;
    for (size_t j = 0; j < static_cast<size_t>(c.documents); j++) {
      double similarity = 0;
      for (size_t k = 0; k < dimensions; k++) similarity += q[i * dimensions + k] * d[j * dimensions + k];
      const double sign = i == j ? -1 : 1, x = sign * (similarity / c.temperature + c.bias);
      loss += std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
      const double step = weight * sign / (1 + std::exp(-x));
      for (size_t k = 0; k < dimensions; k++) {
        result.queries[i * dimensions + k] += step / c.temperature * d[j * dimensions + k];
        result.documents[j * dimensions + k] += step / c.temperature * q[i * dimensions + k];
      }
      result.temperature -= step * similarity / (c.temperature * c.temperature);
      result.bias += step;
    }
    result.losses.push_back(loss);
  }
  through_units(result.queries, q, of_queries, c.dimensions, c.normalize);
  through_units(result.documents, d, of_documents, c.dimensions, c.normalize);
  return result;
}

// The largest difference, as a share of the largest number; infinite for NaN.
double error(const Guarded& values, bool wide, const Vector& expected) {
  double largest = 0, worst = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    const double value =
        wide ? static_cast<const double*>(values.data())[i] : static_cast<const float*>(values.data())[i];
    const double difference = std::fabs(value - expected[i]);
    if (!(difference <= worst)) worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return worst / std::max(largest, 1e-30);
}

void run(const KernelTable& level, Element element, const Case& c, int threads) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal(0, 1 / std::sqrt(static_cast<double>(c.dimensions)));
  const size_t bytes = element_bytes(element);
  const bool wide = element == Element::float64;
  const size_t of_queries = static_cast<size_t>(c.rows * c.dimensions),
               of_documents = static_cast<size_t>(c.documents * c.dimensions), number = wide ? 8 : 4;
  const Guarded q(of_queries * bytes), d(of_documents * bytes), losses(static_cast<size_t>(c.rows) * 8),
      to_queries(of_queries * number), to_documents(of_documents * number);
  Vector queries, documents;
  const auto store = [&](const Guarded& at, size_t i, double x) {
    // A float16 below 2^-14 is beyond what write() knows.
    return write(element, static_cast<char*>(at.data()) + i * bytes, std::fabs(x) < 1e-3 ? 1e-3 : x);
  };
  for (size_t i = 0; i < of_documents; i++) documents.push_back(store(d, i, normal(random)));
  for (size_t i = 0; i < of_queries; i++) queries.push_back(store(q, i, documents[i] + normal(random)));

  double to_temperature = 0, to_bias = 0;
  SiglipArgs args = {};
  args.element = element;
  args.rows = c.rows;
  args.documents = c.documents;
  args.dimensions = args.queries_stride = args.documents_stride = c.dimensions;
  args.queries_data = q.data();
  args.documents_data = d.data();
  args.temperature = c.temperature;
  args.bias = c.bias;
  args.normalize = c.normalize;
  args.weight = 1.0 / static_cast<double>(c.rows);
  args.losses = static_cast<double*>(losses.data());
  args.grad_queries = to_queries.data();
  args.grad_documents = to_documents.data();
  args.grad_temperature = &to_temperature;
  args.grad_bias = &to_bias;
  const simtile::SiglipVariant& variant = level.siglip().by_element[static_cast<int>(element)];
  simtile::Run host(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, threads)));
  variant.run(args, host.executor(), workspace.data());

  const Result expected = reference(c, queries, documents, args.weight);
  // bfloat16 units round coefficients to 8 bits.
  const double tolerance = wide ? 1e-11 : 3e-4, of_gradients = element == Element::bfloat16 ? 2e-2 : tolerance;
  const double found[] = {error(losses, true, expected.losses), error(to_queries, wide, expected.queries),
                          error(to_documents, wide, expected.documents),
                          std::fabs(to_temperature - expected.temperature) / (1 + std::fabs(expected.temperature)),
                          std::fabs(to_bias - expected.bias) / (1 + std::fabs(expected.bias))};
  const bool right = found[0] <= tolerance && found[1] <= of_gradients && found[2] <= of_gradients &&
                     found[3] <= tolerance && found[4] <= tolerance;
  if (!right)
    std::fprintf(stderr, "%s element %d: N=%ld M=%ld D=%ld normalize=%d threads=%d: %.2e %.2e %.2e %.2e %.2e\n",
                 level.level, static_cast<int>(element), static_cast<long>(c.rows), static_cast<long>(c.documents),
                 static_cast<long>(c.dimensions), c.normalize, threads, found[0], found[1], found[2], found[3],
                 found[4]);
  CHECK(right);

  // Without gradients: the same losses.
  const Vector with(args.losses, args.losses + c.rows);
  args.grad_queries = args.grad_documents = nullptr;
  const simtile::Workspace smaller(static_cast<size_t>(variant.workspace_bytes(args, threads)));
  variant.run(args, host.executor(), smaller.data());
  CHECK(std::memcmp(with.data(), args.losses, with.size() * 8) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {
      {1, 1, 1, false, 1, 0},       {7, 9, 3, true, 0.1, -10},     {33, 33, 64, false, 0.5, 2},
      {64, 131, 33, true, 0.1, -3}, {111, 111, 515, true, 0.2, 0}, {310, 700, 17, true, 0.1, -10},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (const Case& c : cases)
      for (const Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16})
        for (const int threads : check::thread_counts(argc, argv)) run(*level, element, c, threads);
  }
  return check::report();
}
