// Compiled once per ISA level with SIMTILE_ISA set to the level's name and that level's flags.
// Nothing but the level's tables may leave such an object: tools/check_symbols.py checks.
#include "info_nce/cpu.hpp"
#include "kernel_table.hpp"
#include "peak/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

namespace {
// SIMTILE_FROM_x: the level whose object has x, this one or one whose code for it is the same (cmake/levels.cmake).
constexpr KernelTable table = {
    SIMTILE_ISA_NAME,
    peak::loops,
    info_nce_kernel,
    SIMTILE_FROM_quantize::quantize_table,
    SIMTILE_FROM_topk::topk_table,
    SIMTILE_FROM_maxsim::maxsim_table,
    SIMTILE_FROM_maxsim_codes::maxsim_codes_table,
    SIMTILE_FROM_maxsim_backward::maxsim_backward_table,
    SIMTILE_FROM_pairwise::pairwise_table,
    SIMTILE_FROM_pool::pool_table,
    SIMTILE_FROM_siglip::siglip_table,
};
}  // namespace

const KernelTable& kernel_table() { return table; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
