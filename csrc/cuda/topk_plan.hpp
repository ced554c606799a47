// What a search on a device takes: shapes of rows, instance and grid of the scan, and where things lie in the workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/topk_select.hpp"
#include "tile/cuda_device.hpp"
#include "topk/cuda.cuh"
#include "topk/cuda_args.hpp"

namespace simtile::cuda::topk {

constexpr int64_t most_dimensions = 32 << 10;  // of codes and floats: one query and its lists fit shared memory
constexpr int64_t most_bits = 256 << 10;       // of packed rows
constexpr int packed_tile = 8, folded_tile = 4, float_tile = 4;  // queries of a block without the matrix unit

inline int code_parts(TopkKind kind) { return kind == TopkKind::bits ? 8 : kind == TopkKind::int4 ? 2 : 1; }

inline int64_t row_bytes(TopkKind kind, int64_t dim) {
  switch (kind) {
    case TopkKind::packed:
    case TopkKind::bits:
      return ceil_div(dim, 8);
    case TopkKind::int4:
      return ceil_div(dim, 2);
    case TopkKind::float32:
      return 4 * dim;
    case TopkKind::float16:
    case TopkKind::bfloat16:
      return 2 * dim;
    default:
      return dim;
  }
}

inline void check(const TopkArgs& args) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("topk: " + what); };
  if (args.k < 1) refuse("k = " + std::to_string(args.k) + "; expected at least 1");
  if (args.k > most_keys)
    refuse("k = " + std::to_string(args.k) + "; expected at most " + std::to_string(most_keys) +
           " on a CUDA device; search on the CPU, which takes any k");
  if (args.queries < 0 || args.queries >= int64_t(1) << 31)
    refuse("queries: " + std::to_string(args.queries) + " rows; expected fewer than 2^31; split them");
  if (args.documents < 0 || args.documents >= most_documents)
    refuse("documents: " + std::to_string(args.documents) +
           " rows; expected fewer than 2^32; split them and merge the results");
  const int64_t most = args.kind == TopkKind::packed ? most_bits : most_dimensions;
  if (args.dim < 1 || args.dim > most)
    refuse("dim = " + std::to_string(args.dim) + "; expected 1 to " + std::to_string(most) + " on a CUDA device");
  if ((args.kind == TopkKind::packed) != (args.metric == TopkMetric::hamming))
    refuse("metric: hamming is that of packed bits, and theirs only");
  if (!args.is_folded() && (args.scale || args.offset || args.factor || args.addend || args.query_scale))
    refuse("scale, offset, factor, addend, query_scale: only codes have them");
  if (args.query_scale && (args.scale || args.offset || args.kind == TopkKind::bits))
    refuse("query_scale: int8 queries are multiplied as they are, by codes without scale and offset");
  if (args.allow && args.allow_bits) refuse("allow: found both bool and bits, expected one of them");
}

