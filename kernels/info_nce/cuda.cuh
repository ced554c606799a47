// The forward of info_nce on a device, for small batches: the losses of all rows in one launch, from bfloat16, by mma.sync.
//
//   a block has 16 or 32 query rows: their norms, then the rows, scaled by a power of two, into shared memory
//   its eight warps share the candidates, 8 to 32 columns at a time, read from global memory straight into fragments:
//     product   S = Q Dᵀ, and the columns' squared norms from the same registers
//     logits    scaled, masked; the positive taken out; per lane the maximum m and Σ exp(s - m) over all but the positive
//   lanes, then warps, merge their (m, Σ, positive), and one thread a row writes the loss
//
// Nothing is shared between blocks, so there are no atomics and the same inputs give the same bits. Formula, counts: README.md.
#pragma once

#include <type_traits>

#include "info_nce/cuda_args.hpp"
#include "info_nce/cuda_rows.cuh"

namespace simtile::cuda::info_nce {

// Not measured: chosen so that eight warps with four 16-byte loads a lane in flight cover the latency of L2 (16 KB against
// 64 bytes a clock for about 300 clocks), and two blocks fit a multiprocessor's registers.
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// Queries are staged with norms of about 2^-20, so that no product with a row of bfloat16 overflows.
constexpr float kStagedNorm = 0x1p-20f;

// Beside the staged queries in shared memory. Floats of rows are per warp where warps leave what they found.
template <int kRows>
struct RowState {
  int64_t target[kRows];  // -1: there is none
  int64_t query_id[kRows];
  float shrink[kRows], stage[kRows];  // the row is staged times both, powers of two
  float factor[kRows];  // what turns a product of the staged row and a candidate into a logit, but for the latter's
  float maximum[kWarps][kRows];
  float others[kWarps][kRows];  // Σ exp(s - maximum) over all but the positive
  float positive[kWarps][kRows];
};

// Rows r and r + 8 of a tile are staged as a pair, word by word in turn: 16 bytes are then a fragment of an mma as it is. The bytes
// from one pair to the next: 16 more than whole steps, so that the two pairs that eight lanes read at once use different banks.
__host__ __device__ constexpr int64_t staged_pitch(int64_t steps) { return 4 * kStep * steps + 16; }

// Σ of a row's squares, scaled, on all lanes of the warp.
template <bool kAligned>
__device__ __forceinline__ float query_squares(const __nv_bfloat16* row, int dimensions, float scale, int lane) {
  float sum = 0;
  const auto add = [&](float value) { sum = fmaf(value * scale, value * scale, sum); };
  if constexpr (kAligned) {
    for (int k = 8 * lane; k < dimensions; k += 256) {
      const uint4 chunk = __ldg(reinterpret_cast<const uint4*>(row + k));
      for (const uint32_t word : {chunk.x, chunk.y, chunk.z, chunk.w}) add(low_half(word)), add(high_half(word));
    }
  } else {
    for (int k = lane; k < dimensions; k += 32) add(__bfloat162float(row[k]));
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

// What is known of the block's rows before any product.
template <int kRows, bool kAligned, bool kNormalize>
__device__ __forceinline__ void prepare_rows(const InfoNceForwardArgs& args, const Matrix& queries,
                                             float inverse_temperature, RowState<kRows>& state) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  if (args.temperature_data) inverse_temperature = 1.0f / *args.temperature_data;
  for (int r = warp; r < kRows; r += kWarps) {
    const int64_t row = first_row + r;
    const bool exists = row < queries.count;
    float shrink = 1, stage = 1, factor = inverse_temperature;
    if (kNormalize && exists) {
      float squares = 0;
#pragma unroll 1
      for (;; shrink = kShrink) {
        squares = query_squares<kAligned>(queries.row(row), queries.dimensions, shrink, lane);
        if (squares < kLargeSquares || shrink != 1) break;
      }
      const Norm norm = {shrink, sqrtf(squares)};
      // kStagedNorm over the power of two at or below the norm
      if (norm.value > kStagedNorm && norm.value < INFINITY)
        stage = __uint_as_float(__float_as_uint(kStagedNorm) + __float_as_uint(1.0f) -
                                (__float_as_uint(norm.value) & 0x7f800000u));
      factor *= norm.reciprocal(shrink) / (shrink * stage) * kStagedNorm;
    }
    if (lane > 0) continue;
    state.shrink[r] = shrink;
    state.stage[r] = stage;
    state.factor[r] = factor;
    const int64_t target = !exists ? -1 : args.targets ? args.targets[row] : row;
    state.target[r] = target >= 0 && target < args.documents ? target : -1;
    state.query_id[r] = exists && args.query_ids ? args.query_ids[row] : 0;
  }
}

// Rows of queries from dimension `begin` on into shared memory, with zeros behind the last up to whole steps.
template <int kRows, bool kAligned>
__device__ __forceinline__ void stage_queries(const Matrix& queries, const RowState<kRows>& state, int begin,
                                              int dimensions, int pitch, unsigned char* staged) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int padded = (dimensions + kStep - 1) / kStep * kStep;
  for (int pair = warp; pair < kRows / 2; pair += kWarps) {
    const __nv_bfloat16* source[2];
    int count[2];
    float shrink[2], stage[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = pair / 8 * 16 + 8 * half + pair % 8;
      const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + r;
      count[half] = row < queries.count ? dimensions : 0;
      source[half] = count[half] ? queries.row(row) + begin : nullptr;
      shrink[half] = state.shrink[r];
      stage[half] = state.stage[r];
    }
    // The factors are powers of two: what is cut off is zero, but for elements far below the row's norm.
    const auto scaled = [&](float value, int half) { return __float_as_uint(value * shrink[half] * stage[half]); };
    if constexpr (kAligned) {
      const auto both = [&](uint32_t word, int half) {
        return scaled(low_half(word), half) >> 16 | (scaled(high_half(word), half) & 0xffff0000u);
      };
      for (int k = 8 * lane; k < padded; k += 256) {
        uint4 chunk[2];
#pragma unroll
        for (int half = 0; half < 2; half++)
          chunk[half] =
              k < count[half] ? __ldg(reinterpret_cast<const uint4*>(source[half] + k)) : make_uint4(0, 0, 0, 0);
        uint4* const target = reinterpret_cast<uint4*>(staged + pair * pitch + 4 * k);
        const auto &upper = chunk[0], &lower = chunk[1];
        target[0] = make_uint4(both(upper.x, 0), both(lower.x, 1), both(upper.y, 0), both(lower.y, 1));
        target[1] = make_uint4(both(upper.z, 0), both(lower.z, 1), both(upper.w, 0), both(lower.w, 1));
      }
    } else {
      for (int k = lane; k < padded; k += 32)
#pragma unroll
        for (int half = 0; half < 2; half++)
          *reinterpret_cast<unsigned short*>(staged + pair * pitch + k / 2 * 8 + half * 4 + k % 2 * 2) =
              static_cast<unsigned short>(scaled(k < count[half] ? __bfloat162float(source[half][k]) : 0.0f, half) >>
                                          16);
    }
  }
}

// Adds the product of the staged rows with columns of candidates, from dimension `begin` to `end`, and the columns' squares.
template <int kRowTiles, int kColumnTiles, bool kNormalize, class Reader>
__device__ __forceinline__ void multiply(const unsigned char* staged, int pitch, Reader (&columns)[kColumnTiles],
                                         int begin, int end, float (&products)[kRowTiles][kColumnTiles][4],
                                         float (&squares)[kColumnTiles][2]) {
  const int lane = threadIdx.x % 32;
  const unsigned char* fragment = staged + lane / 4 * pitch + 32 * (lane % 4);
  for (int k = begin; k < end; k += kStep, fragment += 4 * kStep) {
    uint32_t a[kRowTiles][2][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint4 words = *reinterpret_cast<const uint4*>(fragment + 8 * m * pitch + 16 * i);
        a[m][i][0] = words.x, a[m][i][1] = words.y, a[m][i][2] = words.z, a[m][i][3] = words.w;
      }
#pragma unroll
    for (int n = 0; n < kColumnTiles; n++) {
      const uint4 b = columns[n].fragment(k);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        mma_m16n8k16_bf16(products[m][n], a[m][0], {b.x, b.y});
        mma_m16n8k16_bf16(products[m][n], a[m][1], {b.z, b.w});
      }
      if constexpr (kNormalize) {
        for (const uint32_t word : {b.x, b.y, b.z, b.w}) {
          squares[n][0] = fmaf(low_half(word), low_half(word), squares[n][0]);
          squares[n][1] = fmaf(high_half(word), high_half(word), squares[n][1]);
        }
      }
      columns[n].advance(k);
    }
  }
}

