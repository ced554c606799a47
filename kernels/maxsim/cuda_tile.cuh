// Some rows of a document at a time: products with all of a group's tokens, and what of them is a maximum.
#pragma once

#include <type_traits>

#include "maxsim/cuda_centroids.cuh"
#include "maxsim/cuda_work.cuh"

namespace simtile::cuda::maxsim {

// The rows of a tile that this lane reads, row lane / 4 of every eight, kWords words of each at a time.
template <class Format, int kTiles>
struct Rows {
  static constexpr int kPiece = 4 * Format::kWords;  // bytes

  const char* data;
  int64_t stride;
  int bytes;       // of a row
  uint32_t there;  // bit 8n: row n of this lane's
  bool aligned;    // pieces are whole or empty, and lie at multiples of their size

  // Its lane's piece of each row in the step that begins at `offset`; zeros behind the row's end.
  __device__ __forceinline__ void load(int offset, uint32_t (&pieces)[kTiles][Format::kWords]) const {
    offset += static_cast<int>(threadIdx.x) % 4 * kPiece;
    const int left = bytes - offset;
#pragma unroll
    for (int n = 0; n < kTiles; n++)
#pragma unroll
      for (int w = 0; w < Format::kWords; w++) pieces[n][w] = 0;
    if (left <= 0) return;
    if (aligned) {
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
        if (!(there >> 8 * n & 1)) continue;
        const char* from = data + 8 * n * stride + offset;
        if constexpr (Format::kWords == 4) {
          const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
          pieces[n][0] = words.x, pieces[n][1] = words.y, pieces[n][2] = words.z, pieces[n][3] = words.w;
        } else if constexpr (Format::kWords == 2) {
          const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
          pieces[n][0] = words.x, pieces[n][1] = words.y;
        } else {
          pieces[n][0] = __ldg(reinterpret_cast<const uint32_t*>(from));
        }
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      if (!(there >> 8 * n & 1)) continue;
      const char* from = data + 8 * n * stride + offset;
#pragma unroll
      for (int i = 0; i < kPiece; i += Format::kBytes) {
        if (i >= left) continue;
        uint32_t element;
        if constexpr (Format::kBytes == 4) {
          element = __ldg(reinterpret_cast<const uint32_t*>(from + i));
        } else if constexpr (Format::kBytes == 2) {
          element = __ldg(reinterpret_cast<const unsigned short*>(from + i));
        } else {
          element = __ldg(reinterpret_cast<const uint8_t*>(from + i));
        }
        pieces[n][i / 4] |= element << 8 * (i % 4);
      }
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
  constexpr float kShrink = 0x1p-80f;
  if (squares < kLargeSquares) return 1.0f / fmaxf(sqrtf(squares), kSmallestNorm);
  const void* data = row_of(work.args.documents, row);
  float sum = 0;
#pragma unroll 1
  for (int64_t k = 0; k < work.args.dimensions; k++) {
    const float x = Format::get(data, k) * kShrink;
    sum = fmaf(x, x, sum);
  }
  return sum < INFINITY ? kShrink / sqrtf(sum) : NAN;
}

// What a lane has seen of a segment. Its columns are lane / 4 and 8 below in every tile of 16.
template <int kRowTiles>
struct Best {
  float value[kRowTiles][2];
  int row[kRowTiles][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        value[m][half] = -INFINITY;
        row[m][half] = kNoRow;
      }
  }
  // `other` is of a later row than what this lane has seen, above -inf and no NaN.
  __device__ __forceinline__ void take(int m, int half, float other, int other_row) {
    const bool larger = other > value[m][half];
    value[m][half] = larger ? other : value[m][half];
    row[m][half] = larger ? other_row : row[m][half];
  }
  // The same of any value. Which column is known at run time only: all are looked at, so that none leaves its register.
  __device__ __forceinline__ void take_any(int column, float other, int other_row) {
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float mine = value[m][half];
        bool larger = other > mine || (other != other && mine == mine) || row[m][half] == kNoRow;
        larger &= column == 16 * m + 8 * half;
        value[m][half] = larger ? other : mine;
        row[m][half] = larger ? other_row : row[m][half];
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
          const int other_row = __shfl_xor_sync(kAllLanes, row[m][half], distance);
          if (is_before(other, other_row, value[m][half], row[m][half]))
            value[m][half] = other, row[m][half] = other_row;
        }
    }
  }
};

// What a warp multiplies with.
template <class Format, int kQueryPlanes, int kRowTiles, bool kStaged>
struct Tile {
  static constexpr int kTiles = rows_of_eight(Format::kMostEights, kRowTiles, kStaged);
  static constexpr int kTileRows = 8 * kTiles;
  // Planes of floats add up in one sum; those of codes do not, but for a residual's query.
  static constexpr int kSums = is_residual<Format> ? Format::kPlanes : Format::kIsCode ? kQueryPlanes : 1;
  // The next step's loads run beside this one's products where registers hold both.
  static constexpr bool kAhead = kStaged && (kSums == 1 || kRowTiles == 2);
  using Sum = std::conditional_t<Format::kIsCode, int32_t, float>;

