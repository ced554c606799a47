// Scratch memory of the caller, shared out.
#pragma once

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

SIMTILE_INLINE int64_t round_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Memory of the caller, piece by piece, or with a null pointer their sum.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  SIMTILE_INLINE T* take(int64_t count) {
    char* const at = memory_ ? memory_ + used_ : nullptr;
    used_ += round_to(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(at);
  }
  SIMTILE_INLINE int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
