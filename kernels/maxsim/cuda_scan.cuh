// The largest product of every token of a group with the tokens of each item: products on the matrix unit, maxima from its accumulators.
//
// A warp multiplies some rows of a document, read once from global memory straight into fragments, with all of the group's tokens, which
// lie in shared memory as fragments too.
#pragma once

#include "maxsim/cuda_work.cuh"

namespace simtile::cuda::maxsim {

// The rows of a tile that this lane reads, row lane / 4 of every eight, piece after piece.
template <class Format, int kTiles>
struct Rows {
  static constexpr int kElements = kPieceBytes / Format::kBytes;

  const char* data;
  int64_t stride;
  int64_t dimensions;
  uint32_t there;  // bit 8n: row n of this lane's
  bool aligned;    // every piece that is not whole is empty, and all lie at multiples of 16 bytes

  // Its lane's 16 bytes of each row, from the step's first byte on.
  __device__ __forceinline__ void load(int64_t offset, uint4 (&pieces)[kTiles]) const {
    offset += threadIdx.x % 4 * kPieceBytes;
    const int64_t left = dimensions - offset / Format::kBytes;
#pragma unroll
    for (int n = 0; n < kTiles; n++) pieces[n] = make_uint4(0, 0, 0, 0);
    if (aligned) {
#pragma unroll
      for (int n = 0; n < kTiles; n++)
        if (left > 0 && there >> 8 * n & 1)
          pieces[n] = __ldg(reinterpret_cast<const uint4*>(data + 8 * n * stride + offset));
      return;
    }
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      if (!(there >> 8 * n & 1)) continue;
      const char* from = data + 8 * n * stride + offset;
      uint32_t words[4] = {};
#pragma unroll
      for (int i = 0; i < kElements; i++) {
        if (i >= left) continue;
        if constexpr (Format::kBytes == 4) {
          words[i] = __ldg(reinterpret_cast<const uint32_t*>(from) + i);
        } else {
          words[i / 2] |= static_cast<uint32_t>(__ldg(reinterpret_cast<const unsigned short*>(from) + i))
                          << 16 * (i % 2);
        }
      }
      pieces[n] = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
};

// q · d as float32 has it, for what planes make NaN: rows with elements that are not finite, products beyond the largest number.
template <class Format>
__device__ inline float plain_product(const Work& work, const Column& column, int64_t document_row) {
  if (column.factor != column.factor) return NAN;
  const void* query = row_of(work.args.queries, column.row);
  const void* document = row_of(work.args.documents, document_row);
  float sum = 0;
#pragma unroll 1
  for (int64_t k = 0; k < work.args.dimensions; k++)
    sum = fmaf(element(work.args.queries.kind, query, k) * column.scale, Format::get(document, k), sum);
  return sum;
}

// One over the length of a document's row from its squares; NaN for a row without a direction.
template <class Format>
__device__ inline float document_factor(const Work& work, int64_t row, float squares) {
  constexpr float kLargeSquares = 0x1p120f;  // sums above it, or NaN, may have lost everything to overflow
  double exact = squares;
  if (!(squares < kLargeSquares)) {
    exact = 0;
    const void* data = row_of(work.args.documents, row);
#pragma unroll 1
    for (int64_t k = 0; k < work.args.dimensions; k++) {
      const double x = Format::get(data, k);
      exact += x * x;
    }
  }
  const double norm = sqrt(exact);
  if (!(norm <= 1.7976931348623157e308)) return NAN;
  return static_cast<float>(1 / (norm < kSmallestNorm ? kSmallestNorm : norm));
}

// What a lane has seen of a segment. Its columns are lane / 4 and 8 below in every tile of 16.
template <int kRowTiles, bool kRows>
struct Best {
  float value[kRowTiles][2];
  int row[kRows ? kRowTiles : 1][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        value[m][half] = -INFINITY;
        if constexpr (kRows) row[m][half] = kNoRow;
      }
  }
  // `other` is of a later row than what this lane has seen, above -inf and no NaN.
  __device__ __forceinline__ void take(int m, int half, float other, int other_row) {
    const bool larger = other > value[m][half];
    value[m][half] = larger ? other : value[m][half];
    if constexpr (kRows) row[m][half] = larger ? other_row : row[m][half];
  }
  // The same of any value. Which column is known at run time only: all are looked at, so that none leaves its register.
  __device__ __forceinline__ void take_any(int column, float other, int other_row) {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float mine = value[m][half];
        bool larger = other > mine || (other != other && mine == mine);
        if constexpr (kRows) larger |= row[m][half] == kNoRow;
        larger &= column == 16 * m + 8 * half;
        value[m][half] = larger ? other : mine;
        if constexpr (kRows) row[m][half] = larger ? other_row : row[m][half];
      }
  }
  // What the four lanes of the same columns have seen becomes the first one's.
  __device__ __forceinline__ void merge_lanes(int row_tiles) {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) {
      if (m >= row_tiles) continue;
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2) {
          const float other = __shfl_xor_sync(kAllLanes, value[m][half], distance);
          if constexpr (kRows) {
            const int other_row = __shfl_xor_sync(kAllLanes, row[m][half], distance);
            if (is_before(other, other_row, value[m][half], row[m][half]))
              value[m][half] = other, row[m][half] = other_row;
          } else {
            value[m][half] = other > value[m][half] || other != other ? other : value[m][half];
          }
        }
    }
  }
};

