// Scores of up to TILE queries with every document, by population counts or dp4a, selected as they come.
#pragma once

#include "topk/block.cuh"

namespace simtile::cuda::topk {

// Lanes that share a document read 16 bytes each, side by side: 8 of them a whole 128-byte line. LANES passes over
// 32 / LANES documents give a round of 32, with LANES loads of a lane in flight.
// sums[q][plane][p] += the part of this lane in the product of query q and the document of pass p, bytes [begin, end) of a row.
// `row` is the document of pass 0, `wanted` has bit 32 / LANES * p where that of pass p may be read.
template <class Codes, int BYTES, int LANES, int TILE, int PLANES>
__device__ inline void add_scores(int (&sums)[TILE][PLANES][LANES], const uint8_t* row, int64_t pass_stride,
                                  unsigned wanted, const ScanArgs& args, const ScanBlock& block, int begin, int end) {
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
    // Not unrolled: eight times the codes would not fit the registers.
#pragma unroll 1
    for (int part = 0; part < Codes::parts; ++part) {
      Piece<BYTES> codes[LANES];
#pragma unroll
      for (int p = 0; p < LANES; ++p) {
#pragma unroll
        for (int w = 0; w < Piece<BYTES>::words; ++w) codes[p].word[w] = Codes::part(documents[p].word[w], part);
      }
#pragma unroll
      for (int q = 0; q < TILE; ++q) {
        if (q >= block.tile) break;
        const uint8_t* query_row = block.queries + q * args.query_pitch + part * args.row_pitch + offset;
#pragma unroll
        for (int plane = 0; plane < PLANES; ++plane, query_row += Codes::parts * args.row_pitch) {
          Piece<BYTES> query;
          load(query, query_row);
#pragma unroll
          for (int p = 0; p < LANES; ++p) {
#pragma unroll
            for (int w = 0; w < Piece<BYTES>::words; ++w) {
              int& sum = sums[q][plane][p];
              if constexpr (Codes::folded) {
                sum = __dp4a(static_cast<int>(query.word[w]), static_cast<int>(codes[p].word[w]), sum);
              } else {
                sum += __popc(query.word[w] ^ codes[p].word[w]);
              }
            }
          }
        }
      }
    }
  }
}

// Lane l of the LANES that share documents gets the sum over all of them of sums[l]: a butterfly that halves what a
// lane holds in every step, LANES - 1 shuffles for LANES sums.
template <class T, int LANES>
__device__ inline T transposed_sum(T (&sums)[LANES]) {
#pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) {
    const bool upper = lane_index() & apart;
#pragma unroll
    for (int i = 0; i < apart; ++i) {
      const T given = upper ? sums[i] : sums[i + apart];
      const T kept = upper ? sums[i + apart] : sums[i];
      sums[i] = kept + __shfl_xor_sync(full_warp, given, apart);
    }
  }
  return sums[0];
}

// values[index] without an address: an array that is indexed at run time would leave the registers.
template <class T, int N>
__device__ inline T pick(const T (&values)[N], int index) {
  T value = values[0];
#pragma unroll
  for (int i = 1; i < N; ++i) value = i == index ? values[i] : value;
  return value;
}

template <class T, int N>
__device__ inline void put(T (&values)[N], int index, T value) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = i == index ? value : values[i];
}

// What a list's last key leaves to be found: orders below it, or for codes costs of which the bound is not above it. Keys of one order
// come with ascending indices, and so too late, but not with ascending ranks.
template <class Codes>
__device__ inline unsigned threshold_of(const Corpus& corpus, Key last) {
  const unsigned ordered = static_cast<unsigned>(last >> 32);
  if constexpr (Codes::folded) return __float_as_uint(cost_of(ordered));
  return ordered + (corpus.rank && last != no_key ? 1 : 0);
}

