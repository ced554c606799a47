#include "cuda/launch.cuh"
#include "cuda/operations.hpp"
#include "cuda/topk_dispatch.hpp"

namespace simtile::cuda {

int64_t topk_workspace_bytes(const TopkArgs& args, const Device& device) { return workspace_bytes(args, device); }

void queue_topk(const TopkArgs& args, const Device& device, void* workspace, cudaStream_t stream) {
  run(args, device, workspace, StreamLaunch{stream});
}

}  // namespace simtile::cuda
