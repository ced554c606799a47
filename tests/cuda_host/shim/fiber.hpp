// Stacks for the CUDA threads of a block, and the switch between them and the scheduler.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers and the stack pointer of the caller in *save, continues at `load`.
extern "C" void simtile_switch_stack(void** save, void* load);

namespace cuda_host {

// Virtual memory, of which a thread touches a page or two; AddressSanitizer's frames are larger.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t stack_bytes = 512 << 10;
#else
constexpr size_t stack_bytes = 128 << 10;
#endif

// One stack per thread, each below a page that faults: an overflow ends the process where it happens.
class Stacks {
 public:
  // Maps `count` stacks for as long as it lives.
  class Lease {
   public:
    Lease(Stacks& stacks, size_t count) : stacks_(stacks) { stacks_.reserve(count); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { stacks_.release(); }

   private:
    Stacks& stacks_;
  };

  char* bottom(size_t i) const { return base_ + i * pitch() + guard(); }
  bool contains(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(base_) < count_ * pitch(); }

 private:
  static size_t guard() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t pitch() { return guard() + stack_bytes; }
  void reserve(size_t count) {
    void* mapped = mmap(nullptr, count * pitch(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(mapped);
    count_ = count;
    for (size_t i = 0; i < count; ++i) {
      if (mprotect(base_ + i * pitch(), guard(), PROT_NONE) == 0) continue;
      release();
      throw std::bad_alloc();
    }
  }
  void release() {
#ifdef __SANITIZE_ADDRESS__
    // Frames of threads that were given up: whoever is mapped here next must not find their marks.
    __asan_unpoison_memory_region(base_, count_ * pitch());
#endif
    munmap(base_, count_ * pitch());
    base_ = nullptr;
    count_ = 0;
  }

  char* base_ = nullptr;
  size_t count_ = 0;
};

// A stack that is suspended or running. The scheduler's own has no bottom until a fiber has told where it came from.
struct Context {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// The next switch to `context` calls entry() on the given stack. entry() must never return.
inline void prepare(Context& context, char* bottom, void (*entry)()) {
  context = {};
  context.bottom = bottom;
  context.bytes = stack_bytes;
#ifdef __SANITIZE_ADDRESS__
  // A thread that was given up in an earlier block has left its frames marked.
  __asan_unpoison_memory_region(bottom, stack_bytes);
#endif
  void** top = reinterpret_cast<void**>(bottom + stack_bytes);
#if defined(__x86_64__)
  *--top = nullptr;                         // entry's return address; keeps the stack as the ABI wants it at a call
  *--top = reinterpret_cast<void*>(entry);  // where `ret` goes
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  context.stack_pointer = top;
}

// From `from`, which must be running, to `to`. Returns when something switches back.
inline void switch_to(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
  simtile_switch_stack(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  simtile_switch_stack(&from.stack_pointer, to.stack_pointer);
#endif
}

// First thing on a new stack: `origin` learns where the stack that it runs on lies.
inline void arrived([[maybe_unused]] Context& origin) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &origin.bottom, &origin.bytes);
#endif
}

}  // namespace cuda_host
