#include "threads.hpp"

#include <stdexcept>

#include "affinity.hpp"
#include "pool.hpp"

namespace simtile {
namespace {

constexpr std::chrono::milliseconds kPollInterval{50};

}  // namespace

Run::Run(int threads, Poll poll, void* poll_context)
    : threads_(threads),
      spin_(threads > 1 && threads <= AffinityMask::of_this_thread().count()),
      poll_(poll),
      poll_context_(poll_context),
      next_poll_(Clock::now() + kPollInterval) {}

void Run::poll_if_due() {
  if (poll_ == nullptr || Clock::now() < next_poll_) return;
  const bool cancelled = poll_(poll_context_);
  next_poll_ = Clock::now() + kPollInterval;
  if (cancelled) throw Cancelled();
}

void Run::run_impl(void* host, int64_t tasks, Executor::Body body, void* context) {
  Run& self = *static_cast<Run*>(host);
  if (self.threads_ == 1 || tasks <= 1 || !self.run_shared(tasks, body, context)) {
    self.run_alone(tasks, body, context);
  }
}

void Run::run_alone(int64_t tasks, Executor::Body body, void* context) {
  for (int64_t task = 0; task < tasks; ++task) {
    body(context, task, 0);
    poll_if_due();
  }
}

bool Run::run_shared(int64_t tasks, Executor::Body body, void* context) {
  Pool& pool = Pool::instance();
  if (!pool.try_acquire()) return false;

  // However the caller leaves, no worker may still be using the job.
  struct Job {
    Pool& pool;
    ~Job() {
      pool.stop();
      pool.close();
      while (!pool.orphaned() && !pool.wait()) {
      }
      pool.release();
    }
  };
  std::exception_ptr error;
  {
    Job job{pool};
    pool.open(threads_, spin_, tasks, body, context);
    for (int64_t task; pool.claim(&task);) {
      pool.execute(task, 0);
      poll_if_due();
    }
    pool.close();
    while (!pool.wait()) {
      if (pool.orphaned()) {
        throw std::runtime_error(
            "the process was forked inside a simtile call: it cannot be "
            "finished in the child; fork between calls");
      }
      poll_if_due();
    }
    error = pool.take_error();
  }
  if (error) std::rethrow_exception(error);
  return true;
}

}  // namespace simtile
