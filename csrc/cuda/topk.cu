#include "cuda/launch.cuh"
#include "cuda/operations.hpp"
#include "cuda/topk_dispatch.hpp"

namespace simtile::cuda {

int64_t topk_workspace_bytes(const TopkArgs& args, const Device& device, bool scores_only) {
  return workspace_bytes(args, device, scores_only);
}

void queue_topk(const TopkArgs& args, const Device& device, void* workspace, bool scores_only, cudaStream_t stream) {
  if (scores_only) {
    run_rows(args, device, workspace, StreamLaunch{stream});
  } else {
    run(args, device, workspace, StreamLaunch{stream});
  }
}

void queue_topk_merge(const TopkMergeArgs& args, cudaStream_t stream) { run_merge(args, StreamLaunch{stream}); }

}  // namespace simtile::cuda
