// Runs a dispatch without a device and prints what it would launch, one line a launch:
//   architecture, address of the kernel's function on the host, threads of a block, bytes of dynamic shared memory
// tools/gpu_cuda.py finds the kernel's name by its address.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>

#include "tile/cuda_device.hpp"

namespace simtile::cuda {

struct RecordLaunch {
  const char* architecture;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3, dim3 block, std::size_t dynamic_shared_bytes,
                  Arguments&&...) const {
    std::printf("%s %zx %u %zu\n", architecture, reinterpret_cast<std::size_t>(kernel), block.x * block.y * block.z,
                dynamic_shared_bytes);
  }
};

// Calls record(device, launch) for a card of each architecture of the report.
template <typename Record>
void for_each_architecture(const Record& record) {
  record(Device{108, 163 << 10, 80}, RecordLaunch{"sm_80"});    // A100
  record(Device{84, 99 << 10, 86}, RecordLaunch{"sm_86"});      // GeForce RTX 3090 Ti
  record(Device{132, 227 << 10, 90}, RecordLaunch{"sm_90"});    // H100
  record(Device{148, 227 << 10, 100}, RecordLaunch{"sm_100"});  // B200
  record(Device{170, 99 << 10, 120}, RecordLaunch{"sm_120"});   // GeForce RTX 5090
}

// Device memory that nothing reads, at an address that `alignment` divides and 2 * alignment does not.
inline const void* address(std::size_t alignment) {
  return reinterpret_cast<const void*>((std::size_t{1} << 32) + alignment);
}

}  // namespace simtile::cuda
