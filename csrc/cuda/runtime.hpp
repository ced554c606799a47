#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tile/cuda_device.hpp"

namespace simtile::cuda {

// Throws std::runtime_error with the call, the error's name, number and text, and what to do about it.
void check(cudaError_t error, const char* call);

// Throws where no call can work: no driver, one too old, no device.
int device_count();

// Asked of the driver once. Throws for a device that is not there, and for one older than the kernels.
Device device_facts(int device);

// Makes a device the calling thread's current one, and the one before it again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// What comes on `stream` after this waits for what is on `other` now. The host does not wait.
void wait_for_stream(int device, cudaStream_t stream, cudaStream_t other);

inline cudaStream_t as_stream(std::uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

}  // namespace simtile::cuda
