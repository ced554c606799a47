// MaxSim of documents of floats on the CPU.
#pragma once

#include "maxsim/cpu.hpp"
#include "maxsim/products_amx.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

template <typename Compute, typename Document>
struct MaxsimOf {
  typedef Maxsim<Compute, Document, FusedProducts<Compute, Document>> Plain;
#if defined(__AMX_BF16__)
  typedef Maxsim<Compute, Document, TileProducts<Document>> Fast;
  // The smooth maximum is of products in their own unit; rows divided by their lengths have more bits than a half type's planes. To split
  // float32 rows takes as long as multiplying them with two panels.
  static bool is_fast(const MaxsimArgs& args) {
    if (args.temperature > 0) return false;
    if (sizeof(Document) == sizeof(Compute)) return !args.candidates && rows_of(args.queries) > 2 * Fast::kColumns;
    return !args.normalize;
  }
#else
  typedef Plain Fast;
  static bool is_fast(const MaxsimArgs&) { return false; }
#endif

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
