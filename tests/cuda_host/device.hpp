// What kernel code sees of the block that runs it. The definitions are in shim/, which is compiled without the hooks that
// kernels are compiled with.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#include "types.hpp"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// In a template, GCC forgets in which section a static variable was to stand: it could be neither poisoned nor checked.
#define __shared__ _Pragma("GCC error \"no __shared__ variables on the host: use SIMTILE_DYNAMIC_SHARED\"")

namespace cuda_host {

// A place in a kernel. As a default argument of an intrinsic it is the place of the call.
struct Source {
  const char* file = "";
  int line = 0;
  static constexpr Source here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Source& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class Shuffle { index, up, down, exclusive_or };
enum class Reduction { ballot, any, all, add, bitwise_or, min_signed, min_unsigned, max_signed, max_unsigned };

void sync_threads(Source source);
void sync_warp(unsigned mask, Source source);
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, unsigned argument, int width, Source source);
uint32_t reduce(Reduction kind, unsigned mask, uint32_t value, Source source);
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Source source);
void mma_s8(int32_t* d, const uint32_t* a, const uint32_t* b, Source source);
void mma_and_popc(int32_t* d, const uint32_t* a, const uint32_t* b, Source source);
unsigned atomic_add(unsigned* address, unsigned value, Source source);
void copy_async(void* shared, const void* global, int valid_bytes, Source source);
void commit_copies();
void wait_for_copies(int left);
void* dynamic_shared();
void launch(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t dynamic_bytes, uint64_t order);

template <class T>
T shuffle_value(Shuffle kind, unsigned mask, T value, unsigned argument, int width, Source source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(kind, mask, bits, argument, width, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What a dispatch calls to run a kernel: here at once, on this CPU thread.
struct Launch {
  uint64_t order = 0;  // 0 forward, 1 reverse, from 2 a seed

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                  Arguments... arguments) const {
    launch([=] { kernel(static_cast<Parameters>(arguments)...); }, grid, block, dynamic_shared_bytes, order);
  }
};

}  // namespace cuda_host

// The block's dynamic shared memory as T*; at least 16-byte aligned.
#define SIMTILE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(cuda_host::dynamic_shared())

inline void __syncthreads(cuda_host::Source source = cuda_host::Source::here()) { cuda_host::sync_threads(source); }
inline void __syncwarp(unsigned mask = ~0u, cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::sync_warp(mask, source);
}

inline unsigned atomicAdd(unsigned* address, unsigned value, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::atomic_add(address, value, source);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle_value(cuda_host::Shuffle::index, mask, value, unsigned(from), width, source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle_value(cuda_host::Shuffle::up, mask, value, delta, width, source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle_value(cuda_host::Shuffle::down, mask, value, delta, width, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle_value(cuda_host::Shuffle::exclusive_or, mask, value, unsigned(lane_mask), width, source);
}

#define SIMTILE_CUDA_REDUCTION(name, Result, T, kind, operand)                                                  \
  inline Result name(unsigned mask, T value, cuda_host::Source source = cuda_host::Source::here()) {            \
    return static_cast<Result>(cuda_host::reduce(cuda_host::Reduction::kind, mask, uint32_t(operand), source)); \
  }
SIMTILE_CUDA_REDUCTION(__ballot_sync, unsigned, int, ballot, value != 0)
SIMTILE_CUDA_REDUCTION(__any_sync, int, int, any, value != 0)
SIMTILE_CUDA_REDUCTION(__all_sync, int, int, all, value != 0)
SIMTILE_CUDA_REDUCTION(__reduce_add_sync, unsigned, unsigned, add, value)
SIMTILE_CUDA_REDUCTION(__reduce_add_sync, int, int, add, value)
SIMTILE_CUDA_REDUCTION(__reduce_or_sync, unsigned, unsigned, bitwise_or, value)
SIMTILE_CUDA_REDUCTION(__reduce_min_sync, unsigned, unsigned, min_unsigned, value)
SIMTILE_CUDA_REDUCTION(__reduce_min_sync, int, int, min_signed, value)
SIMTILE_CUDA_REDUCTION(__reduce_max_sync, unsigned, unsigned, max_unsigned, value)
SIMTILE_CUDA_REDUCTION(__reduce_max_sync, int, int, max_signed, value)
#undef SIMTILE_CUDA_REDUCTION
