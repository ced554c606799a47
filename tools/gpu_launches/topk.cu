// Every kernel of top-k with little and with much to do: alignments, lengths of rows, numbers of queries, k.
#include "cuda/topk_dispatch.hpp"
#include "record.hpp"

namespace {

using namespace simtile::cuda;

TopkArgs arguments(TopkKind kind, int64_t alignment, int64_t dim, int64_t queries, int64_t k) {
  TopkArgs args = {};
  args.kind = kind;
  args.metric = kind == TopkKind::packed ? TopkMetric::hamming : TopkMetric::dot;
  args.queries = queries;
  args.documents = 1 << 20;
  args.dim = dim;
  const int64_t element = args.is_float() ? topk::row_bytes(kind, 1) : 1;
  args.queries_data = args.documents_data = address(static_cast<std::size_t>(std::max(alignment, element)));
  args.queries_stride = args.documents_stride = topk::row_bytes(kind, dim);
  args.k = k;
  return args;
}

void record(const Device& device, const RecordLaunch& launch) {
  for (const TopkKind kind : {TopkKind::packed, TopkKind::bits, TopkKind::int4, TopkKind::int8, TopkKind::uint8,
                              TopkKind::float32, TopkKind::float16, TopkKind::bfloat16})
    for (const int64_t alignment : {16, 4, 1})
      for (const int64_t dim : {256, 512, 1024, 4096})
        for (const int64_t queries : {1, 8, 64})
          for (const int64_t k : {1, 10, 100, 1024, 65536}) {
            TopkArgs args = arguments(kind, alignment, dim, queries, k);
            run(args, device, nullptr, launch);
            static const float scales[64] = {};
            if (kind != TopkKind::int4 && kind != TopkKind::int8) continue;
            args.query_scale = scales;
            run(args, device, nullptr, launch);
          }
  static const int64_t candidates[1] = {};
  for (const TopkKind kind : {TopkKind::packed, TopkKind::bits, TopkKind::int4, TopkKind::int8, TopkKind::uint8,
                              TopkKind::float32, TopkKind::float16, TopkKind::bfloat16})
    for (const int64_t alignment : {16, 1}) {
      TopkArgs args = arguments(kind, alignment, 1024, 8, 100);
      args.candidates = candidates;
      args.candidate_count = 10000;
      run(args, device, nullptr, launch);
      run_rows(args, device, nullptr, launch);
    }
  TopkArgs args = arguments(TopkKind::packed, 16, 1024, 8, 100);
  static const uint8_t allow[1] = {};
  args.candidates = candidates;
  args.candidate_count = 10000;
  args.allow = allow;
  run(args, device, nullptr, launch);
  run_rows(args, device, nullptr, launch);
  run_merge({TopkMetric::dot, 8, {100, 100}, 100, {}, {}, nullptr, nullptr}, launch);
}

}  // namespace

int main() { for_each_architecture(record); }
