#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <mutex>
#include <utility>

#include "cuda/runtime.hpp"

namespace simtile::cuda {

// The `Launch` of the dispatch headers on a device: every launch is checked, none is waited for.
struct StreamLaunch {
  cudaStream_t stream;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t dynamic_shared_bytes,
                  Arguments&&... arguments) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = dynamic_shared_bytes;
    config.stream = stream;
    // The limit belongs to the kernel, not to the launch: another thread must not lower it in between.
    static std::mutex mutex;
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (dynamic_shared_bytes > kSharedBytesWithoutAsking) {
      lock.lock();
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(dynamic_shared_bytes)),
            "cudaFuncSetAttribute");
    }
    // Unlike <<<>>> and cudaGetLastError, it tells this launch's error from one that was there before.
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "cudaLaunchKernelEx");
  }

 private:
  static constexpr std::size_t kSharedBytesWithoutAsking = 48 << 10;
};

}  // namespace simtile::cuda
