// Codes of every kind at every level that this CPU has, to the last bit of the formula. Everything that is read or written ends at an
// unmapped page.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::MaxsimArgs;
using simtile::MaxsimKind;

namespace {

constexpr int64_t kCentroids = 5;

struct Case {
  std::vector<int64_t> query_lengths, document_lengths;
  int64_t dimensions;
  bool masked;
  int largest;  // of the queries' whole numbers
};

int bits_of(MaxsimKind kind) {
  constexpr int bits[] = {8, 8, 1, 1, 2, 4};
  return bits[static_cast<int>(kind)];
}

template <typename T>
T* copy_of(const Guarded& memory, const std::vector<T>& values) {
  if (!values.empty()) std::memcpy(memory.data(), values.data(), values.size() * sizeof(T));
  return static_cast<T*>(memory.data());
}

template <typename T>
struct Kept {
  std::vector<T> values;
  Guarded memory;
  T* data;
  explicit Kept(const std::vector<T>& given)
      : values(given), memory(given.size() * sizeof(T)), data(copy_of(memory, values)) {}
};

struct Runs {
  std::vector<int64_t> starts, ends;
  int64_t rows = 0;
  explicit Runs(const std::vector<int64_t>& lengths) {
    for (const int64_t length : lengths) {
      starts.push_back(rows);
      rows += length;
      ends.push_back(rows);
    }
  }
};

int value_of(MaxsimKind kind, const uint8_t* row, int64_t k, const int16_t* weights) {
  if (kind == MaxsimKind::int8) return static_cast<int8_t>(row[k]);
  if (kind == MaxsimKind::uint8) return row[k];
  int code = 0;
  const int bits = bits_of(kind);
  for (int b = 0; b < bits; b++) {
    const int64_t at = k * bits + b;
    code |= (row[at / 8] >> (7 - at % 8) & 1) << b;
  }
  return kind == MaxsimKind::bits ? code : weights[code];
}

void check_case(const KernelTable& level, MaxsimKind kind, const Case& c, int threads, unsigned seed) {
  std::mt19937 random(seed);
  const auto number = [&](double least, double most) {
    return static_cast<float>(std::uniform_real_distribution<double>(least, most)(random));
  };
  const bool residual = kind >= MaxsimKind::residual1;
  const Runs queries(c.query_lengths), documents(c.document_lengths);
  const int64_t d = c.dimensions, bytes = (d * bits_of(kind) + 7) / 8,
                count = static_cast<int64_t>(documents.starts.size());
  std::vector<int16_t> whole, weights;
  std::vector<uint8_t> codes, mask;
  std::vector<float> units, terms, factors, values, centroid_rows;
  std::vector<int32_t> centroids;
  for (int64_t i = 0; i < queries.rows * d; i++) {
    whole.push_back(
        static_cast<int16_t>(static_cast<int>(random() % static_cast<unsigned>(2 * c.largest + 1)) - c.largest));
    values.push_back(number(-1, 1));
  }
  for (int64_t r = 0; r < queries.rows; r++) units.push_back(number(0.5, 2)), terms.push_back(number(-3, 3));
  for (int64_t i = 0; i < documents.rows * bytes; i++) codes.push_back(static_cast<uint8_t>(random()));
  for (int64_t r = 0; r < documents.rows; r++) {
    factors.push_back(number(0, 2));
    mask.push_back(!c.masked || random() % 3 != 0);
    centroids.push_back(static_cast<int32_t>(random() % kCentroids));
  }
  for (int64_t i = 0; i < kCentroids * d; i++) centroid_rows.push_back(number(-1, 1));
  for (int i = 0; i < 1 << bits_of(kind); i++)
    weights.push_back(static_cast<int16_t>(static_cast<int>(random() % 65279) - 32639));

  const Kept<int16_t> query_memory(whole), weight_memory(weights);
  const Kept<uint8_t> code_memory(codes), mask_memory(mask);
  const Kept<float> unit_memory(units), term_memory(terms), factor_memory(factors), value_memory(values),
      centroid_memory(centroid_rows);
  const Kept<int32_t> centroid_ids(centroids);
  const int64_t pairs = static_cast<int64_t>(queries.starts.size()) * count;
  const Guarded scores(static_cast<size_t>(pairs) * 4), argmax(static_cast<size_t>(queries.rows * count) * 4),
      similarities(static_cast<size_t>(queries.rows * count) * 4);
  MaxsimArgs args = {};
  args.queries.data = query_memory.data;
  args.queries.stride = 2 * d;
  args.queries.count = static_cast<int64_t>(queries.starts.size());
  args.queries.starts = queries.starts.data();
  args.queries.ends = queries.ends.data();
  args.documents.data = code_memory.data;
  args.documents.stride = bytes;
  args.documents.count = count;
  args.documents.starts = documents.starts.data();
  args.documents.ends = documents.ends.data();
  args.documents.mask = c.masked ? mask_memory.data : nullptr;
  args.dimensions = d;
  args.query_rows = queries.rows;
  args.empty_score = -3;
  args.candidate_count = count;
  args.codes.kind = kind;
  args.codes.factors = factor_memory.data;
  args.codes.units = unit_memory.data;
  args.codes.terms = term_memory.data;
  if (residual) {
    args.codes.centroids = centroid_ids.data;
    args.codes.centroid_count = kCentroids;
    args.codes.centroid_rows = centroid_memory.data;
    args.codes.query_values = value_memory.data;
    args.codes.weights = weight_memory.data;
  }
  args.scores = scores.data();
  args.argmax = static_cast<int32_t*>(argmax.data());
  args.token_scores = similarities.data();
  const simtile::MaxsimVariant& variant = level.maxsim_codes().by_kind[static_cast<int>(kind)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, threads)));
  variant.run(args, run.executor(), workspace.data());
  check::same_everywhere(static_cast<const float*>(scores.data()), static_cast<size_t>(pairs));
  check::same_everywhere(args.argmax, static_cast<size_t>(queries.rows * count));
  check::same_everywhere(static_cast<const float*>(similarities.data()), static_cast<size_t>(queries.rows * count));

  // volatile: each operation is rounded to float32, whatever this is compiled to.
  bool right = true;
  for (int64_t q = 0; q < args.queries.count; q++)
    for (int64_t n = 0; n < count; n++) {
      const size_t query = static_cast<size_t>(q), document = static_cast<size_t>(n);
      double score = 0;
      bool empty = true;
      for (int64_t i = queries.starts[query]; i < queries.ends[query]; i++) {
        int32_t best = -1;
        float largest = 0;
        for (int64_t r = documents.starts[document]; r < documents.ends[document]; r++) {
          const size_t row = static_cast<size_t>(r);
          if (!mask[row]) continue;
          int64_t high = 0, low = 0;
          for (int64_t k = 0; k < d; k++) {
            const int z = whole[static_cast<size_t>(i * d + k)];
            const int value = value_of(kind, codes.data() + r * bytes, k, weights.data());
            const int low_byte = residual ? ((value + 128) & 255) - 128 : value;
            low += z * low_byte;
            high += z * ((value - low_byte) / 256);
          }
          const float term = terms[static_cast<size_t>(i)];
          volatile float sum = static_cast<float>(high) * 256, product = 0;
          sum = sum + static_cast<float>(low);
          if (residual) {
            for (int64_t k = 0; k < d; k++) {
              volatile float one =
                  values[static_cast<size_t>(i * d + k)] * centroid_rows[static_cast<size_t>(centroids[row] * d + k)];
              product = product + one;
            }
            sum = sum * term;
            sum = sum + product;
          } else {
            sum = sum + term;
          }
          sum = sum * factors[row];
          if (best < 0 || sum > largest) {
            best = static_cast<int32_t>(r - documents.starts[document]);
            largest = sum;
          }
        }
        const int64_t start = queries.starts[query], at = count * start + n * (queries.ends[query] - start) + i - start;
        const float ours = static_cast<const float*>(similarities.data())[at];
        const float theirs = best < 0 ? 0 : largest * units[static_cast<size_t>(i)];
        right &= ours == theirs && static_cast<const int32_t*>(argmax.data())[at] == best;
        score += static_cast<double>(theirs);
      }
      for (int64_t r = documents.starts[document]; r < documents.ends[document]; r++)
        empty &= !mask[static_cast<size_t>(r)];
      right &= static_cast<const float*>(scores.data())[q * count + n] == (empty ? -3 : static_cast<float>(score));
    }
  if (!right) std::printf("%s: kind %d, seed %u, %d threads\n", level.level, static_cast<int>(kind), seed, threads);
  CHECK(right);
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {
      {{1}, {1}, 1, false, 32639},
      {{7, 0, 3}, {5, 0, 33, 1}, 7, false, 32639},
      {{33, 16}, {97, 13, 40}, 33, true, 127},
      {{32}, {180, 12, 64}, 128, false, 32639},
      {{5, 40}, {111, 7}, 200, true, 32639},
      {{3, 50}, {200}, 64, false, 127},
  };
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (const MaxsimKind kind : {MaxsimKind::int8, MaxsimKind::uint8, MaxsimKind::bits, MaxsimKind::residual1,
                                  MaxsimKind::residual2, MaxsimKind::residual4}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (const int threads : check::thread_counts(argc, argv)) check_case(*level, kind, c, threads, ++seed);
    }
    check::print_digest(level->level);
  }
  return check::report();
}
