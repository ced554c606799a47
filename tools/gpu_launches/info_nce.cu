// Every kernel of the info_nce forward: alignments, few and many rows, few and many dimensions, with and without norms.
#include "cuda/info_nce_dispatch.hpp"
#include "record.hpp"

namespace {

using namespace simtile::cuda;

void record(const Device& device, const RecordLaunch& launch) {
  for (const bool normalize : {true, false})
    for (const int64_t alignment : {16, 2})
      for (const int64_t rows : {16, 1000, 8192})
        for (const int64_t dimensions : {64, 768, 1024, 8192}) {
          InfoNceForwardArgs args = {};
          args.rows = args.documents = rows;
          args.dimensions = dimensions;
          args.queries_data = args.documents_data = address(alignment);
          args.queries_stride = args.documents_stride = dimensions;
          args.temperature = 0.05;
          args.normalize = normalize;
          run(args, device, nullptr, launch);
        }
}

}  // namespace

int main() { for_each_architecture(record); }
