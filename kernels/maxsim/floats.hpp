// MaxSim of documents of floats on the CPU.
#pragma once

#include "maxsim/cpu.hpp"
#include "maxsim/products_amx.hpp"
#include "maxsim/products_bf16.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// What multiplies faster than fused products, and when. No smooth maximum, which is of products in their own unit; no rows divided by their
// lengths, which have more bits than a half type's planes.
template <typename Compute, typename Document>
struct FastProducts {
  typedef FusedProducts<Compute, Document> Type;
  static bool suit(const MaxsimArgs&) { return false; }
};

#if defined(__AMX_BF16__)
template <typename Document>
struct FastProducts<float, Document> {
  typedef TileProducts<Document> Type;
  static bool suit(const MaxsimArgs& args) {
    if (args.temperature > 0) return false;
    // To split float32 rows takes as long as multiplying them with two panels.
    if (sizeof(Document) == sizeof(float)) return !args.candidates && rows_of(args.queries) > 2 * Type::kColumns;
    return !args.normalize;
  }
};
#elif defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
template <>
struct FastProducts<float, bf16> {
  typedef PairProducts Type;
  static bool suit(const MaxsimArgs& args) { return args.temperature <= 0 && !args.normalize; }
};
#endif

template <typename Compute, typename Document>
struct MaxsimOf {
  typedef Maxsim<Compute, Document, FusedProducts<Compute, Document>> Plain;
  typedef Maxsim<Compute, Document, typename FastProducts<Compute, Document>::Type> Fast;
  static bool is_fast(const MaxsimArgs& args) { return FastProducts<Compute, Document>::suit(args); }

  static int64_t workspace_bytes(const MaxsimArgs& args, int threads) {
    return is_fast(args) ? Fast::workspace_bytes(args, threads) : Plain::workspace_bytes(args, threads);
  }
  static void run(const MaxsimArgs& args, const Executor& executor, void* workspace) {
    is_fast(args) ? Fast::run(args, executor, workspace) : Plain::run(args, executor, workspace);
  }
};

template <typename Document>
struct MaxsimOf<double, Document> : Maxsim<double, Document, FusedProducts<double, Document>> {};

template <typename Compute, typename Document>
constexpr MaxsimVariant maxsim_variant = {MaxsimOf<Compute, Document>::workspace_bytes,
                                          MaxsimOf<Compute, Document>::run};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
