// How the forward kernel reads rows of bfloat16: 16 bytes a lane, whatever the alignment, and their norms.
//
// A step is 32 dimensions, two mma of 16. The lane with t = lane % 4 holds dimensions 8t to 8t + 7 of its row: words x and y are its
// fragment of the first mma, z and w of the second. That permutes the dimensions among the k of the two mma, for queries and
// candidates alike, which a sum does not see; and the four lanes of a row read 64 consecutive bytes, whole sectors.
#pragma once

#include "tile/ptx.cuh"

namespace simtile::cuda::info_nce {

constexpr int kStep = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

constexpr float kNormFloor = 1e-12f;  // as torch.nn.functional.normalize

struct Matrix {
  const __nv_bfloat16* data;
  int64_t stride;  // elements from one row to the next
  int64_t count;
  int dimensions;

  __device__ const __nv_bfloat16* row(int64_t i) const { return data + i * stride; }
};

__device__ __forceinline__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// A row for each group of four lanes, step after step: what one of the eight columns of an mma is multiplied with. Zeros stand for
// what a row does not have. Both readers hold what the next step needs, so that its load runs beside this step's product.
class AlignedReader {  // rows of which the address divides by 16, and D by 8
 public:
  __device__ __forceinline__ void open(const Matrix& matrix, int64_t row, int lane) {
    place_ = 8 * (lane % 4);
    end_ = row < matrix.count ? matrix.dimensions : 0;
    data_ = row < matrix.count ? matrix.row(row) : nullptr;
    held_ = load(0);
  }
  __device__ __forceinline__ uint4 fragment(int /*dimension*/) const { return held_; }
  // From the step at `dimension` to the one after it.
  __device__ __forceinline__ void advance(int dimension) { held_ = load(dimension + kStep); }

 private:
  __device__ __forceinline__ uint4 load(int dimension) const {
    const int at = dimension + place_;
    return at < end_ ? __ldg(reinterpret_cast<const uint4*>(data_ + at)) : make_uint4(0, 0, 0, 0);
  }

  const __nv_bfloat16* data_;
  int place_, end_;
  uint4 held_;
};

// Any row. Lanes load aligned chunks of 16 bytes from the last multiple of 32 bytes at or before the row on, pass them to their
// neighbours and shift them into place: so loads ask for whole sectors here too, and for no byte twice.
class ShiftedReader {
 public:
  __device__ __forceinline__ void open(const Matrix& matrix, int64_t row, int lane) {
    lane_ = lane;
    shift_ = end_ = 0;
    start_ = lowest_ = highest_ = 0;
    if (row < matrix.count) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(matrix.row(row));
      shift_ = static_cast<int>(address % 32) / 2;
      start_ = address - address % 32;
      end_ = matrix.dimensions;
      lowest_ = reinterpret_cast<uintptr_t>(matrix.data);
      highest_ = reinterpret_cast<uintptr_t>(matrix.row(matrix.count - 1) + matrix.dimensions);
    }
    held_ = load(0);
    next_ = load(kStep);
  }
  __device__ __forceinline__ uint4 fragment(int dimension) const {
    const int chunks = shift_ / 8;  // 0 or 1
    const uint4 first = from_lane(chunks), second = from_lane(chunks + 1);
    uint32_t words[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
    const int shift = shift_ % 8;
#pragma unroll
    for (int i = 0; i < 6; i++) words[i] = shift & 4 ? words[i + 2] : words[i];
#pragma unroll
    for (int i = 0; i < 5; i++) words[i] = shift & 2 ? words[i + 1] : words[i];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = shift & 1 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
    // What lies beyond the row's end is not this row's; it may be NaN.
    const int left = end_ - (dimension + 8 * (lane_ % 4));
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = left > 2 * i + 1 ? words[i] : left > 2 * i ? words[i] & 0xffffu : 0;
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
  __device__ __forceinline__ void advance(int dimension) {
    held_ = next_;
    next_ = load(dimension + 2 * kStep);
  }

 private:
  // The chunk that lies `distance` lanes on, in the next step's chunks if that is beyond the row's four lanes.
  __device__ __forceinline__ uint4 from_lane(int distance) const {
    const int t = lane_ % 4, source = (lane_ & ~3) + (t + distance) % 4;
    const uint4 given = t < distance ? next_ : held_;
    return make_uint4(__shfl_sync(kAllLanes, given.x, source), __shfl_sync(kAllLanes, given.y, source),
                      __shfl_sync(kAllLanes, given.z, source), __shfl_sync(kAllLanes, given.w, source));
  }

  __device__ __forceinline__ uint4 load(int dimension) const {
    const int at = dimension + 8 * (lane_ % 4);  // elements from start_ on
    if (at + 8 <= shift_ || at >= shift_ + end_) return make_uint4(0, 0, 0, 0);
    const uintptr_t address = start_ + 2 * static_cast<uintptr_t>(at);
    // A chunk may lap over into a neighbouring row, but not out of the matrix.
    if (address >= lowest_ && address + 16 <= highest_) return __ldg(reinterpret_cast<const uint4*>(address));
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uintptr_t element = address + 2 * i;
      if (element >= lowest_ && element < highest_)
        words[i / 2] |= static_cast<uint32_t>(__ldg(reinterpret_cast<const unsigned short*>(element))) << 16 * (i % 2);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  uintptr_t start_, lowest_, highest_;
  int lane_, shift_, end_;
  uint4 held_, next_;
};

// A squared norm of at least this, or NaN, may have lost everything to overflow: it is taken again of a row times kShrink, which is
// exact. At the other end nothing is lost: what underflows is far below the norm's floor.
constexpr float kLargeSquares = 0x1p120f;
constexpr float kShrink = 0x1p-80f;

struct Norm {
  float scale;  // 1 or kShrink
  float value;  // of the row times scale

  // `numerator` times the scale that makes the row (times `scale`) a unit vector; NaN stays.
  __device__ __forceinline__ float reciprocal(float numerator) const {
    const float floor = kNormFloor * scale;
    return value > floor ? numerator / value : value <= floor ? numerator / floor : value;
  }
};

// One thread's sum of squares over a whole row, for the rare row that kLargeSquares speaks of.
__device__ __forceinline__ float shrunk_squares(const __nv_bfloat16* row, int dimensions) {
  float sum = 0;
#pragma unroll 1
  for (int k = 0; k < dimensions; k++) {
    const float value = __bfloat162float(row[k]) * kShrink;
    sum = fmaf(value, value, sum);
  }
  return sum;
}

}  // namespace simtile::cuda::info_nce
