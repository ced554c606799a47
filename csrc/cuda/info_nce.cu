#include "cuda/info_nce_dispatch.hpp"
#include "cuda/launch.cuh"
#include "cuda/operations.hpp"

namespace simtile::cuda {

void queue_info_nce(const InfoNceForwardArgs& args, const Device& device, cudaStream_t stream) {
  run(args, device, nullptr, StreamLaunch{stream});  // one kernel, whose scratch memory is shared memory
}

}  // namespace simtile::cuda
