// What the kernels of one MaxSim pass on to each other, in the caller's workspace.
//
// Queries form groups, whose tokens are the columns of one matrix: as many whole queries as fit, or a part of one that is longer. The
// documents that a group meets are its items. Their tiles, some rows each, stand in one sequence, of which every warp takes an equal part,
// whatever the lengths: a document may be cut in segments. That of item i in part p has slot i + p, which no other has: both only grow
// along the sequence.
#pragma once

#include "maxsim/cuda_format.cuh"

namespace simtile::cuda::maxsim {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostColumns = 128;
constexpr float kSmallestNorm = 1e-12f;  // what shorter rows are divided by
constexpr int kNoRow = 0x7fffffff;

// How many times eight rows of a document a warp multiplies at a time: what an instance of the scan has registers for.
__host__ __device__ constexpr int rows_of_eight(int most, int row_tiles, bool staged) {
  return !staged ? 1 : row_tiles > 2 || most < 2 ? most : 2;
}

struct Column {
  int64_t row;   // of the queries
  float scale;   // of floats, what was packed is the row times this power of two
  float factor;  // what makes a similarity of a product; NaN for a row without a direction
  float term;    // of codes, what is added to a product before
  int shift;     // and what products with codes that were made signed lack
};

// Of codes, a column's part in shared memory.
struct Addend {
  float term;
  int shift;
};

__host__ __device__ constexpr int addend_bytes(bool is_code, int columns) {
  return is_code ? columns * static_cast<int>(sizeof(Addend)) : 0;
}

struct Work {
  MaxsimArgs args;
  int queries_per_group;  // 1 where a query has several groups
  int groups_per_query;   // 1 where a group has several queries
  int columns;            // of a group, 32 or kMostColumns
  int planes;             // of queries
  int steps;              // mma along a row
  int tile_rows;          // of a document
  ResidualValues values;  // of residuals

  // This launch: groups [first_group, + groups) and items [first_item, + items). With candidates each group has a list of its own.
  int64_t first_group;
  int groups;
  int64_t first_item;
  int64_t items;
  int warps;      // of a group
  float* scores;  // [its queries, scores_stride] of its items
  int64_t scores_stride;
  const uint8_t* wanted;  // [N] without candidates: 0 for documents that need no score; or null: all do

  // Of all groups.
  uint4* packed;       // [groups][planes][steps][columns / 16][lane]
  float* factor;       // [groups][columns] the factors of columns, side by side
  Column* column;      // [groups][columns]
  int* group_columns;  // [groups] that are tokens
  int16_t* place;      // [Q][longest_query] the column of each row in its group, -1 for none
  // Of this launch.
  int64_t* tiles_before;  // [lists][items + 1]
  float* maxima;          // [groups][items + warps][columns]
  int32_t* rows;          // the same: the document's row from its start
  int32_t* tokens;        // [groups][items + warps] rows that are tokens
  float* products;        // [groups][centroids][columns] of residuals, columns as product_place() has them

  __device__ __forceinline__ int64_t segments() const { return items + warps; }
  __device__ __forceinline__ const int64_t* list(int group) const {
    return tiles_before + (args.candidates ? group * (items + 1) : 0);
  }
  // Of a sequence of so many tiles; none is empty.
  __device__ __forceinline__ int64_t parts(int64_t tiles) const { return min(tiles, static_cast<int64_t>(warps)); }
  // Of item `item` of the query; -1 where there is none.
  __device__ __forceinline__ int64_t document(int64_t query, int64_t item) const {
    if (!args.candidates) return !wanted || wanted[first_item + item] ? first_item + item : -1;
    const int64_t document = args.candidates[query * args.candidate_count + first_item + item];
    return document >= 0 && document < args.documents.count ? document : -1;
  }
  __host__ __device__ __forceinline__ int64_t first_query(int64_t group) const {
    return groups_per_query > 1 ? group / groups_per_query : group * queries_per_group;
  }
};

// The larger of two similarities, of equals the first; the first NaN is larger than anything.
__device__ __forceinline__ bool is_before(float value, int row, float other, int other_row) {
  if (value != value) return other == other || row < other_row;
  return other == other && (value > other || (value == other && row < other_row));
}

}  // namespace simtile::cuda::maxsim
