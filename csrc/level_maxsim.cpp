// Late interaction of one ISA level.
#include "kernel_table.hpp"
#include "maxsim/topk.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const MaxsimKernel& maxsim_table() { return maxsim_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
