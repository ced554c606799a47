// The largest product of every token of a group with the tokens of each item: products on the matrix unit, maxima from its accumulators.
//
// A warp multiplies some rows of a document, read once from global memory straight into fragments, with all of the group's tokens, which
// lie in shared memory as fragments too.
#pragma once

#include "maxsim/cuda_tile.cuh"

namespace simtile::cuda::maxsim {

template <class Format, int kQueryPlanes, int kRowTiles, bool kStaged>
__global__ void __launch_bounds__(kThreads, kStaged&& kRowTiles == 2 ? 2 : 1) maxsim_scan(const Work work) {
  SIMTILE_DYNAMIC_SHARED(uint4, shared);
  const MaxsimRuns& documents = work.args.documents;
  const int lane = threadIdx.x % 32, group = blockIdx.y;
  const int64_t query = work.first_query(work.first_group + group);
  const int columns = work.group_columns[work.first_group + group];
  const Column* packed = work.column + (work.first_group + group) * work.columns;
  const int fragments = work.steps * kRowTiles * 32;  // of a plane
  const uint4* fragment = work.packed + (work.first_group + group) * work.planes * fragments;
  Addend* const addends = reinterpret_cast<Addend*>(shared);
  uint4* const staged = shared + addend_bytes(Format::kIsCode, 16 * kRowTiles) / sizeof(uint4);
  if constexpr (Format::kIsCode) {
    for (int i = threadIdx.x; i < columns; i += kThreads) addends[i] = {packed[i].term, packed[i].shift};
  }
  if constexpr (kStaged) {
    for (int i = threadIdx.x; i < kQueryPlanes * fragments; i += kThreads) staged[i] = __ldg(fragment + i);
    fragment = staged;
  }
  __syncthreads();

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

  const float* centroid_products = nullptr;
  if constexpr (is_residual<Format>)
    centroid_products = work.products + group * work.args.residuals.centroid_count * work.columns;
  Tile<Format, kQueryPlanes, kRowTiles, kStaged> tiles = {
      work, packed, addends, columns, fragment + lane, fragments, centroid_products, {}};
  auto& rows = tiles.rows;
  rows.stride = documents.stride;
  rows.bytes = static_cast<int>(row_bytes<Format>(work.args.dimensions));
  const uintptr_t places = reinterpret_cast<uintptr_t>(documents.data) | static_cast<uintptr_t>(documents.stride) |
                           static_cast<uintptr_t>(rows.bytes);
  rows.aligned = places % rows.kPiece == 0;
  while (tile < end) {
    const int64_t document = work.document(query, item);
    const int64_t first = documents.starts[document], last = documents.ends[document];
    const int64_t first_tile = before[item], segment_end = min(before[item + 1], end);
    Best<kRowTiles> best;
    best.clear();
    int tokens = 0;
    for (; tile < segment_end; tile++) {
      const int64_t from_start = (tile - first_tile) * tiles.kTileRows, base = first + from_start;
      const bool is_there = lane < min(last - base, static_cast<int64_t>(tiles.kTileRows)) &&
                            (!documents.mask || documents.mask[base + lane]);
      const uint32_t there = __ballot_sync(kAllLanes, is_there);
      if (there) tokens += tiles.take(base, static_cast<int>(from_start), there, best);
    }

    best.merge_lanes(tiles.row_tiles());
    const int64_t slot = group * work.segments() + item + part;
    if (lane == 0) work.tokens[slot] = tokens;
    if (lane % 4 == 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (m >= tiles.row_tiles()) continue;
          const int64_t at = slot * work.columns + 16 * m + 8 * half + lane / 4;
          work.maxima[at] = best.value[m][half];
          work.rows[at] = best.row[m][half];
        }
    }
    while (++item < work.items && before[item + 1] <= tile) {
    }
  }
}

}  // namespace simtile::cuda::maxsim
