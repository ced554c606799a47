// The losses over all pairs on the CPU: entry points by element type.
#pragma once

#include "pairwise/gradients.hpp"
#include "pairwise/hardest.hpp"
#include "pairwise/uniformity.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Operation, typename Args>
int64_t pairwise_bytes(const Args& args, int threads) {
  return Operation(args, threads, nullptr).bytes();
}

template <typename Operation, typename Args>
void run_pairwise(const Args& args, const Executor& executor, void* workspace) {
  Operation(args, executor.threads, workspace).run(executor);
}

template <typename Operation, typename Args>
constexpr PairwiseVariant<Args> pairwise_variant() {
  return {pairwise_bytes<Operation, Args>, run_pairwise<Operation, Args>};
}

// What each level multiplies with, as in info_nce.
#if defined(__AMX_BF16__)
typedef AmxEngine<3, float> PairsFloat32;
typedef AmxEngine<1, bf16> PairsBfloat16;
typedef AmxEngine<3, f16> PairsFloat16;
#else
typedef FloatEngine<float, float> PairsFloat32;
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
typedef Bf16Engine<bf16> PairsBfloat16;
#else
typedef FloatEngine<float, bf16> PairsBfloat16;
#endif
typedef FloatEngine<float, f16> PairsFloat16;
#endif
typedef FloatEngine<double, double> PairsFloat64;

constexpr PairwiseKernel pairwise_kernel = {
    {pairwise_variant<HardestPairs<PairsFloat32>, HardestPairsArgs>(),
     pairwise_variant<HardestPairs<PairsFloat64>, HardestPairsArgs>(),
     pairwise_variant<HardestPairs<PairsBfloat16>, HardestPairsArgs>(),
     pairwise_variant<HardestPairs<PairsFloat16>, HardestPairsArgs>()},
    {pairwise_variant<PairGradients<float, float>, PairGradientsArgs>(),
     pairwise_variant<PairGradients<double, double>, PairGradientsArgs>(),
     pairwise_variant<PairGradients<float, bf16>, PairGradientsArgs>(),
     pairwise_variant<PairGradients<float, f16>, PairGradientsArgs>()},
    {pairwise_variant<Uniformity<PairsFloat32>, UniformityArgs>(),
     pairwise_variant<Uniformity<PairsFloat64>, UniformityArgs>(),
     pairwise_variant<Uniformity<PairsBfloat16>, UniformityArgs>(),
     pairwise_variant<Uniformity<PairsFloat16>, UniformityArgs>()},
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
