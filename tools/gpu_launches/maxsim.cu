// Every kernel of MaxSim: documents of all kinds, few and many tokens of queries, rows that fit shared memory and that do not; and the
// best documents, few and many, of all and of candidates.
#include "cuda/maxsim_topk_dispatch.hpp"
#include "record.hpp"

namespace {

using namespace simtile::cuda;

void record(const Device& device, const RecordLaunch& launch) {
  static const int64_t candidates[1] = {};
  void* const workspace = const_cast<void*>(address(256));  // candidates are put into it
  for (const MaxsimKind kind :
       {MaxsimKind::float32, MaxsimKind::float16, MaxsimKind::bfloat16, MaxsimKind::int8, MaxsimKind::uint8,
        MaxsimKind::bits, MaxsimKind::residual1, MaxsimKind::residual2, MaxsimKind::residual4})
    for (const MaxsimKind query_kind :
         {MaxsimKind::float32, MaxsimKind::bfloat16, MaxsimKind::int8, MaxsimKind::int16}) {
      if ((query_kind >= MaxsimKind::int8) != (kind >= MaxsimKind::int8)) continue;
      if (residual_bits(kind) && query_kind != MaxsimKind::int16) continue;
      for (const int64_t longest : {32, 128, 1024})
        for (const int64_t dimensions : {96, 128, 256, 1024, 4096})
          for (const bool chosen : {false, true}) {
            MaxsimArgs args = {};
            args.queries.kind = query_kind;
            args.queries.count = 16;
            args.documents.kind = kind;
            args.documents.count = 100000;
            args.residuals.centroid_count = 65536;
            args.dimensions = dimensions;
            args.longest_query = longest;
            args.candidates = chosen ? candidates : nullptr;
            args.candidate_count = chosen ? 1000 : args.documents.count;
            run(args, device, nullptr, launch);
            if (kind != MaxsimKind::bfloat16 || dimensions != 128) continue;
            for (const int64_t k : {1, 10, 100, 1024, 65536}) {
              MaxsimTopkArgs best = {};
              best.pairs = args;
              best.k = k;
              run(best, device, workspace, launch);
              best.pairs.candidate_count = chosen ? 10000 : args.documents.count;
              run(best, device, workspace, launch);
            }
          }
    }
}

}  // namespace

int main() { for_each_architecture(record); }
