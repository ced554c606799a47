// Every level that this CPU has and every element type against the formula. Inputs and outputs end at an unmapped page; rows that are
// masked, and what lies between rows, are NaN.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "isa.hpp"
#include "maxsim/topk_args.hpp"
#include "maxsim_case.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::MaxsimArgs;

namespace {

// The best of the scores in `args`, which have been computed: in order, of equals the first, each once.
bool are_best_found(const KernelTable& level, const MaxsimArgs& args, int64_t k, int threads) {
  const int64_t queries = args.queries.count, width = args.candidate_count;
  const Guarded scores(static_cast<size_t>(queries * k) * 4), ids(static_cast<size_t>(queries * k) * 8);
  simtile::MaxsimTopkArgs topk = {};
  topk.pairs = args;
  topk.k = k;
  topk.scores = static_cast<float*>(scores.data());
  topk.ids = static_cast<int64_t*>(ids.data());
  const simtile::MaxsimTopkVariant& variant = level.maxsim().topk_by_element[static_cast<int>(args.element)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.workspace_bytes(topk, threads)));
  variant.run(topk, run.executor(), workspace.data());
  bool right = true;
  for (int64_t q = 0; q < queries; q++) {
    std::set<std::pair<float, int64_t>> best;
    for (int64_t c = 0; c < width; c++) {
      const int64_t document = args.candidates ? args.candidates[q * width + c] : c;
      if (document >= 0) best.insert({-static_cast<const float*>(args.scores)[q * width + c], document});
    }
    for (int64_t i = 0; i < k; i++) {
      const std::pair<float, int64_t> found = {-topk.scores[q * k + i], topk.ids[q * k + i]};
      if (best.empty()) {
        right &= found.second == -1 && std::isinf(found.first);
      } else {
        right &= found == *best.begin();
        best.erase(best.begin());
      }
    }
  }
  return right;
}

template <typename T>
void check_case(const KernelTable& level, Element element, const Case& c, int threads, unsigned seed) {
  std::mt19937 random(seed);
  const Element compute = element == Element::float64 ? Element::float64 : Element::float32;
  const Side queries(random, compute, c.query_lengths, c), documents(random, element, c.document_lengths, c);
  const int64_t count = static_cast<int64_t>(c.document_lengths.size());
  const int64_t width = c.with_candidates ? 3 : count, pairs = static_cast<int64_t>(c.query_lengths.size()) * width;
  std::vector<int64_t> candidates;
  for (int64_t i = 0; i < pairs; i++)
    candidates.push_back(c.with_candidates ? static_cast<int64_t>(random() % static_cast<unsigned>(count + 1)) - 1
                                           : i % width);
  const Guarded scores(static_cast<size_t>(pairs) * sizeof(T));
  const Guarded argmax(static_cast<size_t>(queries.rows * width) * 4);
  const Guarded values(static_cast<size_t>(queries.rows * width) * sizeof(T));
  MaxsimArgs args = {};
  args.element = element;
  args.queries = queries.given(compute, c);
  args.documents = documents.given(element, c);
  args.dimensions = c.dimensions;
  args.normalize = c.normalize;
  args.empty_score = -3;
  args.candidates = c.with_candidates ? candidates.data() : nullptr;
  args.candidate_count = width;
  args.scores = scores.data();
  args.argmax = static_cast<int32_t*>(argmax.data());
  args.token_scores = values.data();
  const simtile::MaxsimVariant& variant = level.maxsim().by_element[static_cast<int>(element)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, threads)));
  variant.run(args, run.executor(), workspace.data());

  // A sum of D products of at most 4, of up to the length of a query, in float32 or double.
  const double bound = 4.0 * static_cast<double>(c.dimensions) * (sizeof(T) == 4 ? 1e-6 : 1e-14);
  bool right = true;
  for (int64_t i = 0; i < pairs; i++) {
    const int64_t q = i / width, document = candidates[static_cast<size_t>(i)];
    double score = 0;
    bool empty = true;
    for (int64_t d = document < 0 ? 0 : documents.starts[static_cast<size_t>(document)];
         document >= 0 && d < documents.ends[static_cast<size_t>(document)]; d++)
      empty &= !documents.is_there(d);
    const int64_t start = queries.starts[static_cast<size_t>(q)], end = queries.ends[static_cast<size_t>(q)];
    for (int64_t r = start; r < end; r++) {
      const int64_t at = width * start + i % width * (end - start) + r - start;
      const int32_t best = static_cast<const int32_t*>(argmax.data())[at];
      const double value = static_cast<double>(static_cast<const T*>(values.data())[at]);
      if (empty || !queries.is_there(r)) {
        right &= best == -1 && value == 0;
        continue;
      }
      const double* const token = queries.x.data() + r * c.dimensions;
      double largest = -std::numeric_limits<double>::infinity(), at_best = largest;
      const int64_t first = documents.starts[static_cast<size_t>(document)];
      for (int64_t d = first; d < documents.ends[static_cast<size_t>(document)]; d++) {
        if (!documents.is_there(d)) continue;
        const double* const other = documents.x.data() + d * c.dimensions;
        double product = 0;
        for (int64_t k = 0; k < c.dimensions; k++) product += token[k] * other[k];
        product /= norm(token, c) * norm(other, c);
        largest = std::fmax(largest, product);
        if (d - first == best) at_best = product;
      }
      right &= std::abs(value - largest) <= bound && std::abs(at_best - largest) <= bound;
      score += largest;
    }
    const double ours = static_cast<double>(static_cast<const T*>(scores.data())[i]);
    right &= empty ? ours == -3 : std::abs(ours - score) <= bound * static_cast<double>(end - start + 1);
  }
  if (element != Element::float64)
    for (const int64_t k : {1, 2, 50}) right &= are_best_found(level, args, k, threads);
  if (!right)
    std::printf("%s: element %d, seed %u, %d threads\n", level.level, static_cast<int>(element), seed, threads);
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
      {{32, 40, 9}, {3, 70, 5, 31, 1, 8, 2, 9, 33, 4, 6, 7}, 40, 40, true, false, false},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (const int threads : check::thread_counts(argc, argv)) {
          if (element == Element::float64)
            check_case<double>(*level, element, c, threads, ++seed);
          else
            check_case<float>(*level, element, c, threads, ++seed);
        }
    }
  }
  return check::report();
}
