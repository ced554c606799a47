#include "runtime.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace simtile::cuda {
namespace {

constexpr int kOldestCapability = 80;  // mma.sync of bfloat16 and of int8 with k = 32, cp.async

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Drivers serve every runtime of their own major version and of older ones.
std::string driver_hint() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const std::string needed = "one of CUDA " + std::to_string(runtime / 1000) + ".0 or newer";
  if (driver == 0) {
    return "no NVIDIA driver was found; install " + needed +
           " (a container sees the host's when it is started with --gpus all), or use the CPU kernels";
  }
  return "the NVIDIA driver is of CUDA " + version_text(driver) + "; install " + needed + ", or use the CPU kernels";
}

std::string hint(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
      return driver_hint();
    case cudaErrorNoDevice:
      return "the NVIDIA driver shows no device; look at nvidia-smi and at CUDA_VISIBLE_DEVICES, or use the CPU "
             "kernels";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidPtx:
      return "this build of simtile has code for " SIMTILE_CUDA_ARCHITECTURES
             "; build it with SIMTILE_CUDA_ARCHITECTURES=all";
    default:
      return "";
  }
}

}  // namespace

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // said here: the next user of the runtime in this thread must not find it again
  const std::string why = hint(error);
  throw std::runtime_error(std::string("CUDA: ") + call + ": " + cudaGetErrorName(error) + " (" +
                           std::to_string(static_cast<int>(error)) + "): " + cudaGetErrorString(error) +
                           (why.empty() ? "" : "; " + why));
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

Device device_facts(int device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;

  const int count = device_count();
  if (device < 0 || device >= count) {
    throw std::runtime_error("CUDA: device " + std::to_string(device) + " is not there; the driver shows " +
                             std::to_string(count) + ", numbered from 0");
  }
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
  };
  Device facts;
  facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  facts.shared_bytes_per_block = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  facts.compute_capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  if (facts.compute_capability < kOldestCapability) {
    throw std::runtime_error("CUDA: device " + std::to_string(device) + " has compute capability " +
                             version_text(facts.compute_capability * 100) +
                             "; the kernels need 8.0 (Ampere) or newer; use the CPU kernels");
  }
  return known.emplace(device, facts).first->second;
}

DeviceGuard::DeviceGuard(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

void wait_for_stream(int device, cudaStream_t stream, cudaStream_t other) {
  const DeviceGuard guard(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  cudaError_t error = cudaEventRecord(event, other);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(stream, event, 0);
  const cudaError_t destroyed = cudaEventDestroy(event);  // once the wait is over
  check(error, "cudaEventRecord, cudaStreamWaitEvent");
  check(destroyed, "cudaEventDestroy");
}

}  // namespace simtile::cuda
