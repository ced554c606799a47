// The best documents of each query, without a matrix of scores.
//
// What is found is what scoring all pairs and sorting them finds. On the AMX unit a document is met with one bfloat16 plane of both sides
// first; it is scored only if what rounding may have hidden could lift it to the k-th best so far.
#pragma once

#include "maxsim/floats.hpp"
#include "maxsim/topk_args.hpp"
#include "topk/keys.hpp"
#if defined(__AMX_BF16__)
#include "tile/amx_rows.hpp"
#endif

namespace simtile {
namespace SIMTILE_ISA {
namespace {

#if defined(__AMX_BF16__)
// Bounds from above of what a document can score.
//
// With q0 and d0 rounded, q · d <= q0 · d0 + |q - q0| |d| + |q0| |d - d0|; the sums over i of |q - q0| and |q0| are a query's, the largest
// |d| and |d - d0| a document's. Roundings of this product and of the one that counts are under (2 D + 64) 2^-23 |q| |d|, the terms that
// three planes drop included.
template <typename Document>
struct MaxsimScreen {
  typedef TileProducts<bf16> Products;
  static constexpr int kColumns = Products::kColumns;
  static constexpr int64_t kProducts = Products::kRows * kColumns;

  double* query_error;  // [Q]
  double* query_norm;   // [Q]
  char* panels;
  float* units;     // [columns]
  float* products;  // [threads][kRows][kColumns]

  void lay_out(Pieces& pieces, int64_t queries, int64_t columns, int64_t dimensions, int threads) {
    query_error = pieces.take<double>(queries);
    query_norm = pieces.take<double>(queries);
    panels = pieces.take<char>(columns / kColumns * Products::panel_bytes(dimensions));
    units = pieces.take<float>(columns);
    products = pieces.take<float>(threads * kProducts);
  }

  template <class Scores>
  void pack(Scores& scores, int64_t group) {
    scores.template pack<Products>(group, panels);
    const TokenRows<float> rows{scores.args.queries, scores.args.dimensions, false};
    const int64_t dimensions = scores.args.dimensions;
    const double roundings = static_cast<double>(2 * dimensions + 64) * 0x1p-23;
    for (int64_t q = scores.group_query[group]; q < scores.group_query[group + 1]; q++) {
      query_error[q] = query_norm[q] = 0;
      for (int64_t t = 0; t < scores.query_tokens[q]; t++) {
        const int64_t column = scores.query_column[q] + t;
        const float* row = rows.row(scores.args.queries.starts[q] + scores.column_row[column]);
        const float unit = units[column] = scores.units[column];
        double square = 0, error = 0;
        for (int64_t k = 0; k < dimensions; k++) {
          const double x = row[k];
          const double left = x - static_cast<double>(widen(bf16{nearest_bf16(row[k] / unit)})) * unit;
          square += x * x;
          error += left * left;
        }
        const double norm = __builtin_sqrt(square);
        query_error[q] += __builtin_sqrt(error) + roundings * norm;
        query_norm[q] += norm + __builtin_sqrt(error);
      }
    }
  }

  // The largest |d|^2 and |d - d0|^2 of a document's tokens; NaN stays.
  struct Norms {
    float square = 0, error = 0;
    SIMTILE_INLINE void take(float new_square, float new_error) {
      if (!(new_square <= square) && square == square) square = new_square;
      if (!(new_error <= error) && error == error) error = new_error;
    }
  };

