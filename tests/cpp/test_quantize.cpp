// Every level that this CPU has, every element type and kind of codes, against the formula, bit for bit. Inputs and outputs end at
// an unmapped page.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::Codes;
using simtile::KernelTable;
using simtile::QuantizeArgs;
using simtile::RangesArgs;

namespace {

struct Case {
  int64_t rows, dimensions, stride;
};

// Codes one to an element, by the formula in the type that the kernel computes in.
template <typename T>
struct Reference {
  std::vector<int> codes;
  std::vector<float> scales;
  int64_t without = -1;  // the first row without codes

  Reference(const std::vector<double>& x, Codes kind, const Case& c, const std::vector<float>& starts,
            const std::vector<float>& steps) {
    const bool small = kind == Codes::int4 || kind == Codes::int4_vector;
    for (int64_t i = 0; i < c.rows; i++) {
      const double* const row = x.data() + i * c.dimensions;
      if (kind == Codes::binary) {
        for (int64_t j = 0; j < c.dimensions; j++) codes.push_back(row[j] > 0);
      } else if (kind == Codes::int8_vector || kind == Codes::int4_vector) {
        vector_codes(row, c.dimensions, small ? 7 : 127, i);
      } else {
        const int top = small ? 15 : 255, zero = kind == Codes::int8 ? 128 : small ? 8 : 0;
        for (int64_t j = 0; j < c.dimensions; j++) {
          const size_t column = static_cast<size_t>(j);
          const T quotient = (static_cast<T>(row[j]) - static_cast<T>(starts[column])) / static_cast<T>(steps[column]);
          if (std::isnan(quotient) && without < 0) without = i;
          codes.push_back(std::isnan(quotient)
                              ? 0
                              : static_cast<int>(std::floor(std::min(std::max(quotient, T(0)), static_cast<T>(top)))) -
                                    zero);
        }
      }
    }
  }

  void vector_codes(const double* row, int64_t dimensions, int top, int64_t i) {
    T largest = 0;
    bool nan = false;
    for (int64_t j = 0; j < dimensions; j++) {
      largest = std::max(largest, std::fabs(static_cast<T>(row[j])));
      nan |= std::isnan(row[j]);
    }
    const float scale =
        nan ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(largest / static_cast<T>(top));
    if (!std::isfinite(scale) && without < 0) without = i;
    scales.push_back(scale);
    for (int64_t j = 0; j < dimensions; j++) {
      const T quotient = static_cast<T>(row[j]) / static_cast<T>(scale);
      const T bound = static_cast<T>(top);
      codes.push_back(!std::isfinite(scale) || scale == 0
                          ? 0
                          : static_cast<int>(std::nearbyint(std::min(std::max(quotient, -bound), bound))));
    }
  }
};

int stored_code(const uint8_t* row, Codes kind, int64_t j) {
  if (kind == Codes::binary) return row[j / 8] >> (7 - j % 8) & 1;
  if (kind == Codes::int4 || kind == Codes::int4_vector) {
    const int nibble = row[j / 2] >> (j % 2 * 4) & 15;
    return nibble < 8 ? nibble : nibble - 16;
  }
  return kind == Codes::uint8 ? row[j] : static_cast<int8_t>(row[j]);
}

template <typename T>
void check_kind(const KernelTable& level, Element element, Codes kind, const Case& c, int threads, const Guarded& data,
                const std::vector<double>& x, const std::vector<float>& starts, const std::vector<float>& steps) {
  const bool nibbles = kind == Codes::int4 || kind == Codes::int4_vector;
  const int64_t width = kind == Codes::binary ? (c.dimensions + 7) / 8
                        : nibbles             ? (c.dimensions + 1) / 2
                                              : c.dimensions;
  const Guarded codes(static_cast<size_t>(c.rows * width)), scales(static_cast<size_t>(c.rows) * sizeof(float));
  QuantizeArgs args = {};
  args.element = element;
  args.codes = kind;
  args.rows = c.rows;
  args.dimensions = c.dimensions;
  args.data = data.data();
  args.stride = c.stride;
  args.starts = starts.data();
  args.steps = steps.data();
  args.out = static_cast<uint8_t*>(codes.data());
  args.scales = static_cast<float*>(scales.data());
  const simtile::QuantizeVariant& variant = level.quantize().by_element[static_cast<int>(element)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.codes_bytes(args, threads)));
  const int64_t without = variant.codes(args, run.executor(), workspace.data());
  check::same_everywhere(args.out, static_cast<size_t>(c.rows * width));
  check::same_everywhere(&without, 1);

