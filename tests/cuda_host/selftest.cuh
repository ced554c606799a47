// Sample kernels that use each intrinsic as it is meant: nvcc compiles them too.
#pragma once

#include "tile/ptx.cuh"

namespace simtile::cuda::selftest {

// Shared memory, barriers and shuffles together: the sum of each block's values, of whole warps.
__global__ void block_sums(const float* values, float* sums) {
  SIMTILE_DYNAMIC_SHARED(float, staged);  // [blockDim.x] values, then one sum of each warp
  float* const warp_sums = staged + blockDim.x;
  staged[threadIdx.x] = values[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  float sum = staged[blockDim.x - 1 - threadIdx.x];
  for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += warp_sums[i];
    sums[blockIdx.x] = total;
  }
}

// out: [4][32], one row per kind of shuffle. Lanes outside of the mask do nothing.
template <class T>
__global__ void shuffles(unsigned mask, int width, int distance, const T* values, const int* sources, T* out) {
  const unsigned lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  const T value = values[lane];
  out[lane] = __shfl_sync(mask, value, sources[lane], width);
  if (distance < 0) return;
  out[32 + lane] = __shfl_up_sync(mask, value, unsigned(distance), width);
  out[64 + lane] = __shfl_down_sync(mask, value, unsigned(distance), width);
  out[96 + lane] = __shfl_xor_sync(mask, value, distance, width);
}

// out: [9][32].
__global__ void reductions(unsigned mask, const int* values, int* out) {
  const unsigned lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  const int value = values[lane];
  const unsigned bits = unsigned(value);
  out[lane] = int(__ballot_sync(mask, value & 1));
  out[32 + lane] = __any_sync(mask, value & 1);
  out[64 + lane] = __all_sync(mask, value & 1);
  out[96 + lane] = __reduce_add_sync(mask, value);
  out[128 + lane] = int(__reduce_or_sync(mask, bits));
  out[160 + lane] = __reduce_min_sync(mask, value);
  out[192 + lane] = __reduce_max_sync(mask, value);
  out[224 + lane] = int(__reduce_min_sync(mask, bits));
  out[256 + lane] = int(__reduce_max_sync(mask, bits));
}

// out: [count][8] of the words a, b and of both as one of 64 bits.
__global__ void bit_intrinsics(const unsigned* a, const unsigned* b, int* out, int count) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const unsigned long long both = (unsigned long long)(a[i]) << 32 | b[i];
  int* const row = out + i * 8;
  row[0] = __popc(a[i]);
  row[1] = __popcll(both);
  row[2] = __clz(int(a[i]));
  row[3] = __clzll((long long)(both));
  row[4] = __ffs(int(a[i]));
  row[5] = __ffsll((long long)(both));
  row[6] = __dp4a(int(a[i]), int(b[i]), int(a[i]));
  row[7] = __float_as_int(__uint_as_float(__ldg(b + i)));
}

__global__ void to_bfloat16(const float* values, __nv_bfloat16* rounded, float* widened, int count) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  rounded[i] = __float2bfloat16(values[i]);
  widened[i] = __bfloat162float(rounded[i]);
}

// d += a b for one tile. Element is bfloat16 as its bits, or int8; a [16][K] and b [8][K], so its rows are columns of B.
template <int K, class Element, class T>
__global__ void tile_product(const Element* a, const Element* b, T* d) {
  constexpr int per_word = K / 8;
  const int group = int(threadIdx.x) / 4, first = int(threadIdx.x) % 4 * per_word;
  const auto word = [&](const Element* row, int k) { return *reinterpret_cast<const uint32_t*>(row + k + first); };
  const uint32_t a_words[4] = {word(a + group * K, 0), word(a + (group + 8) * K, 0), word(a + group * K, K / 2),
                               word(a + (group + 8) * K, K / 2)};
  const uint32_t b_words[2] = {word(b + group * K, 0), word(b + group * K, K / 2)};
  const int column = int(threadIdx.x) % 4 * 2;
  T* const top = d + group * 8 + column;
  T* const bottom = top + 64;
  T sums[4] = {top[0], top[1], bottom[0], bottom[1]};
  if constexpr (K == 16) {
    mma_m16n8k16_bf16(sums, a_words, b_words);
  } else {
    mma_m16n8k32_s8(sums, a_words, b_words);
  }
  top[0] = sums[0], top[1] = sums[1], bottom[0] = sums[2], bottom[1] = sums[3];
}

// A pipeline of two stages over `steps` pieces of 16 bytes a thread; the last piece has last_bytes. Each thread writes what its
// neighbour copied.
__global__ void async_pipeline(const uint4* from, uint4* to, int steps, int last_bytes) {
  SIMTILE_DYNAMIC_SHARED(uint4, stages);  // [2][blockDim.x]
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  const auto issue = [&](int step) {
    uint4* const slot = stages + step % 2 * threads + thread;
    const uint4* const source = from + step * threads + thread;
    if (step == steps - 1) {
      cp_async_16_zero_fill(slot, source, last_bytes);
    } else if (step < steps) {
      cp_async_16(slot, source);
    }
    cp_async_commit();
  };
  issue(0);
  for (int step = 0; step < steps; ++step) {
    issue(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    to[step * threads + thread] = stages[step % 2 * threads + (thread + 1) % threads];
    __syncthreads();
  }
  cp_async_wait<0>();
}

// Appends (block, thread, step) to a log at `position`, which all threads advance without asking: on a CPU it is the order
// in which they ran.
__global__ void log_steps(int* log, int* position, int steps) {
  for (int step = 0; step < steps; ++step) {
    int* const entry = log + 3 * *position;
    entry[0] = int(blockIdx.x), entry[1] = int(threadIdx.x), entry[2] = step;
    ++*position;
    __syncwarp();
  }
}

}  // namespace simtile::cuda::selftest
