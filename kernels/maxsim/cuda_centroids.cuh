// Of residuals: products of centroids with the tokens of queries, once for all documents of a launch, and what a warp reads of them.
#pragma once

#include "maxsim/cuda_work.cuh"

namespace simtile::cuda::maxsim {

constexpr int kBlockCentroids = 64;
constexpr int kCentroidDepth = 32;  // dimensions at a time
constexpr int kSide = 16;           // threads along either side of a block's products

// Where a column's product stands among those of a centroid: beside that of the other column that the same lane has of 16.
__host__ __device__ constexpr int product_place(int column) {
  return column / 16 * 16 + column % 8 * 2 + column % 16 / 8;
}

__host__ __device__ constexpr int centroid_shared_bytes(int columns) {
  return kCentroidDepth * (columns + 1 + kBlockCentroids + 1) * static_cast<int>(sizeof(float));
}

// Up to 32 elements of a row, one a lane, into a column of shared memory; of no row zeros.
__device__ __forceinline__ void stage_row(const float* row, int64_t left, float* to, int stride) {
  const int lane = threadIdx.x % 32;
  to[lane * stride] = row && lane < left ? __ldg(row + lane) : 0.0f;
}

// Grid (centroids / 64, groups): sums in float32 and in order, every operation rounded.
template <int kColumns>
__global__ void __launch_bounds__(kThreads) maxsim_centroids(const Work work) {
  constexpr int kOwnColumns = kColumns / kSide, kOwnCentroids = kBlockCentroids / kSide;
  constexpr int kTokenStride = kColumns + 1, kCentroidStride = kBlockCentroids + 1;
  SIMTILE_DYNAMIC_SHARED(float, shared);
  float* const tokens = shared;                                     // [depth][columns]
  float* const centroids = shared + kCentroidDepth * kTokenStride;  // [depth][centroids]
  const MaxsimResiduals& residuals = work.args.residuals;
  const int warp = threadIdx.x / 32, column = threadIdx.x % kSide, centroid = threadIdx.x / kSide;
  const int64_t group = work.first_group + blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kBlockCentroids;
  const int columns = work.group_columns[group], tiles = (columns + 15) / 16;
  const Column* packed = work.column + group * work.columns;
  float sums[kOwnCentroids][kOwnColumns] = {};
  for (int64_t base = 0; base < work.args.dimensions; base += kCentroidDepth) {
    const int64_t left = work.args.dimensions - base;
    for (int i = warp; i < 16 * tiles; i += kWarps) {
      const float* row = i < columns ? residuals.query_values + packed[i].row * work.args.dimensions + base : nullptr;
      stage_row(row, left, tokens + i, kTokenStride);
    }
    for (int i = warp; i < kBlockCentroids; i += kWarps) {
      const bool is_there = first + i < residuals.centroid_count;
      const float* row = is_there ? residuals.centroids + (first + i) * work.args.dimensions + base : nullptr;
      stage_row(row, left, centroids + i, kCentroidStride);
    }
    __syncthreads();  // the rows are there
    const int depth = static_cast<int>(min(left, static_cast<int64_t>(kCentroidDepth)));
#pragma unroll 4
    for (int k = 0; k < depth; k++) {
      float own[kOwnCentroids];
#pragma unroll
      for (int i = 0; i < kOwnCentroids; i++) own[i] = centroids[k * kCentroidStride + centroid + i * kSide];
#pragma unroll
      for (int j = 0; j < kOwnColumns; j++) {
        if (j >= tiles) continue;
        const float x = tokens[k * kTokenStride + column + j * kSide];
#pragma unroll
        for (int i = 0; i < kOwnCentroids; i++) sums[i][j] = __fadd_rn(sums[i][j], __fmul_rn(x, own[i]));
      }
    }
    __syncthreads();  // and may be written again
  }
#pragma unroll
  for (int i = 0; i < kOwnCentroids; i++) {
    const int64_t row = first + centroid + i * kSide;
    if (row >= residuals.centroid_count) continue;
    float* const to = work.products + (blockIdx.y * residuals.centroid_count + row) * kColumns;
#pragma unroll
    for (int j = 0; j < kOwnColumns; j++)
      if (j < tiles) to[product_place(column + j * kSide)] = sums[i][j];
  }
}

// Of rows that are there, bit by bit and at least one.
__device__ __forceinline__ int last_row(uint32_t there) { return 31 - __clz(static_cast<int>(there)); }

// What similarities to the rows of a tile take besides the products of their codes.
template <int kTiles>
struct ResidualRows {
  int own_centroid;  // of row `lane`, or behind the last that is there of that one, so that all lanes read side by side
  float own_factor;
  int centroid[kTiles][2];  // of rows 2 * (lane % 4) and the next of every eight

  // Of rows from `base` on, of which those are `there`, bit by bit, and at least one. What is read here is waited for in share().
  __device__ __forceinline__ void load(const Work& work, int64_t base, uint32_t there) {
    const int64_t row = base + min(static_cast<int>(threadIdx.x % 32), last_row(there));
    own_centroid = __ldg(work.args.residuals.centroid_ids + row);
    own_factor = work.args.factors ? __ldg(work.args.factors + row) : 1.0f;
  }
  __device__ __forceinline__ void share(float (&factors)[kTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kTiles; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int row = 8 * n + 2 * (lane % 4) + e;
        centroid[n][e] = __shfl_sync(kAllLanes, own_centroid, row);
        factors[n][e] = __shfl_sync(kAllLanes, own_factor, row);
      }
  }
  // Products of centroids with columns lane / 4 and 8 below of tile m, from the group's [centroids][columns].
  __device__ __forceinline__ void get(const float* products, int columns, int m, float2 (&found)[kTiles][2]) const {
    const float* from = products + 16 * m + threadIdx.x % 32 / 4 * 2;
#pragma unroll
    for (int n = 0; n < kTiles; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        found[n][e] = __ldg(reinterpret_cast<const float2*>(from + static_cast<int64_t>(centroid[n][e]) * columns));
  }
};

}  // namespace simtile::cuda::maxsim
