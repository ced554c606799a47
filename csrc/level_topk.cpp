// Search of one ISA level. A source of its own because its sums must not be contracted to fused multiply-adds
// (cmake/levels.cmake): a score is the same at every level.
#include "kernel_table.hpp"
#include "topk/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const TopkKernel& topk_table() { return topk_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
