// As level.cpp, for quantize alone: an object of its own is rebuilt alone.
#include "kernel_table.hpp"
#include "quantize/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const QuantizeKernel& quantize_table() { return quantize_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