  // The rounded products' maxima in the worker's `best`. Returns the number of the document's tokens.
  template <class Scores>
  int64_t meet(Scores& scores, int64_t group, int64_t document, int worker, Norms& norms) const {
    const MaxsimArgs& args = scores.args;
    const TokenRows<Document> rows{args.documents, args.dimensions, args.pad_zero_rows};
    const int64_t bytes = Products::panel_bytes(args.dimensions), pitch = Products::row_pitch(args.dimensions);
    const int64_t count = (scores.group_column[group + 1] - scores.group_column[group]) / kColumns;
    const char* const own_panels = panels + scores.group_column[group] / kColumns * bytes;
    Best<float>* const best = scores.best_of(worker);
    uint16_t* const copy = reinterpret_cast<uint16_t*>(scores.copies_of(worker));
    float* const out = products + worker * kProducts;
    for (int64_t p = 0; p < count; p++) best[p].clear();
    int64_t met = 0;
    const int64_t end = args.documents.ends[document];
    for (int64_t r = args.documents.starts[document]; r < end;) {
      int64_t tokens = 0;
      for (; r < end && tokens < kChunkTokens; r++) {
        if (!rows.is_there(r)) continue;
        float error;
        const float square = round_row(rows.row(r), args.dimensions, kBytesAhead, copy + tokens++ * pitch, error);
        norms.take(square, error);
      }
      met += tokens;
      for (int64_t p = 0; p < count; p++)
        for (int64_t row = 0; row < tokens; row += Products::kRows) {
          const int height = static_cast<int>(least<int64_t>(Products::kRows, tokens - row));
          Products::multiply({reinterpret_cast<const bf16*>(copy) + row * pitch, pitch, height, own_panels + p * bytes,
                              1, args.dimensions, nullptr, 0, nullptr, nullptr, nullptr, nullptr},
                             out);
          best[p].template take<Keep::value>(out, height, nullptr, 0);
        }
    }
    return met;
  }

  // Of the sum over a query's tokens; `sum` is that of the rounded products.
  double bound(const MaxsimArgs& args, int64_t q, double sum, const Norms& norms) const {
    // Squares below the smallest float are lost, products below the smallest normal one too.
    const double lost = static_cast<double>(args.dimensions) * 0x1p-140;
    const double norm = __builtin_sqrt(static_cast<double>(norms.square) * 1.001 + lost);
    const double error = __builtin_sqrt(static_cast<double>(norms.error) * 1.001 + lost);
    return sum + norm * query_error[q] + error * query_norm[q] +
           static_cast<double>(args.dimensions) * 0x1p-120 * query_norm[q];
  }
};
#endif

template <class Scores>
struct MaxsimTopk {
  const MaxsimTopkArgs& topk;
  Scores scores;
  int threads;
  int64_t kept;     // k, or as many as there are
  int64_t* counts;  // [Q][threads]
  Key* keys;        // [Q][threads][kept]: heaps, the worst first
#if defined(__AMX_BF16__)
  MaxsimScreen<typename Scores::Source> screen;
#endif

  MaxsimTopk(const MaxsimTopkArgs& args, int workers)
      : topk(args),
        scores(args.pairs, workers),
        threads(workers),
        kept(most<int64_t>(least(args.k, args.pairs.candidate_count), 1)) {}

  bool is_screened() const {
#if defined(__AMX_BF16__)
    return topk.pairs.temperature == 0 && !topk.pairs.normalize;
#else
    return false;
#endif
  }

  int64_t lay_out(void* memory) {
    const int64_t of_scores = round_to(scores.lay_out(memory), 64), queries = topk.pairs.queries.count;
    Pieces pieces(memory ? static_cast<char*>(memory) + of_scores : nullptr);
    counts = pieces.take<int64_t>(queries * threads);
    keys = pieces.take<Key>(queries * threads * kept);
#if defined(__AMX_BF16__)
    screen.lay_out(pieces, queries, scores.columns, topk.pairs.dimensions, threads);
#endif
    return of_scores + pieces.used();
  }

  SIMTILE_INLINE Key* heap(int64_t query, int worker) const { return keys + (query * threads + worker) * kept; }
  SIMTILE_INLINE bool is_allowed(int64_t query, int64_t document) const {
    return !topk.allow || topk.allow[query * topk.allow_stride + document];
  }
  // What a key has to be below.
  SIMTILE_INLINE Key bar(int64_t query, int worker) const {
    return counts[query * threads + worker] < kept ? kNoKey : heap(query, worker)[0];
  }

