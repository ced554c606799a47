// MaxSim on the CPU: a score is Σ over a query's tokens of the largest product with a document's tokens.
//
// Queries' tokens are packed once into panels, one after the other without what is masked; a document's rows are multiplied where they
// lie, or copied a chunk at a time where they have to be widened, divided by their lengths or picked from between masked ones. Products
// stay in L1 until their maximum is taken.
#pragma once

#include "maxsim/products.hpp"
#include "maxsim/tokens.hpp"
#include "tile/pieces.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int64_t kChunkTokens = 96;               // of a document: with 128 dimensions 48 KiB
constexpr int64_t kCopyBytes = 16384;              // of rows that one panel meets: they stay in L1 with it
constexpr int64_t kGroupBytes = int64_t{1} << 19;  // of panels that all documents of a task meet: they stay in L2
constexpr int64_t kTasksPerThread = 8;             // ragged documents, even ends

template <typename Compute, typename Document, class Products>
struct Maxsim {
  typedef typename Products::Plain Plain;
  typedef typename Products::Query Query;
  typedef typename Products::Row Row;
  typedef Document Source;
  static constexpr int kColumns = Tile<Compute>::kColumns;

  const MaxsimArgs& args;
  int threads;

  // Groups of queries whose tokens share panels.
  int64_t columns = 0;    // at most; whole panels
  int64_t* group_query;   // [groups + 1] the first query
  int64_t* group_column;  // [groups + 1] and the first column
  int64_t groups = 0;
  int64_t* query_column;  // [Q + 1]
  int64_t* query_tokens;  // [Q]
  int64_t* rows_before;   // [Q] rows of the queries before
  int32_t* column_row;    // [columns] of its query, from the start
  char* panels;           // [columns / kColumns], as Products and, where they are checked, as Plain have them
  char* plain_panels;
  Compute* units;     // [columns] what products are multiplied with
  int* group_planes;  // [groups]
  float* terms;       // [columns] of codes
  // Of residuals: products of centroids, of those that documents' tokens have.
  int32_t* centroid_slot;  // [centroids] where one is in a table, -1: nowhere
  int32_t* slot_centroid;  // [slot_capacity]
  int64_t slots = 0;
  int64_t slot_capacity = 0;
  float* values;        // [columns / kColumns][D][kColumns] of query tokens
  float* tables;        // [columns / kColumns][slot_capacity][kColumns]
  Best<Compute>* best;  // [threads][columns / kColumns]
  Compute* products;    // [threads][most rows of a tile][kColumns]
  char* copies;         // [threads][copy_bytes]
  int32_t* indices;     // [threads][kChunkTokens]
  int64_t documents_per_task;

  const typename Products::Values code_values;

  Maxsim(const MaxsimArgs& given, int workers) : args(given), threads(workers), code_values(given.codes) {}

  static constexpr int64_t kProductRows = Products::kRows > Plain::kRows ? Products::kRows : Plain::kRows;
  // A chunk as Products or Plain want it.
  int64_t copy_bytes() const {
    const int64_t d = args.dimensions;
    return kChunkTokens * most<int64_t>(Products::row_pitch(d) * static_cast<int64_t>(sizeof(Row)),
                                        Plain::row_pitch(d) * static_cast<int64_t>(sizeof(Compute)));
  }

  int64_t lay_out(void* memory) {
    Pieces pieces(memory);
    const int64_t queries = args.queries.count;
    columns = round_to(rows_of(args.queries), kColumns) + (queries + 1) * kColumns;
    group_query = pieces.take<int64_t>(queries + 2);
    group_column = pieces.take<int64_t>(queries + 2);
    query_column = pieces.take<int64_t>(queries + 1);
    query_tokens = pieces.take<int64_t>(queries + 1);
    rows_before = pieces.take<int64_t>(queries + 1);
    column_row = pieces.take<int32_t>(columns);
    panels = pieces.take<char>(columns / kColumns * Products::panel_bytes(args.dimensions));
    plain_panels =
        Products::kChecked ? pieces.take<char>(columns / kColumns * Plain::panel_bytes(args.dimensions)) : panels;
    units = pieces.take<Compute>(columns);
    group_planes = pieces.take<int>(queries + 1);
    terms = pieces.take<float>(Products::kCodes ? columns : 0);
    slot_capacity = least(args.codes.centroid_count, rows_of(args.documents));
    centroid_slot = pieces.take<int32_t>(args.codes.centroid_count);
    slot_centroid = pieces.take<int32_t>(slot_capacity);
    values = pieces.take<float>(slot_capacity ? columns * args.dimensions : 0);
    tables = pieces.take<float>(columns * slot_capacity);
    best = pieces.take<Best<Compute>>(threads * (columns / kColumns));
    products = pieces.take<Compute>(threads * kProductRows * kColumns);
    copies = pieces.take<char>(threads * round_to(copy_bytes(), 64));
    indices = pieces.take<int32_t>(threads * kChunkTokens);
    return pieces.used();
  }

