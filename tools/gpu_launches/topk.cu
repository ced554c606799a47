// Every kernel of top-k with little and with much to do: alignments, lengths of rows, numbers of queries, k.
#include "cuda/topk_dispatch.hpp"
#include "record.hpp"

namespace {

using namespace simtile::cuda;

void record(const Device& device, const RecordLaunch& launch) {
  for (const TopkMetric metric : {TopkMetric::hamming, TopkMetric::int8})
    for (const int64_t alignment : {16, 4, 1})
      for (const int64_t row_bytes : {32, 64, 128, 768, 4096})
        for (const int64_t queries : {1, 8, 64})
          for (const int64_t k : {1, 10, 100, 1024}) {
            TopkArgs args = {};
            args.metric = metric;
            args.queries = queries;
            args.documents = 1 << 20;
            args.row_bytes = row_bytes;
            args.queries_data = args.documents_data = address(alignment);
            args.queries_stride = args.documents_stride = row_bytes;
            args.k = k;
            run(args, device, nullptr, launch);
          }
}

}  // namespace

int main() { for_each_architecture(record); }
