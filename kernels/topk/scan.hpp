// Search around any screen: which documents are looked at, what is kept of them, and how the workers' finds become one result.
//
// A screen scores many pairs fast. It knows a pair's exact order at once, or proves that a pair cannot be among the best; what is left is
// computed by the definition (scores.hpp, codes.hpp). Results therefore depend neither on the screen nor on who scans what.
//
//   struct Screen : Scores {                       // of scores.hpp or codes.hpp
//     explicit Screen(const TopkProblem&);
//     static constexpr int64_t kQueryGroup;        // queries that are prepared by one task
//     int64_t operand_bytes() const;               // for all queries, Scores' first
//     void prepare(void* operands, int64_t begin, int64_t end) const;    // begin is a multiple of kQueryGroup
//     typedef Bar;                                 // what pairs of one query are compared with
//     Bar bar(const void* operands, int64_t query, uint32_t order) const;  // passed by all pairs whose order is <= `order`
//     int64_t panel_documents() const;             // scanned at a time; a multiple of 64
//     int64_t panel_bytes() const;                 // scratch memory for them
//     static constexpr bool kEstimates;            // whether `estimate` is called, and never `exact`
//     template <class Found>                       // calls found.check(query, document), found.exact(query, document, order), or
//                                                  // found.estimate(query, document, order, width): no worse, and better by at most that
//     void scan(const void* operands, int64_t begin, int64_t end, void* panel, const Bar* bars, Found& found) const;
//   };
//
// bars[query] may get tighter inside of any call of `found`.
#pragma once

#include "topk/estimates.hpp"
#include "topk/scores.hpp"

namespace simtile {
namespace SIMTILE_ISA {
namespace {

// Nothing is screened: every pair is computed by the definition.
template <class Scores>
struct EveryPair : Scores {
  typedef uint32_t Bar;
  static constexpr bool kEstimates = false;
  static constexpr int64_t kQueryGroup = 16;

  explicit EveryPair(const TopkProblem& problem) : Scores(problem) {}
  int64_t operand_bytes() const { return Scores::score_bytes(); }
  void prepare(void* operands, int64_t begin, int64_t end) const { Scores::prepare_scores(operands, begin, end); }
  Bar bar(const void*, int64_t, uint32_t order) const { return order; }
  int64_t panel_documents() const { return 256; }
  int64_t panel_bytes() const { return 0; }

  template <class Found>
  void scan(const void* operands, int64_t begin, int64_t end, void*, const Bar* bars, Found& found) const {
    for (int64_t d = begin; d < end; d++)
      for (int64_t q = 0; q < Scores::problem.queries; q++) {
        const uint32_t order = Scores::order(operands, q, d);
        if (order <= bars[q]) found.exact(q, d, order);
      }
  }
};

SIMTILE_INLINE bool is_allowed(const TopkFilter& filter, int64_t query, int64_t document) {
  return !filter.allow || (filter.allow[query * filter.allow_stride + document / 64] >> document % 64 & 1);
}
SIMTILE_INLINE Key make_key(const TopkFilter& filter, uint32_t order, int64_t document) {
  return static_cast<Key>(order) << 32 | (filter.rank ? filter.rank[document] : static_cast<uint32_t>(document));
}

SIMTILE_INLINE void write_score(const TopkProblem& problem, void* scores, int64_t at, uint32_t order) {
  if (problem.metric == TopkMetric::hamming) {
    static_cast<int32_t*>(scores)[at] = order == kNoOrder ? 0x7fffffff : static_cast<int32_t>(order);
    return;
  }
  const bool descending = is_descending(problem.metric);
  const float worst = descending ? -__builtin_inff() : __builtin_inff();
  static_cast<float*>(scores)[at] = order == kNoOrder ? worst : score_of(order, descending);
}

// The queries of a problem in passes, so that what is kept for each of them fits memory.
SIMTILE_INLINE TopkProblem part_of(const TopkProblem& problem, int64_t first, int64_t count) {
  TopkProblem part = problem;
  part.queries_data = query_row(problem, first);
  part.queries = count;
  if (problem.query_scale) part.query_scale = problem.query_scale + first;
  return part;
}
SIMTILE_INLINE TopkFilter part_of(const TopkFilter& filter, int64_t first) {
  TopkFilter part = filter;
  if (filter.allow) part.allow = filter.allow + first * filter.allow_stride;
  return part;
}

template <class Screen>
struct Prepare {
  const Screen& screen;
  void* operands;

