// From rows of floats to codes, one pass over the rows. README.md has the formulas; NumPy's arithmetic is followed to the bit.
#pragma once

#include "quantize/args.hpp"
#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {
namespace quantize {

// A task's rows stay in L2 between the strips of columns that read them.
constexpr int64_t kTaskBytes = 256 << 10;
// Columns whose levels are held in bytes before they are packed.
constexpr int64_t kChunk = 512;

template <typename T>
using Integers = typename Simd<T>::Integer;
template <typename T>
struct Narrow {
  typedef int32_t Words __attribute__((vector_size(4 * Simd<T>::kLanes)));
  typedef uint8_t Bytes __attribute__((vector_size(Simd<T>::kLanes)));
  typedef uint8_t Unaligned __attribute__((vector_size(Simd<T>::kLanes), aligned(1), may_alias));
};

// Four vectors of words 0 to 255 to bytes, at once: one by one AVX2 and SSE2 take three times as long. With AVX-512 a vector
// of words is one instruction.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kNarrowedBytes = 32;
typedef __m256i Register;
SIMTILE_INLINE void store_narrowed(__m256i a, __m256i b, __m256i c, __m256i d, uint8_t* out) {
  const __m256i halves = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  // Each half has words of all four vectors; back into their order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(halves, order));
}
#elif defined(__SSE2__) && !defined(__AVX512F__)
constexpr int kNarrowedBytes = 16;
typedef __m128i Register;
SIMTILE_INLINE void store_narrowed(__m128i a, __m128i b, __m128i c, __m128i d, uint8_t* out) {
  const __m128i bytes = _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}
#endif

SIMTILE_INLINE int64_t rows_per_task(int64_t dimensions, int64_t element_bytes) {
  return most<int64_t>(kTaskBytes / (dimensions * element_bytes), 1);
}

SIMTILE_INLINE int64_t task_count(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

// Adding it leaves the rounded integer, half to even, in the low bits of the mantissa: 1.5 * 2^23, 1.5 * 2^52.
template <typename T>
constexpr T kRound = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);

// Levels 0 to top of the quotient, rounded down; `of_nan` for NaN. The comparisons are false for it.
template <typename V>
SIMTILE_INLINE V level(V quotient, V zero, V top, V of_nan) {
  V x = quotient > zero ? quotient : zero;
  x = x < top ? x : top;
  return quotient == quotient ? x : of_nan;
}

// How a row becomes bytes, one for each element, before int4 packs them. Both forms take a vector and a single element.
template <typename T>
struct PerDimension {
  const float* starts;
  const float* steps;
  T top;         // 255 or 15
  T of_nan;      // the level that `flip` makes code 0
  int32_t flip;  // 0x80, 8: from levels to two's complement
  Integers<T> nan = {};
  bool nan_in_tail = false;

  SIMTILE_INLINE typename Narrow<T>::Words codes(Vector<T> x, int64_t column) {
    const Vector<T> quotient = (x - load_as(starts + column)) / load_as(steps + column);
    nan |= quotient != quotient;
    const Vector<T> bounded = level<Vector<T>>(quotient, Vector<T>{}, broadcast<T>(top), broadcast<T>(of_nan));
    return __builtin_convertvector(bounded, typename Narrow<T>::Words) ^ flip;
  }

  SIMTILE_INLINE uint8_t code(T x, int64_t column) {
    const T quotient = (x - static_cast<T>(starts[column])) / static_cast<T>(steps[column]);
    nan_in_tail |= quotient != quotient;
    return static_cast<uint8_t>(static_cast<int32_t>(level<T>(quotient, T(0), top, of_nan)) ^ flip);
  }

  SIMTILE_INLINE bool met_nan() const {
    bool any = nan_in_tail;
    for (int lane = 0; lane < Simd<T>::kLanes; lane++) any |= nan[lane] != 0;
    return any;
  }

 private:
  static SIMTILE_INLINE Vector<T> load_as(const float* p) {
    if constexpr (sizeof(T) == 4) {
      return load<float>(p);
    } else {
      typedef float Half __attribute__((vector_size(4 * Simd<T>::kLanes), aligned(4), may_alias));
      return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vector<T>);
    }
  }
};

template <typename T>
struct PerVector {
  T scale;
  T top;  // 127 or 7