  const Reference<T> expected(x, kind, c, starts, steps);
  int64_t wrong = 0;
  for (int64_t i = 0; i < c.rows; i++) {
    for (int64_t j = 0; j < c.dimensions; j++)
      wrong += stored_code(args.out + i * width, kind, j) != expected.codes[static_cast<size_t>(i * c.dimensions + j)];
    const uint8_t last = args.out[(i + 1) * width - 1];
    if (nibbles && c.dimensions % 2) wrong += last >> 4 != 0;
    if (kind == Codes::binary && c.dimensions % 8) wrong += (last & (0xff >> c.dimensions % 8)) != 0;
    if (!expected.scales.empty()) {
      check::same_everywhere(args.scales + i, 1);
      const float found = args.scales[i], scale = expected.scales[static_cast<size_t>(i)];
      wrong += !(found == scale || (std::isnan(found) && std::isnan(scale)));
    }
  }
  const bool right = wrong == 0 && without == expected.without;
  if (!right)
    std::fprintf(stderr, "%s element %d kind %d: N=%ld D=%ld stride=%ld threads=%d: %ld wrong, row %ld, expected %ld\n",
                 level.level, static_cast<int>(element), static_cast<int>(kind), static_cast<long>(c.rows),
                 static_cast<long>(c.dimensions), static_cast<long>(c.stride), threads, static_cast<long>(wrong),
                 static_cast<long>(without), static_cast<long>(expected.without));
  CHECK(right);
}

template <typename T>
void check_case(const KernelTable& level, Element element, const Case& c, int threads, bool with_nan, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> magnitude(0.05, 2);
  const size_t bytes = element_bytes(element);
  const Guarded data(static_cast<size_t>((c.rows - 1) * c.stride + c.dimensions) * bytes);  // NaN between the rows
  std::vector<double> x;
  for (int64_t i = 0; i < c.rows; i++) {
    for (int64_t j = 0; j < c.dimensions; j++) {
      double value = (random() & 1 ? 1 : -1) * magnitude(random);
      if (random() % 50 == 0) value = 0.5;  // half a step of many
      char* const at = static_cast<char*>(data.data()) + static_cast<size_t>(i * c.stride + j) * bytes;
      x.push_back(with_nan && i == c.rows / 2 && j == c.dimensions - 1 ? std::numeric_limits<double>::quiet_NaN()
                                                                       : write(element, at, value));
      if (std::isnan(x.back())) std::memset(at, 0xff, bytes);
    }
  }
  std::vector<T> smallest(static_cast<size_t>(c.dimensions)), largest(smallest.size());
  RangesArgs ranges = {element, c.rows, c.dimensions, data.data(), c.stride, smallest.data(), largest.data()};
  const simtile::QuantizeVariant& variant = level.quantize().by_element[static_cast<int>(element)];
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(variant.ranges_bytes(ranges, threads)));
  variant.ranges(ranges, run.executor(), workspace.data());
  check::same_everywhere(smallest.data(), smallest.size());
  check::same_everywhere(largest.data(), largest.size());
  bool right = true;
  std::vector<float> starts, steps;
  for (size_t j = 0; j < smallest.size(); j++) {
    double low = x[j], high = x[j];
    bool nan = false;
    for (size_t i = 0; i < static_cast<size_t>(c.rows); i++) {
      const double value = x[i * smallest.size() + j];
      nan |= std::isnan(value);
      low = std::min(low, value);
      high = std::max(high, value);
    }
    right &= nan ? std::isnan(smallest[j]) && std::isnan(largest[j])
                 : static_cast<double>(smallest[j]) == low && static_cast<double>(largest[j]) == high;
    starts.push_back(static_cast<float>(-1.5));
    steps.push_back(static_cast<float>(0.0078125 * static_cast<double>(1 + j % 3)));
  }
  CHECK(right);
  for (Codes kind : {Codes::int8, Codes::uint8, Codes::int4, Codes::binary, Codes::int8_vector, Codes::int4_vector})
    check_kind<T>(level, element, kind, c, threads, data, x, starts, steps);
}

}  // namespace

int main() {
  const Case cases[] = {{1, 1, 1},    {1, 7, 7},       {2, 16, 16},    {7, 3, 5},       {13, 33, 33},
                        {33, 64, 64}, {111, 111, 120}, {40, 515, 515}, {700, 384, 384}, {300, 989, 1000}};
  for (const KernelTable* level : simtile::detected_levels()) {
    std::printf("%s\n", level->level);
    for (Element element : {Element::float32, Element::float64, Element::bfloat16, Element::float16}) {
      unsigned seed = 0;
      for (const Case& c : cases)
        for (const bool with_nan : {false, true}) {
          const int threads = ++seed % 2 ? 1 : 3;
          if (element == Element::float64)
            check_case<double>(*level, element, c, threads, with_nan, seed);
          else
            check_case<float>(*level, element, c, threads, with_nan, seed);
        }
    }
    check::print_digest(level->level);
  }
  return check::report();
}