// The factors of the columns that this lane has products of, 1 / (norm kStagedNorm) each. Of the squares, a lane has shares of the
// columns lane / 4 of every tile: it finishes that of tile lane % 4.
template <int kColumnTiles>
__device__ __forceinline__ void column_factors(const Matrix& candidates, int64_t base,
                                               const float (&squares)[kColumnTiles][2],
                                               float (&factors)[kColumnTiles][2]) {
  const int lane = threadIdx.x % 32, tile = lane % kColumnTiles;
  float mine = 0;
#pragma unroll
  for (int n = 0; n < kColumnTiles; n++) {
    float sum = squares[n][0] + squares[n][1];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    mine = n == tile ? sum : mine;
  }
  Norm norm = {1, 0};
  if (!(mine < kLargeSquares)) {
    norm.scale = kShrink;
    mine = shrunk_squares(candidates.row(base + 8 * tile + lane / 4), candidates.dimensions);
  }
  norm.value = sqrtf(mine);
  const float factor = norm.reciprocal(norm.scale / kStagedNorm);
#pragma unroll
  for (int n = 0; n < kColumnTiles; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) factors[n][e] = __shfl_sync(kAllLanes, factor, 4 * (2 * (lane % 4) + e) + n);
}

// What a lane, a warp or the block has seen of a row's logits.
struct Seen {
  float maximum = -INFINITY;
  float others = 0;    // Σ exp(s - maximum) over all but the positive
  float positive = 0;  // its logit, where it was met

