// The matrix unit of AMX: its eight tiles and what the compiler does not know of them.
#pragma once

#if defined(__AMX_TILE__)

#include "tile/simd.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int64_t kTileBytes = 1024;

// All eight tiles 16 x 64 bytes. Tile state is per thread: configured by each task, released at its end so that a worker at rest
// keeps no large state.
class TileScope {
 public:
  TileScope() { _tile_loadconfig(kConfig); }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  // Palette 1; bytes per row of tiles 0-7 (16 bit each) from byte 16, rows from byte 48. Constant, because the compiler does not know
  // that the instruction reads all of it.
  alignas(64) static constexpr uint8_t kConfig[64] = {
      1,  0, 0,  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 64, 0, 64, 0,  64, 0,  64, 0,  64, 0,
      64, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  0, 0,  0, 16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC's tile intrinsics name no memory: what they read must have been written, and what they wrote must be read again.
SIMTILE_INLINE void tiles_touch_memory() { __asm__ volatile("" ::: "memory"); }

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile

#endif
