// Host twins of the instructions in kernels/tile/ptx.cuh. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16
// with floating point type" and "… for mma.m16n8k32".
#pragma once

#include <cstdint>

#include "cuda_on_host.hpp"

namespace cuda_host {

template <class T>
struct MmaInput {
  uint32_t a[4], b[2];
  T c[4];
};
template <class T>
struct MmaOutput {
  T d[4];
};

// D = A B + C, A [16][K] and B [K][8] gathered from the lanes. A register holds `per_register` neighbouring elements of k.
// Registers a0 and a2 hold row lane / 4, a1 and a3 the row 8 below; a2, a3 and b1 hold the upper half of k.
template <int K, class T, class Element, class Add>
void matrix_product(const Lanes<MmaInput<T>, MmaOutput<T>>& lanes, Element element, Add add) {
  constexpr int per_register = K / 8;
  T a[16][K], b[K][8];
  lanes.each([&](int lane) {
    const int group = lane / 4, in_group = lane % 4;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < per_register; ++i)
        a[group + r % 2 * 8][in_group * per_register + i + r / 2 * (K / 2)] = element(lanes.in[lane]->a[r], i);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < per_register; ++i)
        b[in_group * per_register + i + r * (K / 2)][group] = element(lanes.in[lane]->b[r], i);
  });
  lanes.each([&](int lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
      T sum = lanes.in[lane]->c[r];
      for (int k = 0; k < K; ++k) sum = add(sum, a[row][k], b[k][column]);
      lanes.out[lane]->d[r] = sum;
    }
  });
}

template <class T, class Compute>
void mma(const char* operation, T (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Source source,
         Compute compute) {
  const MmaInput<T> input{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  const auto output = collective<MmaInput<T>, MmaOutput<T>>(operation, ~0u, source, input, compute);
  for (int r = 0; r < 4; ++r) d[r] = output.d[r];
}

// Only what kernels may ask of a copy; it is carried out by the wait.
inline void issue_copy(void* shared, const void* global, int valid_bytes, Source source) {
  Block& block = running_block();
  Thread& thread = block.current();
  thread.operation = "cp_async_16";
  thread.source = source;
  if (reinterpret_cast<uintptr_t>(shared) % 16) block.fail("the shared address is not aligned to 16 bytes");
  if (reinterpret_cast<uintptr_t>(global) % 16) block.fail("the global address is not aligned to 16 bytes");
  if (!block.shared().contains(shared, 16)) block.fail("the destination is not in shared memory");
  if (valid_bytes < 0 || valid_bytes > 16)
    block.fail(std::to_string(valid_bytes) + " bytes of source; expected 0 to 16");
  // A device may write at any time from now on: whoever still reads here reads what is wrong.
  std::memset(shared, unwritten, 16);
  thread.copies.push_back({shared, global, valid_bytes});
}

// All but the last `left` committed groups.
inline void finish_copies(size_t left) {
  Thread& thread = running_block().current();
  if (thread.committed.size() <= left) return;
  const size_t groups = thread.committed.size() - left, count = thread.committed[groups - 1];
  for (size_t i = 0; i < count; ++i) {
    const AsyncCopy& copy = thread.copies[i];
    std::memset(copy.shared, 0, 16);
    std::memcpy(copy.shared, copy.global, size_t(copy.valid_bytes));
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(count));
  thread.committed.erase(thread.committed.begin(), thread.committed.begin() + ptrdiff_t(groups));
  for (size_t& end : thread.committed) end -= count;
}

}  // namespace cuda_host

namespace simtile::cuda {

// Products of bfloat16 are exact in float32; how a device rounds their sum is its own affair, here it is one by one.
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              cuda_host::Source source = cuda_host::Source::here()) {
  const auto element = [](uint32_t word, int i) {
    return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(word >> 16 * i)));
  };
  cuda_host::mma("mma_m16n8k16_bf16", d, a, b, source, [&](const auto& lanes) {
    cuda_host::matrix_product<16>(lanes, element, [](float sum, float x, float y) { return sum + x * y; });
  });
}

// Wraps as on the device.
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            cuda_host::Source source = cuda_host::Source::here()) {
  const auto element = [](uint32_t word, int i) { return int32_t(int8_t(word >> 8 * i)); };
  const auto add = [](int32_t sum, int32_t x, int32_t y) { return int32_t(uint32_t(sum) + uint32_t(x * y)); };
  cuda_host::mma("mma_m16n8k32_s8", d, a, b, source,
                 [&](const auto& lanes) { cuda_host::matrix_product<32>(lanes, element, add); });
}

inline void cp_async_16(void* shared, const void* global, cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::issue_copy(shared, global, 16, source);
}
inline void cp_async_16_zero_fill(void* shared, const void* global, int valid_bytes,
                                  cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::issue_copy(shared, global, valid_bytes, source);
}
inline void cp_async_commit() {
  cuda_host::Thread& thread = cuda_host::running_block().current();
  thread.committed.push_back(thread.copies.size());
}
template <int left>
void cp_async_wait() {
  static_assert(left >= 0);
  cuda_host::finish_copies(left);
}

}  // namespace simtile::cuda