  SIMTILE_INLINE typename Narrow<T>::Words codes(Vector<T> x, int64_t) const {
    Vector<T> q = x / scale;
    q = q > -top ? q : broadcast<T>(-top);
    q = q < top ? q : broadcast<T>(top);
    return __builtin_convertvector((q + kRound<T>)-kRound<T>, typename Narrow<T>::Words);
  }

  SIMTILE_INLINE uint8_t code(T x, int64_t) const {
    const T q = least<T>(most<T>(x / scale, -top), top);
    return static_cast<uint8_t>(static_cast<int32_t>((q + kRound<T>)-kRound<T>));
  }
};

// Columns [first, first + count) of a row to one byte each.
template <typename T, typename Source, typename Rule>
SIMTILE_INLINE void bytes_of(const Source* row, int64_t first, int64_t count, Rule& rule, uint8_t* out) {
  constexpr int kLanes = Simd<T>::kLanes;
  typedef Narrow<T> N;
  int64_t c = 0;
#if defined(__SSE2__) && !defined(__AVX512F__)
  if constexpr (4 * kLanes == kNarrowedBytes) {
    for (; c + 4 * kLanes <= count; c += 4 * kLanes) {
      typename N::Words words[4];
      for (int v = 0; v < 4; v++)
        words[v] = rule.codes(load_widened(row + first + c + v * kLanes), first + c + v * kLanes) & 255;
      store_narrowed((Register)words[0], (Register)words[1], (Register)words[2], (Register)words[3], out + c);
    }
  }
#endif
  for (; c + kLanes <= count; c += kLanes) {
    const auto words = rule.codes(load_widened(row + first + c), first + c);
    *reinterpret_cast<typename N::Unaligned*>(out + c) = __builtin_convertvector(words, typename N::Bytes);
  }
  for (; c < count; c++) out[c] = rule.code(widen(row[first + c]), first + c);
}

// Two codes a byte, the even element in the low half.
SIMTILE_INLINE void pack_nibbles(const uint8_t* codes, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count / 2; i++) out[i] = static_cast<uint8_t>((codes[2 * i] & 15) | codes[2 * i + 1] << 4);
  if (count % 2) out[count / 2] = codes[count - 1] & 15;
}

template <typename T, typename Source, typename Rule>
SIMTILE_INLINE void codes_of_row(const Source* row, int64_t dimensions, bool nibbles, Rule& rule, uint8_t* out) {
  if (!nibbles) return bytes_of<T>(row, 0, dimensions, rule, out);
  uint8_t codes[kChunk];
  for (int64_t c = 0; c < dimensions; c += kChunk) {
    const int64_t count = least(kChunk, dimensions - c);
    bytes_of<T>(row, c, count, rule, codes);
    pack_nibbles(codes, count, out + c / 2);
  }
}

// max |x|, NaN where there is one: the bits of numbers without a sign are ordered as the numbers are, with infinity and
// then NaN above them.
template <typename T, typename Source>
SIMTILE_INLINE T largest_magnitude(const Source* row, int64_t dimensions) {
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kChains = 4;
  typedef decltype(Integers<T>{}[0] + 0) Word;
  const Integers<T> magnitude = ~(Integers<T>)(broadcast<T>(T(-0.0)));
  Integers<T> largest[kChains] = {};
  int64_t c = 0;
  for (; c + kChains * kLanes <= dimensions; c += kChains * kLanes)
    for (int v = 0; v < kChains; v++)
      largest[v] = maximum(largest[v], (Integers<T>)load_widened(row + c + v * kLanes) & magnitude);
  for (; c + kLanes <= dimensions; c += kLanes)
    largest[0] = maximum(largest[0], (Integers<T>)load_widened(row + c) & magnitude);
  if (c < dimensions) {
    const Vector<T> x = load_widened_first<T>(row + c, static_cast<int>(dimensions - c));
    largest[0] = maximum(largest[0], (Integers<T>)x & magnitude);
  }
  largest[0] = maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3]));
  Word bits = 0;
  for (int lane = 0; lane < kLanes; lane++) bits = most<Word>(bits, largest[0][lane]);
  T out;
  __builtin_memcpy(&out, &bits, sizeof out);
  return out;
}