  // Until something finite was met, there is nothing to be relative to.
  __device__ __forceinline__ float reference() const { return maximum == -INFINITY ? 0 : maximum; }

  __device__ __forceinline__ void raise(float peak) {
    const float before = maximum;
    maximum = fmaxf(maximum, peak);
    others *= __expf(before - reference());
  }
  __device__ __forceinline__ void merge(const Seen& other) {
    raise(other.maximum);
    others += other.others * __expf(other.maximum - reference());
    positive += other.positive;
  }
};

// Columns of a group, a bit each, from the first on.
__device__ __forceinline__ uint32_t first_columns(int64_t count) {
  return count >= 32 ? ~0u : count <= 0 ? 0 : (1u << static_cast<int>(count)) - 1;
}

// One row's logits among a group's columns: those it sees, and which of them is its positive (-1: none).
template <int kColumnTiles>
__device__ __forceinline__ void add_logits(const float (&logits)[kColumnTiles][2], uint32_t visible, int positive,
                                           Seen& seen) {
  const int first = 2 * (threadIdx.x % 4);
  float masked[kColumnTiles][2];
  float peak = -INFINITY;
#pragma unroll
  for (int n = 0; n < kColumnTiles; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      masked[n][e] = visible >> (8 * n + first + e) & 1 ? logits[n][e] : -INFINITY;
      peak = fmaxf(peak, masked[n][e]);
    }
  seen.raise(peak);
#pragma unroll
  for (int n = 0; n < kColumnTiles; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const bool is_positive = 8 * n + first + e == positive;
      seen.positive = is_positive ? masked[n][e] : seen.positive;
      seen.others += is_positive ? 0 : __expf(masked[n][e] - seen.reference());
    }
}

