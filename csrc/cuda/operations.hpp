// The operations that nvcc compiles, for the bindings that it does not: one .cu file each. A workspace is as
// much device memory as its function says, aligned to 256 bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "info_nce/cuda_args.hpp"
#include "maxsim/cuda_args.hpp"
#include "maxsim/cuda_topk_args.hpp"
#include "tile/cuda_device.hpp"
#include "topk/cuda_args.hpp"

namespace simtile::cuda {

int64_t topk_workspace_bytes(const TopkArgs& args, const Device& device, bool scores_only);
void queue_topk(const TopkArgs& args, const Device& device, void* workspace, bool scores_only, cudaStream_t stream);
void queue_topk_merge(const TopkMergeArgs& args, cudaStream_t stream);

void queue_info_nce(const InfoNceForwardArgs& args, const Device& device, cudaStream_t stream);

int64_t maxsim_workspace_bytes(const MaxsimArgs& args, const Device& device);
void queue_maxsim(const MaxsimArgs& args, const Device& device, void* workspace, cudaStream_t stream);
int64_t maxsim_topk_workspace_bytes(const MaxsimTopkArgs& args, const Device& device);
void queue_maxsim_topk(const MaxsimTopkArgs& args, const Device& device, void* workspace, cudaStream_t stream);

}  // namespace simtile::cuda
