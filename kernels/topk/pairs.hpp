// Scores of named pairs, the best of named candidates, all pairs within a threshold, and norms.
#pragma once

#include "topk/codes.hpp"
#include "topk/scan.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

constexpr int64_t kPairsPerTask = 256;

// The candidates of all queries, kPairsPerTask at a time: keys, or only scores.
template <class Screen>
struct Candidates {
  const Screen& screen;
  const TopkFilter& filter;
  const int64_t* rows;
  int64_t count;
  const void* operands;
  Key* keys;     // [Q, C], or null
  void* scores;  // [Q, C], or null
  int64_t k;
  void* best_scores;
  int64_t* best_ids;

  SIMTILE_INLINE int64_t tasks_per_query() const { return (count + kPairsPerTask - 1) / kPairsPerTask; }

  static void score_task(void* context, int64_t task, int) {
    Candidates& self = *static_cast<Candidates*>(context);
    const int64_t query = task / self.tasks_per_query(), begin = task % self.tasks_per_query() * kPairsPerTask;
    const int64_t end = least<int64_t>(begin + kPairsPerTask, self.count);
    const int64_t* rows = self.rows + query * self.count;
    for (int64_t i = begin; i < end; i++) {
      if (i + 4 < end && rows[i + 4] >= 0) prefetch(document_row(self.screen.problem, rows[i + 4]));
      const bool scored = rows[i] >= 0 && is_allowed(self.filter, query, rows[i]);
      const uint32_t order = scored ? self.screen.order(self.operands, query, rows[i]) : kNoOrder;
      if (self.scores) {
        if (scored && order == kNoOrder)
          static_cast<float*>(self.scores)[query * self.count + i] = __builtin_nanf("");
        else
          write_score(self.screen.problem, self.scores, query * self.count + i, order);
      } else {
        self.keys[query * self.count + i] = order == kNoOrder ? kNoKey : make_key(self.filter, order, rows[i]);
      }
    }
  }

  static void select_task(void* context, int64_t query, int) {
    Candidates& self = *static_cast<Candidates*>(context);
    Key* keys = self.keys + query * self.count;
    sort_keys(keys, self.count);
    int64_t found = 0;
    for (int64_t i = 0; i < self.count && found < self.k && keys[i] != kNoKey; i++)
      if (found == 0 || keys[i] != keys[found - 1]) keys[found++] = keys[i];
    Topk<Screen>::write_best(self.screen.problem, keys, found, self.k, self.best_scores, self.best_ids, query);
  }
};

template <class Screen>
int64_t candidates_bytes(const TopkArgs& args, int) {
  return align_up(Screen(args.problem).operand_bytes()) +
         args.problem.queries * args.candidate_count * static_cast<int64_t>(sizeof(Key));
}

template <class Screen>
void topk_candidates(const TopkArgs& args, const Executor& executor, void* workspace) {
  const Screen screen(args.problem);
  Memory memory{static_cast<char*>(workspace)};
  void* operands = memory.take<char>(screen.operand_bytes());
  Key* keys = memory.take<Key>(args.problem.queries * args.candidate_count);
  prepare_queries(screen, operands, executor);
  Candidates<Screen> context{screen, args.filter, args.candidates, args.candidate_count, operands,
                             keys,   nullptr,     args.k,          args.scores,          args.ids};
  executor.run(args.problem.queries * context.tasks_per_query(), &Candidates<Screen>::score_task, &context);
  executor.run(args.problem.queries, &Candidates<Screen>::select_task, &context);
}

template <class Screen>
int64_t score_bytes(const TopkScoreArgs& args, int) {
  return align_up(Screen(args.problem).operand_bytes());
}

template <class Screen>
void score_rows(const TopkScoreArgs& args, const Executor& executor, void* workspace) {
  const Screen screen(args.problem);
  prepare_queries(screen, workspace, executor);
  const TopkFilter all = {nullptr, 0, nullptr};
  Candidates<Screen> context{screen, all,     args.candidates, args.candidate_count, workspace, nullptr, args.scores,
                             0,      nullptr, nullptr};
  executor.run(args.problem.queries * context.tasks_per_query(), &Candidates<Screen>::score_task, &context);
}