template <int kRowTiles, int kColumnTiles, bool kAligned, bool kNormalize>
__global__ void __launch_bounds__(kThreads, kRowTiles == 1 ? 2 : 1)
    info_nce_forward(InfoNceForwardArgs args, float inverse_temperature, int slice) {
  using Reader = std::conditional_t<kAligned, AlignedReader, ShiftedReader>;
  constexpr int kRows = 16 * kRowTiles, kColumns = 8 * kColumnTiles;
  SIMTILE_DYNAMIC_SHARED(unsigned char, shared);
  RowState<kRows>& state = *reinterpret_cast<RowState<kRows>*>(shared);
  unsigned char* const staged = shared + sizeof(RowState<kRows>);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  const int dimensions = static_cast<int>(args.dimensions), pitch = static_cast<int>(staged_pitch(slice / kStep));
  const auto bf16 = [](const void* data) { return static_cast<const __nv_bfloat16*>(data); };
  const Matrix queries = {bf16(args.queries_data), args.queries_stride, args.rows, dimensions};
  const Matrix documents = {bf16(args.documents_data), args.documents_stride, args.documents, dimensions};
  // Of own negatives, those of the block's rows.
  const int64_t block_rows = min(args.rows - first_row, static_cast<int64_t>(kRows));
  const Matrix negatives = {
      bf16(args.negatives_data) + (args.own_negatives ? first_row * args.negatives * args.negatives_stride : 0),
      args.negatives_stride, (args.own_negatives ? block_rows : args.rows) * args.negatives, dimensions};
  const int64_t document_groups = (documents.count + kColumns - 1) / kColumns;
  const int64_t groups = document_groups + (negatives.count + kColumns - 1) / kColumns;

  prepare_rows<kRows, kAligned, kNormalize>(args, queries, inverse_temperature, state);

  Seen seen[kRowTiles][2];  // of rows lane / 4 and 8 below in each tile
  for (int64_t first_group = 0; first_group < groups; first_group += kWarps) {
    const int64_t group = first_group + warp;
    const bool are_documents = group < document_groups;
    const Matrix candidates = {are_documents ? documents.data : negatives.data,
                               are_documents ? documents.stride : negatives.stride,
                               are_documents ? documents.count : negatives.count, dimensions};
    const int64_t base = (are_documents ? group : group - document_groups) * kColumns;

    Reader columns[kColumnTiles];
#pragma unroll
    for (int n = 0; n < kColumnTiles; n++) columns[n].open(candidates, base + 8 * n + lane / 4, lane);
    float products[kRowTiles][kColumnTiles][4] = {};
    float squares[kColumnTiles][2] = {};
    for (int begin = 0; begin < dimensions; begin += slice) {
      const int count = min(slice, dimensions - begin);
      if (first_group == 0 || slice < dimensions) {
        __syncthreads();  // the rows' scales are known, and no warp still needs the slice before
        stage_queries<kRows, kAligned>(queries, state, begin, count, pitch, staged);
        __syncthreads();  // the staged rows
      }
      if (group < groups)
        multiply<kRowTiles, kColumnTiles, kNormalize>(staged, pitch, columns, begin, begin + count, products, squares);
    }
    if (group >= groups) continue;

    float factors[kColumnTiles][2];
    if constexpr (kNormalize) column_factors<kColumnTiles>(candidates, base, squares, factors);
    uint32_t duplicates[kRowTiles][2] = {};
    if (are_documents && args.document_ids) {
      const int64_t at = base + lane;
      const int64_t id = at < documents.count ? args.document_ids[at] : 0;
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const uint32_t equal = __ballot_sync(kAllLanes, id == state.query_id[r]);
        if (r % 8 == lane / 4) duplicates[r / 16][r / 8 % 2] = equal;
      }
    }
    const int64_t left = min(candidates.count - base, static_cast<int64_t>(kColumns));
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int r = 16 * m + 8 * half + lane / 4;
        uint32_t visible = first_columns(left);
        int positive = -1;
        if (are_documents) {
          const int64_t at = state.target[r] - base;
          if (at >= 0 && at < left) positive = static_cast<int>(at);
          visible &= ~duplicates[m][half] | (positive >= 0 ? 1u << positive : 0);
        } else if (args.own_negatives) {
          const int64_t own = r * args.negatives - base;
          visible &= first_columns(own + args.negatives) & ~first_columns(own);
        }
        float logits[kColumnTiles][2];
#pragma unroll
        for (int n = 0; n < kColumnTiles; n++)
#pragma unroll
          for (int e = 0; e < 2; e++)
            logits[n][e] = products[m][n][2 * half + e] * (kNormalize ? factors[n][e] : 1) * state.factor[r];
        add_logits<kColumnTiles>(logits, visible, positive, seen[m][half]);
      }
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Seen& row = seen[m][half];
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        row.merge({__shfl_xor_sync(kAllLanes, row.maximum, distance), __shfl_xor_sync(kAllLanes, row.others, distance),
                   __shfl_xor_sync(kAllLanes, row.positive, distance)});
      const int r = 16 * m + 8 * half + lane / 4;
      if (lane % 4 > 0) continue;
      state.maximum[warp][r] = row.maximum;
      state.others[warp][r] = row.others;
      state.positive[warp][r] = row.positive;
    }
  __syncthreads();  // what every warp has seen

  const int r = threadIdx.x;
  if (r >= block_rows) return;
  Seen row;
  for (int w = 0; w < kWarps; w++) row.merge({state.maximum[w][r], state.others[w][r], state.positive[w][r]});
  const float x = row.positive - row.maximum;
  // Both keep the digits of a small loss: the positive is then the maximum, x = 0, and the sum begins with the others.
  const float log_sum = state.target[r] >= 0 ? log1pf(row.others + expm1f(x)) : NAN;
  args.losses[first_row + r] = log_sum - x;
  if (args.row_maxima) args.row_maxima[first_row + r] = row.maximum;
  if (args.row_log_sums) args.row_log_sums[first_row + r] = log_sum;
}

}  // namespace simtile::cuda::info_nce
