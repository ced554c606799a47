// Pooling of one ISA level.
#include "kernel_table.hpp"
#include "pool/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

const PoolKernel& pool_table() { return pool_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