  // Those that are met: all, or the candidates, some of which may be met again and again.
  template <class Visit>
  void each_document(const Visit& visit) const {
    const int64_t* const chosen = args.candidates;
    const int64_t count = chosen ? args.queries.count * args.candidate_count : args.documents.count;
    for (int64_t i = 0; i < count; i++) {
      const int64_t document = chosen ? chosen[i] : i;
      if (document >= 0) visit(document);
    }
  }

  // Columns and groups. Without candidates a group takes queries until its panels fill kGroupBytes.
  void plan() {
    const TokenRows<Query> rows{args.queries, args.dimensions, args.pad_zero_rows};
    const int64_t group_columns = most<int64_t>(
        kGroupBytes / (args.dimensions * static_cast<int64_t>(sizeof(Compute))) / kColumns * kColumns, kColumns);
    int64_t column = 0, before = 0;
    group_query[0] = group_column[0] = 0;
    for (int64_t q = 0; q < args.queries.count; q++) {
      const int64_t start = args.queries.starts[q], end = args.queries.ends[q];
      const bool full = column - group_column[groups] + (end - start) > group_columns;
      if (q > group_query[groups] && (args.candidates || full)) {
        column = round_to(column, kColumns);
        groups++;
        group_query[groups] = q;
        group_column[groups] = column;
      }
      query_column[q] = column;
      rows_before[q] = before;
      before += end - start;
      for (int64_t r = start; r < end; r++)
        if (rows.is_there(r)) column_row[column++] = static_cast<int32_t>(r - start);
      query_tokens[q] = column - query_column[q];
    }
    if (args.queries.count > 0) groups++;
    group_query[groups] = args.queries.count;
    group_column[groups] = round_to(column, kColumns);
    const int64_t wanted = most<int64_t>(threads * kTasksPerThread / most<int64_t>(groups, 1), 1);
    int64_t longest = 1;
    each_document([&](int64_t d) { longest = most(longest, args.documents.ends[d] - args.documents.starts[d]); });
    const int64_t columns_met = least(group_columns, round_to(most<int64_t>(column, 1), kColumns));
    const int64_t allowed = kTaskProducts / (columns_met * args.dimensions) / longest;
    documents_per_task = most<int64_t>(least((args.candidate_count + wanted - 1) / wanted, allowed), 1);
  }

  template <class P>
  int pack(int64_t group, char* all) {
    const TokenRows<Query> rows{args.queries, args.dimensions, false};
    const int64_t bytes = P::panel_bytes(args.dimensions);
    __builtin_memset(all + group_column[group] / kColumns * bytes, 0,
                     static_cast<size_t>((group_column[group + 1] - group_column[group]) / kColumns * bytes));
    int planes = 1;
    for (int64_t q = group_query[group]; q < group_query[group + 1]; q++) {
      for (int64_t t = 0; t < query_tokens[q]; t++) {
        const int64_t column = query_column[q] + t;
        const int64_t row = args.queries.starts[q] + column_row[column];
        double scale = 1;
        if constexpr (!P::kCodes)
          if (args.normalize) scale = inverse_norm(squared_norm<Compute>(rows.row(row), args.dimensions));
        const PackedToken token =
            P::put(all + column / kColumns * bytes, args.dimensions, column % kColumns, rows.row(row), scale);
        planes = most(planes, token.planes);
        units[column] = static_cast<Compute>(token.unit);
        if (P::kCodes) take_terms(column, row);
      }
    }
    return planes;
  }

  void take_terms(int64_t column, int64_t row) {
    const MaxsimCodes& codes = args.codes;
    units[column] = codes.units[row];
    terms[column] = codes.terms ? codes.terms[row] : 0;
    if (slots == 0) return;
    float* const to = values + column / kColumns * args.dimensions * kColumns + column % kColumns;
    const float* const from = codes.query_values + row * args.dimensions;
    for (int64_t k = 0; k < args.dimensions; k++) to[k * kColumns] = from[k];
  }

