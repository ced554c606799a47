// What the scanning kernels share: their argument, a block's share of the work and of shared memory, and its end.
#pragma once

#include "topk/score.cuh"

namespace simtile::cuda::topk {

constexpr int scan_warps = 4;  // most of a block. Not measured: enough to share its queries, few enough lists to merge

// What is searched, for every kernel that reads documents.
struct Corpus {
  const uint8_t* documents;
  int64_t documents_stride;  // bytes
  int64_t document_count;
  int row_bytes;
  int dim;
  TopkMetric metric;
  const float* factor;    // [N], or null: 1
  const float* addend;    // [N], or null: 0
  const uint32_t* allow;  // words of 32 documents: for every query, or a row for each; or null
  int64_t allow_stride;   // words from one query's to the next; 0: the same
  const uint32_t* rank;   // [N] the lower half of a document's key; null: its index
};

__device__ inline Own own_terms(const Corpus& corpus, int64_t document, bool usable) {
  return {usable && corpus.factor ? corpus.factor[document] : 1.0f,
          usable && corpus.addend ? corpus.addend[document] : 0.0f};
}

__device__ inline Key key_of(const Corpus& corpus, unsigned ordered, int64_t document) {
  const unsigned low = corpus.rank ? corpus.rank[document] : static_cast<unsigned>(document);
  return static_cast<Key>(ordered) << 32 | low;
}

// Of the 32 documents from `base`, a multiple of 32: those that exist and that some query of `count` from `query` may find.
__device__ inline unsigned allowed_word(const Corpus& corpus, int64_t base, int64_t query, int count) {
  const int64_t left = corpus.document_count - base;
  const unsigned present = left >= warp_size ? full_warp : left > 0 ? (1u << left) - 1 : 0;
  if (!corpus.allow || present == 0) return present;
  const uint32_t* word = corpus.allow + base / warp_size + query * corpus.allow_stride;
  unsigned allowed = *word;
  if (corpus.allow_stride > 0) {
    for (int q = 1; q < count; ++q) allowed |= word[q * corpus.allow_stride];
  }
  return allowed & present;
}

struct ScanArgs {
  Corpus corpus;
  const uint8_t* queries;  // [Q, rows, ...]: packed bits, the planes of a folded query, or float32
  int64_t queries_stride;  // bytes from one query to the next
  int64_t rows_stride;     // bytes from one of its rows to the next
  const Terms* terms;      // [Q], or null
  int64_t query_count;
  int64_t documents_per_split;  // a multiple of what the warps of a block take in a round
  Key* partial;                 // [Q, keys, splits] out, ascending along keys
  unsigned* all;                // [Q, all_stride] out in place of it: the order of every document; or null
  int64_t all_stride;
  int keys;
  ListShape list;
  int tile;         // queries of a block
  int tiles;        // blocks that scan the same documents; neighbours, so that all but the first may find them in L2
  int splits;       // blocks that scan for the same queries
  int query_rows;   // rows of a query
  int row_bytes;    // of such a row
  int row_pitch;    // bytes from one of them to the next in shared memory
  int query_pitch;  // and from one query to the next
};

// Shared memory: the lists [warps][tile], the terms [tile], the queries [queries][query_pitch].
__host__ __device__ inline int64_t scan_shared_bytes(const ScanArgs& args, int warps, int queries) {
  const int64_t lists = static_cast<int64_t>(warps) * args.tile * args.list.keys() * static_cast<int64_t>(sizeof(Key));
  const int64_t terms = args.terms ? static_cast<int64_t>(args.tile) * static_cast<int64_t>(sizeof(Terms)) : 0;
  return lists + terms + static_cast<int64_t>(queries) * args.query_pitch;
}

struct ScanBlock {
  int warp, warps;
  int64_t first_query;
  int tile;  // queries of this block
  int64_t split;
  int64_t begin, end;  // its documents
  Key* lists;          // [warps][args.tile]
  Key* own_lists;      // of this warp
  Terms* terms;
  uint8_t* queries;
};

// Divides the work, clears the lists and copies the queries, zeros after a row's end and after the last query.
template <int BYTES>
__device__ inline ScanBlock begin_scan(const ScanArgs& args, int queries) {
  SIMTILE_DYNAMIC_SHARED(uint8_t, shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  ScanBlock block;
  block.warp = thread / warp_size;
  block.warps = threads / warp_size;
  block.first_query = static_cast<int64_t>(blockIdx.x % args.tiles) * args.tile;
  block.tile = static_cast<int>(min(static_cast<int64_t>(args.tile), args.query_count - block.first_query));
  block.split = blockIdx.x / args.tiles;
  block.begin = block.split * args.documents_per_split;
  block.end = min(block.begin + args.documents_per_split, args.corpus.document_count);
  block.lists = reinterpret_cast<Key*>(shared);
  block.own_lists = block.lists + block.warp * args.tile * args.list.keys();
  block.terms = reinterpret_cast<Terms*>(block.lists + block.warps * args.tile * args.list.keys());
  block.queries = reinterpret_cast<uint8_t*>(block.terms + (args.terms ? args.tile : 0));

  for (int q = 0; q < args.tile; ++q) clear_list(block.own_lists + q * args.list.keys(), args.list);
  const int pieces = args.query_pitch / BYTES, of_row = args.row_pitch / BYTES;
#pragma unroll 1
  for (int index = thread; index < queries * pieces; index += threads) {
    const int query = index / pieces, within = index % pieces;
    const int row = within / of_row, offset = within % of_row * BYTES;
    const uint8_t* from =
        args.queries + (block.first_query + query) * args.queries_stride + row * args.rows_stride + offset;
    uint8_t* to = block.queries + query * args.query_pitch + within * BYTES;
    const int left = query < block.tile && row < args.query_rows ? args.row_bytes - offset : 0;
    Piece<BYTES> piece;
    if (left >= BYTES) {
      load(piece, from);
      store(piece, to);
    } else {
#pragma unroll 1
      for (int b = 0; b < BYTES; ++b) to[b] = b < left ? from[b] : 0;
    }
  }
  if (args.terms && thread < block.tile) block.terms[thread] = args.terms[block.first_query + thread];
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
