// Exact top-k and its relatives on a CPU: formulas, the two steps of a search and what was measured are in README.md beside this file.
#pragma once

#include "topk/pairs.hpp"
#include "topk/screen_codes.hpp"
#include "topk/screen_floats.hpp"
#include "topk/screen_packed_amx.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <class Screen>
int64_t topk_workspace(const TopkArgs& args, int threads) {
  return args.candidates ? candidates_bytes<Screen>(args, threads) : topk_bytes<Screen>(args, threads);
}

template <class Screen>
void topk(const TopkArgs& args, const Executor& executor, void* workspace) {
  if (args.candidates)
    topk_candidates<Screen>(args, executor, workspace);
  else
    topk_all<Screen>(args, executor, workspace);
}

template <class Screen>
constexpr TopkVariant topk_variant(void (*norms)(const TopkNormArgs&, const Executor&) = nullptr) {
  return {&topk_workspace<Screen>, &topk<Screen>, &range_bytes<Screen>, &range_all<Screen>, &score_bytes<Screen>,
          &score_rows<Screen>,     norms};
}

typedef FloatScreenOf<float, float> Float32Screen;
typedef FloatScreenOf<double, double> Float64Screen;
typedef FloatScreenOf<f16, float> Float16Screen;
typedef FloatScreenOf<bf16, float> Bfloat16Screen;

template <TopkKind kind>
constexpr TopkVariant code_variant() {
  return topk_variant<CodeScreen<kind>>(&norms_all<CodeScores<kind>>);
}

constexpr TopkKernel topk_kernel = {{
    topk_variant<Float32Screen>(),
    topk_variant<Float64Screen>(),
    topk_variant<Float16Screen>(),
    topk_variant<Bfloat16Screen>(),
    code_variant<TopkKind::int8>(),
    code_variant<TopkKind::uint8>(),
    code_variant<TopkKind::int4>(),
    code_variant<TopkKind::bits>(),
    topk_variant<BestPackedScreen>(),
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
