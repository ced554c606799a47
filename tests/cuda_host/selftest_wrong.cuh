// Kernels with one mistake each, and their right neighbours ("fine: …"). 64 threads, 256 ints of shared memory.
#pragma once

#include <map>
#include <string>

#include "tile/ptx.cuh"

namespace simtile::cuda::selftest {

using Kernel = void (*)(int* global);

__global__ void empty() {}

inline int* ints() {
  SIMTILE_DYNAMIC_SHARED(int, shared);
  return shared;
}

inline const std::map<std::string, Kernel>& wrong_kernels() {
  static const std::map<std::string, Kernel> kernels = {
      // Barriers
      {"two barriers",
       [](int*) {
         if (threadIdx.x < 40) {
           __syncthreads();
         } else {
           __syncthreads();
         }
       }},
      {"barrier after exit",
       [](int*) {
         if (threadIdx.x == 5) return;
         __syncthreads();
       }},
      {"exit before barrier",
       [](int*) {
         if (threadIdx.x == 63) return;
         __syncthreads();
       }},

      // Collectives
      {"not in the mask", [](int* global) { global[0] = int(__ballot_sync(0xfffffff0u, 1)); }},
      {"lane returned",
       [](int* global) {
         if (threadIdx.x == 3) return;
         global[0] = __any_sync(~0u, 1);
       }},
      {"returned while awaited",
       [](int* global) {
         if (threadIdx.x == 30) return;
         global[0] = __any_sync(~0u, 1);
       }},
      {"different masks", [](int* global) { global[0] = __all_sync(threadIdx.x % 32 < 16 ? ~0u : 0xffff8000u, 1); }},
      {"different collectives",
       [](int* global) {
         if (threadIdx.x % 2) {
           global[0] = __any_sync(~0u, 1);
         } else {
           __syncwarp();
         }
       }},
      {"different lines",
       [](int* global) {
         if (threadIdx.x % 2) {
           global[0] = __any_sync(~0u, 1);
         } else {
           global[0] = __any_sync(~0u, 0);
         }
       }},
      {"outside the mask",
       [](int* global) {
         if (threadIdx.x % 32 < 16) global[0] = __shfl_sync(0xffffu, 1, 20);
       }},
      {"width", [](int* global) { global[0] = __shfl_sync(~0u, 1, 0, 12); }},
      {"distance", [](int* global) { global[0] = __shfl_down_sync(~0u, 1, 32); }},
      {"deadlock",
       [](int*) {
         if (threadIdx.x % 32 < 31) __syncwarp();
         __syncthreads();
       }},

      // Shared memory
      {"unwritten", [](int* global) { global[threadIdx.x] = ints()[threadIdx.x]; }},
      {"past the end", [](int*) { ints()[256] = 1; }},
      {"before the beginning", [](int* global) { global[0] = ints()[-1]; }},
      {"written by memset", [](int*) { memset(ints() + 255, 1, 8); }},
      {"not aligned",
       [](int* global) { global[0] = *reinterpret_cast<const int*>(reinterpret_cast<const char*>(global) + 1); }},
      {"no barrier",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncwarp();
         global[threadIdx.x] = ints()[63 - threadIdx.x];
       }},
      {"fine: barrier",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncthreads();
         global[threadIdx.x] = ints()[63 - threadIdx.x];
       }},
      {"no barrier before writing again",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncthreads();
         global[threadIdx.x] = ints()[63 - threadIdx.x];
         ints()[threadIdx.x] = 0;
       }},
      {"fine: barrier before writing again",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncthreads();
         global[threadIdx.x] = ints()[63 - threadIdx.x];
         __syncthreads();
         ints()[threadIdx.x] = 0;
       }},
      {"two writers", [](int*) { ints()[threadIdx.x % 63] = 1; }},
      {"two writers of one warp", [](int*) { ints()[threadIdx.x < 32 ? threadIdx.x / 2 : threadIdx.x] = 1; }},
      {"no __syncwarp",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         global[threadIdx.x] = ints()[threadIdx.x ^ 1];
       }},
      {"shuffle in place of __syncwarp",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         global[64] = __any_sync(~0u, 1);
         global[threadIdx.x] = ints()[threadIdx.x ^ 1];
       }},
      {"fine: __syncwarp",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncwarp();
         global[threadIdx.x] = ints()[threadIdx.x ^ 1];
       }},
      {"__syncwarp of other lanes",
       [](int* global) {
         ints()[threadIdx.x] = int(threadIdx.x);
         __syncwarp(threadIdx.x % 2 ? 0xaaaaaaaau : 0x55555555u);
         global[threadIdx.x] = ints()[threadIdx.x ^ 1];
       }},
      // Lane 0 meets lane 1, lane 1 meets lane 2: what lane 0 wrote is there for lane 2.
      {"fine: __syncwarp handed on",
       [](int* global) {
         const unsigned thread = threadIdx.x;
         if (thread == 0) ints()[0] = 7;
         if (thread == 0 || thread == 1) __syncwarp(0x3u);
         if (thread == 1 || thread == 2) __syncwarp(0x6u);
         if (thread == 2) global[2] = ints()[0];
       }},
      {"no barrier after another warp read",
       [](int* global) {
         if (threadIdx.x == 0) ints()[0] = 7;
         __syncthreads();
         global[threadIdx.x] = ints()[0];
         __syncwarp();
         if (threadIdx.x == 0) ints()[0] = 8;
       }},

      // Asynchronous copies; global has 64 ints and more
      {"copy not waited for",
       [](int* global) {
         cp_async_16(ints() + 4 * threadIdx.x, global);
         cp_async_commit();
         cp_async_wait<1>();
         global[threadIdx.x] = ints()[4 * threadIdx.x];
       }},
      {"copy not committed",
       [](int* global) {
         cp_async_16(ints() + 4 * threadIdx.x, global);
         cp_async_wait<0>();
         global[threadIdx.x] = ints()[4 * threadIdx.x];
       }},
      {"copy of another thread",
       [](int* global) {
         cp_async_16(ints() + 4 * threadIdx.x, global);
         cp_async_commit();
         cp_async_wait<0>();
         global[64] = __any_sync(~0u, 1);
         global[threadIdx.x] = ints()[4 * threadIdx.x ^ 4];
       }},
      {"copy where others read",
       [](int* global) {
         ints()[threadIdx.x] = 1;
         __syncthreads();
         global[threadIdx.x] = ints()[threadIdx.x ^ 5];
         if (threadIdx.x < 16) cp_async_16(ints() + 4 * threadIdx.x, global);
         cp_async_commit();
         cp_async_wait<0>();
       }},
      {"copy left behind", [](int* global) { cp_async_16(ints() + 4 * threadIdx.x, global); }},
      {"copy to a wrong address",
       [](int* global) {
         cp_async_16(ints() + threadIdx.x, global);
         cp_async_commit();
         cp_async_wait<0>();
       }},
      {"copy from a wrong address", [](int* global) { cp_async_16(ints(), global + 1); }},
      {"copy out of bounds",
       [](int* global) {
         cp_async_16(ints() + 4 * (threadIdx.x + 1), global);
         cp_async_commit();
         cp_async_wait<0>();
       }},
      {"copy to global memory", [](int* global) { cp_async_16(global, global); }},
      {"copy of 17 bytes", [](int* global) { cp_async_16_zero_fill(ints(), global, 17); }},
  };
  return kernels;
}

}  // namespace simtile::cuda::selftest
