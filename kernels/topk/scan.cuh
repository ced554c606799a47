// Hamming distances or int8 dot products of up to TILE queries with every document, selected as they come.
#pragma once

#include "topk/block.cuh"

namespace simtile::cuda::topk {

// Lanes that share a document read 16 bytes each, side by side: 8 of them a whole 128-byte line. LANES passes over
// 32 / LANES documents give a round of 32, with LANES loads of a lane in flight.
// sums[q][p] += the part of this lane in the score of query q and the document of pass p, bytes [begin, end) of a row.
// `row` is the document of pass 0, `wanted` has bit 32 / LANES * p where that of pass p may be read.
template <class Metric, int BYTES, int LANES, int TILE>
__device__ inline void add_scores(int (&sums)[TILE][LANES], const uint8_t* row, int64_t pass_stride, unsigned wanted,
                                  const ScanArgs& args, const ScanBlock& block, int begin, int end) {
  const int lane_in_document = lane_index() % LANES;
#pragma unroll 1
  for (int offset = begin + lane_in_document * BYTES; offset < end; offset += LANES * BYTES) {
    Piece<BYTES> documents[LANES];
    const uint8_t* from = row + offset;
#pragma unroll
    for (int p = 0; p < LANES; ++p, from += pass_stride) {
      documents[p] = {};
      if (wanted >> warp_size / LANES * p & 1) load(documents[p], from);
    }
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      if (q >= block.tile) break;
      Piece<BYTES> query;
      load(query, block.queries + q * args.query_pitch + offset);
#pragma unroll
      for (int p = 0; p < LANES; ++p) {
#pragma unroll
        for (int w = 0; w < Piece<BYTES>::words; ++w) {
          sums[q][p] = Metric::add(query.word[w], documents[p].word[w], sums[q][p]);
        }
      }
    }
  }
}

// Lane l of the LANES that share documents gets the sum over all of them of sums[l]: a butterfly that halves what a
// lane holds in every step, LANES - 1 shuffles for LANES sums.
template <int LANES>
__device__ inline int transposed_sum(int (&sums)[LANES]) {
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) {
    const bool upper = lane_index() & apart;
#pragma unroll
    for (int i = 0; i < apart; ++i) {
      const int given = upper ? sums[i] : sums[i + apart];
      const int kept = upper ? sums[i + apart] : sums[i];
      sums[i] = kept + __shfl_xor_sync(full_warp, given, apart);
    }
  }
  return sums[0];
}

// values[index] without an address: an array that is indexed at run time would leave the registers.
template <int N>
__device__ inline unsigned pick(const unsigned (&values)[N], int index) {
  unsigned value = values[0];
#pragma unroll
  for (int i = 1; i < N; ++i) value = i == index ? values[i] : value;
  return value;
}

template <int N>
__device__ inline void put(unsigned (&values)[N], int index, unsigned value) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = i == index ? value : values[i];
}

template <class Metric>
__device__ inline unsigned ordered_score(int sum, const ScanArgs& args, float query_scale, float document_scale) {
  if constexpr (Metric::ascending) {
    return order_distance(sum);
  } else {
    return args.kind == ScoreKind::dot ? order_dot(sum) : order_scaled(sum, query_scale, document_scale);
  }
}

template <class Metric, int BYTES, int LANES, int TILE>
__global__ void __launch_bounds__(scan_warps* warp_size, TILE == 1 ? 5 : 3) topk_scan(const ScanArgs args) {
  const ScanBlock block = begin_scan<BYTES>(args, args.tile);
  constexpr int documents_per_pass = warp_size / LANES;
  const int lane = lane_index(), group = lane / LANES;
  const int own = lane % LANES * documents_per_pass + group;  // in a round, the document whose sum ends in this lane
  const int64_t pass_stride = documents_per_pass * args.documents_stride;
  const int whole_pieces = args.row_bytes / BYTES * BYTES;

  unsigned threshold[TILE];  // the worst score in a list of args.keys: one that equals it has a higher index, and loses
#pragma unroll
  for (int q = 0; q < TILE; ++q) threshold[q] = static_cast<unsigned>(no_key >> 32);
  int buffered = 0;  // lane q: keys in the buffer of query q

  int64_t base = block.begin + block.warp * warp_size;
  const int64_t step = block.warps * warp_size, row_step = step * args.documents_stride;
  const uint8_t* row = args.documents + (base + group) * args.documents_stride;
  for (; base < block.end; base += step, row += row_step) {
    const bool usable = base + lane < block.end && (!args.allow_all || args.allow_all[base + lane]);
    const unsigned wanted = __ballot_sync(full_warp, usable);
    if (wanted == 0) continue;

    int sums[TILE][LANES] = {};
    add_scores<Metric, BYTES>(sums, row, pass_stride, wanted >> group, args, block, 0, whole_pieces);
    if constexpr (BYTES > 1) {
      add_scores<Metric, 1>(sums, row, pass_stride, wanted >> group, args, block, whole_pieces, args.row_bytes);
    }

    const bool own_wanted = wanted >> own & 1;
    const bool own_scale = args.document_scales && own_wanted;
    const float document_scale = own_scale ? args.document_scales[base + own] : 1.0f;
    unsigned ordered[TILE];
    unsigned found = 0;  // bit q: some document is better than the threshold of query q
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      if (q >= block.tile) break;
      ordered[q] = ordered_score<Metric>(transposed_sum(sums[q]), args, block.scales[q], document_scale);
      if (__any_sync(full_warp, own_wanted && ordered[q] < threshold[q])) found |= 1u << q;
    }
#pragma unroll 1
    for (; found; found &= found - 1) {
      const int q = __ffs(static_cast<int>(found)) - 1;
      const int64_t query = block.first_query + q;
      const unsigned score = pick(ordered, q);
      const Key key = static_cast<Key>(score) << 32 | static_cast<Key>(base + own);
      bool taken = own_wanted && score < pick(threshold, q) && (!args.after || key > args.after[query]);
      taken = taken && (!args.allow_each || args.allow_each[query * args.allow_stride + base + own]);
      const unsigned takers = __ballot_sync(full_warp, taken);
      Key* list = block.own_lists + q * args.list.keys();
      int count = __shfl_sync(full_warp, buffered, q);
      if (count + __popc(takers) > args.list.buffer) {
        flush_list(list, args.list, count);
        put(threshold, q, static_cast<unsigned>(list[args.keys - 1] >> 32));
        count = 0;
      }
      if (taken) list[args.list.capacity + count + __popc(takers & lanes_below())] = key;
      if (lane == q) buffered = count + __popc(takers);
    }
  }
#pragma unroll 1
  for (int q = 0; q < block.tile; ++q) {
    flush_list(block.own_lists + q * args.list.keys(), args.list, __shfl_sync(full_warp, buffered, q));
  }
  end_scan(args, block);
}

}  // namespace simtile::cuda::topk
