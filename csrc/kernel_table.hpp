#pragma once

#include "info_nce/args.hpp"
#include "maxsim/args.hpp"
#include "pairwise/args.hpp"
#include "peak/args.hpp"
#include "pool/args.hpp"
#include "quantize/args.hpp"
#include "siglip/args.hpp"
#include "topk/args.hpp"

namespace simtile {

// What one ISA level offers. An operation adds its entry points here and in level.cpp; one
// with an object of its own is a function that the object defines.
struct KernelTable {
  const char* level;
  PeakLoops peak;
  InfoNceKernel info_nce;
  const QuantizeKernel& (*quantize)();
  const TopkKernel& (*topk)();
  const MaxsimKernel& (*maxsim)();
  const MaxsimCodesKernel& (*maxsim_codes)();
  const MaxsimBackwardKernel& (*maxsim_backward)();
  const PairwiseKernel& (*pairwise)();
  const PoolKernel& (*pool)();
  const SiglipKernel& (*siglip)();
};

// One per compiled level; cmake/levels.cmake decides which exist.
#define SIMTILE_DECLARE_LEVEL(level)                   \
  namespace level {                                    \
  const KernelTable& kernel_table();                   \
  const QuantizeKernel& quantize_table();              \
  const TopkKernel& topk_table();                      \
  const MaxsimKernel& maxsim_table();                  \
  const MaxsimCodesKernel& maxsim_codes_table();       \
  const MaxsimBackwardKernel& maxsim_backward_table(); \
  const PairwiseKernel& pairwise_table();              \
  const PoolKernel& pool_table();                      \
  const SiglipKernel& siglip_table();                  \
  }
#if defined(__x86_64__)
SIMTILE_DECLARE_LEVEL(baseline)
SIMTILE_DECLARE_LEVEL(avx2)
SIMTILE_DECLARE_LEVEL(avx512)
SIMTILE_DECLARE_LEVEL(avx512_vnni)
SIMTILE_DECLARE_LEVEL(avx512_bf16)
SIMTILE_DECLARE_LEVEL(avx512_amx)
#elif defined(__aarch64__)
SIMTILE_DECLARE_LEVEL(neon)
SIMTILE_DECLARE_LEVEL(neon_dot)
SIMTILE_DECLARE_LEVEL(neon_mm)
#endif
#undef SIMTILE_DECLARE_LEVEL

}  // namespace simtile
