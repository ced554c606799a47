// Before any product: tokens of queries as fragments of mma, and where each item's tiles begin.
#pragma once

#include "maxsim/cuda_work.cuh"

namespace simtile::cuda::maxsim {

struct PackState {
  Column column[kMostColumns];  // of every row, then of every token
  int place[kMostColumns];      // its column, -1 for none
  int tokens;
};

// Of a row, on all lanes: whether anything in it is not zero, and the sum of its squares.
__device__ inline double row_squares(MaxsimKind kind, const void* row, int64_t dimensions, bool& any) {
  const int lane = threadIdx.x % 32;
  double sum = 0;
  bool own = false;
  for (int64_t k = lane; k < dimensions; k += 32) {
    const double x = element(kind, row, k);
    own |= x != 0;  // NaN too
    sum += x * x;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  any = __any_sync(kAllLanes, own) != 0;
  return sum;
}

// The packed row times `scale`, a power of two, has a length of 1 to 2, or less if it is next to nothing.
__device__ inline void set_scale(double squares, Column& column) {
  if (!(squares <= 1.7976931348623157e308)) {
    column.factor = NAN;
    return;
  }
  const double floor = static_cast<double>(kSmallestNorm) * kSmallestNorm, size = squares < floor ? floor : squares;
  // Of the largest rows, the scale would be a subnormal number.
  const int exponent = min((static_cast<int>(__double_as_longlong(size) >> 52) - 1023) >> 1, 126);
  const double scale = __longlong_as_double(static_cast<long long>(1023 - exponent) << 52);
  column.scale = static_cast<float>(scale);
  column.factor = rsqrtf(static_cast<float>(size * scale * scale));
}

// What turns whole products with a query's row into similarities.
__device__ inline void set_codes(const Work& work, Column& column) {
  const MaxsimArgs& args = work.args;
  column.factor = args.units ? args.units[column.row] : 1;
  column.term = args.terms ? args.terms[column.row] : 0;
  if (args.documents.kind != MaxsimKind::uint8) return;
  int sum = 0;
  for (int64_t k = threadIdx.x % 32; k < args.dimensions; k += 32)
    sum += whole(args.queries.kind, row_of(args.queries, column.row), k);
  column.shift = 128 * __reduce_add_sync(kAllLanes, sum);
}

__device__ inline int rows_in_group(const MaxsimRuns& queries, int64_t query, int64_t part) {
  const int64_t left = queries.ends[query] - queries.starts[query] - part;
  return static_cast<int>(max(min(left, static_cast<int64_t>(kMostColumns)), int64_t(0)));
}

// What is known of every row of the group, and the columns of those that are tokens: one after the other without what is masked.
__device__ inline void place_rows(const Work& work, PackState& state) {
  const MaxsimArgs& args = work.args;
  const MaxsimRuns& queries = args.queries;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t group = blockIdx.x, first = work.first_query(group);
  const int64_t last = min(first + work.queries_per_group, queries.count);
  const int64_t part = group % work.groups_per_query * kMostColumns;  // the first row of a query in this group
  const bool is_code = args.documents.kind >= MaxsimKind::int8;
  int rows = 0;
  for (int64_t q = first; q < last; q++) {
    const int64_t begin = queries.starts[q] + part;
    const int count = rows_in_group(queries, q, part);
    for (int i = warp; i < count; i += kWarps) {
      Column column = {begin + i, 1, 1, 0, 0};
      bool is_there = !queries.mask || queries.mask[begin + i];
      if (is_there && is_code) {
        set_codes(work, column);
      } else if (is_there && (args.normalize || args.pad_zero_rows)) {
        bool any;
        const double squares = row_squares(queries.kind, row_of(queries, begin + i), args.dimensions, any);
        if (args.pad_zero_rows) is_there = any;
        if (args.normalize) set_scale(squares, column);
      }
      if (lane > 0) continue;
      state.column[rows + i] = column;
      state.place[rows + i] = is_there ? 0 : -1;
    }
    rows += count;
  }
  __syncthreads();  // every row is known
  if (warp == 0) {
    int tokens = 0;
    for (int base = 0; base < rows; base += 32) {
      const bool is_there = base + lane < rows && state.place[base + lane] >= 0;
      const Column column = is_there ? state.column[base + lane] : Column{};
      const unsigned there = __ballot_sync(kAllLanes, is_there);
      const int at = tokens + __popc(there & ((1u << lane) - 1));
      __syncwarp();  // columns are written at or before where they were read
      if (is_there) {
        state.place[base + lane] = at;
        state.column[at] = column;
        work.column[group * work.columns + at] = column;
        work.factor[group * work.columns + at] = column.factor;
      }
      tokens += __popc(there);
    }
    if (lane == 0) {
      state.tokens = tokens;
      work.group_columns[group] = tokens;
    }
  }
  __syncthreads();  // and where it goes
  rows = 0;
  for (int64_t q = first; q < last; q++) {
    const int count = rows_in_group(queries, q, part);
    for (int i = threadIdx.x; i < count; i += kThreads)
      work.place[q * args.longest_query + part + i] = static_cast<int16_t>(state.place[rows + i]);
    rows += count;
  }
}

// Where the operands of mma `step` begin that a lane has in fragment word i, in elements of a row or, for codes, in bytes.
template <int kWords, int kBytes, int kProducts>
__device__ __forceinline__ int64_t operand_place(int step, int lane, int i) {
  constexpr int piece = 4 * kWords / kBytes;  // of a lane
  return static_cast<int64_t>(step / kProducts) * 4 * piece + lane % 4 * piece +
         (kWords > 1 ? (step % kProducts * 2 + i / 2) * (piece / (2 * kProducts)) : 0);
}

// Grid (groups): one block packs its tokens, with zeros behind them, as operands for documents of a format.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1) maxsim_pack(const Work work) {
  SIMTILE_DYNAMIC_SHARED(PackState, state);
  place_rows(work, *state);
  const MaxsimArgs& args = work.args;
  const int tiles = work.columns / 16, fragments = work.steps * tiles * 32;
  const auto value = [&](int column, int64_t k) {
    if (column >= state->tokens || k >= args.dimensions) return 0.0f;
    const Column& from = state->column[column];
    if (from.factor != from.factor) return NAN;
    return element(args.queries.kind, row_of(args.queries, from.row), k) * from.scale;
  };
  for (int at = threadIdx.x; at < fragments; at += kThreads) {
    const int lane = at % 32, tile = at / 32 % tiles, step = at / 32 / tiles;
    uint32_t words[4][kMostPlanes];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int column = 16 * tile + lane / 4 + i % 2 * 8;
      const int64_t k = operand_place<Format::kWords, Format::kBytes, Format::kProducts>(step, lane, i);
      split(value(column, k), value(column, k + 1), words[i]);
    }
#pragma unroll
    for (int p = 0; p < kMostPlanes; p++)
      if (p < work.planes)
        work.packed[(blockIdx.x * static_cast<int64_t>(work.planes) + p) * fragments + at] =
            make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
  }
}