  void find_centroids() {
    for (int64_t c = 0; c < args.codes.centroid_count; c++) centroid_slot[c] = -1;
    if (slot_capacity == 0) return;
    each_document([&](int64_t document) {
      for (int64_t r = args.documents.starts[document]; r < args.documents.ends[document]; r++) {
        const int32_t centroid = args.codes.centroids[r];
        if (centroid_slot[centroid] >= 0) continue;
        centroid_slot[centroid] = static_cast<int32_t>(slots);
        slot_centroid[slots++] = centroid;
      }
    });
  }

  static constexpr int64_t kSlotsPerTask = 16 * Tile<float>::kRows;
  int64_t tasks_of_table() const { return (slots + kSlotsPerTask - 1) / kSlotsPerTask; }

  // Some rows of a panel's table.
  static void table_task(void* context, int64_t task, int worker) {
    Maxsim& self = *static_cast<Maxsim*>(context);
    const int64_t d = self.args.dimensions, panel = task / self.tasks_of_table();
    float* const rows = reinterpret_cast<float*>(self.copies + worker * round_to(self.copy_bytes(), 64));
    const float* const values = self.values + panel * d * kColumns;
    float* const table = self.tables + panel * self.slot_capacity * kColumns;
    int64_t slot = task % self.tasks_of_table() * kSlotsPerTask;
    const int64_t end = least(slot + kSlotsPerTask, self.slots);
    while (slot < end) {
      const int64_t count = least<int64_t>(Tile<float>::kRows, end - slot);
      for (int64_t i = 0; i < count; i++)
        __builtin_memcpy(rows + i * d, self.args.codes.centroid_rows + self.slot_centroid[slot + i] * d,
                         static_cast<size_t>(d) * sizeof(float));
      multiply_some_tokens<ValueStep<float>>(static_cast<int>(count), rows, d, values, d, false,
                                             table + slot * kColumns);
      slot += count;
    }
  }

  // The document's rows from `r` on that are tokens, at most kChunkTokens: as they lie, or copied.
  template <class P>
  struct Chunk {
    const typename P::Row* rows;
    int64_t stride;  // elements
    int64_t count;
    const int32_t* index;
  };

  // At most so many. Sums of a smooth maximum are the same for any number of panels.
  template <Keep keep, class P>
  int64_t chunk_tokens(int64_t panel_count) const {
    const bool copied = !P::kCodes && (args.normalize || !P::in_place(args.dimensions));
    if (!copied || panel_count > 1 || keep == Keep::sums) return kChunkTokens;
    const int64_t row_bytes = P::row_pitch(args.dimensions) * static_cast<int64_t>(sizeof(typename P::Row));
    return least(most<int64_t>(kCopyBytes / row_bytes / P::kRows, 1) * P::kRows, kChunkTokens);
  }

  template <class P>
  Chunk<P> next_chunk(const MaxsimSide& side, int64_t start, int64_t end, int64_t& r, int64_t limit, int worker) {
    typedef typename P::Row Stored;
    const TokenRows<Document> rows{side, args.dimensions, args.pad_zero_rows};
    int32_t* const index = indices + worker * kChunkTokens;
    int64_t count = 0;
    // Chunks of nearly one size: no short one at the end.
    const int64_t chunks = (end - r + limit - 1) / limit;
    const int64_t wanted = round_to((end - r + chunks - 1) / chunks, P::kRowUnit);
    for (; r < end && count < wanted; r++)
      if (rows.is_there(r)) index[count++] = static_cast<int32_t>(r - start);
    const bool adjacent = count >= P::kRowUnit && index[count - 1] - index[0] == count - 1;
    if (P::in_place(args.dimensions) && !args.normalize && adjacent) {
      // What is left is copied next.
      const int64_t whole = count / P::kRowUnit * P::kRowUnit;
      if (whole < count) r = start + index[whole];
      const void* first = rows.row(start + index[0]);
      return {static_cast<const Stored*>(first), args.documents.stride / static_cast<int64_t>(sizeof(Stored)), whole,
              index};
    }
    const int64_t pitch = P::row_pitch(args.dimensions);
    Stored* const copy = reinterpret_cast<Stored*>(copies_of(worker));
    for (int64_t i = 0; i < count; i++) {
      const Document* row = rows.row(start + index[i]);
      if constexpr (P::kCodes) {
        P::copy(row, args.dimensions, code_values, copy + i * pitch);
      } else {
        const double scale = args.normalize ? inverse_norm(squared_norm<Compute>(row, args.dimensions)) : 1;
        P::copy(row, args.dimensions, scale, copy + i * pitch);
      }
    }
    return {copy, pitch, count, index};
  }

