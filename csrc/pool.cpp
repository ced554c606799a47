#include "pool.hpp"

#include <signal.h>

#include <chrono>
#include <ctime>

#include "affinity.hpp"

namespace simtile {
namespace {

using Clock = std::chrono::steady_clock;

// A kernel issues its runs microseconds apart, and waking a sleeper takes tens of microseconds:
// longer than that is not worth burning a CPU that another process could use.
constexpr std::chrono::microseconds kSpin{50};

std::atomic<Pool*> g_pool{nullptr};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // `yield` is a no-op on most cores
#endif
}

// Spins until `done()` or until kSpin has passed; whether it is done.
template <typename Done>
bool spin_until(Done done) {
  const Clock::time_point end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return done();
}

}  // namespace

Pool& Pool::instance() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    if (Pool* pool = g_pool.exchange(nullptr)) pool->orphaned_.store(true);
  });
  static_cast<void>(registered);
  Pool* pool = g_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    Pool* made = new Pool;
    if (g_pool.compare_exchange_strong(pool, made)) {
      pool = made;
    } else {
      delete made;  // another thread was first; no worker has been started in this one
    }
  }
  return *pool;
}

void Pool::open(int threads, bool spin, int64_t tasks, Executor::Body body, void* context) {
  start_workers(threads - 1);
  spin_.store(spin, std::memory_order_relaxed);
  tasks_ = tasks;
  body_ = body;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  stop_.store(false, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  error_ = nullptr;

  const uint64_t helpers = static_cast<uint64_t>(tasks < threads ? tasks - 1 : threads - 1);
  const uint64_t next_generation = generation(gate_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent with sleepers_: either this sees the sleeper or the sleeper the job.
  gate_.store(next_generation << 32 | kOpen | helpers * kPlace, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    keep_workers_off(spin ? AffinityMask::current_cpu() : kNoCpu);
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    if (helpers == 1) {
      job_opened_.notify_one();
    } else {
      job_opened_.notify_all();
    }
  }
}

void Pool::execute(int64_t task, int worker) noexcept {
  try {
    body_(context_, task, worker);
  } catch (...) {
    if (!failed_.exchange(true)) error_ = std::current_exception();
    stop();
  }
}

std::exception_ptr Pool::take_error() {
  std::exception_ptr error = error_;
  error_ = nullptr;
  return error;
}

bool Pool::wait() {
  auto empty = [this] { return inside(gate_.load(std::memory_order_seq_cst)) == 0; };
  if (empty()) return true;
  Worker* stopped = nullptr;
  if (spin_.load(std::memory_order_relaxed)) {
    if (spin_until(empty)) return true;
    // Another process has a worker's CPU, for some milliseconds: lend it this thread's.
    stopped = find_stopped_worker();
    if (stopped != nullptr) {
      AffinityMask::of_cpu(AffinityMask::current_cpu()).apply_to(stopped->thread);
      avoided_cpu_ = kNoCpu;
    }
  }
  {
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    workers_left_.wait_for(lock, std::chrono::milliseconds(1), empty);
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }
  if (stopped != nullptr) keep_workers_off(AffinityMask::current_cpu());
  return empty();
}

// A worker that is inside the job and uses no CPU time.
Pool::Worker* Pool::find_stopped_worker() const {
#if defined(__linux__)
  constexpr std::chrono::microseconds kSample{20};  // a running thread's CPU clock moves within this time
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->inside.load(std::memory_order_relaxed)) continue;
    clockid_t clock;
    timespec before, after;
    if (pthread_getcpuclockid(worker->thread, &clock) != 0) continue;
    clock_gettime(clock, &before);
    for (const Clock::time_point end = Clock::now() + kSample; Clock::now() < end;) pause();
    clock_gettime(clock, &after);
    if (before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec) return worker.get();
  }
#endif
  return nullptr;
}

void Pool::leave() {
  const uint64_t gate = gate_.fetch_sub(kInside, std::memory_order_seq_cst);
  if (inside(gate) == 1 && caller_sleeps_.load(std::memory_order_seq_cst)) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    workers_left_.notify_one();
  }
}

void Pool::idle(uint64_t seen) {
  auto job = [this, seen] { return enterable(gate_.load(std::memory_order_seq_cst), seen); };
  if (spin_.load(std::memory_order_relaxed) && spin_until(job)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  job_opened_.wait(lock, job);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Pool::work(Worker& self) {
  uint64_t seen = 0;
  for (;;) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    while (enterable(gate, seen)) {
      const int worker = static_cast<int>(places(gate));
      if (!gate_.compare_exchange_weak(gate, gate - kPlace + kInside, std::memory_order_acq_rel)) {
        continue;
      }
      seen = generation(gate);
      self.inside.store(true, std::memory_order_relaxed);
      for (int64_t task; claim(&task);) execute(task, worker);
      self.inside.store(false, std::memory_order_relaxed);
      leave();
    }
    idle(seen);
  }
}

// The scheduler likes to wake a sleeper on its waker's CPU, where it then waits until the caller has
// done all the work itself (20 tasks of 50 us on two CPUs took 1030 us, with this 555).
// Called only when a worker sleeps: those that spin have a CPU of their own.
void Pool::keep_workers_off(int cpu) {
  if (cpu == avoided_cpu_) return;
  AffinityMask others = AffinityMask::of_this_thread();
  others.remove(cpu);
  for (const std::unique_ptr<Worker>& worker : workers_) others.apply_to(worker->thread);
  avoided_cpu_ = cpu;
}

void Pool::start_workers(int wanted) {
  const size_t count = static_cast<size_t>(wanted);
  if (workers_.size() >= count) return;
  keep_workers_off(kNoCpu);
  workers_.reserve(count);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);  // signals are the program's own threads' business
  while (workers_.size() < count) {
    auto worker = std::make_unique<Worker>();
    worker->pool = this;
    auto run = [](void* self) -> void* {
      Worker& worker = *static_cast<Worker*>(self);
      worker.pool->work(worker);
      return nullptr;
    };
    // Refused (a limit on processes): the job runs on the workers there are.
    if (pthread_create(&worker->thread, nullptr, run, worker.get()) != 0) break;
    pthread_detach(worker->thread);
#if defined(__linux__)
    pthread_setname_np(worker->thread, "simtile");
#endif
    workers_.push_back(std::move(worker));
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace simtile
