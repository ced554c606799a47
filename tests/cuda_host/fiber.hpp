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

#if defined(__x86_64__)
asm(R"(
  .text
  .hidden simtile_switch_stack
  .globl simtile_switch_stack
  .type simtile_switch_stack, @function
simtile_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simtile_switch_stack, .-simtile_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .hidden simtile_switch_stack
  .globl simtile_switch_stack
  .type simtile_switch_stack, %function
simtile_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simtile_switch_stack, .-simtile_switch_stack
)");
#else
#error "the CUDA-on-host shim has a context switch for x86-64 and aarch64 only"
#endif

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
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }

  void reserve(size_t count) {
    if (count <= count_) return;
    release();
    void* mapped = mmap(nullptr, count * pitch(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(mapped);
    count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * pitch(), guard(), PROT_NONE);
  }
  char* bottom(size_t i) const { return base_ + i * pitch() + guard(); }
  bool contains(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(base_) < count_ * pitch(); }

 private:
  static size_t guard() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  static size_t pitch() { return guard() + stack_bytes; }
  void release() {
    if (base_) munmap(base_, count_ * pitch());
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
