#pragma once

#include <chrono>
#include <exception>
#include <string>

#include "tile/parallel.hpp"

namespace simtile {

constexpr int kMaxThreads = 1024;

struct ThreadCount {
  int threads;
  const char* source;  // "set_num_threads", an environment variable's name, "affinity" or "cgroup"
};

// How many threads a call uses that does not say: set_num_threads > SIMTILE_NUM_THREADS >
// OMP_NUM_THREADS > the smaller of affinity mask and cgroup limit. The environment and the mask are
// read at every call, the cgroup files once per process. Throws std::invalid_argument for an
// environment variable that is not a number of threads.
ThreadCount default_threads();

// Throws std::invalid_argument outside [1, kMaxThreads].
void set_num_threads(long long threads);
void unset_num_threads();

// `threads` if it is in [1, kMaxThreads], the default if it is 0; else std::invalid_argument.
int resolve_threads(long long threads);

// CPUs that the process's cgroups (v1 and v2) let it use, rounded up; 0 for no limit.
// `root` is put before /proc/self/cgroup and /sys/fs/cgroup.
int cgroup_limit(const std::string& root);

// Thrown by Executor::run when Poll asked for it.
struct Cancelled : std::exception {
  const char* what() const noexcept override { return "the call was cancelled"; }
};

// One call's use of the process's pool of worker threads; what an Executor's `host` points to.
// A run() while another thread, or an outer run() of this one, has the pool executes on the calling
// thread alone: nobody waits for a pool, and nesting cannot deadlock.
class Run {
 public:
  using Poll = bool (*)(void* context);  // true cancels the call

  // `poll` is called from the calling thread, between tasks and while it waits for workers, about
  // every 50 ms over all run()s of this object. May be null.
  Run(int threads, Poll poll, void* poll_context);

  Executor executor() { return {threads_, this, &Run::run_impl}; }

 private:
  using Clock = std::chrono::steady_clock;

  static void run_impl(void* host, int64_t tasks, Executor::Body body, void* context);
  void run_alone(int64_t tasks, Executor::Body body, void* context);
  bool run_shared(int64_t tasks, Executor::Body body, void* context);
  void poll_if_due();  // throws Cancelled

  int threads_;
  bool spin_;
  Poll poll_;
  void* poll_context_;
  Clock::time_point next_poll_;
};

}  // namespace simtile
