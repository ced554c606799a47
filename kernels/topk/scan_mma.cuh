// Scores of 16 queries with every document on the matrix unit, selected from its accumulators.
#pragma once

#include "topk/scan.cuh"

namespace simtile::cuda::topk {

constexpr int mma_queries = 16;     // of a block
constexpr int mma_rows = 16;        // of one instruction
constexpr int mma_columns = 8;      // documents of one instruction
constexpr int mma_step_bytes = 64;  // of a row: two instructions
constexpr int mma_tiles = warp_size / mma_columns;
constexpr int mma_slots = 4 * mma_tiles;  // scores of a lane in a round

// Slot 4 * tile + i of a lane is of query lane / 4, or with i > 1 the one 8 below, and of document 2 * (lane % 4) + i % 2 of a tile.
__device__ inline int slot_document(int slot) { return mma_columns * (slot / 4) + 2 * (lane_index() % 4) + slot % 2; }

// With one plane, the rows of the instruction are the 16 queries. With two, they are the high bytes of eight queries and, 8 below, the
// low ones, so that a lane has both products of a pair; two instructions then take 16 queries.
template <int PLANES>
struct Sums {
  int of[PLANES][mma_tiles][4];

  __device__ int hi(int slot) const { return PLANES == 1 ? 0 : of[PLANES == 1 ? 0 : slot % 4 / 2][slot / 4][slot % 2]; }
  __device__ int lo(int slot) const {
    return PLANES == 1 ? of[0][slot / 4][slot % 4] : of[PLANES == 1 ? 0 : slot % 4 / 2][slot / 4][slot % 2 + 2];
  }
};

template <class Codes>
__device__ inline void multiply(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (Codes::folded) {
    mma_m16n8k32_s8(d, a, b);
  } else {
    mma_m16n8k256_and_popc(d, a, b);
  }
}

// A product does not care in which order its terms are added, so k is numbered to suit the loads: each of the four lanes of
// a row reads 16 bytes, 64 side by side, and feeds its words 0 and 1 to one instruction, 2 and 3 to the next. Queries
// are read from shared memory in the same way. bits[tile] += the ones of packed document lane / 4 in this lane.
template <class Codes, int PLANES>
__device__ inline void add_products(Sums<PLANES>& sums, int (&bits)[mma_tiles], const uint8_t* row, unsigned wanted,
                                    const ScanArgs& args, const ScanBlock& block) {
  const int column = lane_index() % 4 * 16;
  const uint8_t* first_query = block.queries + lane_index() / 4 * args.query_pitch + column;
  const int high_row = PLANES == 2 ? Codes::parts * args.row_pitch : mma_rows / 2 * args.query_pitch;
  const int64_t tile_stride = mma_columns * args.corpus.documents_stride;
  // not measured: two steps, so that eight loads of a lane are in flight
#pragma unroll 2
  for (int offset = 0; offset < args.row_bytes; offset += mma_step_bytes) {
    Piece<16> documents[mma_tiles];
    const uint8_t* from = row + offset + column;
#pragma unroll
    for (int tile = 0; tile < mma_tiles; ++tile, from += tile_stride) {
      documents[tile] = {};
      if (offset + column < args.row_bytes && wanted >> mma_columns * tile & 1) load(documents[tile], from);
      if constexpr (!Codes::folded) {
#pragma unroll
        for (int w = 0; w < 4; ++w) bits[tile] += __popc(documents[tile].word[w]);
      }
    }
#pragma unroll
    for (int part = 0; part < Codes::parts; ++part) {
#pragma unroll
      for (int m = 0; m < PLANES; ++m) {
        const uint8_t* query = first_query + m * mma_rows / 2 * args.query_pitch + part * args.row_pitch + offset;
        Piece<16> low, high;
        load(low, query);
        load(high, query + high_row);
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
          const uint32_t a[4] = {low.word[half], high.word[half], low.word[half + 1], high.word[half + 1]};
#pragma unroll
          for (int tile = 0; tile < mma_tiles; ++tile) {
            uint32_t b[2] = {documents[tile].word[half], documents[tile].word[half + 1]};
            if constexpr (Codes::folded) b[0] = Codes::part(b[0], part), b[1] = Codes::part(b[1], part);
            multiply<Codes>(sums.of[m][tile], a, b);
          }
        }
      }
    }
  }
}

// The ones of packed query lane / 4 + 8 * half.
__device__ inline int query_bits(const ScanArgs& args, const ScanBlock& block, int half) {
  const uint8_t* row = block.queries + (lane_index() / 4 + 8 * half) * args.query_pitch;
  int bits = 0;
  for (int offset = lane_index() % 4 * 16; offset < args.row_bytes; offset += mma_step_bytes) {
    Piece<16> piece;
    load(piece, row + offset);
#pragma unroll
    for (int w = 0; w < 4; ++w) bits += __popc(piece.word[w]);
  }
  bits += __shfl_xor_sync(full_warp, bits, 1);
  return bits + __shfl_xor_sync(full_warp, bits, 2);
}

