#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "isa.hpp"
#include "threads.hpp"

using simtile::Executor;
using simtile::Run;

namespace {

struct Counts {
  explicit Counts(int64_t tasks) : times(static_cast<size_t>(tasks)) {}
  bool all(int expected) const {
    for (const std::atomic<int>& n : times) {
      if (n != expected) return false;
    }
    return true;
  }
  std::vector<std::atomic<int>> times;
  std::atomic<int> highest_worker{0}, lowest_worker{0};
};

void count(void* context, int64_t task, int worker) {
  Counts& counts = *static_cast<Counts*>(context);
  ++counts.times[static_cast<size_t>(task)];
  for (int seen = counts.highest_worker; worker > seen && !counts.highest_worker.compare_exchange_weak(seen, worker);) {
  }
  if (worker < 0) counts.lowest_worker = worker;
}

void every_task_runs_once() {
  for (int threads : {1, 2, 3, 8}) {
    for (int64_t tasks : {0, 1, 2, 3, 17, 1000}) {
      Counts counts(tasks);
      Run run(threads, nullptr, nullptr);
      for (int repeat = 0; repeat < 20; ++repeat) run.executor().run(tasks, count, &counts);
      CHECK(counts.all(20));
      CHECK(counts.highest_worker < threads);
      CHECK(counts.lowest_worker == 0);
    }
  }
}

// No two threads hold one worker id at a time: it selects scratch memory.
void worker_ids_are_exclusive() {
  struct State {
    std::atomic<bool> taken[4] = {};
    std::atomic<int> clashes{0};
  } state;
  auto body = [](void* context, int64_t, int worker) {
    State& s = *static_cast<State*>(context);
    if (s.taken[worker].exchange(true)) ++s.clashes;
    for (int i = 0; i < 100; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
    s.taken[worker] = false;
  };
  Run run(4, nullptr, nullptr);
  for (int repeat = 0; repeat < 200; ++repeat) run.executor().run(64, body, &state);
  CHECK(state.clashes == 0);
}

void workers_take_part() {
  std::atomic<int> by_workers{0};
  auto body = [](void* context, int64_t, int worker) {
    if (worker > 0) ++*static_cast<std::atomic<int>*>(context);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  };
  Run run(3, nullptr, nullptr);
  run.executor().run(30, body, &by_workers);
  CHECK(by_workers > 0);
  CHECK(by_workers < 30);
}

void one_thread_takes_tasks_in_order() {
  std::vector<int64_t> order;
  auto body = [](void* context, int64_t task, int) { static_cast<std::vector<int64_t>*>(context)->push_back(task); };
  Run run(1, nullptr, nullptr);
  run.executor().run(5, body, &order);
  CHECK((order == std::vector<int64_t>{0, 1, 2, 3, 4}));
}

void exceptions_reach_the_caller() {
  struct State {
    std::atomic<int> started{0}, finished{0};
  };
  auto body = [](void* context, int64_t task, int) {
    State& state = *static_cast<State*>(context);
    ++state.started;
    if (task == 3) {
      ++state.finished;
      throw std::runtime_error("task 3");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ++state.finished;
  };
  for (int threads : {1, 2, 4}) {
    State state;
    bool thrown = false;
    try {
      Run run(threads, nullptr, nullptr);
      run.executor().run(1000, body, &state);
    } catch (const std::runtime_error&) {
      thrown = true;
      CHECK(state.started == state.finished);  // nobody is still inside
    }
    CHECK(thrown);
    CHECK(state.started < 1000);
    Counts counts(50);
    Run after(threads, nullptr, nullptr);
    after.executor().run(50, count, &counts);
    CHECK(counts.all(1));
  }
}

void poll_cancels() {
  auto body = [](void*, int64_t, int) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  for (int threads : {1, 2}) {
    int polls = 0;
    auto third = [](void* context) { return ++*static_cast<int*>(context) == 3; };
    Run run(threads, third, &polls);
    bool cancelled = false;
    try {
      run.executor().run(100000, body, nullptr);
    } catch (const simtile::Cancelled&) {
      cancelled = true;
    }
    CHECK(cancelled);
    CHECK(polls == 3);
  }
}

// A worker is in one long task, the caller has nothing left to do: it still polls.
void poll_while_waiting() {
  auto body = [](void*, int64_t, int worker) {
    std::this_thread::sleep_for(std::chrono::milliseconds(worker > 0 ? 400 : 20));
  };
  int polls = 0;
  auto poll = [](void* context) { return ++*static_cast<int*>(context) < 0; };
  Run run(2, poll, &polls);
  run.executor().run(2, body, nullptr);
  CHECK(polls >= 3);
}

void nested_runs_do_not_deadlock() {
  Counts counts(8);
  auto outer = [](void* context, int64_t, int) {
    Run inner(2, nullptr, nullptr);
    inner.executor().run(8, count, context);
  };
  Run run(2, nullptr, nullptr);
  run.executor().run(6, outer, &counts);
  CHECK(counts.all(6));
}

void callers_at_the_same_time() {
  Counts counts(64);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&counts] {
      Run run(2, nullptr, nullptr);
      for (int repeat = 0; repeat < 500; ++repeat) run.executor().run(64, count, &counts);
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(counts.all(4 * 500));
}

void forked_child_has_its_own_pool() {
  Counts before(64);
  Run warm(2, nullptr, nullptr);
  warm.executor().run(64, count, &before);
  const pid_t child = fork();
  if (child == 0) {
    Counts counts(64);
    Run run(2, nullptr, nullptr);
    for (int repeat = 0; repeat < 100; ++repeat) run.executor().run(64, count, &counts);
    _exit(counts.all(100) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

// usage: test_threads [--no-fork]   (qemu-user cannot fork a process that has threads)
int main(int argc, char** argv) {
  std::printf("level %s\n", simtile::kernels().level);
  every_task_runs_once();
  worker_ids_are_exclusive();
  workers_take_part();
  one_thread_takes_tasks_in_order();
  exceptions_reach_the_caller();
  poll_cancels();
  poll_while_waiting();
  nested_runs_do_not_deadlock();
  callers_at_the_same_time();
  if (argc < 2 || std::strcmp(argv[1], "--no-fork") != 0) forked_child_has_its_own_pool();
  return check::report();
}
