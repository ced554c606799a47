// Scores of chosen documents, each read where it lies: of candidates, and of all documents where every score is needed.
#pragma once

#include "topk/block.cuh"
#include "topk/fold.cuh"
#include "topk/merge.cuh"

namespace simtile::cuda::topk {

constexpr int rows_threads = 256;

struct RowsArgs {
  Corpus corpus;
  const uint8_t* queries;  // as in ScanArgs, from the first query of the launch
  int64_t queries_stride;
  int64_t rows_stride;
  const Terms* terms;
  int64_t first_query;        // of the launch, for masks
  int64_t count;              // documents of a query
  const Key* sorted;          // [Q, sorted_stride] candidates, ascending, no_key for none; or null: all documents
  const int64_t* candidates;  // [Q, count] in any order; or null
  int64_t sorted_stride;
  unsigned* ordered;  // [Q, count] out; or null
  Results results;    // for candidates in any order: scores alone are written, [Q, count]
};

constexpr int64_t no_document = -1;

// The document at a place of a query's list, if it is there, allowed, and not the same as the one before.
__device__ inline int64_t document_at(const RowsArgs& args, int64_t query, int64_t place) {
  int64_t document = place;
  if (args.candidates) {
    document = args.candidates[query * args.count + place];
  } else if (args.sorted) {
    const Key* keys = args.sorted + query * args.sorted_stride;
    document = static_cast<int64_t>(keys[place]);
    if (place > 0 && keys[place - 1] == keys[place]) document = no_document;
  }
  if (document < 0 || document >= args.corpus.document_count) return no_document;
  if (!args.corpus.allow) return document;
  const uint32_t* words = args.corpus.allow + (args.first_query + query) * args.corpus.allow_stride;
  return words[document / warp_size] >> document % warp_size & 1 ? document : no_document;
}

__device__ inline void put_order(const RowsArgs& args, int64_t query, int64_t place, bool missing, unsigned ordered) {
  const int64_t at = query * args.count + place;
  if (args.ordered) {
    args.ordered[at] = ordered;
    return;
  }
  const TopkMetric metric = args.results.metric;  // of no_order, the bits are those of a NaN
  args.results.scores[at] = missing ? missing_score_bits(metric) : score_bits(ordered, metric);
}

// Eight lanes a document. Grid (places, queries).
template <class Codes, int BYTES>
__global__ void __launch_bounds__(rows_threads) topk_rows(const RowsArgs args) {
  constexpr int lanes = 8, planes = Codes::folded ? 2 : 1;
  const Corpus& corpus = args.corpus;
  const int lane = lane_index() % lanes;
  const int64_t query = blockIdx.y;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * (rows_threads / lanes) + threadIdx.x / lanes;
  const int64_t document = place < args.count ? document_at(args, query, place) : no_document;
  const uint8_t* row = corpus.documents + document * corpus.documents_stride;
  const uint8_t* queries = args.queries + query * args.queries_stride;
  int sums[planes] = {};
  if (document != no_document) {
    const auto add = [&](auto piece, int offset) {
      load(piece, row + offset);
      const uint8_t* from = queries + offset;
#pragma unroll
      for (int plane = 0; plane < planes; ++plane) {
#pragma unroll
        for (int part = 0; part < Codes::parts; ++part, from += args.rows_stride) {
          decltype(piece) own;
          load(own, from);
#pragma unroll
          for (int w = 0; w < decltype(piece)::words; ++w) {
            if constexpr (Codes::folded) {
              const unsigned codes = Codes::part(piece.word[w], part);
              sums[plane] = __dp4a(static_cast<int>(own.word[w]), static_cast<int>(codes), sums[plane]);
            } else {
              sums[plane] += __popc(own.word[w] ^ piece.word[w]);
            }
          }
        }
      }
    };
    const int whole = corpus.row_bytes / BYTES * BYTES;
    for (int offset = lane * BYTES; offset < whole; offset += lanes * BYTES) add(Piece<BYTES>{}, offset);
    for (int offset = whole + lane; offset < corpus.row_bytes; offset += lanes) add(Piece<1>{}, offset);
  }
#pragma unroll
  for (int plane = 0; plane < planes; ++plane) {
    for (int apart = lanes / 2; apart > 0; apart /= 2) sums[plane] += __shfl_xor_sync(full_warp, sums[plane], apart);
  }
  if (lane != 0 || place >= args.count) return;
  unsigned ordered = no_order;
  if (document != no_document) {
    if constexpr (Codes::folded) {
      const Own own = own_terms(corpus, document, true);
      ordered =
          folded_order(args.terms[query], sums[0] / Codes::unit, sums[planes - 1] / Codes::unit, own, corpus.metric);
    } else {
      ordered = static_cast<unsigned>(sums[0]);
    }
  }
  put_order(args, query, place, document == no_document, ordered);
}

}  // namespace simtile::cuda::topk
