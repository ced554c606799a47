// CUDA kernels compiled by a C++ compiler and run on the CPU. Included before everything else (-include), so that a kernel's
// source is the one that nvcc compiles. What it checks and what it cannot: README.md beside this file.
#pragma once

#ifdef __CUDACC__
#error "this header stands in for CUDA; nvcc has its own"
#endif

#define SIMTILE_CUDA_HOST 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#include "block.hpp"
#include "intrinsics.hpp"
#include "types.hpp"
#include "warp.hpp"

// The block's dynamic shared memory, aligned to 16 bytes on a device.
#define SIMTILE_DYNAMIC_SHARED(T, name) \
  T* const name = reinterpret_cast<T*>(cuda_host::running_block().shared().dynamic().begin)

namespace cuda_host {

// What a dispatch calls to run a kernel: here at once, on this CPU thread.
struct Launch {
  uint64_t order = 0;  // 0 forward, 1 reverse, from 2 a seed

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                  Arguments... arguments) const {
    const std::function<void()> thread = [=] { kernel(static_cast<Parameters>(arguments)...); };
    running_block().launch(thread, grid, block, dynamic_shared_bytes, order);
  }
};

}  // namespace cuda_host
