// Gradients of late interaction of one ISA level.
#include "kernel_table.hpp"
#include "maxsim/backward.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const MaxsimBackwardKernel& maxsim_backward_table() { return maxsim_backward_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