// Needs rows in whole pieces of 16, everything aligned to 16, row_pitch a multiple of 64.
template <class Codes, int PLANES>
__global__ void __launch_bounds__(scan_warps* warp_size, 3) topk_scan_mma(const ScanArgs args) {
  const Corpus& corpus = args.corpus;
  const ScanBlock block = begin_scan<16>(args, mma_queries);
  const int lane = lane_index(), group = lane / 4;
  const bool has[2] = {group < block.tile, group + 8 < block.tile};
  int ones[2] = {};  // of both queries of a lane
  if constexpr (!Codes::folded) {
#pragma unroll
    for (int half = 0; half < 2; ++half) ones[half] = query_bits(args, block, half);
  }
  unsigned threshold[2] = {threshold_of<Codes>(corpus, no_key), threshold_of<Codes>(corpus, no_key)};
  int buffered = 0;  // keys in the two buffers, the second times 65536

  int64_t base = block.begin + block.warp * warp_size;
  const int64_t step = block.warps * warp_size, row_step = step * corpus.documents_stride;
  const uint8_t* row = corpus.documents + (base + group) * corpus.documents_stride;
  for (; base < block.end; base += step, row += row_step) {
    const unsigned wanted = allowed_word(corpus, base, block.first_query, block.tile);
    if (wanted == 0) continue;

    Sums<PLANES> sums = {};
    int bits[mma_tiles] = {};
    add_products<Codes>(sums, bits, row, wanted >> group, args, block);

    const Own lane_own = own_terms(corpus, base + lane, Codes::folded && wanted >> lane & 1);
    unsigned ordered[mma_slots];
    unsigned taken = 0;  // bit: slot
#pragma unroll
    for (int tile = 0; tile < mma_tiles; ++tile) {
      if constexpr (!Codes::folded) {
        bits[tile] += __shfl_xor_sync(full_warp, bits[tile], 1);
        bits[tile] += __shfl_xor_sync(full_warp, bits[tile], 2);
      }
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int document = slot_document(4 * tile + side);
        Own own = lane_own;
        int document_bits = 0;
        if constexpr (Codes::folded) {
          if (corpus.factor) own.factor = __shfl_sync(full_warp, lane_own.factor, document);
          if (corpus.addend) own.addend = __shfl_sync(full_warp, lane_own.addend, document);
        } else {
          document_bits = __shfl_sync(full_warp, bits[tile], document % mma_columns * 4);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int slot = 4 * tile + 2 * half + side;
          bool below;
          if constexpr (Codes::folded) {
            const float least = least_cost(block.terms[has[half] ? group + 8 * half : 0], sums.hi(slot) / Codes::unit,
                                           sums.lo(slot) / Codes::unit, own);
            below = !(least > __uint_as_float(threshold[half]));
          } else {
            ordered[slot] = static_cast<unsigned>(ones[half] + document_bits - 2 * sums.lo(slot));
            below = ordered[slot] < threshold[half];
          }
          if (below && has[half] && wanted >> document & 1) taken |= 1u << slot;
        }
      }
    }
    if (!__any_sync(full_warp, taken != 0)) continue;

    // What is exact: scores, and each query's own mask.
#pragma unroll
    for (int slot = 0; slot < mma_slots; ++slot) {
      if (!(taken >> slot & 1)) continue;
      const int half = slot % 4 / 2, q = group + 8 * half;
      const int64_t document = base + slot_document(slot);
      if constexpr (Codes::folded) {
        ordered[slot] = folded_order(block.terms[q], sums.hi(slot) / Codes::unit, sums.lo(slot) / Codes::unit,
                                     own_terms(corpus, document, true), corpus.metric);
      }
      const unsigned mask = corpus.allow_stride > 0 ? allowed_word(corpus, base, block.first_query + q, 1) : full_warp;
      const Key last = block.own_lists[q * args.list.keys() + args.keys - 1];
      if (ordered[slot] == no_order || !(mask >> slot_document(slot) & 1) ||
          key_of(corpus, ordered[slot], document) >= last)
        taken &= ~(1u << slot);
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
          (half ? threshold[1] : threshold[0]) = threshold_of<Codes>(corpus, list[args.keys - 1]);
          buffered -= count << shift;
        }
      }
    }
    int place[2] = {(buffered & 0xffff) + (before & 0xffff), (buffered >> 16) + (before >> 16)};
    Key* const low_buffer = block.own_lists + group * args.list.keys() + args.list.capacity;
#pragma unroll
    for (int slot = 0; slot < mma_slots; ++slot) {
      if (!(taken >> slot & 1)) continue;
      const int half = slot % 4 / 2;
      low_buffer[half * 8 * args.list.keys() + place[half]++] =
          key_of(corpus, ordered[slot], base + slot_document(slot));
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