  void keep(int64_t query, int64_t document, double score, int worker) const {
    const uint32_t order = order_of(static_cast<float>(score), true);
    const Key key = static_cast<Key>(order) << 32 | static_cast<uint32_t>(document);
    if (order == kNoOrder || key >= bar(query, worker)) return;
    Key* const own = heap(query, worker);
    int64_t& count = counts[query * threads + worker];
    if (topk.pairs.candidates)
      for (int64_t i = 0; i < count; i++)
        if (own[i] == key) return;  // named twice
    if (count == kept) {
      own[0] = key;
      return sift_down(own, 0, count);
    }
    int64_t at = count++;
    for (; at > 0 && own[(at - 1) / 2] < key; at = (at - 1) / 2) own[at] = own[(at - 1) / 2];
    own[at] = key;
  }

#if defined(__AMX_BF16__)
  // Whether the document that the screen has met may be among the best k of the query.
  bool may_be_found(int64_t group, int64_t q, int64_t tokens, int worker,
                    const typename MaxsimScreen<typename Scores::Source>::Norms& norms) const {
    const Key key = bar(q, worker);
    if (key == kNoKey || tokens == 0) return true;
    double sum = 0;
    const Best<float>* const best = scores.best_of(worker);
    for (int64_t t = 0; t < scores.query_tokens[q]; t++) {
      const int64_t column = scores.query_column[q] + t, within = column - scores.group_column[group];
      sum += static_cast<double>(best[within / Scores::kColumns].value[within % Scores::kColumns]) *
             static_cast<double>(screen.units[column]);
    }
    double bound = scores.finish(q, screen.bound(topk.pairs, q, sum, norms), tokens);
    bound += __builtin_fabs(bound) * 0x1p-22;  // the score is rounded to a float
    const double worst = static_cast<double>(score_of(static_cast<uint32_t>(key >> 32), true));
    return !(bound < worst);
  }
#endif

  template <Keep how>
  void meet(int64_t group, int64_t candidate, int worker) {
    const int64_t first_query = scores.group_query[group], query_end = scores.group_query[group + 1];
    const MaxsimArgs& args = topk.pairs;
    const int64_t document =
        args.candidates ? args.candidates[first_query * args.candidate_count + candidate] : candidate;
    if (document < 0) return;
    // The queries that want the score lie between these.
    int64_t first = query_end, last = first_query;
    for (int64_t q = first_query; q < query_end; q++)
      if (is_allowed(q, document)) {
        first = least(first, q);
        last = q;
      }
    if (first == query_end) return;
#if defined(__AMX_BF16__)
    bool has_bars = is_screened();
    for (int64_t q = first; has_bars && q <= last; q++) has_bars = !is_allowed(q, document) || bar(q, worker) != kNoKey;
    if (has_bars) {
      typename MaxsimScreen<typename Scores::Source>::Norms norms;
      const int64_t tokens = screen.meet(scores, group, document, worker, norms);
      int64_t wanted_first = query_end, wanted_last = first_query;
      for (int64_t q = first; q <= last; q++)
        if (is_allowed(q, document) && may_be_found(group, q, tokens, worker, norms)) {
          wanted_first = least(wanted_first, q);
          wanted_last = q;
        }
      if (wanted_first == query_end) return;
      first = wanted_first;
      last = wanted_last;
    }
#endif
    const int64_t column = scores.group_column[group], unit = Scores::kColumns;
    const int64_t first_panel = (scores.query_column[first] - column) / unit;
    const int64_t end_column = scores.query_column[last] + scores.query_tokens[last] - column;
    const int64_t panel_end = most((end_column + unit - 1) / unit, first_panel);
    const int64_t tokens = scores.template meet_panels<how>(group, first_panel, panel_end, document, worker);
    for (int64_t q = first; q <= last; q++)
      if (is_allowed(q, document))
        keep(q, document, scores.finish(q, scores.template sum_of<how>(group, q, worker), tokens), worker);
  }

