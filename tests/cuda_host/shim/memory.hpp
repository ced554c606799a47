// What the compiler's hooks report of a kernel's loads and stores (hooks.cpp): each byte of shared memory knows who wrote and
// read it last, so that a missing barrier is seen in any order of execution, and so is a read of what nobody wrote.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shared.hpp"

namespace cuda_host {

// Which accesses come before which. __syncthreads orders everything before it with everything after it; __syncwarp the
// lanes of its mask. Shuffles and votes order no memory: CUDA C++ Programming Guide, "Warp Vote Functions" and "Warp
// Shuffle Functions".
class Clocks {
 public:
  void begin_block(size_t threads);
  void syncthreads() { ++epoch_; }
  void syncwarp(int warp, unsigned mask);

  struct Time {
    uint64_t epoch = 0;  // barriers of this and earlier blocks
    uint32_t warp_clock = 0;
  };
  Time now(int thread) const { return {epoch_, warps_[size_t(thread / 32)].clock[thread % 32]}; }
  bool ordered(Time before, int thread, int now) const {
    if (before.epoch != epoch_ || thread == now) return true;
    return thread / 32 == now / 32 && warps_[size_t(now / 32)].seen[now % 32][thread % 32] >= before.warp_clock;
  }

 private:
  struct WarpClock {
    uint32_t clock[32];     // of each lane: its __syncwarps
    uint32_t seen[32][32];  // [lane][other]: the other's clock when they last met
  };
  uint64_t epoch_ = 0;
  std::vector<WarpClock> warps_;
};

class MemoryCheck {
 public:
  Clocks clocks;

  void begin_block(Range dynamic, size_t threads);

  // An access to dynamic shared memory or its guards. Returns what is wrong with it, empty when nothing is. `place` is a code address.
  std::string access(int thread, const void* address, size_t bytes, bool write, const void* place);
  // A cp.async of 16 bytes was issued, and later waited for.
  std::string copy_issued(int thread, const void* address, const void* place);
  void copy_done(int thread, const void* address);

 private:
  struct Access {
    Clocks::Time time;
    int thread = 0;
    const void* place = nullptr;  // null: none yet
  };
  enum class Content : unsigned char { unwritten, written, copying };
  struct Byte {
    Access write;
    // Reads that no barrier separates: two of one warp and one of another, so that a writer finds one that is not its own.
    Access reads[3];
    uint64_t block = 0;
    Content content = Content::unwritten;
  };

  Byte* find(const void* address, size_t bytes);
  void remember_read(Byte& byte, const Access& access);
  std::string conflict(const Access& other, const char* did, bool write) const;

  Range dynamic_;
  uint64_t block_ = 0;
  std::vector<Byte> bytes_;
};

// "file:line" of a code address, with the places where the function was inlined; needs addr2line.
std::string source_of(const void* place);

}  // namespace cuda_host