template <class Screen>
struct Range {
  typedef typename Screen::Bar Bar;

  const TopkRangeArgs& args;
  const Screen& screen;
  const void* operands;
  const Bar* bars;
  uint32_t threshold;
  int64_t task_documents;
  char* panels;
  int64_t panel_pitch;

  struct Found {
    Range& search;
    int worker;

    SIMTILE_INLINE void exact(int64_t query, int64_t document, uint32_t order) {
      if (order <= search.threshold && order != kNoOrder && is_allowed(search.args.filter, query, document))
        search.args.found(search.args.context, worker, query, make_key(search.args.filter, order, document));
    }
    void check(int64_t query, int64_t document) {
      if (is_allowed(search.args.filter, query, document))
        exact(query, document, search.screen.order(search.operands, query, document));
    }
    void estimate(int64_t query, int64_t document, uint32_t, float) { check(query, document); }
  };

  static void scan_task(void* context, int64_t task, int worker) {
    Range& self = *static_cast<Range*>(context);
    Found found{self, worker};
    const int64_t begin = task * self.task_documents;
    scan_allowed(self.screen, self.args.filter, self.operands, begin,
                 least<int64_t>(begin + self.task_documents, self.args.problem.documents),
                 self.panels + worker * self.panel_pitch, self.bars, found);
  }
};

template <class Screen>
int64_t range_bytes(const TopkRangeArgs& args, int threads) {
  const Screen screen(args.problem);
  return align_up(screen.operand_bytes()) +
         align_up(args.problem.queries * static_cast<int64_t>(sizeof(typename Screen::Bar))) +
         threads * align_up(screen.panel_bytes());
}

SIMTILE_INLINE uint32_t threshold_order(const TopkRangeArgs& args) {
  if (args.problem.metric != TopkMetric::hamming) return order_of(args.threshold, is_descending(args.problem.metric));
  if (!(args.threshold >= 0)) return kNoOrder;  // nothing
  return args.threshold < 4294967040.0f ? static_cast<uint32_t>(args.threshold) : kNoOrder - 1;
}

template <class Screen>
void range_all(const TopkRangeArgs& args, const Executor& executor, void* workspace) {
  typedef typename Screen::Bar Bar;
  const Screen screen(args.problem);
  const uint32_t threshold = threshold_order(args);
  if (threshold == kNoOrder) return;
  Memory memory{static_cast<char*>(workspace)};
  void* operands = memory.take<char>(screen.operand_bytes());
  Bar* bars = memory.take<Bar>(args.problem.queries);
  Range<Screen> search{args,      screen,
                       operands,  bars,
                       threshold, documents_per_task(args.problem, screen.panel_documents(), executor.threads),
                       memory.at, align_up(screen.panel_bytes())};
  prepare_queries(screen, operands, executor);
  for (int64_t q = 0; q < args.problem.queries; q++) bars[q] = screen.bar(operands, q, threshold);
  executor.run((args.problem.documents + search.task_documents - 1) / search.task_documents, &Range<Screen>::scan_task,
               &search);
}

template <class Scores>
struct Norms {
  const TopkNormArgs& args;
  Scores scores;

  static void task(void* context, int64_t task, int) {
    Norms& self = *static_cast<Norms*>(context);
    const int64_t begin = task * kPairsPerTask;
    const int64_t end = least<int64_t>(begin + kPairsPerTask, self.args.problem.documents);
    for (int64_t d = begin; d < end; d++) {
      const double squared = self.scores.squared_norm(d);
      const double norm = self.args.inverse ? (squared == 0 ? 0 : 1 / __builtin_sqrt(squared)) : squared;
      self.args.norms[d] = static_cast<float>(norm);
    }
  }
};

template <class Scores>
void norms_all(const TopkNormArgs& args, const Executor& executor) {
  Norms<Scores> context{args, Scores(args.problem)};
  executor.run((args.problem.documents + kPairsPerTask - 1) / kPairsPerTask, &Norms<Scores>::task, &context);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