  const Work& work;
  const Column* packed;            // the group's
  const Addend* addends;           // the same of codes
  int columns;                     // of the group that are tokens
  const uint4* fragment;           // this lane's first
  int fragments;                   // of a plane
  const float* centroid_products;  // the group's, of residuals
  Rows<Format, kTiles> rows;

  __device__ __forceinline__ int row_tiles() const { return (columns + 15) / 16; }

  // sums += products of a step, which has fragments of queries from `from` on.
  __device__ __forceinline__ void multiply_step(const uint32_t (&pieces)[kTiles][Format::kWords], const uint4* from,
                                                uint32_t flip, Sum (&sums)[kSums][kRowTiles][kTiles][4]) const {
    const int tiles = row_tiles();
#pragma unroll
    for (int i = 0; i < Format::kProducts; i++, from += kRowTiles * 32) {
      uint32_t b[kTiles][Format::kPlanes][2];
#pragma unroll
      for (int n = 0; n < kTiles; n++) Format::operands(pieces[n], i, flip, b[n]);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        if (m >= tiles) continue;
#pragma unroll
        for (int p = 0; p < kQueryPlanes; p++) {
          const uint4 words = from[p * fragments + m * 32];
          const uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
          for (int n = 0; n < kTiles; n++) {
            if constexpr (Format::kIsCode) {
              mma_m16n8k32_s8(sums[p][m][n], a, b[n][0]);
            } else {
              // Planes of which the product is below a float32's last bits are left out.
#pragma unroll
              for (int d = 0; d < Format::kPlanes; d++)
                if (p + d < kMostPlanes) mma_m16n8k16_bf16(sums[0][m][n], a, b[n][d]);
            }
          }
        }
      }
    }
  }

  // sums += products with the rows; squares and any: of each of this lane's rows, its share.
  __device__ __forceinline__ void multiply(Sum (&sums)[kSums][kRowTiles][kTiles][4], float (&squares)[kTiles],
                                           uint32_t (&any)[kTiles]) const {
    const int tiles = row_tiles();
    const uint32_t flip = work.args.documents.kind == MaxsimKind::uint8 ? 0x80808080u : 0;
    uint32_t next[kTiles][Format::kWords];
    if constexpr (kAhead) rows.load(0, next);
    const uint4* from = fragment;
#pragma unroll 1
    for (int offset = 0; offset < rows.bytes; offset += 4 * rows.kPiece) {
      uint32_t pieces[kTiles][Format::kWords];
      if constexpr (kAhead) {
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int w = 0; w < Format::kWords; w++) pieces[n][w] = next[n][w];
        rows.load(offset + 4 * rows.kPiece, next);
      } else {
        rows.load(offset, pieces);
      }
      if constexpr (is_residual<Format>) {
        multiply_residuals<Format>(pieces, work.values, from, fragments, tiles, sums);
      } else {
        multiply_step(pieces, from, flip, sums);
      }
      from += Format::kProducts * kRowTiles * 32;
      if constexpr (!Format::kIsCode) {
        if (work.args.normalize || work.args.pad_zero_rows) {
#pragma unroll
          for (int n = 0; n < kTiles; n++)
#pragma unroll
            for (int w = 0; w < Format::kWords; w++) {
              squares[n] = Format::squares(pieces[n][w], squares[n]);
              any[n] |= pieces[n][w] & Format::kMagnitude;
            }
        }
      }
    }
  }

  // Without the rows of zeros.
  __device__ __forceinline__ uint32_t without_zeros(uint32_t there, const uint32_t (&any)[kTiles]) const {
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      const unsigned lanes = __ballot_sync(kAllLanes, any[n] != 0);
#pragma unroll
      for (int r = 0; r < 8; r++)
        if (!(lanes >> 4 * r & 15)) there &= ~(1u << (8 * n + r));
    }
    return there;
  }

  // What products with the rows that this lane has are multiplied by, 2 * (lane % 4) and the next of every eight.
  __device__ __forceinline__ void row_factors(int64_t base, uint32_t there, const float (&squares)[kTiles],
                                              float (&factors)[kTiles][2]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (Format::kIsCode) {
#pragma unroll
      for (int n = 0; n < kTiles; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int row = 8 * n + 2 * (lane % 4) + e;
          factors[n][e] = work.args.factors && (there >> row & 1) ? __ldg(work.args.factors + base + row) : 1.0f;
        }
    } else {
      // Of the squares, the four lanes of a row have shares: one of them finishes that of its tile.
      const int own_tile = min(lane % 4, kTiles - 1), own_row = 8 * own_tile + lane / 4;
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
  }

  // The product that a sum stands for.
  __device__ __forceinline__ float product_of(const Sum (&sums)[kSums][kRowTiles][kTiles][4], int m, int n, int i,
                                              const Addend& addend, float factor) const {
    if constexpr (Format::kIsCode) {
      int dot = sums[0][m][n][i] + addend.shift;
      if constexpr (kQueryPlanes > 1) dot += 256 * sums[kQueryPlanes - 1][m][n][i];
      return __fmul_rn(__fadd_rn(__int2float_rn(dot), addend.term), factor);
    } else {
      return work.args.normalize ? sums[0][m][n][i] * factor : sums[0][m][n][i];
    }
  }

  // Takes the rows from `base` on, bit by bit those that are `there`. Returns how many are tokens.
  __device__ __forceinline__ int take(int64_t base, int from_start, uint32_t there, Best<kRowTiles>& best) {
    const int lane = threadIdx.x % 32;
    Sum sums[kSums][kRowTiles][kTiles][4] = {};
    float squares[kTiles] = {};
    uint32_t any[kTiles] = {};
    rows.data = static_cast<const char*>(row_of(work.args.documents, base + lane / 4));
    rows.there = there >> lane / 4;
    ResidualRows<kTiles> residual;
    if constexpr (is_residual<Format>) {
      static_assert(kTiles == 1);  // rows behind the last one are that one again, so that no lane reads by itself
      rows.data = static_cast<const char*>(row_of(work.args.documents, base + min(lane / 4, last_row(there))));
      rows.there = 1;
      residual.load(work, base, there);
    }
    multiply(sums, squares, any);
    if (!Format::kIsCode && work.args.pad_zero_rows) there = without_zeros(there, any);
    if (there == 0) return 0;
    float factors[kTiles][2];
    if constexpr (is_residual<Format>) {
      residual.share(factors);
    } else if (Format::kIsCode || work.args.normalize) {
      row_factors(base, there, squares, factors);
    }

    const uint32_t own = there >> 2 * (lane % 4);  // bit 8n + e
    from_start += 2 * (lane % 4);
    uint32_t rare = 0;  // bit 2m + half: in that column something is not above -inf
    float products[kRowTiles][kTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) {
      float2 centroids[kTiles][2] = {};
      if constexpr (is_residual<Format>)
        if (m < row_tiles()) residual.get(centroid_products, 16 * kRowTiles, m, centroids);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int at = 16 * m + 8 * half + lane / 4;
        const Addend addend = Format::kIsCode && at < columns ? addends[at] : Addend{};
#pragma unroll
        for (int n = 0; n < kTiles; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int i = 2 * half + e;
            float product;
            if constexpr (is_residual<Format>) {
              product = residual_similarity(sums[0][m][n][i], sums[1][m][n][i], addend.term,
                                            half ? centroids[n][e].y : centroids[n][e].x, factors[n][e]);
            } else {
              product = product_of(sums, m, n, i, addend, factors[n][e]);
            }
            if (!(product > -INFINITY)) rare |= 1u << (2 * m + half);
            // What is no token is below everything, and nothing above what it is compared with.
            products[m][n][i] = own >> (8 * n + e) & 1 ? product : -INFINITY;
          }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; m++)
#pragma unroll
      for (int n = 0; n < kTiles; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = from_start + 8 * n + i % 2;
          if (!(rare >> (2 * m + i / 2) & 1)) {
            best.take(m, i / 2, products[m][n][i], row);
          } else if (Format::kIsCode && (own >> (8 * n + i % 2) & 1)) {
            best.take_any(16 * m + 8 * (i / 2), products[m][n][i], row);
          }
        }
    if constexpr (!Format::kIsCode) take_rare(base, from_start, own, rare, factors, best);
    return __popc(there);
  }

  // Columns in which planes made nothing of numbers that are not finite: multiplied by their definition.
  __device__ __forceinline__ void take_rare(int64_t base, int from_start, uint32_t own, uint32_t rare,
                                            const float (&factors)[kTiles][2], Best<kRowTiles>& best) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (; rare; rare &= rare - 1) {
      const int at = __ffs(static_cast<int>(rare)) - 1, column = at / 2 * 16 + at % 2 * 8;
      if (column + lane / 4 >= columns) continue;
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
        const int64_t document_row = base + 2 * (lane % 4) + row;
        const float product = plain_product<Format>(work, packed[column + lane / 4], document_row) * factor;
        best.take_any(column, product, from_start + row);
      }
    }
  }
};

}  // namespace simtile::cuda::maxsim