  static void task(void* context, int64_t task, int) {
    Prepare& self = *static_cast<Prepare*>(context);
    const int64_t begin = task * Screen::kQueryGroup;
    self.screen.prepare(self.operands, begin, least<int64_t>(begin + Screen::kQueryGroup, self.screen.problem.queries));
  }
};

template <class Screen>
void prepare_queries(const Screen& screen, void* operands, const Executor& executor) {
  Prepare<Screen> context{screen, operands};
  executor.run((screen.problem.queries + Screen::kQueryGroup - 1) / Screen::kQueryGroup, &Prepare<Screen>::task,
               &context);
}

// Blocks of 64 documents of which no query may find one are not looked at.
struct AllowedBlocks {
  const TopkFilter& filter;
  int64_t queries;

  bool any(int64_t block) const {
    if (!filter.allow) return true;
    if (filter.allow_stride == 0) return filter.allow[block] != 0;
    for (int64_t q = 0; q < queries; q++)
      if (filter.allow[q * filter.allow_stride + block]) return true;
    return false;
  }
};

// Documents [begin, end), begin a multiple of 64, panel by panel.
template <class Screen, class Found>
void scan_allowed(const Screen& screen, const TopkFilter& filter, const void* operands, int64_t begin, int64_t end,
                  void* panel, const typename Screen::Bar* bars, Found& found) {
  const AllowedBlocks allowed{filter, screen.problem.queries};
  const int64_t most = screen.panel_documents();
  while (begin < end) {
    if (!allowed.any(begin / 64)) {
      begin += 64;
      continue;
    }
    int64_t stop = begin + 64;
    while (stop < end && stop - begin < most && allowed.any(stop / 64)) stop += 64;
    stop = least<int64_t>(stop, end);
    screen.scan(operands, begin, stop, panel, bars, found);
    begin = stop;
  }
}

// Documents of one task: enough tasks that workers end together, each of some panels and at least about 256 KiB, where
// kTaskProducts allows that.
SIMTILE_INLINE int64_t documents_per_task(const TopkProblem& problem, int64_t panel_documents, int threads) {
  constexpr int64_t kTasksPerThread = 16;
  const int64_t row = most<int64_t>(problem.documents_stride, 1);
  const int64_t wanted = problem.documents / (kTasksPerThread * threads);
  const int64_t allowed = kTaskProducts / most<int64_t>(problem.queries * problem.dimensions, 1);
  const int64_t documents = most<int64_t>(least(most<int64_t>(wanted, (256 << 10) / row), allowed), 1);
  return (documents + panel_documents - 1) / panel_documents * panel_documents;
}

template <class Screen>
struct Topk {
  typedef typename Screen::Bar Bar;

  const TopkArgs& args;
  const Screen& screen;
  const TopkProblem& problem;  // of this pass
  TopkFilter filter;
  int64_t k, capacity, task_documents;
  int workers;
  // Per worker: bars and reservoirs of the queries, and the panel.
  const void* operands;
  Reservoir* reservoirs;  // [worker][query]
  Bar* bars;              // [worker][bar_pitch]
  Key* keys;              // [query][worker][capacity]
  char* panels;
  int64_t bar_pitch, panel_pitch;

  struct Found {
    Topk& search;
    int worker;
    Reservoir* reservoirs;
    Bar* bars;

    SIMTILE_INLINE void exact(int64_t query, int64_t document, uint32_t order) {
      if (!is_allowed(search.filter, query, document) || order == kNoOrder) return;
      const Key key = make_key(search.filter, order, document);
      if (key < reservoirs[query].worst) keep(query, key);
    }
    void check(int64_t query, int64_t document) {
      if (!is_allowed(search.filter, query, document)) return;
      const uint32_t order = search.screen.order(search.operands, query, document);
      if (!Screen::kEstimates)
        exact(query, document, order);
      else if (order != kNoOrder && order <= reservoirs[query].worst >> 32)
        estimate(query, document, order, 0);
    }
    void estimate(int64_t query, int64_t document, uint32_t order, float width) {
      if (!is_allowed(search.filter, query, document)) return;
      Reservoir& reservoir = reservoirs[query];
      Key* keys = keys_of(query);
      keys[reservoir.count++] = static_cast<Key>(order) << 32 | static_cast<uint32_t>(document);
      if (!(width <= reservoir.width)) reservoir.width = width >= 0 ? width : __builtin_inff();
      if (reservoir.count < search.capacity || search.capacity <= search.k) return;
      search.make_room(query, reservoir, keys);
      follow(query);
    }
    void keep(int64_t query, Key key) {
      if (take(reservoirs[query], keys_of(query), search.capacity, search.k, key)) follow(query);
    }

