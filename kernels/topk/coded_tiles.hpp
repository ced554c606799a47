// The products of a panel of documents with all queries in small integers: tile/coded_rows.hpp.
#pragma once

#include "tile/coded_rows.hpp"
#include "topk/float_tiles.hpp"

#if defined(__AVX2__)

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Document>
struct CodedTiles {
  static constexpr int kRows = kCodedRows;
  static constexpr int kVectors = kCodedVectors;
  static constexpr int64_t kDepth = int64_t{1} << 40;
  static constexpr bool kRounded = true;
  static constexpr bool kCopied = true;
  struct Scope {};

  // Rounding a row to codes takes some 50 vectors' work, which fewer queries do not return; sums of more dimensions leave 32 bits.
  static bool suit(const TopkProblem& p) { return p.queries >= 48 && p.dimensions >= 32 && p.dimensions <= 65536; }

  // Sums of codes are exact: their conversion, the product of the steps, and that with the sum.
  static int64_t roundings(int64_t) { return 4; }

  static int64_t groups(int64_t dimensions) { return (dimensions + kCodeGroup - 1) / kCodeGroup; }

  // [vector of queries]: codes [group][4][query][4], starts [query], steps [query]
  static int64_t query_bytes(int64_t dimensions) { return groups(dimensions) * kCodeGroup + 8; }
  // Returns the squared norm of what rounding takes away.
  static double pack(void* packed, int64_t dimensions, int64_t query, const float* row) {
    char* block = static_cast<char*>(packed) + query / kLanes * kLanes * query_bytes(dimensions);
    const int64_t lane = query % kLanes, groups = CodedTiles::groups(dimensions);
    for (int64_t i = dimensions; i < groups * kCodeGroup; i++) block[i / 4 * kVectorBytes + lane * 4 + i % 4] = 0;
    int32_t sum = 0;
    const CodedRow coded = code_row(row, dimensions, 0, kQueryCodes, [&](int64_t at, Vector<float> codes) {
      for (int64_t i = at; i < at + kLanes && i < dimensions; i++) {
        const int32_t code = static_cast<int32_t>(codes[i - at]);
        block[i / 4 * kVectorBytes + lane * 4 + i % 4] = static_cast<char>(code);
        sum += code;
      }
    });
    char* behind = block + groups * 4 * kVectorBytes;
    reinterpret_cast<int32_t*>(behind)[lane] = -kDocumentCodes * sum;
    reinterpret_cast<float*>(behind + kVectorBytes)[lane] = coded.step;
    return static_cast<double>(coded.rounded);
  }

  // Codes, then their step.
  static int64_t row_bytes(int64_t dimensions) { return groups(dimensions) * kCodeGroup + 16; }
  SIMTILE_INLINE static float copy(const Document* row, int64_t dimensions, int64_t ahead, void* out, float& rounded) {
    uint8_t* codes = static_cast<uint8_t*>(out);
    const int64_t stored = groups(dimensions) * kCodeGroup;
    typedef uint8_t Codes __attribute__((vector_size(kLanes), aligned(1), may_alias));
    // Vectors are longer than the groups: the last one may reach past them, into the step, which is written afterwards.
    const CodedRow coded = code_row(row, dimensions, ahead, kDocumentCodes,
                                    [&](int64_t at, Vector<float> x) __attribute__((always_inline)) {
                                      const Ints whole = __builtin_convertvector(x, Ints) + kDocumentCodes;
                                      *reinterpret_cast<Codes*>(codes + at) = __builtin_convertvector(whole, Codes);
                                    });
    for (int64_t i = (dimensions + kLanes - 1) / kLanes * kLanes; i < stored; i++) codes[i] = kDocumentCodes;
    __builtin_memcpy(codes + stored, &coded.step, sizeof(float));
    rounded = coded.rounded;
    return coded.squared;
  }

  template <int vectors>
  SIMTILE_INLINE static void multiply(const PanelRows& rows, int64_t first, int64_t count, const void* packed,
                                      int64_t query, int64_t dimensions, int64_t, float* out) {
    const uint8_t* a = static_cast<const uint8_t*>(rows.data) + first * rows.stride;
    const int64_t groups = CodedTiles::groups(dimensions), block_bytes = kLanes * query_bytes(dimensions);
    const char* b = static_cast<const char*>(packed) + query / kLanes * block_bytes;
    Ints sums[kRows * vectors];
    if (count == kRows)
      multiply_coded_rows<kRows, vectors>(a, rows.stride, b, block_bytes, groups, sums);
    else
      for (int64_t i = 0; i < count; i++)
        multiply_coded_rows<1, vectors>(a + i * rows.stride, rows.stride, b, block_bytes, groups, sums + i * vectors);
    Vector<float> steps[vectors];
    for (int v = 0; v < vectors; v++)
      steps[v] =
          load<float>(reinterpret_cast<const float*>(b + v * block_bytes + groups * 4 * kVectorBytes + kVectorBytes));
    for (int64_t i = 0; i < count; i++) {
      float step;
      __builtin_memcpy(&step, a + i * rows.stride + groups * kCodeGroup, sizeof(float));
      for (int v = 0; v < vectors; v++)
        store<float>(out + (i * vectors + v) * kLanes,
                     __builtin_convertvector(sums[i * vectors + v], Vector<float>) * (steps[v] * step));
    }
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
