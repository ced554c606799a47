#include "pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <chrono>

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
    { std::lock_guard<std::mutex> lock(mutex_); }
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

bool Pool::wait(int milliseconds) {
  auto empty = [this] { return inside(gate_.load(std::memory_order_seq_cst)) == 0; };
  if (empty() || (spin_.load(std::memory_order_relaxed) && spin_until(empty))) return true;
  // Asleep, this thread leaves its CPU to a worker that may have lost its own.
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_.store(true, std::memory_order_seq_cst);
  workers_left_.wait_for(lock, std::chrono::milliseconds(milliseconds), empty);
  caller_sleeps_.store(false, std::memory_order_relaxed);
  return empty();
}

void Pool::leave() {
  const uint64_t gate = gate_.fetch_sub(kInside, std::memory_order_seq_cst);
  if (inside(gate) == 1 && caller_sleeps_.load(std::memory_order_seq_cst)) {
    { std::lock_guard<std::mutex> lock(mutex_); }
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

void Pool::work() {
  uint64_t seen = 0;
  for (;;) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    while (enterable(gate, seen)) {
      const int worker = static_cast<int>(places(gate));
      if (!gate_.compare_exchange_weak(gate, gate - kPlace + kInside, std::memory_order_acq_rel)) {
        continue;
      }
      seen = generation(gate);
      for (int64_t task; claim(&task);) execute(task, worker);
      leave();
    }
    idle(seen);
  }
}

void Pool::start_workers(int wanted) {
  if (workers_ >= wanted) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);  // signals are the program's own threads' business
  for (; workers_ < wanted; ++workers_) {
    pthread_t thread;
    auto run = [](void* pool) -> void* {
      static_cast<Pool*>(pool)->work();
      return nullptr;
    };
    // Refused (a limit on processes): the job runs on the workers there are.
    if (pthread_create(&thread, nullptr, run, this) != 0) break;
    pthread_detach(thread);
#if defined(__linux__)
    pthread_setname_np(thread, "simtile");
#endif
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace simtile