  static void pack_task(void* context, int64_t group, int worker) {
    MaxsimTopk& self = *static_cast<MaxsimTopk*>(context);
#if defined(__AMX_BF16__)
    if (self.is_screened()) self.screen.pack(self.scores, group);
#endif
    Scores::pack_task(&self.scores, group, worker);
  }

  static void meet_task(void* context, int64_t task, int worker) {
    MaxsimTopk& self = *static_cast<MaxsimTopk*>(context);
#if defined(__AMX_BF16__)
    const TileScope scope;
#endif
    const int64_t tasks = self.scores.tasks_of_group(), group = task / tasks;
    const int64_t first = task % tasks * self.scores.documents_per_task;
    const int64_t end = least(first + self.scores.documents_per_task, self.topk.pairs.candidate_count);
    for (int64_t c = first; c < end; c++) {
      if (self.topk.pairs.temperature > 0)
        self.template meet<Keep::sums>(group, c, worker);
      else
        self.template meet<Keep::value>(group, c, worker);
    }
  }

  // The workers' finds become one row.
  static void merge_task(void* context, int64_t query, int) {
    MaxsimTopk& self = *static_cast<MaxsimTopk*>(context);
    const int64_t k = self.topk.k;
    Key* const all = self.heap(query, 0);
    int64_t count = 0;
    for (int worker = 0; worker < self.threads; worker++) {
      const Key* const own = self.heap(query, worker);
      for (int64_t i = 0; i < self.counts[query * self.threads + worker]; i++) all[count++] = own[i];
    }
    sort_keys(all, count);
    int64_t found = 0;
    for (int64_t i = 0; i < count && found < k; i++) {
      if (i > 0 && all[i] == all[i - 1]) continue;
      self.topk.scores[query * k + found] = score_of(static_cast<uint32_t>(all[i] >> 32), true);
      self.topk.ids[query * k + found++] = static_cast<int64_t>(all[i] & 0xffffffffu);
    }
    for (; found < k; found++) {
      self.topk.scores[query * k + found] = -__builtin_inff();
      self.topk.ids[query * k + found] = -1;
    }
  }

  static int64_t workspace_bytes(const MaxsimTopkArgs& args, int threads) {
    return MaxsimTopk(args, threads).lay_out(nullptr);
  }

  static void run(const MaxsimTopkArgs& args, const Executor& executor, void* workspace) {
    if (args.pairs.queries.count == 0) return;
    MaxsimTopk self(args, executor.threads);
    self.lay_out(workspace);
    self.scores.plan();
    for (int64_t i = 0; i < args.pairs.queries.count * executor.threads; i++) self.counts[i] = 0;
    executor.run(self.scores.groups, pack_task, &self);
    executor.run(self.scores.groups * self.scores.tasks_of_group(), meet_task, &self);
    executor.run(args.pairs.queries.count, merge_task, &self);
  }
};

template <typename Document>
struct MaxsimTopkOf {
  typedef MaxsimOf<float, Document> Of;
  typedef MaxsimTopk<typename Of::Plain> Plain;
  typedef MaxsimTopk<typename Of::Fast> Fast;

  static int64_t workspace_bytes(const MaxsimTopkArgs& args, int threads) {
    return Of::is_fast(args.pairs) ? Fast::workspace_bytes(args, threads) : Plain::workspace_bytes(args, threads);
  }
  static void run(const MaxsimTopkArgs& args, const Executor& executor, void* workspace) {
    Of::is_fast(args.pairs) ? Fast::run(args, executor, workspace) : Plain::run(args, executor, workspace);
  }
};

template <typename Document>
constexpr MaxsimTopkVariant maxsim_topk_variant = {MaxsimTopkOf<Document>::workspace_bytes,
                                                   MaxsimTopkOf<Document>::run};

constexpr MaxsimKernel maxsim_kernel = {
    {maxsim_variant<float, float>, maxsim_variant<double, double>, maxsim_variant<float, bf16>,
     maxsim_variant<float, f16>},
    {maxsim_topk_variant<float>, {nullptr, nullptr}, maxsim_topk_variant<bf16>, maxsim_topk_variant<f16>}};

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