// The same for codes: planes are the lower and the higher bytes of integers 256 hi + lo.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1) maxsim_pack_codes(const Work work) {
  SIMTILE_DYNAMIC_SHARED(PackState, state);
  place_rows(work, *state);
  const MaxsimArgs& args = work.args;
  const int tiles = work.columns / 16, fragments = work.steps * tiles * 32;
  const auto value = [&](int column, int64_t k) {
    if (column >= state->tokens || k >= args.dimensions) return 0;
    return whole(args.queries.kind, row_of(args.queries, state->column[column].row), k);
  };
  for (int at = threadIdx.x; at < fragments; at += kThreads) {
    const int lane = at % 32, tile = at / 32 % tiles, step = at / 32 / tiles;
    uint32_t low[4] = {}, high[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int b = 0; b < 4; b++) {
        int64_t k;
        if constexpr (is_residual<Format>) {
          k = Format::dimension(step, lane, i / 2, b);
        } else {
          k = operand_place<Format::kWords, Format::kBytes, Format::kProducts>(step, lane, i) + b;
          if constexpr (Format::kParts > 1) k = k * Format::kParts + step % Format::kProducts * 2 + i / 2;
        }
        const int z = value(16 * tile + lane / 4 + i % 2 * 8, k);
        const int lo = ((z + 128) & 255) - 128;
        low[i] |= static_cast<uint32_t>(lo & 255) << 8 * b;
        high[i] |= static_cast<uint32_t>((z - lo) / 256 & 255) << 8 * b;
      }
    uint4* const to = work.packed + blockIdx.x * static_cast<int64_t>(work.planes) * fragments + at;
    to[0] = make_uint4(low[0], low[1], low[2], low[3]);
    if (work.planes > 1) to[fragments] = make_uint4(high[0], high[1], high[2], high[3]);
  }
}

constexpr int kCountThreads = 1024;
constexpr int kCountItems = 8;  // of a thread at a time

// The sum of a value over all threads before this one, and over all.
__device__ inline int64_t sum_before(int64_t own, int64_t* sums, int64_t& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  int64_t before = own;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const long long below = __shfl_up_sync(kAllLanes, static_cast<long long>(before), apart);
    if (lane >= apart) before += below;
  }
  if (lane == 31) sums[warp] = before;
  __syncthreads();  // each warp's sum
  total = 0;
  int64_t warps_before = 0;
  for (int w = 0; w < warps; w++) {
    if (w == warp) warps_before = total;
    total += sums[w];
  }
  __syncthreads();  // sums may be written again
  return warps_before + before - own;
}

// Grid (lists): tiles before each item.
static __global__ void __launch_bounds__(kCountThreads) maxsim_count(const Work work) {
  SIMTILE_DYNAMIC_SHARED(int64_t, sums);  // [warps]
  const MaxsimRuns& documents = work.args.documents;
  const int64_t query = work.first_query(work.first_group + blockIdx.x);
  int64_t* before = work.tiles_before + blockIdx.x * (work.items + 1);
  int64_t total = 0;
  for (int64_t base = 0; base < work.items; base += static_cast<int64_t>(kCountThreads) * kCountItems) {
    const int64_t first = base + static_cast<int64_t>(threadIdx.x) * kCountItems;
    int64_t tiles[kCountItems], own = 0;
#pragma unroll
    for (int i = 0; i < kCountItems; i++) {
      const int64_t document = first + i < work.items ? work.document(query, first + i) : -1;
      const int64_t rows = document < 0 ? 0 : documents.ends[document] - documents.starts[document];
      tiles[i] = rows <= 0 ? 0 : (rows + work.tile_rows - 1) / work.tile_rows;
      own += tiles[i];
    }
    int64_t sum, at = total + sum_before(own, sums, sum);
#pragma unroll
    for (int i = 0; i < kCountItems; i++) {
      if (first + i < work.items) before[first + i] = at;
      at += tiles[i];
    }
    total += sum;
  }
  if (threadIdx.x == 0) before[work.items] = total;
}

}  // namespace simtile::cuda::maxsim