   private:
    Key* keys_of(int64_t query) const { return search.keys + (query * search.workers + worker) * search.capacity; }
    void follow(int64_t query) {
      bars[query] = search.screen.bar(search.operands, query, static_cast<uint32_t>(reservoirs[query].worst >> 32));
    }
  };

  // keys[begin, end) by the definition.
  void compute(int64_t query, Key* keys, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i++) {
      if (i + 4 < end) prefetch(document_row(problem, static_cast<uint32_t>(keys[i + 4])));
      const int64_t document = static_cast<uint32_t>(keys[i]);
      const uint32_t order = screen.order(operands, query, document);
      keys[i] = order == kNoOrder ? kNoKey : make_key(filter, order, document);
    }
  }

  // Of estimates: what is certainly not among the best k goes; if that is little, the best k by the definition stay. k < count.
  void make_room(int64_t query, Reservoir& reservoir, Key* keys) const {
    const uint32_t bar = bar_of(keys, reservoir.count, k);
    if (bar != kNoOrder) {
      reservoir.worst = least<Key>(reservoir.worst, static_cast<Key>(bar) << 32 | 0xffffffffu);
      const uint32_t cut = worse_by(bar, reservoir.width, is_descending(problem.metric));
      reservoir.count = keep_within(keys, reservoir.count, cut, reservoir.certain);
      if (reservoir.count <= capacity - most<int64_t>(capacity / 4, 1)) return;
    }
    compute(query, keys, reservoir.certain, reservoir.count);
    if (reservoir.count > k) {
      keep_smallest(keys, reservoir.count, k);
      reservoir.count = k;
    }
    int64_t found = 0;
    Key worst = 0;
    for (int64_t i = 0; i < reservoir.count; i++) {
      worst = most<Key>(worst, keys[i]);
      keys[found] = keys[i];
      found += keys[i] != kNoKey;
    }
    reservoir.count = reservoir.certain = found;
    if (found == k) reservoir.worst = least<Key>(reservoir.worst, worst);
  }

  // Of the finds of all workers, [worker][capacity], what may be among the best k, by the definition, in front. Returns how many.
  int64_t merge_estimates(int64_t query, Key* all) const {
    int64_t count = 0, certain = 0;
    float width = 0;
    uint32_t bar = kNoOrder - 1;
    for (int worker = 0; worker < workers; worker++) {
      const Reservoir& reservoir = reservoirs[worker * problem.queries + query];
      width = most<float>(width, reservoir.width);
      bar = least<uint32_t>(bar, static_cast<uint32_t>(reservoir.worst >> 32));
      for (int64_t i = 0; i < reservoir.count; i++) {
        const Key key = all[worker * capacity + i];
        all[count] = key;
        if (i < reservoir.certain) {
          all[count] = all[certain];
          all[certain++] = key;
        }
        count++;
      }
    }
    Key* estimates = all + certain;
    if (count - certain > k)
      bar = least<uint32_t>(bar, static_cast<uint32_t>(keep_best(estimates, count - certain, k) >> 32));
    int64_t none = 0;
    const uint32_t cut = worse_by(bar, width, is_descending(problem.metric));
    count = certain + keep_within(estimates, count - certain, cut, none);
    compute(query, all, certain, count);
    return count;
  }

  static void scan_task(void* context, int64_t task, int worker) {
    Topk& self = *static_cast<Topk*>(context);
    const int64_t queries = self.problem.queries;
    Found found{self, worker, self.reservoirs + worker * queries, self.bars + worker * self.bar_pitch};
    const int64_t begin = task * self.task_documents;
    scan_allowed(self.screen, self.filter, self.operands, begin,
                 least<int64_t>(begin + self.task_documents, self.problem.documents),
                 self.panels + worker * self.panel_pitch, found.bars, found);
  }

  static void merge_task(void* context, int64_t query, int) {
    Topk& self = *static_cast<Topk*>(context);
    Key* all = self.keys + query * self.workers * self.capacity;
    int64_t count = 0;
    if (Screen::kEstimates) count = self.merge_estimates(query, all);
    for (int worker = 0; worker < self.workers && !Screen::kEstimates; worker++) {
      const Key* keys = all + worker * self.capacity;
      const int64_t found = self.reservoirs[worker * self.problem.queries + query].count;
      for (int64_t i = 0; i < found; i++) all[count++] = keys[i];
    }
    if (count > self.k) {
      keep_smallest(all, count, self.k);
      count = self.k;
    }
    sort_keys(all, count);
    while (count > 0 && all[count - 1] == kNoKey) count--;
    write_best(self.problem, all, count, self.k, self.args.scores, self.args.ids, self.first_query + query);
  }

