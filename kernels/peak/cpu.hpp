// Loops that do one thing as fast as the core can: what every bench divides by. README.md says how they are kept honest.
#pragma once

#include "peak/args.hpp"
#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {
namespace peak {

// Independent chains. Latency times issue rate is at most 5 cycles x 2 ports (x86-64) or 4 x 4 (large Arm cores), so 12 and 24 hide it,
// and with two operands and a temporary they stay inside 16 and 32 registers.
constexpr int kChains = kVectorRegisters == 32 ? 24 : 12;

// Says that v has changed, without an instruction: what is computed from v can be neither hoisted out of a loop nor shared.
template <typename V>
SIMTILE_INLINE void renew(V& v) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

template <typename V>
SIMTILE_INLINE void use(V (&values)[kChains]) {
#pragma GCC unroll 24
  for (int i = 0; i < kChains; i++) renew(values[i]);
}

template <typename T>
double fma(const PeakArgs& args) {
  Vector<T> sum[kChains] = {};
  Vector<T> x = broadcast<T>(T(1) / 1024), y = broadcast<T>(T(1));
  renew(y);  // a known 1 would turn the multiply-adds into additions
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] += x * y;
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * Simd<T>::kLanes * 2;
}

#if defined(__AVX512BF16__)
double dot_bf16(const PeakArgs& args) {
  __m512 sum[kChains] = {};
  __m512i x = _mm512_set1_epi16(0x3a80), y = _mm512_set1_epi16(0x3f80);  // 2^-10 and 1
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)x, (__m512bh)y);
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 32 * 2;
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
double dot_bf16(const PeakArgs& args) {
  float32x4_t sum[kChains] = {};
  uint16x8_t x = vdupq_n_u16(0x3a80), y = vdupq_n_u16(0x3f80);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = vbfdotq_f32(sum[i], vreinterpretq_bf16_u16(x), vreinterpretq_bf16_u16(y));
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 8 * 2;
}

double matrix_bf16(const PeakArgs& args) {
  float32x4_t sum[kChains] = {};
  uint16x8_t x = vdupq_n_u16(0x3a80), y = vdupq_n_u16(0x3f80);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = vbfmmlaq_f32(sum[i], vreinterpretq_bf16_u16(x), vreinterpretq_bf16_u16(y));
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 16 * 2;
}
#endif

#if defined(__AVX512VNNI__)
double dot_int8(const PeakArgs& args) {
  __m512i sum[kChains] = {};
  __m512i x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(1);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = _mm512_dpbusd_epi32(sum[i], x, y);
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 64 * 2;
}
#elif defined(__ARM_FEATURE_DOTPROD)
double dot_int8(const PeakArgs& args) {
  int32x4_t sum[kChains] = {};
  int8x16_t x = vdupq_n_s8(1), y = vdupq_n_s8(1);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = vdotq_s32(sum[i], x, y);
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 16 * 2;
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
double matrix_int8(const PeakArgs& args) {
  int32x4_t sum[kChains] = {};
  int8x16_t x = vdupq_n_s8(1), y = vdupq_n_s8(1);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = vmmlaq_s32(sum[i], x, y);
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 32 * 2;
}
#endif

#if defined(__AMX_TILE__)
// Eight tiles of 16 rows x 64 bytes: six accumulators (16 cycles each against a latency of 52) and the two operands.
constexpr int kTiles = 8;
constexpr int kAccumulatorTiles = 6;

SIMTILE_INLINE void configure_tiles() {
  alignas(64) uint8_t configuration[64] = {};
  configuration[0] = 1;  // palette 1
  for (int tile = 0; tile < kTiles; tile++) {
    configuration[16 + 2 * tile] = 64;  // bytes in a row, little endian
    configuration[48 + tile] = 16;      // rows
  }
  asm volatile(""
               :
               : "r"(configuration)
               : "memory");  // GCC's _tile_loadconfig admits to reading only 8 of the 64 bytes
  _tile_loadconfig(configuration);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

double matrix_bf16(const PeakArgs& args) {
  configure_tiles();
  for (int64_t round = 0; round < args.rounds; round++) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
  return static_cast<double>(args.rounds) * kAccumulatorTiles * 16 * 16 * 32 * 2;
}

double matrix_int8(const PeakArgs& args) {
  configure_tiles();
  for (int64_t round = 0; round < args.rounds; round++) {
    _tile_dpbssd(0, 6, 7);
    _tile_dpbssd(1, 6, 7);
    _tile_dpbssd(2, 6, 7);
    _tile_dpbssd(3, 6, 7);
    _tile_dpbssd(4, 6, 7);
    _tile_dpbssd(5, 6, 7);
  }
  _tile_release();
  return static_cast<double>(args.rounds) * kAccumulatorTiles * 16 * 16 * 64 * 2;
}
#endif

typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));

