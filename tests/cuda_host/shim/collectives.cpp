// Barriers, warp intrinsics and matrix products. A collective takes place when the last lane of its mask arrives.
#include <algorithm>

#include "block.hpp"

namespace cuda_host {

namespace {

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

struct ShuffleInput {
  uint64_t value;
  unsigned argument;
  int width;
};

// The lane that `lane` reads: CUDA C++ Programming Guide, "Warp Shuffle Functions".
int shuffle_source(Shuffle kind, int lane, const ShuffleInput& input) {
  const int first = lane & ~(input.width - 1), last = first + input.width - 1;
  const int argument = int(input.argument);
  switch (kind) {
    case Shuffle::index:
      return first + (argument & (input.width - 1));
    case Shuffle::up:
      return lane - argument < first ? lane : lane - argument;
    case Shuffle::down:
      return lane + argument > last ? lane : lane + argument;
    case Shuffle::exclusive_or:
      return (lane ^ argument) > last ? lane : lane ^ argument;
  }
  __builtin_unreachable();
}

const char* name_of(Shuffle kind) {
  switch (kind) {
    case Shuffle::index:
      return "__shfl_sync";
    case Shuffle::up:
      return "__shfl_up_sync";
    case Shuffle::down:
      return "__shfl_down_sync";
    case Shuffle::exclusive_or:
      return "__shfl_xor_sync";
  }
  __builtin_unreachable();
}

struct ReductionKind {
  const char* name;
  uint32_t (*combine)(uint32_t, uint32_t);
};

ReductionKind properties(Reduction kind) {
  const auto add = [](uint32_t a, uint32_t b) { return a + b; };
  const auto either = [](uint32_t a, uint32_t b) { return a | b; };
  const auto both = [](uint32_t a, uint32_t b) { return a & b; };
  switch (kind) {
    case Reduction::ballot:
      return {"__ballot_sync", either};
    case Reduction::any:
      return {"__any_sync", either};
    case Reduction::all:
      return {"__all_sync", both};
    case Reduction::add:
      return {"__reduce_add_sync", add};
    case Reduction::bitwise_or:
      return {"__reduce_or_sync", either};
    case Reduction::min_signed:
      return {"__reduce_min_sync", [](uint32_t a, uint32_t b) { return uint32_t(std::min(int32_t(a), int32_t(b))); }};
    case Reduction::min_unsigned:
      return {"__reduce_min_sync", [](uint32_t a, uint32_t b) { return std::min(a, b); }};
    case Reduction::max_signed:
      return {"__reduce_max_sync", [](uint32_t a, uint32_t b) { return uint32_t(std::max(int32_t(a), int32_t(b))); }};
    case Reduction::max_unsigned:
      return {"__reduce_max_sync", [](uint32_t a, uint32_t b) { return std::max(a, b); }};
  }
  __builtin_unreachable();
}

template <class T>
struct MmaInput {
  uint32_t a[4], b[2];
  T c[4];
};
template <class T>
struct MmaOutput {
  T d[4];
};

// D = A B + C, A [16][K] and B [K][8] gathered from the lanes: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating
// point type" and "… for mma.m16n8k32". A register holds K / 8 neighbouring elements of k; a0 and a2 are of row lane / 4, a1
// and a3 of the row 8 below; a2, a3 and b1 are of the upper half of k.
template <int K, class T, class Element, class Add>
void mma(const char* operation, T* d, const uint32_t* a, const uint32_t* b, Source source, Element element, Add add) {
  constexpr int per_register = K / 8;
  const MmaInput<T> input{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  const auto compute = [&](const Lanes<MmaInput<T>, MmaOutput<T>>& lanes) {
    decltype(element(0u, 0)) left[16][K], right[K][8];
    lanes.each([&](int lane) {
      const int group = lane / 4, first = lane % 4 * per_register;
      for (int i = 0; i < per_register; ++i) {
        for (int r = 0; r < 4; ++r)
          left[group + r % 2 * 8][first + i + r / 2 * (K / 2)] = element(lanes.in[lane]->a[r], i);
        for (int r = 0; r < 2; ++r) right[first + i + r * (K / 2)][group] = element(lanes.in[lane]->b[r], i);
      }
    });
    lanes.each([&](int lane) {
      for (int r = 0; r < 4; ++r) {
        const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
        T sum = lanes.in[lane]->c[r];
        for (int k = 0; k < K; ++k) sum = add(sum, left[row][k], right[k][column]);
        lanes.out[lane]->d[r] = sum;
      }
    });
  };
  const auto output = collective<MmaInput<T>, MmaOutput<T>>(operation, ~0u, source, input, compute);
  std::copy(output.d, output.d + 4, d);
}

}  // namespace

void sync_threads(Source source) { running_block().barrier(source); }

void sync_warp(unsigned mask, Source source) {
  collective<char, char>("__syncwarp", mask, source, 0, [&](const auto&) { running_block().order_memory_of(mask); });
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, unsigned argument, int width, Source source) {
  const ShuffleInput input{value, argument, width};
  const auto compute = [&](const Lanes<ShuffleInput, uint64_t>& lanes) {
    Block& block = running_block();
    lanes.each([&](int lane) {
      const ShuffleInput& own = *lanes.in[lane];
      if (own.width < 1 || own.width > warp_size || (own.width & (own.width - 1)))
        block.fail("a width of " + std::to_string(own.width) + "; expected a power of two up to 32");
      if (kind != Shuffle::index && own.argument >= unsigned(warp_size))
        block.fail("a distance of " + std::to_string(int(own.argument)) + " lanes; expected 0 to 31");
      const int from = shuffle_source(kind, lane, own);
      if (!(mask >> from & 1))
        block.fail("lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
                   ", which is not in the mask");
      *lanes.out[lane] = lanes.in[from]->value;
    });
  };
  return collective<ShuffleInput, uint64_t>(name_of(kind), mask, source, input, compute);
}

uint32_t reduce(Reduction kind, unsigned mask, uint32_t value, Source source) {
  const ReductionKind reduction = properties(kind);
  if (kind == Reduction::ballot) value <<= running_block().current().lane();
  return collective<uint32_t, uint32_t>(reduction.name, mask, source, value, [&](const auto& lanes) {
    const int first = __builtin_ctz(mask);
    uint32_t total = *lanes.in[first];
    lanes.each([&](int lane) {
      if (lane != first) total = reduction.combine(total, *lanes.in[lane]);
    });
    lanes.each([&](int lane) { *lanes.out[lane] = total; });
  });
}

// Products of bfloat16 are exact in float32; how a device rounds their sum is its own affair, here it is one by one.
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Source source) {
  const auto element = [](uint32_t word, int i) {
    return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(word >> 16 * i)));
  };
  const auto add = [](float sum, float x, float y) { return sum + x * y; };
  mma<16>("mma_m16n8k16_bf16", d, a, b, source, element, add);
}

// Wraps as on the device.
void mma_s8(int32_t* d, const uint32_t* a, const uint32_t* b, Source source) {
  const auto element = [](uint32_t word, int i) { return int32_t(int8_t(word >> 8 * i)); };
  const auto add = [](int32_t sum, int32_t x, int32_t y) { return int32_t(uint32_t(sum) + uint32_t(x * y)); };
  mma<32>("mma_m16n8k32_s8", d, a, b, source, element, add);
}

// 32 bits of k at a time.
void mma_and_popc(int32_t* d, const uint32_t* a, const uint32_t* b, Source source) {
  const auto element = [](uint32_t word, int) { return word; };
  const auto add = [](int32_t sum, uint32_t x, uint32_t y) { return sum + __builtin_popcount(x & y); };
  mma<8>("mma_m16n8k256_and_popc", d, a, b, source, element, add);
}

}  // namespace cuda_host
