// Every row against all rows: packed once as the tile's columns, and chunk by chunk as its rows.
#pragma once

#include "info_nce/rows.hpp"
#include "tile/amx_engine.hpp"
#include "tile/bf16.hpp"
#include "tile/float_engine.hpp"
#include "tile/parallel.hpp"
#include "tile/pieces.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// The member function `body` of `self` as so many tasks.
template <auto body, typename Self>
void each_task(const Executor& executor, int64_t tasks, Self* self) {
  executor.run(
      tasks, [](void* context, int64_t task, int worker) { (static_cast<Self*>(context)->*body)(task, worker); }, self);
}

constexpr double kNaN = __builtin_nan("");

template <typename Engine>
struct AllRows {
  using T = typename Engine::Scalar;
  using Source = typename Engine::Source;
  static constexpr int kColumns = Engine::kColumns;
  // Rows that a task compares with all: a chunk of the engine, but two tasks a thread where there are few rows.
  static constexpr int64_t kFewestRows = 48;

  const Source* data;
  int64_t stride, count, dimensions;
  int64_t panels, panel_bytes, chunk, chunks;
  char* packed;       // [panels][panel_bytes]
  T *pack, *tile;     // [panels * kColumns and the last tile's rows]: scales of RowScale
  T* square;          // |u|^2 of the rows as they are compared; NaN past the end
  double* norms;      // |row| as it is stored
  int64_t task_rows;  // of tasks that read every row once

  void plan(const void* rows_data, int64_t rows_stride, int64_t rows, int64_t columns, int threads) {
    data = static_cast<const Source*>(rows_data);
    stride = rows_stride;
    count = rows;
    dimensions = columns;
    panels = (rows + kColumns - 1) / kColumns;
    panel_bytes = round_to(Engine::panel_bytes(columns), 64);
    const int64_t shared = most(kFewestRows, (rows + 2 * threads - 1) / (2 * threads));
    const int64_t most_rows = least(Engine::kChunkRows, shared);
    chunks = (rows + most_rows - 1) / most_rows;
    chunk = Engine::round_rows((rows + chunks - 1) / chunks);
    chunks = (rows + chunk - 1) / chunk;
    task_rows = most<int64_t>(kColumns, round_to((rows + 4 * threads - 1) / (4 * threads), kColumns));
  }

  void take(Pieces& pieces) {
    packed = pieces.take<char>(panels * panel_bytes);
    pack = pieces.take<T>(padded());
    tile = pieces.take<T>(padded());
    square = pieces.take<T>(padded());
    norms = pieces.take<double>(count);
  }

  int64_t padded() const { return panels * kColumns + Engine::kRows; }
  int64_t row_tasks() const { return (count + task_rows - 1) / task_rows; }
  const Source* row(int64_t i) const { return data + i * stride; }

  void measure(int64_t i) { norms[i] = __builtin_sqrt(squared_norm<T>(row(i), dimensions)); }

  // Panels of one task of rows. `scale(i)` is the RowScale of row i; a row that is not finite never compares.
  template <typename Scale>
  void pack_task(int64_t task, const Scale& scale) {
    const int64_t last = least(count, (task + 1) * task_rows);
    for (int64_t first = task * task_rows; first < last; first += kColumns) {
      const int present = static_cast<int>(least<int64_t>(kColumns, count - first));
      for (int j = 0; j < kColumns; j++) {
        RowScale<T> of = {};
        double length = kNaN;
        if (j < present) {
          of = scale(first + j);
          length = norms[first + j] * static_cast<double>(of.pack) * static_cast<double>(of.tile);
        }
        pack[first + j] = of.pack;
        tile[first + j] = of.tile;
        square[first + j] = static_cast<T>(length * length);
      }
      Engine::pack_panel({row(first), stride, present, pack + first, tile + first}, dimensions,
                         packed + first / kColumns * panel_bytes);
    }
  }

  // `rows` rows from `first` on as the tile's rows.
  void pack_chunk(int64_t first, int64_t rows, void* out) const {
    for (int64_t r = 0; r < rows; r += Engine::kRows)
      Engine::pack_queries({row(first + r), stride, least<int64_t>(Engine::kRows, rows - r), pack + first + r, nullptr},
                           r, rows, dimensions, out);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
