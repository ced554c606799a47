// Scores of up to TILE float queries with every float document: bounds in float32 for all, and the definition in double for documents
// that the bound does not exclude.
#pragma once

#include "topk/float_score.cuh"
#include "topk/rows.cuh"
#include "topk/scan.cuh"

namespace simtile::cuda::topk {

// dots[q][p] += the part of this lane in Σ q d of query q and the document of pass p, squares[p] likewise in Σ d d; bytes [begin, end)
// of a row. As add_scores in scan.cuh.
template <class Element, int BYTES, int LANES, int TILE>
__device__ inline void add_float_products(float (&dots)[TILE][LANES], float (&squares)[LANES], const uint8_t* row,
                                          int64_t pass_stride, unsigned wanted, const ScanArgs& args,
                                          const ScanBlock& block, int begin, int end) {
  constexpr int elements = BYTES / Element::bytes;
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
    const uint8_t* query_row = block.queries + offset * (4 / Element::bytes);
#pragma unroll
    for (int part = 0; part < elements; part += 4) {
      constexpr int width = elements < 4 ? elements : 4;
      float codes[LANES][width];
#pragma unroll
      for (int p = 0; p < LANES; ++p) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          codes[p][i] = Element::of(documents[p].word, part + i);
          squares[p] = fmaf(codes[p][i], codes[p][i], squares[p]);
        }
      }
#pragma unroll
      for (int q = 0; q < TILE; ++q) {
        if (q >= block.tile) break;
        Piece<4 * width> query;
        load(query, query_row + q * args.query_pitch + 4 * part);
#pragma unroll
        for (int p = 0; p < LANES; ++p) {
#pragma unroll
          for (int i = 0; i < width; ++i) dots[q][p] = fmaf(__uint_as_float(query.word[i]), codes[p][i], dots[q][p]);
        }
      }
    }
  }
}

template <class Element, int BYTES, int TILE>
__global__ void __launch_bounds__(scan_warps* warp_size, TILE == 1 ? 4 : 3) topk_scan_float(const ScanArgs args) {
  constexpr int lanes = 8, documents_per_pass = warp_size / lanes;
  const Corpus& corpus = args.corpus;
  const ScanBlock block = begin_scan<4>(args, args.tile);
  const int lane = lane_index(), group = lane / lanes;
  const int own = lane % lanes * documents_per_pass + group;  // in a round, the document whose sums end in this lane
  const int64_t pass_stride = documents_per_pass * corpus.documents_stride;
  const int whole_pieces = corpus.row_bytes / BYTES * BYTES;
  const float error = sum_error(corpus.dim);

  float threshold[TILE];  // the cost of a list's last key: what is certainly above it cannot be found
#pragma unroll
  for (int q = 0; q < TILE; ++q) threshold[q] = cost_of(no_order);
  int buffered = 0;  // lane q: keys in the buffer of query q

  int64_t base = block.begin + block.warp * warp_size;
  const int64_t step = block.warps * warp_size, row_step = step * corpus.documents_stride;
  const uint8_t* row = corpus.documents + (base + group) * corpus.documents_stride;
  for (; base < block.end; base += step, row += row_step) {
    const unsigned wanted = allowed_word(corpus, base, block.first_query, block.tile);
    if (wanted == 0) continue;

    float dots[TILE][lanes] = {}, squares[lanes] = {};
    add_float_products<Element, BYTES>(dots, squares, row, pass_stride, wanted >> group, args, block, 0, whole_pieces);
    if constexpr (BYTES > Element::bytes) {
      add_float_products<Element, Element::bytes>(dots, squares, row, pass_stride, wanted >> group, args, block,
                                                  whole_pieces, corpus.row_bytes);
    }

    const float own_squares = transposed_sum(squares);
    unsigned below = 0;  // bit q: this lane's document may be found by query q
#pragma unroll
    for (int q = 0; q < TILE; ++q) {
      if (q >= block.tile) break;
      const float least = least_float_cost(block.terms[q], transposed_sum(dots[q]), own_squares, error, corpus.metric);
      if (!(least > threshold[q])) below |= 1u << q;
    }
    if (!(wanted >> own & 1)) below = 0;
    unsigned found = __reduce_or_sync(full_warp, below);
#pragma unroll 1
    for (; found; found &= found - 1) {
      const int q = __ffs(static_cast<int>(found)) - 1;
      const int64_t query = block.first_query + q;
      const unsigned mask = corpus.allow_stride > 0 ? allowed_word(corpus, base, query, 1) : full_warp;
      unsigned scored = __ballot_sync(full_warp, (below >> q & 1) && (mask >> own & 1));
      const float* query_row = reinterpret_cast<const float*>(block.queries + q * args.query_pitch);
      unsigned ordered = no_order;
#pragma unroll 1
      for (; scored; scored &= scored - 1) {
        const int source = __ffs(static_cast<int>(scored)) - 1;
        const int64_t document = base + source % lanes * documents_per_pass + source / lanes;
        const unsigned score = float_order<Element>(corpus, query_row, block.terms[q].slope, document);
        if (lane == source) ordered = score;
      }
      Key* list = block.own_lists + q * args.list.keys();
      const Key key = ordered == no_order ? no_key : key_of(corpus, ordered, base + own);
      const bool taken = key < list[args.keys - 1];
      int count = __shfl_sync(full_warp, buffered, q);
      if (make_room(list, args.list, count, __ballot_sync(full_warp, taken)))
        put(threshold, q, cost_of(static_cast<unsigned>(list[args.keys - 1] >> 32)));
      count = add_keys(list, args.list, count, taken, key);
      if (lane == q) buffered = count;
    }
  }
#pragma unroll 1
  for (int q = 0; q < block.tile; ++q) {
    flush_list(block.own_lists + q * args.list.keys(), args.list, __shfl_sync(full_warp, buffered, q));
  }
  end_scan(args, block);
}

// As topk_rows, a warp a document.
template <class Element>
__global__ void __launch_bounds__(rows_threads) topk_rows_float(const RowsArgs args) {
  const int64_t query = blockIdx.y;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (rows_threads / warp_size) + threadIdx.x / warp_size;
  if (place >= args.count) return;
  const int64_t document = document_at(args, query, place);
  unsigned ordered = no_order;
  if (document != no_document) {
    const float* row = reinterpret_cast<const float*>(args.queries + query * args.queries_stride);
    ordered = float_order<Element>(args.corpus, row, args.terms[query].slope, document);
  }
  if (lane_index() == 0) put_order(args, query, place, document == no_document, ordered);
}

}  // namespace simtile::cuda::topk
