// Compiled once per ISA level with SIMTILE_ISA set to the level's name and that level's flags.
// Nothing but the level's tables may leave such an object: tools/check_symbols.py checks.
#include "info_nce/cpu.hpp"
#include "kernel_table.hpp"
#include "peak/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

namespace {
constexpr KernelTable table = {
    SIMTILE_ISA_NAME,   peak::loops,           info_nce_kernel, quantize_table, topk_table,   maxsim_table,
    maxsim_codes_table, maxsim_backward_table, pairwise_table,  pool_table,     siglip_table,
};
}  // namespace

const KernelTable& kernel_table() { return table; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
