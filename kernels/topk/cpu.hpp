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

// Floats, whose tiles depend on the problem. Scores of candidates need none.
template <class Screens>
struct FloatVariant {
  static int64_t workspace(const TopkArgs& args, int threads) {
    return screens(args) ? topk_workspace<typename Screens::Many>(args, threads)
                         : topk_workspace<typename Screens::Few>(args, threads);
  }
  static void run(const TopkArgs& args, const Executor& executor, void* workspace) {
    if (screens(args))
      topk<typename Screens::Many>(args, executor, workspace);
    else
      topk<typename Screens::Few>(args, executor, workspace);
  }
  static int64_t range_workspace(const TopkRangeArgs& args, int threads) {
    return Screens::many(args.problem) ? range_bytes<typename Screens::Many>(args, threads)
                                       : range_bytes<typename Screens::Few>(args, threads);
  }
  static void range(const TopkRangeArgs& args, const Executor& executor, void* workspace) {
    if (Screens::many(args.problem))
      range_all<typename Screens::Many>(args, executor, workspace);
    else
      range_all<typename Screens::Few>(args, executor, workspace);
  }
  static bool screens(const TopkArgs& args) { return !args.candidates && Screens::many(args.problem); }
};

template <typename Document, typename Query>
constexpr TopkVariant float_variant() {
  typedef FloatVariant<FloatScreens<Document, Query>> Variant;
  typedef typename FloatScreens<Document, Query>::Few Screen;
  return {&Variant::workspace, &Variant::run, &Variant::range_workspace, &Variant::range, &score_bytes<Screen>,
          &score_rows<Screen>, nullptr};
}

template <TopkKind kind>
constexpr TopkVariant code_variant() {
  return topk_variant<CodeScreen<kind>>(&norms_all<CodeScores<kind>>);
}

constexpr TopkKernel topk_kernel = {{
    float_variant<float, float>(),
    float_variant<double, double>(),
    float_variant<f16, float>(),
    float_variant<bf16, float>(),
    code_variant<TopkKind::int8>(),
    code_variant<TopkKind::uint8>(),
    code_variant<TopkKind::int4>(),
    code_variant<TopkKind::bits>(),
    topk_variant<BestPackedScreen>(),
}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
