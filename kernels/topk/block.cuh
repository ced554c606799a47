// What the scanning kernels share: their argument, a block's share of the work and of shared memory, and its end.
#pragma once

#include "topk/score.cuh"

namespace simtile::cuda::topk {

constexpr int scan_warps = 4;  // most of a block. Not measured: enough to share its queries, few enough lists to merge

// One pass of a scan: the best `keys` documents after those of the passes before, for every query and split.
struct ScanArgs {
  const uint8_t* queries;
  const uint8_t* documents;
  const float* query_scales;     // [Q], or null: 1
  const float* document_scales;  // [N], or null: 1
  const uint8_t* allow_all;      // [N], for every query; or null
  const uint8_t* allow_each;     // [Q, N]; or null
  const Key* after;              // [Q] the last key of the pass before; or null
  Key* partial;                  // [Q, keys, splits] out, ascending along keys
  int64_t queries_stride;        // bytes
  int64_t documents_stride;
  int64_t allow_stride;
  int64_t query_count;
  int64_t document_count;
  int64_t documents_per_split;  // a multiple of what the warps of a block take in a round
  int row_bytes;
  int keys;
  ListShape list;
  int tile;         // queries of a block
  int tiles;        // blocks that scan the same documents; neighbours, so that all but the first may find them in L2
  int splits;       // blocks that scan for the same queries
  int query_pitch;  // bytes from one query to the next in shared memory
  ScoreKind kind;
};

// Shared memory: the lists [warps][tile], the queries [rows][query_pitch], their scales [rows].
__host__ __device__ inline int64_t scan_shared_bytes(const ScanArgs& args, int warps, int rows) {
  const int64_t lists = static_cast<int64_t>(warps) * args.tile * args.list.keys() * static_cast<int64_t>(sizeof(Key));
  return lists + static_cast<int64_t>(rows) * (args.query_pitch + static_cast<int64_t>(sizeof(float)));
}

struct ScanBlock {
  int warp, warps;
  int64_t first_query;
  int tile;  // queries of this block
  int64_t split;
  int64_t begin, end;  // its documents
  Key* lists;          // [warps][args.tile]
  Key* own_lists;      // of this warp
  uint8_t* queries;
  float* scales;
};

// Divides the work, clears the lists and copies the queries, zeros after a row's end and after the last row.
template <int BYTES>
__device__ inline ScanBlock begin_scan(const ScanArgs& args, int rows) {
  SIMTILE_DYNAMIC_SHARED(uint8_t, shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  ScanBlock block;
  block.warp = thread / warp_size;
  block.warps = threads / warp_size;
  block.first_query = static_cast<int64_t>(blockIdx.x % args.tiles) * args.tile;
  block.tile = static_cast<int>(min(static_cast<int64_t>(args.tile), args.query_count - block.first_query));
  block.split = blockIdx.x / args.tiles;
  block.begin = block.split * args.documents_per_split;
  block.end = min(block.begin + args.documents_per_split, args.document_count);
  block.lists = reinterpret_cast<Key*>(shared);
  block.own_lists = block.lists + block.warp * args.tile * args.list.keys();
  block.queries = reinterpret_cast<uint8_t*>(block.lists + block.warps * args.tile * args.list.keys());
  block.scales = reinterpret_cast<float*>(block.queries + rows * args.query_pitch);

  for (int q = 0; q < args.tile; ++q) clear_list(block.own_lists + q * args.list.keys(), args.list);
  const int pieces = args.query_pitch / BYTES;
#pragma unroll 1
  for (int piece_index = thread; piece_index < rows * pieces; piece_index += threads) {
    const int row = piece_index / pieces, offset = piece_index % pieces * BYTES;
    const uint8_t* from = args.queries + (block.first_query + row) * args.queries_stride + offset;
    uint8_t* to = block.queries + row * args.query_pitch + offset;
    const int left = row < block.tile ? args.row_bytes - offset : 0;
    Piece<BYTES> piece;
    if (left >= BYTES) {
      load(piece, from);
      store(piece, to);
    } else {
#pragma unroll 1
      for (int b = 0; b < BYTES; ++b) to[b] = b < left ? from[b] : 0;
    }
  }
  if (thread < rows) {
    const bool scaled = args.query_scales && thread < block.tile;
    block.scales[thread] = scaled ? args.query_scales[block.first_query + thread] : 1.0f;
  }
  __syncthreads();
  return block;
}

// One list of the block's first warp a query, which are in order by now, to the workspace.
__device__ inline void end_scan(const ScanArgs& args, const ScanBlock& block) {
  merge_warps(block.lists, args.list, block.warps, args.tile);
  for (int q = 0; q < block.tile; ++q) {
    Key* to = args.partial + (block.first_query + q) * args.keys * args.splits + block.split;
    for (int rank = static_cast<int>(threadIdx.x); rank < args.keys; rank += static_cast<int>(blockDim.x)) {
      to[static_cast<int64_t>(rank) * args.splits] = block.lists[q * args.list.keys() + rank];
    }
  }
}

}  // namespace simtile::cuda::topk