  // The best of a document for some panels of a group. Returns the number of the document's tokens.
  template <Keep keep, class P>
  int64_t meet(int64_t group, const char* all, int64_t first_panel, int64_t panel_end, int64_t document, int worker) {
    MaxsimSide side = args.documents;
    if (side.matrices) side.data = side.matrices[document];
    const int64_t start = side.starts[document], end = side.ends[document];
    const int64_t bytes = P::panel_bytes(args.dimensions);
    const char* const group_panels = all + group_column[group] / kColumns * bytes;
    Best<Compute>* const own = best_of(worker);
    Compute* const out = products + worker * kProductRows * kColumns;
    const Compute inverse_temperature = static_cast<Compute>(keep == Keep::sums ? 1 / args.temperature : 0);
    for (int64_t p = first_panel; p < panel_end; p++) own[p].clear();
    const int64_t limit = chunk_tokens<keep, P>(panel_end - first_panel);
    int64_t met = 0;
    for (int64_t r = start; r < end;) {
      const Chunk<P> chunk = next_chunk<P>(side, start, end, r, limit, worker);
      met += chunk.count;
      const int64_t row_units = (chunk.count + P::kRowUnit - 1) / P::kRowUnit;
      constexpr int64_t kUnits = P::kRows / P::kRowUnit;
      const int64_t tiles = (row_units + kUnits - 1) / kUnits;
      for (int64_t p = first_panel; p < panel_end; p++) {
        int64_t row = 0;
        for (int64_t tile = 0; tile < tiles; tile++) {
          // Tiles of nearly one height.
          const int64_t next = least(row_units * (tile + 1) / tiles * P::kRowUnit, chunk.count);
          const int height = static_cast<int>(next - row);
          P::multiply(
              {chunk.rows + row * chunk.stride, chunk.stride, height, group_panels + p * bytes, group_planes[group],
               args.dimensions, &args.codes, start, chunk.index + row, terms + group_column[group] + p * kColumns,
               centroid_slot, tables + (group_column[group] + p * kColumns) * slot_capacity},
              out);
          own[p].template take<keep>(out, height, chunk.index + row, inverse_temperature);
          row = next;
        }
      }
    }
    return met;
  }

  static void replace_nan(Best<Compute>& panel, const Best<Compute>& other) {
    for (int v = 0; v < Best<Compute>::kVectors; v++) {
      const Vector<Compute> x = load<Compute>(panel.value + v * Simd<Compute>::kLanes);
      store<Compute>(panel.value + v * Simd<Compute>::kLanes,
                     x == x ? x : load<Compute>(other.value + v * Simd<Compute>::kLanes));
      panel.argmax[v] = x == x ? panel.argmax[v] : other.argmax[v];
    }
  }

  Best<Compute>* best_of(int worker) const { return best + worker * (columns / kColumns); }
  char* copies_of(int worker) const { return copies + worker * round_to(copy_bytes(), 64); }

  // The best of a document for some panels of a group, by what multiplies each product. Returns the number of the document's tokens.
  template <Keep keep>
  int64_t meet_panels(int64_t group, int64_t first_panel, int64_t panel_end, int64_t document, int worker) {
    const int64_t met = meet<keep, Products>(group, panels, first_panel, panel_end, document, worker);
    if constexpr (Products::kChecked || Products::kCodes) {
      for (int64_t p = first_panel; p < panel_end; p++) {
        Best<Compute>& panel = best_of(worker)[p];
        Best<Compute> checked = panel;
        checked.multiply(units + group_column[group] + p * kColumns);
        if (Products::kChecked && panel.has_nan()) {
          meet<keep, Plain>(group, plain_panels, p, p + 1, document, worker);
          // Whom a token shares its panel with does not change what it scores.
          replace_nan(checked, panel);
        }
        panel = checked;
      }
    }
    return met;
  }

  // The maximum of a column, or its smooth bound: of infinities and NaN themselves.
  template <Keep keep>
  double value_of(const Best<Compute>& panel, int64_t column) const {
    const double largest = panel.value[column];
    if (keep != Keep::sums || largest - largest != 0) return largest;
    return largest + args.temperature * __builtin_log(static_cast<double>(panel.sum[column]));
  }

  // A score of the sum over the query's tokens.
  double finish(int64_t q, double sum, int64_t document_tokens) const {
    if (document_tokens == 0) return args.empty_score;
    return args.length_normalize ? sum / static_cast<double>(most<int64_t>(query_tokens[q], 1)) : sum;
  }