// Rows of the caller's workspace, one after the other. Without memory it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t begin = bytes_;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// What a block may load at once, by the alignment of every row: 16, 4 or 1 bytes; of floats 16 or one element.
inline int load_bytes(const TopkArgs& args) {
  uint64_t bits = reinterpret_cast<uintptr_t>(args.documents_data);
  if (args.documents > 1) bits |= static_cast<uint64_t>(args.documents_stride);
  if (args.kind == TopkKind::packed) {
    bits |= reinterpret_cast<uintptr_t>(args.queries_data);
    if (args.queries > 1) bits |= static_cast<uint64_t>(args.queries_stride);
  }
  if (args.is_float()) return bits % 16 == 0 ? 16 : static_cast<int>(row_bytes(args.kind, 1));
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

struct Plan {
  ScanArgs scan;
  bool lists;  // scan and merge; otherwise every score is written and the best are selected from them
  bool mma;
  int load_bytes;   // the template arguments of topk_scan: BYTES,
  int lanes;        // LANES,
  int kernel_tile;  // and TILE, at least scan.tile
  int planes;       // of folded queries
  int warps;        // of a scanning block
  int64_t shared_bytes;

  MergeArgs merge;

  FoldArgs fold;
  NormsArgs norms;
  PackArgs pack;  // rows: 0 where there is nothing to pack

  // Selection from scores.
  int64_t batch;       // queries at a time
  int64_t candidates;  // keys of a query's candidates, a power of two
  Key* candidate_keys;
  RadixArgs radix;
  int64_t bytes;  // of the workspace
};

// Queries a block and its warps: as many as fit shared memory, queries first, since each tile reads every document again.
inline void fit(Plan& plan, const TopkArgs& args, const Device& device) {
  ScanArgs& scan = plan.scan;
  int64_t limit = std::min<int64_t>(shared_limit, static_cast<int64_t>(device.shared_bytes_per_block));
  const auto fits = [&](int tile, int warps, int queries) {
    scan.tile = tile;
    plan.warps = warps;
    plan.shared_bytes = scan_shared_bytes(scan, warps, queries);
    return plan.shared_bytes <= limit;
  };
  const int most = args.kind == TopkKind::packed ? packed_tile : folded_tile;
  if (plan.lists && !args.is_float() && args.queries > most && plan.load_bytes == 16 && scan.row_bytes % 16 == 0) {
    const bool one_plane = args.query_scale || args.kind == TopkKind::packed;
    plan.planes = one_plane ? 1 : 2;
    scan.query_rows = plan.planes * code_parts(args.kind);
    scan.row_pitch = static_cast<int>(round_up(scan.row_bytes, mma_step_bytes));
    // 64 past a multiple of 128: eight lanes that read 16 bytes each, 4 of one query and 4 of the next, meet every bank once.
    scan.query_pitch = static_cast<int>(round_up(scan.query_rows * scan.row_pitch - 64, 128) + 64);
    const int tile = static_cast<int>(std::min<int64_t>(args.queries, mma_queries));
    plan.mma = fits(tile, scan_warps, mma_queries) || fits(tile, scan_warps / 2, mma_queries);
    if (plan.mma) return;
  }
  plan.planes = args.is_folded() ? 2 : 1;
  scan.query_rows = plan.planes * code_parts(args.kind);
  scan.row_pitch = static_cast<int>(round_up(scan.row_bytes, 16));
  scan.query_pitch = scan.query_rows * scan.row_pitch;
  for (int tile = static_cast<int>(std::min<int64_t>(args.queries, most)); tile > 0; --tile)
    if (fits(tile, scan_warps, tile)) return;
  limit = static_cast<int64_t>(device.shared_bytes_per_block);
  for (int warps = scan_warps; warps > 0; warps /= 2)
    if (fits(1, warps, 1)) return;
  throw std::invalid_argument("topk: dim = " + std::to_string(args.dim) + " with k = " + std::to_string(args.k) +
                              " needs " + std::to_string(plan.shared_bytes) +
                              " bytes of shared memory a block; this device allows " + std::to_string(limit));
}

// The instance of topk_scan. A tile of one query has its own: with a fraction of the sums, more warps fit a multiprocessor.
// Where loads are narrow, they and not the registers are the limit. Lanes that share a document: as many as it has pieces
// of 16 bytes, so that short rows leave few of them idle.
inline void choose_kernel(Plan& plan, const TopkArgs& args) {
  plan.kernel_tile = args.kind == TopkKind::packed ? packed_tile : folded_tile;
  if (plan.load_bytes == 16 && plan.scan.tile == 1) plan.kernel_tile = 1;
  plan.lanes = 8;
  if (args.kind != TopkKind::packed || plan.load_bytes < 16) return;
  if (plan.scan.row_bytes <= 32)
    plan.lanes = 2;
  else if (plan.scan.row_bytes <= 64)
    plan.lanes = 4;
}

inline Corpus corpus(const TopkArgs& args) {
  Corpus corpus = {};
  corpus.documents = static_cast<const uint8_t*>(args.documents_data);
  corpus.documents_stride = args.documents_stride;
  corpus.document_count = args.documents;
  corpus.row_bytes = static_cast<int>(row_bytes(args.kind, args.dim));
  corpus.dim = static_cast<int>(args.dim);
  corpus.metric = args.metric;
  corpus.factor = args.factor;
  corpus.addend = args.addend;
  corpus.allow = args.allow_bits;
  corpus.allow_stride = args.allow_bits ? args.allow_stride : 0;
  corpus.rank = args.rank;
  return corpus;
}

// Masks as words, and queries as the scan reads them.
inline void plan_inputs(Plan& plan, const TopkArgs& args, Workspace& workspace) {
  ScanArgs& scan = plan.scan;
  if (args.allow && args.documents > 0) {
    PackArgs& pack = plan.pack;
    pack.allow = args.allow;
    pack.stride = args.allow_stride;
    pack.rows = args.allow_stride > 0 ? args.queries : 1;
    pack.documents = args.documents;
    pack.words = ceil_div(args.documents, warp_size);
    pack.packed = workspace.take<uint32_t>(pack.rows * pack.words);
    scan.corpus.allow = pack.packed;
    scan.corpus.allow_stride = args.allow_stride > 0 ? pack.words : 0;
  }
  scan.queries = static_cast<const uint8_t*>(args.queries_data);
  scan.queries_stride = args.queries_stride;
  if (args.is_float()) {
    plan.norms = {scan.queries,    args.queries_stride, args.queries,
                  scan.corpus.dim, args.metric,         workspace.take<Terms>(args.queries)};
    scan.terms = plan.norms.terms;
  }
  if (!args.is_folded()) return;
  FoldArgs& fold = plan.fold;
  fold.queries = scan.queries;
  fold.queries_stride = args.queries_stride;
  fold.scale = args.scale;
  fold.offset = args.offset;
  fold.query_scale = args.query_scale;
  fold.dim = static_cast<int>(args.dim);
  fold.kind = args.kind;
  fold.metric = args.metric;
  fold.parts = code_parts(args.kind);
  fold.planes = plan.planes;
  fold.row_pitch = static_cast<int>(round_up(scan.row_bytes, 16));
  scan.rows_stride = fold.row_pitch;
  scan.queries_stride = static_cast<int64_t>(scan.query_rows) * fold.row_pitch;
  fold.rows = workspace.take<uint8_t>(args.queries * scan.queries_stride);
  fold.terms = workspace.take<Terms>(args.queries);
  scan.queries = fold.rows;
  scan.terms = fold.terms;
}

inline void plan_splits(Plan& plan, const TopkArgs& args, int64_t queries, const Device& device) {
  ScanArgs& scan = plan.scan;
  scan.query_count = queries;
  scan.tiles = static_cast<int>(ceil_div(queries, scan.tile));
  const int64_t wanted = ceil_div(device.multiprocessors * blocks_per_multiprocessor, scan.tiles);
  // A split of fewer documents than keys would write a list that is mostly empty.
  const int64_t per_split = std::max<int64_t>(ceil_div(args.documents, wanted), scan.keys);
  scan.documents_per_split = round_up(per_split, plan.warps * warp_size);
  scan.splits = static_cast<int>(ceil_div(args.documents, scan.documents_per_split));
}

inline void plan_selection(Plan& plan, const TopkArgs& args, Workspace& workspace) {
  RadixArgs& radix = plan.radix;
  radix = radix_of(args.candidates ? args.candidate_count : args.documents, args.k);
  radix.rank = args.rank;
  plan.candidates = args.candidates ? power_of_two(radix.count) : 0;
  const int64_t bytes = radix_bytes(radix) + 8 * plan.candidates;
  plan.batch = std::min({std::max<int64_t>(1, scores_memory / bytes), launch_queries, args.queries});
  unsigned* ordered = workspace.take<unsigned>(plan.batch * radix.count);
  radix.ordered = ordered;
  plan.scan.all = ordered;
  plan.scan.all_stride = radix.count;
  take_radix(radix, plan.batch, workspace);
  if (args.candidates) {
    plan.candidate_keys = workspace.take<Key>(plan.batch * plan.candidates);
    radix.sorted = plan.candidate_keys;
    radix.sorted_stride = plan.candidates;
  }
}

// `scores_only`: the candidates are scored where they stand.
inline Plan plan(const TopkArgs& args, const Device& device, void* memory, bool scores_only = false) {
  check(args);
  Workspace workspace(memory);
  Plan plan = {};
  ScanArgs& scan = plan.scan;
  scan.corpus = corpus(args);
  scan.row_bytes = args.is_float() ? 4 * scan.corpus.dim : scan.corpus.row_bytes;
  plan.load_bytes = load_bytes(args);
  if (args.queries == 0) return plan;
  plan.lists = !scores_only && !args.candidates && args.k <= list_keys;
  scan.keys = plan.lists ? static_cast<int>(args.k) : 1;
  scan.list = list_shape(scan.keys);
  static const Terms some = {};
  if (args.kind != TopkKind::packed) scan.terms = &some;        // they take shared memory
  if (plan.lists || !args.is_float()) fit(plan, args, device);  // scores of floats take no shared memory
  choose_kernel(plan, args);
  plan_inputs(plan, args, workspace);
  if (plan.lists) {
    if (args.documents > 0) plan_splits(plan, args, args.queries, device);
    scan.partial = workspace.take<Key>(args.queries * scan.keys * scan.splits);
    plan.merge.partial = scan.partial;
    plan.merge.splits = scan.splits;
    plan.merge.keys = scan.keys;
    plan.merge.list = scan.list;
  } else if (!scores_only) {
    plan_selection(plan, args, workspace);
  }
  plan.bytes = workspace.bytes();
  return plan;
}

}  // namespace simtile::cuda::topk
