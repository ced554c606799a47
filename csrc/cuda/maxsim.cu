#include "cuda/launch.cuh"
#include "cuda/maxsim_topk_dispatch.hpp"
#include "cuda/operations.hpp"

namespace simtile::cuda {

int64_t maxsim_workspace_bytes(const MaxsimArgs& args, const Device& device) { return workspace_bytes(args, device); }

void queue_maxsim(const MaxsimArgs& args, const Device& device, void* workspace, cudaStream_t stream) {
  run(args, device, workspace, StreamLaunch{stream});
}

int64_t maxsim_topk_workspace_bytes(const MaxsimTopkArgs& args, const Device& device) {
  return workspace_bytes(args, device);
}

void queue_maxsim_topk(const MaxsimTopkArgs& args, const Device& device, void* workspace, cudaStream_t stream) {
  run(args, device, workspace, StreamLaunch{stream});
}

}  // namespace simtile::cuda