  // The sum over a query's tokens of what the worker has met.
  template <Keep keep>
  double sum_of(int64_t group, int64_t q, int worker) const {
    double sum = 0;
    for (int64_t t = 0; t < query_tokens[q]; t++) {
      const int64_t within = query_column[q] + t - group_column[group];
      sum += value_of<keep>(best_of(worker)[within / kColumns], within % kColumns);
    }
    return sum;
  }

  template <Keep keep>
  void score(int64_t group, int64_t candidate, int worker) {
    const int64_t first_query = group_query[group];
    const int64_t document =
        args.candidates ? args.candidates[first_query * args.candidate_count + candidate] : candidate;
    const int64_t panel_count = (group_column[group + 1] - group_column[group]) / kColumns;
    const int64_t tokens = document < 0 ? 0 : meet_panels<keep>(group, 0, panel_count, document, worker);
    const Best<Compute>* const own = best_of(worker);
    for (int64_t q = first_query; q < group_query[group + 1]; q++) {
      const int64_t span = args.queries.ends[q] - args.queries.starts[q];
      const int64_t at = args.candidate_count * rows_before[q] + candidate * span;
      int32_t* const argmax = args.argmax ? args.argmax + at : nullptr;
      Compute* const values = args.token_scores ? static_cast<Compute*>(args.token_scores) + at : nullptr;
      for (int64_t i = 0; argmax && i < span; i++) argmax[i] = -1;
      for (int64_t i = 0; values && i < span; i++) values[i] = 0;
      double sum = 0;
      for (int64_t t = 0; tokens > 0 && t < query_tokens[q]; t++) {
        const int64_t column = query_column[q] + t, within = column - group_column[group];
        const Best<Compute>& panel = own[within / kColumns];
        const int64_t c = within % kColumns;
        const double value = value_of<keep>(panel, c);
        sum += value;
        const int32_t row = column_row[column];
        if (values) values[row] = static_cast<Compute>(value);
        if (argmax)
          argmax[row] = static_cast<int32_t>(panel.argmax[c / Simd<Compute>::kLanes][c % Simd<Compute>::kLanes]);
      }
      const double score = finish(q, sum, tokens);
      static_cast<Compute*>(args.scores)[q * args.candidate_count + candidate] = static_cast<Compute>(score);
    }
  }

  int64_t tasks_of_group() const { return (args.candidate_count + documents_per_task - 1) / documents_per_task; }

  static void pack_task(void* context, int64_t task, int) {
    Maxsim& self = *static_cast<Maxsim*>(context);
    if constexpr (Products::kChecked) self.template pack<Plain>(task, self.plain_panels);
    self.group_planes[task] = self.template pack<Products>(task, self.panels);
  }

  static void score_task(void* context, int64_t task, int worker) {
    Maxsim& self = *static_cast<Maxsim*>(context);
    [[maybe_unused]] const typename Products::Scope scope;
    const int64_t group = task / self.tasks_of_group();
    const int64_t first = task % self.tasks_of_group() * self.documents_per_task;
    const int64_t end = least(first + self.documents_per_task, self.args.candidate_count);
    for (int64_t c = first; c < end; c++) {
      if (self.args.temperature > 0)
        self.score<Keep::sums>(group, c, worker);
      else if (self.args.argmax)
        self.score<Keep::argmax>(group, c, worker);
      else
        self.score<Keep::value>(group, c, worker);
    }
  }

  static int64_t workspace_bytes(const MaxsimArgs& args, int threads) { return Maxsim(args, threads).lay_out(nullptr); }

  static void run(const MaxsimArgs& args, const Executor& executor, void* workspace) {
    if (args.queries.count == 0 || args.candidate_count == 0) return;
    Maxsim self(args, executor.threads);
    self.lay_out(workspace);
    self.plan();
    if constexpr (Products::kCodes) {
      __builtin_memset(self.units, 0, static_cast<size_t>(self.columns) * sizeof(Compute));
      __builtin_memset(self.terms, 0, static_cast<size_t>(self.columns) * sizeof(float));
      if (self.slot_capacity)
        __builtin_memset(self.values, 0, static_cast<size_t>(self.columns * args.dimensions) * sizeof(float));
      self.find_centroids();
    }
    executor.run(self.groups, pack_task, &self);
    if constexpr (Products::kCodes)
      executor.run(self.group_column[self.groups] / kColumns * self.tasks_of_table(), table_task, &self);
    executor.run(self.groups * self.tasks_of_group(), score_task, &self);
  }
};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
