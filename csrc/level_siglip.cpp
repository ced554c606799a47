// The sigmoid loss of one ISA level.
#include "kernel_table.hpp"
#include "siglip/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const SiglipKernel& siglip_table() { return siglip_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
