#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "tile/parallel.hpp"

namespace simtile {

// Worker threads that wait for jobs: first spinning, then asleep. One job at a time.
//
// A job never waits for a worker that has not started on it: workers enter through a gate while it
// is open, the caller works through the tasks beside them, closes the gate and waits only for the
// workers inside. A worker that another process keeps off its CPU therefore costs nothing unless it
// is stopped in the middle of a task.
class Pool {
 public:
  // The process's pool. Made at first use, and again in the child after a fork(), where no worker
  // is left. Never destroyed: workers sleep in it until the process ends.
  static Pool& instance();

  // False if a job has the pool. Whoever got true calls release().
  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // For the thread that acquired the pool, in this order. `spin`: waiting threads may burn a CPU,
  // because there is one for each of `threads`.
  void open(int threads, bool spin, int64_t tasks, Executor::Body body, void* context);
  bool claim(int64_t* task) {
    if (stop_.load(std::memory_order_relaxed)) return false;
    *task = next_.fetch_add(1, std::memory_order_relaxed);
    return *task < tasks_;
  }
  void execute(int64_t task, int worker) noexcept;  // an exception stops the job and is kept
  void stop() { stop_.store(true, std::memory_order_relaxed); }
  void close() { gate_.fetch_and(~kOpen, std::memory_order_acq_rel); }
  // Whether all workers have left; waits for it up to about a millisecond.
  bool wait();
  // The first exception that a task threw; null if none did.
  std::exception_ptr take_error();

  // In the child of a fork() inside a job: its workers are gone and it can never finish.
  bool orphaned() const { return orphaned_.load(std::memory_order_relaxed); }

 private:
  // The gate: generation of the job (32 bits) | open | places left for workers | workers inside.
  static constexpr uint64_t kInside = 1, kPlace = uint64_t{1} << 15, kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kCountMask = kPlace - 1;
  static uint64_t generation(uint64_t gate) { return gate >> 32; }
  static uint64_t inside(uint64_t gate) { return gate & kCountMask; }
  static uint64_t places(uint64_t gate) { return (gate / kPlace) & kCountMask; }
  static bool enterable(uint64_t gate, uint64_t seen) {
    return generation(gate) != seen && (gate & kOpen) != 0 && places(gate) != 0;
  }

  struct Worker {
    Pool* pool;
    pthread_t thread;
    alignas(64) std::atomic<bool> inside{false};
  };

  static constexpr int kNoCpu = -1;

  void start_workers(int wanted);
  void keep_workers_off(int cpu);
  Worker* find_stopped_worker() const;
  void work(Worker& self);
  void idle(uint64_t seen);
  void leave();

  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
  // Written while the gate is closed and nobody is inside.
  int64_t tasks_ = 0;
  Executor::Body body_ = nullptr;
  void* context_ = nullptr;

  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<bool> spin_{true};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> orphaned_{false};
  // Only for the thread that acquired the pool.
  std::vector<std::unique_ptr<Worker>> workers_;
  int avoided_cpu_ = kNoCpu;
  std::mutex mutex_;
  std::condition_variable job_opened_, workers_left_;
};

}  // namespace simtile