template <class Codes, int BYTES, int LANES, int TILE>
__global__ void __launch_bounds__(scan_warps* warp_size, TILE == 1   ? 5
                                                         : TILE == 4 ? 2
                                                                     : 3) topk_scan(const ScanArgs args) {
  constexpr int planes = Codes::folded ? 2 : 1;
  const Corpus& corpus = args.corpus;
  const ScanBlock block = begin_scan<BYTES>(args, args.tile);
  constexpr int documents_per_pass = warp_size / LANES;
  const int lane = lane_index(), group = lane / LANES;
  const int own = lane % LANES * documents_per_pass + group;  // in a round, the document whose sum ends in this lane
  const int64_t pass_stride = documents_per_pass * corpus.documents_stride;
  const int whole_pieces = corpus.row_bytes / BYTES * BYTES;

  unsigned threshold[TILE];
#pragma unroll
  for (int q = 0; q < TILE; ++q) threshold[q] = threshold_of<Codes>(corpus, no_key);
  int buffered = 0;  // lane q: keys in the buffer of query q

  int64_t base = block.begin + block.warp * warp_size;
  const int64_t step = block.warps * warp_size, row_step = step * corpus.documents_stride;
  const uint8_t* row = corpus.documents + (base + group) * corpus.documents_stride;
  for (; base < block.end; base += step, row += row_step) {
    const unsigned wanted = allowed_word(corpus, base, block.first_query, block.tile);
    if (wanted == 0 && !args.all) continue;

    int sums[TILE][planes][LANES] = {};
    add_scores<Codes, BYTES>(sums, row, pass_stride, wanted >> group, args, block, 0, whole_pieces);
    if constexpr (BYTES > 1) {
      add_scores<Codes, 1>(sums, row, pass_stride, wanted >> group, args, block, whole_pieces, corpus.row_bytes);
    }

    const bool own_wanted = wanted >> own & 1;
    const int64_t document = base + own;
    const Own terms = own_terms(corpus, document, own_wanted && Codes::folded);
    int product[planes][TILE];
    unsigned found = 0;  // bit q: some document may be better than the last of query q
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      if (q >= block.tile) break;
      bool below;
#pragma unroll
      for (int plane = 0; plane < planes; ++plane) product[plane][q] = transposed_sum(sums[q][plane]);
      if constexpr (Codes::folded) {
#pragma unroll
        for (int plane = 0; plane < planes; ++plane) product[plane][q] /= Codes::unit;
        const float least = least_cost(block.terms[q], product[0][q], product[planes - 1][q], terms);
        below = !(least > __uint_as_float(threshold[q]));
      } else {
        below = static_cast<unsigned>(product[0][q]) < threshold[q];
      }
      if (__any_sync(full_warp, (own_wanted && below) || args.all)) found |= 1u << q;
    }
#pragma unroll 1
    for (; found; found &= found - 1) {
      const int q = __ffs(static_cast<int>(found)) - 1;
      const int64_t query = block.first_query + q;
      unsigned ordered;
      if constexpr (Codes::folded) {
        const int hi = pick(product[0], q), lo = pick(product[planes - 1], q);
        ordered = folded_order(block.terms[q], hi, lo, terms, corpus.metric);
      } else {
        ordered = static_cast<unsigned>(pick(product[0], q));
      }
      const bool mine = own_wanted && (corpus.allow_stride == 0 || allowed_word(corpus, base, query, 1) >> own & 1);
      if (!mine) ordered = no_order;
      if (args.all) {
        if (document < block.end) args.all[query * args.all_stride + document] = ordered;
        continue;
      }
      Key* list = block.own_lists + q * args.list.keys();
      const Key key = ordered == no_order ? no_key : key_of(corpus, ordered, document);
      const bool taken = key < list[args.keys - 1];
      int count = __shfl_sync(full_warp, buffered, q);
      if (make_room(list, args.list, count, __ballot_sync(full_warp, taken)))
        put(threshold, q, threshold_of<Codes>(corpus, list[args.keys - 1]));
      count = add_keys(list, args.list, count, taken, key);
      if (lane == q) buffered = count;
    }
  }
  if (args.all) return;
#pragma unroll 1
  for (int q = 0; q < block.tile; ++q) {
    flush_list(block.own_lists + q * args.list.keys(), args.list, __shfl_sync(full_warp, buffered, q));
  }
  end_scan(args, block);
}

}  // namespace simtile::cuda::topk
