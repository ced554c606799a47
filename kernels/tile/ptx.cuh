// Every instruction that the kernels write as PTX, and nothing else. Each function has a host twin of the same name in
// tests/cuda_host/ptx_host.hpp, with which the kernels run on a CPU. All need sm_80.
#pragma once

#ifdef SIMTILE_CUDA_HOST

#include "ptx_host.hpp"

#else

#include <cuda_bf16.h>

#include <cstdint>

// The block's dynamic shared memory as T*, aligned to 16 bytes.
#define SIMTILE_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char simtile_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(simtile_dynamic_shared)

namespace simtile::cuda {

// d += A B, A [16][16] and B [16][8] bfloat16, d [16][8] float32. Of the lane with group = lane / 4 and t = lane % 4:
// a[0] is A[group][2t, 2t + 1], a[1] eight rows below, a[2] and a[3] the same at k + 8; b[0] is B[2t, 2t + 1][group], b[1] at
// k + 8; d[0], d[1] are D[group][2t, 2t + 1], d[2], d[3] eight rows below. The lower half of a word has the smaller k.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += A B, A [16][32] and B [32][8] int8, d [16][8] int32, wrapping. As above with four k to a word, 4t to 4t + 3, and the
// second half at k + 16.
__device__ __forceinline__ void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += the bits that a row of A [16][256] and a column of B [256][8] have in common, d [16][8] int32. Words as above, 32 k each.
__device__ __forceinline__ void mma_m16n8k256_and_popc(int32_t (&d)[4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, "
      "%2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A float16 in float32, exactly.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Copies 16 bytes, both addresses aligned to 16, past the first-level cache. They are there for the calling thread after
// cp_async_wait, for other threads after a barrier that follows it.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global))
      : "memory");
}

// As above, but only the first valid_bytes (0 to 16) are read; the rest becomes zero.
__device__ __forceinline__ void cp_async_16_zero_fill(void* shared, const void* global, int valid_bytes) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(valid_bytes)
      : "memory");
}

// The calling thread's copies since the last commit become one group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `left` of the calling thread's groups, the latest ones, are unfinished.
template <int left>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

}  // namespace simtile::cuda

#endif