  static void write_best(const TopkProblem& problem, const Key* keys, int64_t count, int64_t k, void* scores,
                         int64_t* ids, int64_t query) {
    for (int64_t i = 0; i < k; i++) {
      const Key key = i < count ? keys[i] : kNoKey;
      write_score(problem, scores, query * k + i, static_cast<uint32_t>(key >> 32));
      ids[query * k + i] = i < count ? static_cast<int64_t>(key & 0xffffffffu) : -1;
    }
  }

  int64_t first_query;
};

// What is kept for the queries of a pass: at most this, or one group of queries.
constexpr int64_t kReservoirBytes = int64_t{64} << 20;

template <class Screen>
int64_t queries_per_pass(const TopkArgs& args, int threads) {
  const int64_t capacity = reservoir_capacity(args.k, args.problem.documents);
  const int64_t each = threads * (capacity * static_cast<int64_t>(sizeof(Key) + 1) + 64);
  const int64_t groups = most<int64_t>(kReservoirBytes / (each * Screen::kQueryGroup), 1);
  return least<int64_t>(groups * Screen::kQueryGroup, args.problem.queries);
}

struct Memory {
  char* at;
  template <typename T>
  T* take(int64_t count) {
    T* start = reinterpret_cast<T*>(at);
    at += align_up(count * static_cast<int64_t>(sizeof(T)));
    return start;
  }
};

template <class Screen>
int64_t topk_bytes(const TopkArgs& args, int threads) {
  const int64_t queries = queries_per_pass<Screen>(args, threads);
  const TopkProblem part = part_of(args.problem, 0, queries);
  const Screen screen(part);
  const int64_t capacity = reservoir_capacity(args.k, part.documents);
  return align_up(screen.operand_bytes()) + align_up(threads * queries * static_cast<int64_t>(sizeof(Reservoir))) +
         align_up(threads * align_up(queries * static_cast<int64_t>(sizeof(typename Screen::Bar)))) +
         align_up(threads * queries * capacity * static_cast<int64_t>(sizeof(Key))) +
         threads * align_up(screen.panel_bytes());
}

template <class Screen>
void topk_pass(const TopkArgs& args, int64_t first, int64_t queries, const Executor& executor, void* workspace) {
  const TopkProblem part = part_of(args.problem, first, queries);
  const Screen screen(part);
  const int threads = executor.threads;
  Memory memory{static_cast<char*>(workspace)};
  void* operands = memory.take<char>(screen.operand_bytes());
  const int64_t bar_bytes = align_up(queries * static_cast<int64_t>(sizeof(typename Screen::Bar)));
  Topk<Screen> search{args,
                      screen,
                      part,
                      part_of(args.filter, first),
                      args.k,
                      reservoir_capacity(args.k, part.documents),
                      documents_per_task(part, screen.panel_documents(), threads),
                      threads,
                      operands,
                      memory.take<Reservoir>(threads * queries),
                      reinterpret_cast<typename Screen::Bar*>(memory.take<char>(threads * bar_bytes)),
                      nullptr,
                      nullptr,
                      bar_bytes / static_cast<int64_t>(sizeof(typename Screen::Bar)),
                      align_up(screen.panel_bytes()),
                      first};
  search.keys = memory.take<Key>(threads * queries * search.capacity);
  search.panels = memory.take<char>(threads * search.panel_pitch);
  prepare_queries(screen, operands, executor);
  for (int worker = 0; worker < threads; worker++)
    for (int64_t q = 0; q < queries; q++) {
      search.reservoirs[worker * queries + q] = {0, kNoKey, 0, 0};
      search.bars[worker * search.bar_pitch + q] = screen.bar(operands, q, kNoOrder - 1);
    }
  executor.run((part.documents + search.task_documents - 1) / search.task_documents, &Topk<Screen>::scan_task, &search);
  executor.run(queries, &Topk<Screen>::merge_task, &search);
}

template <class Screen>
void topk_all(const TopkArgs& args, const Executor& executor, void* workspace) {
  const int64_t queries = queries_per_pass<Screen>(args, executor.threads);
  for (int64_t first = 0; first < args.problem.queries; first += queries)
    topk_pass<Screen>(args, first, least<int64_t>(queries, args.problem.queries - first), executor, workspace);
}

}  // namespace
}  // namespace SIMTILE_ISA
}  // namespace simtile