// Bit 7 - i % 8 of byte i / 8 is whether element i is above 0.
template <typename Number>
SIMTILE_INLINE void bits_of(const Number* x, int64_t count, uint8_t* out) {
  for (int64_t byte = 0; byte < (count + 7) / 8; byte++) {
    const int64_t present = least<int64_t>(8, count - 8 * byte);
    unsigned bits = 0;
    for (int64_t i = 0; i < present; i++) bits |= static_cast<unsigned>(x[8 * byte + i] > 0) << (7 - i);
    out[byte] = static_cast<uint8_t>(bits);
  }
}

template <typename T, typename Source>
SIMTILE_INLINE void bits_of_row(const Source* row, int64_t dimensions, uint8_t* out) {
  if constexpr (sizeof(T) == sizeof(Source)) {
    bits_of(row, dimensions, out);
  } else {
    T numbers[kChunk];
    for (int64_t first = 0; first < dimensions; first += kChunk) {
      const int64_t count = least(kChunk, dimensions - first);
      int64_t c = 0;
      for (; c + Simd<T>::kLanes <= count; c += Simd<T>::kLanes) store<T>(numbers + c, load_widened(row + first + c));
      for (; c < count; c++) numbers[c] = widen(row[first + c]);
      bits_of(numbers, count, out + first / 8);
    }
  }
}

template <typename T, typename Source>
struct Coder {
  const QuantizeArgs& args;
  int64_t each;    // rows a task
  int64_t* found;  // [tasks], the first row without a code

  static void run(void* context, int64_t task, int) {
    const Coder& self = *static_cast<Coder*>(context);
    const int64_t first = task * self.each;
    self.found[task] = self.code_rows(first, least(first + self.each, self.args.rows));
  }

  int64_t code_rows(int64_t first, int64_t end) const {
    const int64_t d = args.dimensions;
    const Source* const data = static_cast<const Source*>(args.data);
    const bool nibbles = args.codes == Codes::int4 || args.codes == Codes::int4_vector;
    const int64_t width = args.codes == Codes::binary ? (d + 7) / 8 : nibbles ? (d + 1) / 2 : d;
    int64_t without = -1;
    if (args.codes == Codes::binary) {
      for (int64_t i = first; i < end; i++) bits_of_row<T>(data + i * args.stride, d, args.out + i * width);
    } else if (args.codes == Codes::int8_vector || args.codes == Codes::int4_vector) {
      const T top = nibbles ? 7 : 127;
      for (int64_t i = first; i < end; i++) {
        const Source* const row = data + i * args.stride;
        uint8_t* const out = args.out + i * width;
        const float scale = static_cast<float>(largest_magnitude<T>(row, d) / top);
        const bool finite = scale - scale == 0;
        args.scales[i] = scale;
        if (!finite && without < 0) without = i;
        if (!finite || scale == 0) {
          __builtin_memset(out, 0, static_cast<size_t>(width));
          continue;
        }
        PerVector<T> rule = {static_cast<T>(scale), top};
        codes_of_row<T>(row, d, nibbles, rule, out);
      }
    } else {
      const int32_t flip = args.codes == Codes::int8 ? 0x80 : nibbles ? 8 : 0;
      PerDimension<T> rule = {args.starts, args.steps, T(nibbles ? 15 : 255), T(flip), flip};
      for (int64_t i = first; i < end; i++) {
        codes_of_row<T>(data + i * args.stride, d, nibbles, rule, args.out + i * width);
        if (without < 0 && rule.met_nan()) without = i;
      }
    }
    return without;
  }
};

template <typename T, typename Source>
int64_t codes_bytes(const QuantizeArgs& args, int) {
  return task_count(args.rows, rows_per_task(args.dimensions, sizeof(Source))) * static_cast<int64_t>(sizeof(int64_t));
}

template <typename T, typename Source>
int64_t codes(const QuantizeArgs& args, const Executor& executor, void* workspace) {
  const int64_t each = rows_per_task(args.dimensions, sizeof(Source));
  const int64_t tasks = task_count(args.rows, each);
  Coder<T, Source> coder = {args, each, static_cast<int64_t*>(workspace)};
  executor.run(tasks, &Coder<T, Source>::run, &coder);
  for (int64_t task = 0; task < tasks; task++)
    if (coder.found[task] >= 0) return coder.found[task];
  return -1;
}

// Each worker has its own ends, [2][D]: what is smallest does not depend on the order.
template <typename T, typename Source>
struct Ranger {
  const RangesArgs& args;
  int64_t each;
  T* ends;  // [threads][2][D]