#if defined(__AVX512VPOPCNTDQ__)
double popcount(const PeakArgs& args) {
  __m512i sum[kChains] = {};
  __m512i x = _mm512_set1_epi8(0x35), y = _mm512_set1_epi8(0x53);
  for (int64_t round = 0; round < args.rounds; round++) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      renew(x);
      sum[i] = _mm512_add_epi64(sum[i], _mm512_popcnt_epi64(_mm512_xor_si512(x, y)));
    }
  }
  use(sum);
  return static_cast<double>(args.rounds) * kChains * 64;
}
#else
// Counts the bits set in every byte, with constants that the loop keeps in registers.
struct BitCounter {
#if defined(__AVX2__)
  static constexpr uint8_t kOfNibble[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
  Bytes low = Bytes{} + 15, counts{};
  SIMTILE_INLINE BitCounter() {
    // A byte shuffle looks up inside each 16 bytes, so the table is there once in each.
    for (int i = 0; i < kVectorBytes; i++) counts[i] = kOfNibble[i & 15];
    renew(low);
    renew(counts);
  }
  SIMTILE_INLINE Bytes look_up(Bytes nibbles) const {
#if defined(__AVX512BW__)
    return (Bytes)_mm512_shuffle_epi8((__m512i)counts, (__m512i)nibbles);
#else
    return (Bytes)_mm256_shuffle_epi8((__m256i)counts, (__m256i)nibbles);
#endif
  }
  SIMTILE_INLINE Bytes operator()(Bytes x) const { return look_up(x & low) + look_up((Bytes)((Halves)x >> 4) & low); }
#elif defined(__aarch64__)
  SIMTILE_INLINE Bytes operator()(Bytes x) const { return (Bytes)vcntq_u8((uint8x16_t)x); }
#else
  Bytes pairs = Bytes{} + 0x55, quads = Bytes{} + 0x33, low = Bytes{} + 15;
  SIMTILE_INLINE BitCounter() {
    renew(pairs);
    renew(quads);
    renew(low);
  }
  SIMTILE_INLINE Bytes operator()(Bytes x) const {
    x -= (Bytes)((Halves)x >> 1) & pairs;
    x = (x & quads) + ((Bytes)((Halves)x >> 2) & quads);
    return (x + (Bytes)((Halves)x >> 4)) & low;
  }
#endif
};

// The bytes of every 64-bit word added up.
SIMTILE_INLINE Words add_bytes(Bytes x) {
#if defined(__AVX512BW__)
  return (Words)_mm512_sad_epu8((__m512i)x, _mm512_setzero_si512());
#elif defined(__AVX2__)
  return (Words)_mm256_sad_epu8((__m256i)x, _mm256_setzero_si256());
#elif defined(__aarch64__)
  return (Words)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8((uint8x16_t)x)));
#else
  return (Words)_mm_sad_epu8((__m128i)x, _mm_setzero_si128());
#endif
}

double popcount(const PeakArgs& args) {
  constexpr int kPerSum = 16;  // 16 x 8 bits fit a byte, so the bytes are widened once in 16 vectors
  const BitCounter count_bits;
  Words sum{};
  Bytes x = Bytes{} + 0x35, y = Bytes{} + 0x53;
  for (int64_t round = 0; round < args.rounds; round++) {
    Bytes bytes{};
#pragma GCC unroll 16
    for (int i = 0; i < kPerSum; i++) {
      renew(x);
      bytes += count_bits(x ^ y);
      renew(bytes);  // else all 16 are computed first, and spilled
    }
    sum += add_bytes(bytes);
  }
  renew(sum);
  return static_cast<double>(args.rounds) * kPerSum * kVectorBytes;
}
#endif

// One stream with a prefetch 1 KiB ahead: on two Sapphire Rapids class cores 35 GB/s, 2 to 8 streams 32 to 35, no prefetch 23 to 34.
// A second stream costs nothing where one is too few, so two.
double read(const PeakArgs& args) {
  constexpr int kStreams = 2;
  constexpr int64_t kLine = 64;
  const int64_t stream_bytes = args.bytes / kStreams;
  Words sum[kStreams] = {};
  for (int64_t at = 0; at < stream_bytes; at += kLine) {
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; s++) {
      const char* line = args.memory + s * stream_bytes + at;
      __builtin_prefetch(line + 1024);
#pragma GCC unroll 4
      for (int64_t v = 0; v < kLine; v += kVectorBytes) sum[s] ^= *reinterpret_cast<const Words*>(line + v);
    }
  }
  renew(sum[0]);
  renew(sum[1]);
  return static_cast<double>(args.bytes);
}

constexpr PeakLoops loops = {
    fma<float>,  fma<double>,
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    dot_bf16,
#else
    nullptr,
#endif
#if defined(__AMX_BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    matrix_bf16,
#else
    nullptr,
#endif
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
    dot_int8,
#else
    nullptr,
#endif
#if defined(__AMX_INT8__) || defined(__ARM_FEATURE_MATMUL_INT8)
    matrix_int8,
#else
    nullptr,
#endif
    popcount,    read,
};

}  // namespace peak
}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
