// Late interaction with codes of one ISA level. A source of its own because its products must not be contracted to fused multiply-adds
// (cmake/levels.cmake): scores are the same at every level.
#include "kernel_table.hpp"
#include "maxsim/codes.hpp"
#include "maxsim/codes_amx.hpp"
#include "maxsim/cpu.hpp"

namespace simtile {
namespace SIMTILE_ISA {

namespace {
#if defined(__AMX_INT8__)
template <MaxsimKind kind>
using CodeProducts = ByteProducts<kind>;
#else
template <MaxsimKind kind>
using CodeProducts = ShortProducts<kind>;
#endif

template <MaxsimKind kind>
using MaxsimOfCodes = Maxsim<float, uint8_t, CodeProducts<kind>>;

template <MaxsimKind kind>
constexpr MaxsimVariant codes_variant = {MaxsimOfCodes<kind>::workspace_bytes, MaxsimOfCodes<kind>::run};

constexpr MaxsimCodesKernel codes_kernel = {
    {codes_variant<MaxsimKind::int8>, codes_variant<MaxsimKind::uint8>, codes_variant<MaxsimKind::bits>,
     codes_variant<MaxsimKind::residual1>, codes_variant<MaxsimKind::residual2>, codes_variant<MaxsimKind::residual4>}};
}  // namespace

const MaxsimCodesKernel& maxsim_codes_table() { return codes_kernel; }

}  // namespace SIMTILE_ISA
}  // namespace simtile