  static void run(void* context, int64_t task, int worker) {
    const Ranger& self = *static_cast<Ranger*>(context);
    const int64_t d = self.args.dimensions, first = task * self.each;
    const int64_t rows = least(self.each, self.args.rows - first);
    const Source* const data = static_cast<const Source*>(self.args.data) + first * self.args.stride;
    T* const smallest = self.ends + worker * 2 * d;
    constexpr int kLanes = Simd<T>::kLanes;
    int64_t c = 0;
    for (; c + 4 * kLanes <= d; c += 4 * kLanes) strip<4>(data + c, self.args.stride, rows, smallest + c, d);
    for (; c + kLanes <= d; c += kLanes) strip<1>(data + c, self.args.stride, rows, smallest + c, d);
    for (; c < d; c++)
      for (int64_t i = 0; i < rows; i++) {
        const T x = widen(data[i * self.args.stride + c]);
        merge(x, x, smallest + c, d);
      }
  }

  // NaN on either side stays.
  static SIMTILE_INLINE void merge(T low, T high, T* smallest, int64_t d) {
    if (low < smallest[0] || low != low) smallest[0] = low;
    if (high > smallest[d] || high != high) smallest[d] = high;
  }

  template <int kVectors>
  static SIMTILE_INLINE void strip(const Source* data, int64_t stride, int64_t rows, T* smallest, int64_t d) {
    constexpr int kLanes = Simd<T>::kLanes;
    Vector<T> low[kVectors], high[kVectors];
    Integers<T> nan[kVectors];
    for (int v = 0; v < kVectors; v++) {
      low[v] = load<T>(smallest + v * kLanes);
      high[v] = load<T>(smallest + d + v * kLanes);
      nan[v] = Integers<T>{};
    }
    for (int64_t i = 0; i < rows; i++) {
      for (int v = 0; v < kVectors; v++) {
        const Vector<T> x = load_widened(data + i * stride + v * kLanes);
        low[v] = x < low[v] ? x : low[v];
        high[v] = x > high[v] ? x : high[v];
        nan[v] |= x != x;
      }
    }
    const Vector<T> no_number = broadcast<T>(static_cast<T>(__builtin_nan("")));
    for (int v = 0; v < kVectors; v++) {
      store<T>(smallest + v * kLanes, nan[v] ? no_number : low[v]);
      store<T>(smallest + d + v * kLanes, nan[v] ? no_number : high[v]);
    }
  }
};

template <typename T, typename Source>
int64_t ranges_bytes(const RangesArgs& args, int threads) {
  return threads * 2 * args.dimensions * static_cast<int64_t>(sizeof(T));
}

template <typename T, typename Source>
void ranges(const RangesArgs& args, const Executor& executor, void* workspace) {
  const int64_t d = args.dimensions;
  const int64_t each = rows_per_task(d, sizeof(Source));
  Ranger<T, Source> ranger = {args, each, static_cast<T*>(workspace)};
  for (int64_t worker = 0; worker < executor.threads; worker++)
    for (int64_t c = 0; c < d; c++) {
      ranger.ends[worker * 2 * d + c] = static_cast<T>(__builtin_inf());
      ranger.ends[worker * 2 * d + d + c] = static_cast<T>(-__builtin_inf());
    }
  executor.run(task_count(args.rows, each), &Ranger<T, Source>::run, &ranger);
  T* const smallest = static_cast<T*>(args.smallest);
  T* const largest = static_cast<T*>(args.largest);
  for (int64_t worker = 1; worker < executor.threads; worker++)
    for (int64_t c = 0; c < d; c++)
      Ranger<T, Source>::merge(ranger.ends[worker * 2 * d + c], ranger.ends[worker * 2 * d + d + c], ranger.ends + c,
                               d);
  for (int64_t c = 0; c < d; c++) {
    smallest[c] = ranger.ends[c] + T(0);  // -0 becomes 0: which of the two is met first does not show
    largest[c] = ranger.ends[d + c] + T(0);
  }
}

template <typename T, typename Source>
constexpr QuantizeVariant variant = {ranges_bytes<T, Source>, ranges<T, Source>, codes_bytes<T, Source>,
                                     codes<T, Source>};

}  // namespace quantize

constexpr QuantizeKernel quantize_kernel = {{
    quantize::variant<float, float>,
    quantize::variant<double, double>,
    quantize::variant<float, bf16>,
    quantize::variant<float, f16>,
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