template <class Format, int kQueryPlanes, int kRowTiles, bool kStaged, bool kRows>
__global__ void __launch_bounds__(kThreads, kStaged&& kRowTiles == 2 ? 2 : 1) maxsim_scan(const Work work) {
  constexpr int kTiles = rows_of_eight(Format::kMostEights, kRowTiles, kStaged, kRows), kTileRows = 8 * kTiles;
  constexpr int kProducts = kPieceBytes / Format::kBytes / 4;  // mma of a step
  // The next step's loads run beside this one's products where registers hold both.
  constexpr bool kAhead = kStaged && (kTiles < 4 || (kRowTiles > 2 && !kRows));
  SIMTILE_DYNAMIC_SHARED(uint4, staged);
  const MaxsimRuns& documents = work.args.documents;
  const int lane = threadIdx.x % 32, group = blockIdx.y;
  const int64_t query = work.first_query(work.first_group + group);
  const int columns = work.group_columns[work.first_group + group], row_tiles = (columns + 15) / 16;
  const int fragments = work.steps * kRowTiles * 32;  // of a plane
  const uint4* fragment = work.packed + (work.first_group + group) * work.planes * fragments;
  if constexpr (kStaged) {
    for (int i = threadIdx.x; i < kQueryPlanes * fragments; i += kThreads) staged[i] = __ldg(fragment + i);
    fragment = staged;
    __syncthreads();
  }
  fragment += lane;

  // Parts go to all blocks before a block has two of them.
  const int64_t part = static_cast<int64_t>(threadIdx.x / 32) * gridDim.x + blockIdx.x;
  const int64_t* before = work.list(group);
  const int64_t total = before[work.items], parts = work.parts(total);
  if (part >= parts) return;
  int64_t tile = total * part / parts;
  const int64_t end = total * (part + 1) / parts;
  int64_t item = 0;  // the one that the tile is of
  for (int64_t above = work.items; above - item > 1;) {
    const int64_t middle = (item + above) / 2;
    (before[middle] <= tile ? item : above) = middle;
  }

  const int64_t row_bytes = work.args.dimensions * Format::kBytes;
  Rows<Format, kTiles> rows;
  rows.stride = documents.stride;
  rows.dimensions = work.args.dimensions;
  rows.aligned = (reinterpret_cast<uintptr_t>(documents.data) | static_cast<uintptr_t>(documents.stride) |
                  static_cast<uintptr_t>(row_bytes)) %
                     kPieceBytes ==
                 0;
  while (tile < end) {
    const int64_t document = work.document(query, item);
    const int64_t first = documents.starts[document], last = documents.ends[document];
    const int64_t segment_end = min(before[item + 1], end);
    Best<kRowTiles, kRows> best;
    best.clear();
    int tokens = 0;
    for (; tile < segment_end; tile++) {
      const int64_t base = first + (tile - before[item]) * kTileRows;
      const bool is_there =
          lane < min(last - base, static_cast<int64_t>(kTileRows)) && (!documents.mask || documents.mask[base + lane]);
      uint32_t there = __ballot_sync(kAllLanes, is_there);
      if (there == 0) continue;

      float products[kRowTiles][kTiles][4] = {};
      float squares[kTiles] = {};
      uint32_t any[kTiles] = {};
      rows.data = static_cast<const char*>(row_of(documents, base + lane / 4));
      rows.there = there >> lane / 4;
      uint4 next[kTiles];
      if constexpr (kAhead) rows.load(0, next);
      const uint4* from = fragment;
#pragma unroll 1
      for (int64_t offset = 0; offset < row_bytes; offset += kStepBytes) {
        uint4 pieces[kTiles];
        if constexpr (kAhead) {
#pragma unroll
          for (int n = 0; n < kTiles; n++) pieces[n] = next[n];
          rows.load(offset + kStepBytes, next);
        } else {
          rows.load(offset, pieces);
        }
#pragma unroll
        for (int i = 0; i < kProducts; i++, from += kRowTiles * 32) {
          uint32_t b[kTiles][Format::kPlanes][2];
#pragma unroll
          for (int n = 0; n < kTiles; n++) Format::planes(pieces[n], i, b[n]);
#pragma unroll
          for (int m = 0; m < kRowTiles; m++) {
            if (m >= row_tiles) continue;
#pragma unroll
            for (int p = 0; p < kQueryPlanes; p++) {
              const uint4 words = from[p * fragments + m * 32];
              const uint32_t a[4] = {words.x, words.y, words.z, words.w};
              // Planes of which the product is below a float32's last bits are left out.
#pragma unroll
              for (int d = 0; d < Format::kPlanes; d++)
                if (p + d < kMostPlanes)
#pragma unroll
                  for (int n = 0; n < kTiles; n++) mma_m16n8k16_bf16(products[m][n], a, b[n][d]);
            }
          }
        }
        if (work.args.normalize || work.args.pad_zero_rows) {
#pragma unroll
          for (int n = 0; n < kTiles; n++)
            for (const uint32_t word : {pieces[n].x, pieces[n].y, pieces[n].z, pieces[n].w}) {
              squares[n] = Format::squares(word, squares[n]);
              any[n] |= word & Format::kMagnitude;
            }
        }
      }

      if (work.args.pad_zero_rows) {
#pragma unroll
        for (int n = 0; n < kTiles; n++) {
          const unsigned lanes = __ballot_sync(kAllLanes, any[n] != 0);
#pragma unroll
          for (int r = 0; r < 8; r++)
            if (!(lanes >> 4 * r & 15)) there &= ~(1u << (8 * n + r));
        }
        if (there == 0) continue;
      }
      tokens += __popc(there);

      float factors[kTiles]
                   [2];  // of the rows that this lane has products of, 2 * (lane % 4) and the next in every eight
      if (work.args.normalize) {
        // Of the squares, the four lanes of a row have shares: one of them finishes that of its tile.
        const int own_tile = lane % kTiles, own_row = 8 * own_tile + lane / 4;
        float own_squares = 0;
#pragma unroll
        for (int n = 0; n < kTiles; n++) {
          float sum = squares[n] + __shfl_xor_sync(kAllLanes, squares[n], 1);
          sum += __shfl_xor_sync(kAllLanes, sum, 2);
          own_squares = n == own_tile ? sum : own_squares;
        }
        const float factor = there >> own_row & 1 ? document_factor<Format>(work, base + own_row, own_squares) : 1.0f;
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) factors[n][e] = __shfl_sync(kAllLanes, factor, 4 * (2 * (lane % 4) + e) + n);
      }

      const uint32_t own = there >> 2 * (lane % 4);  // bit 8n + e
      const int from_start = static_cast<int>(base - first) + 2 * (lane % 4);
      uint32_t rare = 0;  // bit 2m + half: in that column something is not above -inf
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float& product = products[m][n][i];
            if (work.args.normalize) product *= factors[n][i % 2];
            if (!(product > -INFINITY)) rare |= 1u << (2 * m + i / 2);
            // What is no token is below everything, and nothing above what it is compared with.
            if (!(own >> (8 * n + i % 2) & 1)) product = -INFINITY;
          }
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (!(rare >> (2 * m + i / 2) & 1)) best.take(m, i / 2, products[m][n][i], from_start + 8 * n + i % 2);
      // What planes made of numbers that are not finite is nothing: the whole column is multiplied by its definition.
#pragma unroll 1
      for (; rare; rare &= rare - 1) {
        const int at = __ffs(static_cast<int>(rare)) - 1, column = at / 2 * 16 + at % 2 * 8;
        if (column + lane / 4 >= columns) continue;
        const Column& packed = work.column[(work.first_group + group) * work.columns + column + lane / 4];
#pragma unroll 1
        for (int i = 0; i < 2 * kTiles; i++) {
          const int row = i / 2 * 8 + i % 2;
          if (!(own >> row & 1)) continue;
          float factor = 1;
#pragma unroll
          for (int n = 0; n < kTiles; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
              if (work.args.normalize && i == 2 * n + e) factor = factors[n][e];
          const float product = plain_product<Format>(work, packed, base + 2 * (lane % 4) + row) * factor;
          best.take_any(column, product, from_start + row);
        }
      }
    }

    best.merge_lanes(row_tiles);
    const int64_t slot = group * work.segments() + item + part;
    if (lane == 0) work.tokens[slot] = tokens;
    if (lane % 4 == 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (m >= row_tiles) continue;
          const int64_t at = slot * work.columns + 16 * m + 8 * half + lane / 4;
          work.maxima[at] = best.value[m][half];
          if constexpr (kRows) work.rows[at] = best.row[m][half];
        }
    }
    while (++item < work.items && before[item + 1] <= tile) {
    }
  }
}

}  // namespace simtile::cuda::maxsim
