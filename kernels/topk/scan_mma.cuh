// int8 dot products of 16 queries with every document on the matrix unit, selected from its accumulators.
#pragma once

#include "topk/block.cuh"

namespace simtile::cuda::topk {

constexpr int mma_rows = 16;        // queries of one instruction
constexpr int mma_columns = 8;      // documents of one instruction
constexpr int mma_step_bytes = 64;  // of a row: two instructions of 32
constexpr int mma_tiles = warp_size / mma_columns;

// A lane holds 4 of its group's 32 documents a tile: 2 * (lane % 4) and the next one, for queries lane / 4 and 8 below.
__device__ inline int mma_document(int tile, int i) { return mma_columns * tile + 2 * (lane_index() % 4) + i % 2; }

// A product does not care in which order its terms are added, so k is numbered to suit the loads: each of the four lanes of
// a row reads 16 bytes, 64 side by side, and feeds its words 0 and 1 to one instruction, 2 and 3 to the next. Queries
// are read from shared memory in the same way.
__device__ inline void add_products(int (&sums)[mma_tiles][4], const uint8_t* row, unsigned wanted,
                                    const ScanArgs& args, const ScanBlock& block) {
  const int column = lane_index() % 4 * 16;
  const uint8_t* low_query = block.queries + lane_index() / 4 * args.query_pitch + column;
  const uint8_t* high_query = low_query + mma_rows / 2 * args.query_pitch;
  const int64_t tile_stride = mma_columns * args.documents_stride;
  // not measured: two steps, so that eight loads of a lane are in flight
#pragma unroll 2
  for (int offset = 0; offset < args.row_bytes; offset += mma_step_bytes) {
    Piece<16> documents[mma_tiles], low, high;
    const uint8_t* from = row + offset + column;
#pragma unroll
    for (int tile = 0; tile < mma_tiles; ++tile, from += tile_stride) {
      documents[tile] = {};
      if (offset + column < args.row_bytes && wanted >> mma_columns * tile & 1) load(documents[tile], from);
    }
    load(low, low_query + offset);
    load(high, high_query + offset);
#pragma unroll
    for (int half = 0; half < 4; half += 2) {
      const uint32_t a[4] = {low.word[half], high.word[half], low.word[half + 1], high.word[half + 1]};
#pragma unroll
      for (int tile = 0; tile < mma_tiles; ++tile) {
        const uint32_t b[2] = {documents[tile].word[half], documents[tile].word[half + 1]};
        mma_m16n8k32_s8(sums[tile], a, b);
      }
    }
  }
}

// Needs row_bytes in whole pieces of 16, everything aligned to 16, query_pitch a multiple of 64.
static __global__ void __launch_bounds__(scan_warps* warp_size, 3) topk_scan_mma(const ScanArgs args) {
  const ScanBlock block = begin_scan<16>(args, mma_rows);
  const int lane = lane_index(), group = lane / 4;
  const float low_scale = block.scales[group], high_scale = block.scales[group + 8];
  // Of queries `group` and `group + 8`. A row without a query takes nothing.
  const unsigned none = static_cast<unsigned>(no_key >> 32);
  unsigned low_threshold = group < block.tile ? none : 0, high_threshold = group + 8 < block.tile ? none : 0;
  int buffered = 0;  // keys in the two buffers, the second times 65536

  int64_t base = block.begin + block.warp * warp_size;
  const int64_t step = block.warps * warp_size, row_step = step * args.documents_stride;
  const uint8_t* row = args.documents + (base + group) * args.documents_stride;
  for (; base < block.end; base += step, row += row_step) {
    const bool usable = base + lane < block.end && (!args.allow_all || args.allow_all[base + lane]);
    const unsigned wanted = __ballot_sync(full_warp, usable);
    if (wanted == 0) continue;

    int sums[mma_tiles][4] = {};
    add_products(sums, row, wanted >> group, args, block);

    const float lane_scale = args.document_scales && usable ? args.document_scales[base + lane] : 1.0f;
    unsigned taken = 0;  // bit 4 * tile + i
#pragma unroll
    for (int tile = 0; tile < mma_tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int document = mma_document(tile, i);
        int& sum = sums[tile][i];
        if (args.kind == ScoreKind::dot) {
          sum = static_cast<int>(order_dot(sum));
        } else {
          const float document_scale = __shfl_sync(full_warp, lane_scale, document);
          sum = static_cast<int>(order_scaled(sum, i < 2 ? low_scale : high_scale, document_scale));
        }
        const bool below = static_cast<unsigned>(sum) < (i < 2 ? low_threshold : high_threshold);
        if (below && wanted >> document & 1) taken |= 1u << (4 * tile + i);
      }
    }
    if (!__any_sync(full_warp, taken != 0)) continue;

    if (args.after || args.allow_each) {
#pragma unroll
      for (int slot = 0; slot < 4 * mma_tiles; ++slot) {
        if (!(taken >> slot & 1)) continue;
        const int64_t document = base + mma_document(slot / 4, slot % 4);
        const int64_t query = block.first_query + group + slot % 4 / 2 * 8;
        const Key key =
            static_cast<Key>(static_cast<unsigned>(sums[slot / 4][slot % 4])) << 32 | static_cast<Key>(document);
        const bool done = args.after && key <= args.after[query];
        if (done || (args.allow_each && !args.allow_each[query * args.allow_stride + document])) taken &= ~(1u << slot);
      }
    }

    // Places in the two buffers: those of the lanes before in the group come first.
    const int own = __popc(taken & 0x3333u) | __popc(taken & 0xccccu) << 16;
    int before = 0, added = 0;
#pragma unroll
    for (int other = 0; other < 4; ++other) {
      const int theirs = __shfl_sync(full_warp, own, other, 4);
      if (other < lane % 4) before += theirs;
      added += theirs;
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int shift = 16 * half;
      const bool full = (buffered >> shift & 0xffff) + (added >> shift & 0xffff) > args.list.buffer;
      unsigned groups = __ballot_sync(full_warp, full && lane % 4 == 0);
#pragma unroll 1
      for (; groups; groups &= groups - 1) {
        const int leader = __ffs(static_cast<int>(groups)) - 1;
        const int count = __shfl_sync(full_warp, buffered >> shift & 0xffff, leader);
        Key* list = block.own_lists + (leader / 4 + 8 * half) * args.list.keys();
        flush_list(list, args.list, count);
        if (group == leader / 4) {
          const unsigned threshold = static_cast<unsigned>(list[args.keys - 1] >> 32);
          (half ? high_threshold : low_threshold) = threshold;
          buffered -= count << shift;
        }
      }
    }
    int low_place = (buffered & 0xffff) + (before & 0xffff), high_place = (buffered >> 16) + (before >> 16);
    Key* low_buffer = block.own_lists + group * args.list.keys() + args.list.capacity;
    Key* high_buffer = low_buffer + 8 * args.list.keys();
#pragma unroll
    for (int slot = 0; slot < 4 * mma_tiles; ++slot) {
      if (!(taken >> slot & 1)) continue;
      const Key score = static_cast<unsigned>(sums[slot / 4][slot % 4]);
      const Key key = score << 32 | static_cast<Key>(base + mma_document(slot / 4, slot % 4));
      if (slot % 4 < 2) {
        low_buffer[low_place++] = key;
      } else {
        high_buffer[high_place++] = key;
      }
    }
    buffered += added;
  }
#pragma unroll 1
  for (int q = 0; q < block.tile; ++q) {
    const int count = __shfl_sync(full_warp, buffered, q % 8 * 4) >> q / 8 * 16 & 0xffff;
    flush_list(block.own_lists + q * args.list.keys(), args.list, count);
  }
  end_scan(args, block);
}

}  // namespace simtile::cuda::topk
