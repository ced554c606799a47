#pragma once

#include <cstdint>

namespace simtile {

// One call of a peak loop: short enough (tens of microseconds) that the host can look at the clock between calls.
struct PeakArgs {
  int64_t rounds;      // how often the unrolled body runs; not used by `read`
  const char* memory;  // `read` only: 64-byte aligned
  int64_t bytes;       // `read` only: a multiple of 2048
};

// Runs one loop on the calling thread and returns what it did: operations, or bytes for `popcount` and `read`.
using PeakLoop = double (*)(const PeakArgs&);

// The loops of one ISA level; null where the level has no such instruction.
// A multiply-add counts as two operations, everywhere.
struct PeakLoops {
  PeakLoop fma_f32;  // multiply and add where the level has no fused form
  PeakLoop fma_f64;
  PeakLoop dot_bf16;     // vdpbf16ps, bfdot
  PeakLoop matrix_bf16;  // AMX tdpbf16ps, bfmmla
  PeakLoop dot_int8;     // vpdpbusd, sdot
  PeakLoop matrix_int8;  // AMX tdpbssd, smmla
  PeakLoop popcount;     // xor + popcount + add: bytes of one of the two operands
  PeakLoop read;         // bytes
};

}  // namespace simtile
