// Gradients of MaxSim at every level that this CPU has, for every element type, from what the level's own forward pass found, against
// the formula. Memory ends at an unmapped page.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "isa.hpp"
#include "maxsim_case.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::MaxsimArgs;
using simtile::MaxsimBackwardArgs;

namespace {

// What the gradient of a side should be: of rows as they are scored, then of the rows themselves.
struct Expected {
  std::vector<double> grad;

  Expected(const Side& side, const Case& c) : grad(static_cast<size_t>(side.rows * c.dimensions)) {}

  double* row(int64_t r, const Case& c) { return grad.data() + r * c.dimensions; }
  void add(int64_t r, double share, const double* other, const Case& c) {
    const double length = norm(other, c);
    for (int64_t k = 0; k < c.dimensions; k++) row(r, c)[k] += share * other[k] / length;
  }
  void through_norms(const Side& side, const Case& c) {
    for (int64_t r = 0; c.normalize && r < side.rows; r++) {
      if (!side.is_there(r)) continue;
      const double* const x = side.x.data() + r * c.dimensions;
      const double length = norm(x, c);
      double along = 0;
      for (int64_t k = 0; k < c.dimensions; k++) along += x[k] / length * row(r, c)[k];
      for (int64_t k = 0; k < c.dimensions; k++) row(r, c)[k] = (row(r, c)[k] - along * x[k] / length) / length;
    }
  }
};

template <typename T>
bool is_near(const Guarded& grad, const Expected& expected, double bound) {
  bool right = true;
  for (size_t i = 0; i < expected.grad.size(); i++)
    right &= std::abs(static_cast<double>(static_cast<const T*>(grad.data())[i]) - expected.grad[i]) <= bound;
  return right;
}

template <typename T>
void check_case(const KernelTable& level, Element element, const Case& c, double temperature, int threads,
                unsigned seed) {
  std::mt19937 random(seed);
  const Element compute = element == Element::float64 ? Element::float64 : Element::float32;
  const Side queries(random, compute, c.query_lengths, c), documents(random, element, c.document_lengths, c);
  const int64_t count = static_cast<int64_t>(c.document_lengths.size());
  const int64_t width = c.with_candidates ? 3 : count, pairs = static_cast<int64_t>(c.query_lengths.size()) * width;
  std::vector<int64_t> candidates;
  for (int64_t i = 0; i < pairs; i++)
    candidates.push_back(c.with_candidates ? static_cast<int64_t>(random() % static_cast<unsigned>(count + 1)) - 1
                                           : i % width);
  const Guarded scores(static_cast<size_t>(pairs) * sizeof(T)), weights(static_cast<size_t>(pairs) * sizeof(T));
  const Guarded argmax(static_cast<size_t>(queries.rows * width) * 4);
  const Guarded values(static_cast<size_t>(queries.rows * width) * sizeof(T));
  MaxsimArgs args = {};
  args.element = element;
  args.queries = queries.given(compute, c);
  args.documents = documents.given(element, c);
  args.dimensions = c.dimensions;
  args.normalize = c.normalize;
  args.temperature = temperature;
  args.candidates = c.with_candidates ? candidates.data() : nullptr;
  args.candidate_count = width;
  args.scores = scores.data();
  args.argmax = static_cast<int32_t*>(argmax.data());
  args.token_scores = values.data();
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::MaxsimVariant& forward = level.maxsim().by_element[static_cast<int>(element)];
  const simtile::Workspace scratch(static_cast<size_t>(forward.workspace_bytes(args, threads)));
  forward.run(args, run.executor(), scratch.data());

  for (int64_t i = 0; i < pairs; i++) static_cast<T*>(weights.data())[i] = static_cast<T>(random() % 9) / 4 - 1;
  const size_t row_bytes = static_cast<size_t>(c.dimensions) * sizeof(T);
  const Guarded grad_queries(static_cast<size_t>(queries.rows) * row_bytes);
  const Guarded grad_documents(static_cast<size_t>(documents.rows) * row_bytes);
  MaxsimBackwardArgs backward_args = {};
  backward_args.element = element;
  backward_args.queries = args.queries;
  backward_args.documents = args.documents;
  backward_args.query_rows = queries.rows;
  backward_args.document_rows = documents.rows;
  backward_args.dimensions = c.dimensions;
  backward_args.normalize = c.normalize;
  backward_args.temperature = temperature;
  backward_args.candidates = args.candidates;
  backward_args.candidate_count = width;
  backward_args.grad_scores = weights.data();
  backward_args.argmax = args.argmax;
  backward_args.token_scores = args.token_scores;
  backward_args.grad_queries = grad_queries.data();
  backward_args.grad_documents = grad_documents.data();
  const simtile::MaxsimBackwardVariant& variant = level.maxsim_backward().by_element[static_cast<int>(element)];
  const Guarded workspace(static_cast<size_t>(variant.workspace_bytes(backward_args, threads)));
  variant.run(backward_args, run.executor(), workspace.data());

  Expected by_queries(queries, c), by_documents(documents, c);
  for (int64_t i = 0; i < pairs; i++) {
    const int64_t q = i / width, document = candidates[static_cast<size_t>(i)];
    if (document < 0) continue;
    const int64_t start = queries.starts[static_cast<size_t>(q)], end = queries.ends[static_cast<size_t>(q)];
    const int64_t first = documents.starts[static_cast<size_t>(document)];
    const int64_t last = documents.ends[static_cast<size_t>(document)];
    const double weight = static_cast<double>(static_cast<const T*>(weights.data())[i]);
    for (int64_t r = start; r < end; r++) {
      const int32_t best = args.argmax[width * start + i % width * (end - start) + r - start];
      if (best < 0) continue;
      const double* const token = queries.x.data() + r * c.dimensions;
      std::vector<double> shares(static_cast<size_t>(last - first));
      if (temperature > 0) {
        double largest = -1e300, sum = 0;
        for (int pass = 0; pass < 2; pass++)
          for (int64_t d = first; d < last; d++) {
            if (!documents.is_there(d)) continue;
            const double* const other = documents.x.data() + d * c.dimensions;
            double product = 0;
            for (int64_t k = 0; k < c.dimensions; k++) product += token[k] * other[k];
            product /= norm(token, c) * norm(other, c);
            if (pass == 0)
              largest = std::fmax(largest, product);
            else
              sum += shares[static_cast<size_t>(d - first)] = std::exp((product - largest) / temperature);
          }
        for (double& share : shares) share /= sum;
      } else {
        shares[static_cast<size_t>(best)] = 1;
      }
      for (int64_t d = first; d < last; d++) {
        const double share = weight * shares[static_cast<size_t>(d - first)];
        if (share == 0) continue;
        by_queries.add(r, share, documents.x.data() + d * c.dimensions, c);
        by_documents.add(d, share, token, c);
      }
    }
  }
  by_queries.through_norms(queries, c);
  by_documents.through_norms(documents, c);
  // Elements of at most 2, as many terms as there are tokens on the other side; shares are as exact as similarities.
  const double rounding =
      (sizeof(T) == 4 ? 1e-6 : 1e-14) * (1 + (temperature > 0 ? static_cast<double>(c.dimensions) : 0));
  const bool right = is_near<T>(grad_queries, by_queries, rounding * static_cast<double>(width)) &&
                     is_near<T>(grad_documents, by_documents, rounding * static_cast<double>(queries.rows));
  if (!right)
    std::printf("%s: element %d, seed %u, %d threads, temperature %g\n", level.level, static_cast<int>(element), seed,
                threads, temperature);
  CHECK(right);
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {
      {{1}, {1}, 1, 1, false, false, false},
      {{7, 0, 3}, {5, 0, 33, 1}, 7, 9, false, false, false},
      {{33, 16}, {97, 13, 40}, 33, 33, true, false, true},
      {{32}, {180, 12, 64}, 128, 128, false, true, false},
      {{5, 40}, {111, 7}, 515, 520, true, true, false},
      {{1, 2, 3, 50, 20, 33}, {200}, 64, 64, false, false, true},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (const double temperature : {0.0, 1.0})
          for (const int threads : check::thread_counts(argc, argv)) {
            if (element == Element::float64)
              check_case<double>(*level, element, c, temperature, threads, ++seed);
            else
              check_case<float>(*level, element, c, temperature, threads, ++seed);
          }
    }
  }
  return check::report();
}
