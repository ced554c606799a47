// Kernels that use the shim rightly and wrongly: tests/test_cuda_host.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "tile/ptx.cuh"

namespace py = pybind11;

namespace {

__global__ void sum_blocks(const float* values, float* sums) {
  SIMTILE_DYNAMIC_SHARED(float, scratch);
  float* partial = scratch + blockDim.x;
  scratch[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  float sum = scratch[threadIdx.x ^ 1];
  for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += partial[i];
    sums[blockIdx.x] = total;
  }
}

template <int which>
__global__ void templated(float* out) {
  SIMTILE_DYNAMIC_SHARED(float, partial);
  partial[threadIdx.x] = which;
  if (threadIdx.x < 3) partial[4] = 1;
  out[threadIdx.x] = partial[threadIdx.x ^ 1];
}

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_selftest, module) {
  module.def("sum_blocks", [](py::array_t<float> values, py::array_t<float> sums, int threads, uint64_t order) {
    cuda_host::Launch{order}(sum_blocks, sums.size(), threads, (threads + 32) * sizeof(float), values.data(),
                             sums.mutable_data());
  });
  module.def("templated", [](py::array_t<float> out, uint64_t order) {
    cuda_host::Launch{order}(templated<1>, 1, 32, 128, out.mutable_data());
    cuda_host::Launch{order}(templated<2>, 1, 32, 128, out.mutable_data());
  });
}
