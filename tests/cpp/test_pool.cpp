// Every level that this CPU has, every element type and kind of pooling, against the formula in double precision. Inputs and outputs
// end at an unmapped page, and what the mask leaves out is NaN.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "check.hpp"
#include "guarded.hpp"
#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

using simtile::KernelTable;
using simtile::PoolArgs;
using simtile::PoolDotsArgs;
using simtile::Pooling;
using simtile::PoolPart;
using simtile::PoolSpreadArgs;
using simtile::PoolVariant;

namespace {

struct Case {
  int64_t rows, length, dimensions, token_dimensions;
  bool packed;
};

double read(Element element, const void* at) {
  if (element == Element::float64) {
    double x;
    std::memcpy(&x, at, 8);
    return x;
  }
  float x;
  if (element == Element::float32) {
    std::memcpy(&x, at, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  if (element == Element::bfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  const int exponent = bits >> 10 & 31;
  const double size = exponent ? std::ldexp(1024 + (bits & 1023), exponent - 25) : std::ldexp(bits & 1023, -24);
  return bits & 0x8000 ? -size : size;
}

// Half the distance between neighbouring numbers, relative to them.
double roundoff(Element element) {
  return std::ldexp(1, element == Element::float64    ? -53
                       : element == Element::float32  ? -24
                       : element == Element::bfloat16 ? -8
                                                      : -11);
}

template <typename Args>
void run_part(const PoolPart<Args>& part, const Args& args, int threads) {
  simtile::Run run(threads, nullptr, nullptr);
  const simtile::Workspace workspace(static_cast<size_t>(part.workspace_bytes(args, threads)));
  part.run(args, run.executor(), workspace.data());
}

template <typename T>
class Problem {
 public:
  Problem(Element element, const Case& c, unsigned seed)
      : element_(element),
        c_(c),
        bytes_(element_bytes(element)),
        total_(c.rows * c.length),
        data_(static_cast<size_t>(total_ * c.token_dimensions) * bytes_),
        weights_(static_cast<size_t>(total_) * sizeof(T)),
        mask_(static_cast<size_t>(total_)) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> magnitude(0.05, 2);
    uint8_t* const mask = static_cast<uint8_t*>(mask_.data());
    for (int64_t t = 0; t < total_; t++) {
      mask[t] = random() % 4 != 0 && t / c.length != 1 ? 200 : 0;  // the second row has nothing
      const double weight = static_cast<float>(magnitude(random));
      static_cast<T*>(weights_.data())[t] = mask[t] ? static_cast<T>(weight) : static_cast<T>(NAN);
      w_.push_back(weight);
      for (int64_t d = 0; d < c.token_dimensions; d++) {
        char* const at = static_cast<char*>(data_.data()) + static_cast<size_t>(t * c.token_dimensions + d) * bytes_;
        const double value = (random() & 1 ? 1 : -1) * magnitude(random);
        x_.push_back(write(element, at, random() % 9 == 0 ? 0.5 : value));
        if (!mask[t]) std::memset(at, 0xff, bytes_);
      }
    }
    for (int64_t n = 0; n <= c.rows; n++) offsets_.push_back(n * c.length);
  }

  void check(const PoolVariant& variant, Pooling how, bool weighted, bool normalize, int threads, const char* level) {
    const Case& c = c_;
    const int64_t n = c.rows, d = c.dimensions;
    const Guarded out(static_cast<size_t>(n * d) * bytes_), raw(static_cast<size_t>(n * d) * sizeof(T));
    const Guarded totals(static_cast<size_t>(n) * sizeof(T));
    const Guarded positions(static_cast<size_t>(how == Pooling::largest ? n * d : n) * sizeof(int32_t));
    PoolArgs args = {};
    args.element = element_;
    args.how = how;
    args.of = {n, c.length, c.length, c.packed ? offsets_.data() : nullptr};
    args.dimensions = d;
    args.data = data_.data();
    args.row_stride = c.packed ? 0 : c.length * c.token_dimensions;
    args.token_stride = c.token_dimensions;
    args.mask = static_cast<const uint8_t*>(mask_.data());
    args.weights = weighted ? weights_.data() : nullptr;
    args.normalize = normalize;
    args.out = out.data();
    args.raw = raw.data();
    args.totals = totals.data();
    args.positions = how == Pooling::mean ? nullptr : static_cast<int32_t*>(positions.data());
    run_part(variant.pool, args, threads);

    double worst = 0;
    bool right = true;
    for (int64_t row = 0; row < n; row++) {
      std::vector<double> expected(static_cast<size_t>(d));
      std::vector<int32_t> from(static_cast<size_t>(d), -1);
      double total = 0, square = 0;
      for (int64_t l = 0; l < c.length; l++) {
        if (!args.mask[row * c.length + l]) continue;
        const double w = weighted ? w_[static_cast<size_t>(row * c.length + l)] : 1;
        total += w;
        for (int64_t k = 0; k < d; k++) {
          const double x = at(row, l, k);
          const size_t i = static_cast<size_t>(k);
          if (how == Pooling::mean) {
            expected[i] += w * x;
          } else if (from[i] < 0 || how == Pooling::last || (how == Pooling::largest && x > expected[i])) {
            expected[i] = x;
            from[i] = static_cast<int32_t>(l);
          }
        }
      }
      for (double& x : expected) {
        if (how == Pooling::mean) x /= std::max(total, 1e-9);
        square += x * x;
      }
      for (int64_t k = 0; k < d; k++) {
        const size_t i = static_cast<size_t>(row * d + k), own = static_cast<size_t>(k);
        const double whole = expected[own], norm = std::max(std::sqrt(square), 1e-12);
        worst = std::max(worst, std::fabs(static_cast<double>(static_cast<T*>(raw.data())[i]) - whole) / accumulator());
        const double found = read(element_, static_cast<char*>(out.data()) + i * bytes_);
        const double value = normalize ? whole / norm : whole;
        const double allowed = roundoff(element_) * std::fabs(value) + accumulator() * (normalize ? 1 / norm : 1) * 16 +
                               (element_ == Element::float16 ? 3e-8 : 0);
        right &= square == 0 ? found == 0 : std::fabs(found - value) <= allowed;
        if (how == Pooling::largest) right &= args.positions[row * d + k] == from[own];
      }
      if (how == Pooling::first || how == Pooling::last) right &= args.positions[row] == from[0];
      if (how == Pooling::mean)
        right &= std::fabs(static_cast<double>(static_cast<T*>(totals.data())[row]) - total) <= 1e-4;
    }
    right &= worst <= 16;
    if (!right)
      std::fprintf(stderr, "%s element %d how %d: N=%ld L=%ld D=%ld of %ld packed=%d threads=%d: %g roundoffs\n", level,
                   static_cast<int>(element_), static_cast<int>(how), static_cast<long>(n), static_cast<long>(c.length),
                   static_cast<long>(d), static_cast<long>(c.token_dimensions), c.packed, threads, worst);
    CHECK(right);
    check_gradients(variant, args, how, threads);
  }

 private:
  double at(int64_t row, int64_t l, int64_t k) const {
    return x_[static_cast<size_t>((row * c_.length + l) * c_.token_dimensions + k)];
  }
  static double accumulator() { return std::ldexp(1, sizeof(T) == 8 ? -52 : -23); }

  void check_gradients(const PoolVariant& variant, const PoolArgs& args, Pooling how, int threads) {
    const int64_t n = c_.rows, d = c_.dimensions, wide = c_.token_dimensions;
    const Guarded grad(static_cast<size_t>(n * d) * sizeof(T)), out(static_cast<size_t>(total_ * wide) * bytes_);
    const Guarded products(static_cast<size_t>(total_) * sizeof(T)), shares(static_cast<size_t>(total_) * sizeof(T));
    T* const g = static_cast<T*>(grad.data());
    for (int64_t i = 0; i < n * d; i++) g[i] = static_cast<T>(i % 7 - 3) / 4;
    T* const share = static_cast<T*>(shares.data());
    for (int64_t t = 0; t < total_; t++) share[t] = args.mask[t] ? static_cast<T>(t % 5) / 4 : 0;
    const bool chosen = how == Pooling::largest;
    const PoolSpreadArgs of_tokens = {
        element_, args.of, d, wide, g, chosen ? nullptr : share, chosen ? args.positions : nullptr, out.data()};
    run_part(variant.spread, of_tokens, threads);
    const PoolDotsArgs of_weights = {element_,          args.of,   d, args.data,      args.row_stride,
                                     args.token_stride, args.mask, g, products.data()};
    run_part(variant.dots, of_weights, threads);
    bool right = true;
    for (int64_t t = 0; t < total_; t++) {
      const int64_t row = t / c_.length;
      double product = 0, size = 0;
      for (int64_t k = 0; k < wide; k++) {
        const double found =
            read(element_, static_cast<char*>(out.data()) + static_cast<size_t>(t * wide + k) * bytes_);
        double value = 0;
        if (k < d) {
          const double own = static_cast<double>(g[row * d + k]);
          value = !chosen                                        ? own * static_cast<double>(share[t])
                  : args.positions[row * d + k] == t % c_.length ? own
                                                                 : 0;
          if (args.mask[t]) product += own * at(row, t % c_.length, k), size += std::fabs(own) * 2;
        }
        right &= std::fabs(found - value) <= roundoff(element_) * std::fabs(value);
      }
      right &=
          std::fabs(static_cast<double>(static_cast<T*>(products.data())[t]) - product) <= 8 * accumulator() * size;
    }
    CHECK(right);
  }

  Element element_;
  Case c_;
  size_t bytes_;
  int64_t total_;
  Guarded data_, weights_, mask_;
  std::vector<double> x_, w_;
  std::vector<int64_t> offsets_;
};

template <typename T>
void check_case(const KernelTable& level, Element element, const Case& c, int threads, unsigned seed) {
  Problem<T> problem(element, c, seed);
  const PoolVariant& variant = level.pool().by_element[static_cast<int>(element)];
  for (const bool normalize : {false, true}) {
    problem.check(variant, Pooling::mean, true, normalize, threads, level.level);
    for (const Pooling how : {Pooling::mean, Pooling::first, Pooling::last, Pooling::largest})
      problem.check(variant, how, false, normalize, threads, level.level);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Case cases[] = {{1, 1, 1, 1, false},    {2, 7, 7, 7, true},       {3, 17, 33, 40, false},
                        {5, 40, 64, 64, true},  {7, 9, 111, 384, false},  {1, 130, 515, 515, false},
                        {40, 9, 65, 65, false}, {9, 70, 200, 200, false}, {9, 70, 100, 131, true}};
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
