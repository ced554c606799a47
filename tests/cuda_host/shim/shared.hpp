// The dynamic shared memory of the block that runs, between two guards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "fiber.hpp"

namespace cuda_host {

constexpr size_t guard_bytes = 4096;
constexpr size_t largest_dynamic_bytes = 227 << 10;  // what a block may ask for on sm_90, the most of any device here
constexpr unsigned char unwritten = 0xCB;            // float -2.7e7, int -8.7e8: wrong wherever it is used
constexpr unsigned char guard_pattern = 0xA5;

struct Range {
  unsigned char* begin = nullptr;
  size_t bytes = 0;
  bool contains(const void* address, size_t size = 1) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin);
    return offset < bytes && size <= bytes - offset;
  }
};

class SharedMemory {
 public:
  SharedMemory() : arena_(new unsigned char[arena_bytes + alignment]) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(arena_.get());
    arena_begin_ = arena_.get() + (alignment - address % alignment) % alignment;
  }

  // Nothing is left of the block before.
  void begin_block(size_t dynamic_bytes) {
    unguard();
    dynamic_ = {arena_begin_ + guard_bytes, dynamic_bytes};
    std::memset(arena_begin_, guard_pattern, guard_bytes);
    std::memset(dynamic_.begin, unwritten, dynamic_bytes);
    std::memset(dynamic_.begin + dynamic_bytes, guard_pattern, guard_bytes);
    guard();
  }

  // What was written outside of dynamic shared memory, as text; empty when nothing was.
  std::string damage() {
    unguard();
    for (size_t i = 0; i < guard_bytes; ++i) {
      if (dynamic_.begin[dynamic_.bytes + i] != guard_pattern)
        return std::to_string(i + 1) + " bytes past its " + std::to_string(dynamic_.bytes);
      if (dynamic_.begin[-1 - ptrdiff_t(i)] != guard_pattern)
        return std::to_string(i + 1) + " bytes before its beginning";
    }
    return {};
  }

  Range dynamic() const { return dynamic_; }
  // With everything that a device would not have around it.
  Range arena() const { return {arena_begin_, arena_bytes}; }

 private:
  static constexpr size_t alignment = 1024;
  static constexpr size_t arena_bytes = largest_dynamic_bytes + 2 * guard_bytes;

  void guard() {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(arena_begin_, guard_bytes);
    __asan_poison_memory_region(dynamic_.begin + dynamic_.bytes, arena_bytes - guard_bytes - dynamic_.bytes);
#endif
  }
  void unguard() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(arena_begin_, arena_bytes);
#endif
  }

  std::unique_ptr<unsigned char[]> arena_;
  unsigned char* arena_begin_;
  Range dynamic_;
};

}  // namespace cuda_host
