// Barriers and warp intrinsics. A collective takes place when the last lane of its mask arrives.
#pragma once

#include <type_traits>

#include "block.hpp"

namespace cuda_host {

// The operands and results of the lanes that take part, which lie on their stacks.
template <class In, class Out>
struct Lanes {
  unsigned mask;
  const In* in[warp_size];
  Out* out[warp_size];

  template <class Function>
  void each(Function&& function) const {
    for (int lane = 0; lane < warp_size; ++lane)
      if (mask >> lane & 1) function(lane);
  }
};

template <class In, class Out, class Compute>
Out collective(const char* operation, unsigned mask, Source source, const In& input, Compute&& compute) {
  Out output{};
  Block& block = running_block();
  if (block.arrive(operation, mask, source, &input, &output)) {
    Lanes<In, Out> lanes{mask, {}, {}};
    lanes.each([&](int lane) {
      lanes.in[lane] = static_cast<const In*>(block.lane(lane).input);
      lanes.out[lane] = static_cast<Out*>(block.lane(lane).output);
    });
    compute(lanes);
    block.complete(mask);
  }
  return output;
}

enum class Shuffle { index, up, down, exclusive_or };

template <class T>
struct ShuffleInput {
  T value;
  unsigned argument;
  int width;
};

template <class T>
T shuffle(const char* operation, Shuffle kind, unsigned mask, T value, unsigned argument, int width, Source source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move values of 4 or 8 bytes");
  Block& block = running_block();
  const auto compute = [&](const Lanes<ShuffleInput<T>, T>& lanes) {
    lanes.each([&](int lane) {
      const ShuffleInput<T>& input = *lanes.in[lane];
      const int first = lane & ~(input.width - 1), last = first + input.width - 1;
      const int distance = int(input.argument);
      int from = lane;
      switch (kind) {
        case Shuffle::index:
          from = first + (distance & (input.width - 1));
          break;
        case Shuffle::up:
          from = lane - distance < first ? lane : lane - distance;
          break;
        case Shuffle::down:
          from = lane + distance > last ? lane : lane + distance;
          break;
        case Shuffle::exclusive_or:
          from = (lane ^ distance) > last ? lane : lane ^ distance;
          break;
      }
      if (!(lanes.mask >> from & 1))
        block.fail("lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
                   ", which is not in the mask");
      *lanes.out[lane] = lanes.in[from]->value;
    });
  };
  if (width < 1 || width > warp_size || (width & (width - 1)))
    block.fail(std::string(operation) + ": width " + std::to_string(width) + " is not a power of two up to 32");
  if (kind != Shuffle::index && argument >= unsigned(warp_size))
    block.fail(std::string(operation) + ": a distance of " + std::to_string(argument) + " lanes; expected 0 to 31");
  return collective<ShuffleInput<T>, T>(operation, mask, source, {value, argument, width}, compute);
}

// Every lane gets the values of all lanes, combined from the lowest to the highest.
template <class T, class Combine>
T reduce(const char* operation, unsigned mask, T value, Source source, Combine&& combine) {
  return collective<T, T>(operation, mask, source, value, [&](const Lanes<T, T>& lanes) {
    T total = *lanes.in[__builtin_ctz(mask)];
    lanes.each([&](int lane) {
      if (lane != __builtin_ctz(mask)) total = combine(total, *lanes.in[lane]);
    });
    lanes.each([&](int lane) { *lanes.out[lane] = total; });
  });
}

}  // namespace cuda_host

inline void __syncthreads(cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::running_block().barrier(source);
}

inline void __syncwarp(unsigned mask = ~0u, cuda_host::Source source = cuda_host::Source::here()) {
  cuda_host::collective<char, char>("__syncwarp", mask, source, 0, [](const auto&) {});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle("__shfl_sync", cuda_host::Shuffle::index, mask, value, unsigned(from), width, source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle("__shfl_up_sync", cuda_host::Shuffle::up, mask, value, delta, width, source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle("__shfl_down_sync", cuda_host::Shuffle::down, mask, value, delta, width, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::shuffle("__shfl_xor_sync", cuda_host::Shuffle::exclusive_or, mask, value, unsigned(lane_mask),
                            width, source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_host::Source source = cuda_host::Source::here()) {
  const unsigned bit = predicate ? 1u << cuda_host::running_block().current().lane() : 0;
  return cuda_host::reduce("__ballot_sync", mask, bit, source, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::reduce("__any_sync", mask, int(predicate != 0), source, [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int predicate, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::reduce("__all_sync", mask, int(predicate != 0), source, [](int a, int b) { return a & b; });
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::reduce("__reduce_add_sync", mask, value, source, [](unsigned a, unsigned b) { return a + b; });
}
inline int __reduce_add_sync(unsigned mask, int value, cuda_host::Source source = cuda_host::Source::here()) {
  return int(__reduce_add_sync(mask, unsigned(value), source));
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, cuda_host::Source source = cuda_host::Source::here()) {
  return cuda_host::reduce("__reduce_or_sync", mask, value, source, [](unsigned a, unsigned b) { return a | b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, cuda_host::Source source = cuda_host::Source::here()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "the device reduces int and unsigned");
  return cuda_host::reduce("__reduce_min_sync", mask, value, source, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, cuda_host::Source source = cuda_host::Source::here()) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>, "the device reduces int and unsigned");
  return cuda_host::reduce("__reduce_max_sync", mask, value, source, [](T a, T b) { return a < b ? b : a; });
}
