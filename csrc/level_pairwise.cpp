// Losses over all pairs of one ISA level.
#include "kernel_table.hpp"
#include "pairwise/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const PairwiseKernel& pairwise_table() { return pairwise_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
