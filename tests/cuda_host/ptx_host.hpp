// Host twins of the instructions in kernels/tile/ptx.cuh.
#pragma once

#include "device.hpp"

namespace simtile::cuda {

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::mma_bf16(d, a, b, source);
}

inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::mma_s8(d, a, b, source);
}

inline void mma_m16n8k256_and_popc(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::mma_and_popc(d, a, b, source);
}

inline float half_to_float(unsigned short bits) {
  const uint32_t magnitude = bits & 0x7fffu, sign = uint32_t(bits & 0x8000u) << 16;
  float value = __uint_as_float(magnitude << 13) * 0x1p112f;  // the exponent's other bias; exact for subnormal ones too
  if (magnitude >= 0x7c00u) value = __uint_as_float(0x7f800000u | magnitude << 13);
  return __uint_as_float(__float_as_uint(value) | sign);
}

inline void cp_async_16(void* shared, const void* global, cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::copy_async(shared, global, 16, source);
}
inline void cp_async_16_zero_fill(void* shared, const void* global, int valid_bytes,
                                  cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::copy_async(shared, global, valid_bytes, source);
}
inline void cp_async_commit() { cuda_host::commit_copies(); }
template <int left>
void cp_async_wait() {
  static_assert(left >= 0);
  cuda_host::wait_for_copies(left);
}

}  // namespace simtile::cuda
