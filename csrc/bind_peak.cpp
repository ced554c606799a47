#include <pybind11/pybind11.h>
#include <pybind11/typing.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "isa.hpp"
#include "threads.hpp"
#include "workspace.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

struct Kind {
  const char* name;
  PeakLoop PeakLoops::* loop;
};

constexpr Kind kKinds[] = {
    {"fma_f32", &PeakLoops::fma_f32},   {"fma_f64", &PeakLoops::fma_f64},
    {"dot_bf16", &PeakLoops::dot_bf16}, {"matrix_bf16", &PeakLoops::matrix_bf16},
    {"dot_int8", &PeakLoops::dot_int8}, {"matrix_int8", &PeakLoops::matrix_int8},
    {"popcount", &PeakLoops::popcount}, {"read", &PeakLoops::read},
};

constexpr int64_t kRounds = 4096;             // 10 to 130 microseconds of one loop
constexpr int64_t kReadChunk = 1 << 20;       // bytes between two looks at the clock
constexpr int64_t kSmallestRead = 256 << 20;  // for CPUs that hide the size of their last cache
constexpr Seconds kWarmUp{0.02};              // clock frequency, page tables, AMX state

// The CPUs of the process's mask, or none where they are unknown.
std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
#endif
  return cpus;
}

// The scheduler may leave two new threads on one CPU for longer than the measurement takes.
void pin_this_thread(int cpu) {
#if defined(__linux__)
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  pthread_setaffinity_np(pthread_self(), sizeof mask, &mask);
#else
  static_cast<void>(cpu);
#endif
}

// Bytes that cannot stay in a cache: twice the last level's, at most a quarter of the memory.
int64_t bytes_past_the_caches() {
  int64_t cache = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return std::min(std::max(2 * cache, kSmallestRead), memory / 4);
}

// All threads start together and run until the time is over; the rate is everything they did
// divided by the time from the common start to the last one's end.
class Measurement {
 public:
  Measurement(PeakLoop loop, int threads, double seconds, char* memory, int64_t bytes_per_thread)
      : loop_(loop),
        threads_(threads),
        seconds_(seconds),
        memory_(memory),
        bytes_per_thread_(bytes_per_thread),
        done_(threads),
        end_(threads) {}

  double run() {
    const std::vector<int> cpus = allowed_cpus();
    std::vector<std::thread> workers;
    std::exception_ptr error;
    try {
      for (int i = 0; i < threads_; ++i) {
        const int cpu = cpus.empty() ? -1 : cpus[i % cpus.size()];
        workers.emplace_back([this, i, cpu] { work(i, cpu); });
      }
    } catch (...) {
      error = std::current_exception();
      abandoned_ = true;
    }
    for (std::thread& worker : workers) worker.join();
    if (error) std::rethrow_exception(error);
    double done = 0;
    Clock::time_point end = start_;
    for (int i = 0; i < threads_; ++i) {
      done += done_[i];
      end = std::max(end, end_[i]);
    }
    return done / Seconds(end - start_).count();
  }

 private:
  void work(int worker, int cpu) {
    if (cpu >= 0) pin_this_thread(cpu);
    char* const memory = memory_ + worker * bytes_per_thread_;
    if (bytes_per_thread_ > 0) std::memset(memory, 1, bytes_per_thread_);
    PeakArgs args = {kRounds, memory, std::min(kReadChunk, bytes_per_thread_)};
    const auto warm = Clock::now() + kWarmUp;
    while (Clock::now() < warm) loop_(args);

    if (++ready_ == threads_) {
      start_ = Clock::now();
      started_.store(true, std::memory_order_release);
    }
    while (!started_.load(std::memory_order_acquire)) {
      if (abandoned_) return;
      std::this_thread::yield();  // with more threads than CPUs, the others are waiting for this one
    }
    int64_t offset = 0;
    do {
      args.memory = memory + offset;
      done_[worker] += loop_(args);
      offset += args.bytes;
      if (offset + args.bytes > bytes_per_thread_) offset = 0;
      end_[worker] = Clock::now();
    } while (Seconds(end_[worker] - start_).count() < seconds_);
  }

  PeakLoop loop_;
  int threads_;
  double seconds_;
  char* memory_;
  int64_t bytes_per_thread_;
  std::vector<double> done_;  // one a thread, as is end_
  std::vector<Clock::time_point> end_;
  Clock::time_point start_;
  std::atomic<int> ready_{0};
  std::atomic<bool> started_{false};
  std::atomic<bool> abandoned_{false};
};

std::string list_kinds(const PeakLoops& loops) {
  std::string list;
  for (const Kind& kind : kKinds) {
    if (loops.*kind.loop) list += (list.empty() ? "" : ", ") + std::string(kind.name);
  }
  return list;
}

py::typing::List<py::str> peak_kinds() {
  py::typing::List<py::str> kinds;
  for (const Kind& kind : kKinds) {
    if (kernels().peak.*kind.loop) kinds.append(kind.name);
  }
  return kinds;
}

// Operations a second (bytes a second for "popcount" and "read") of `threads` threads together.
double peak(const std::string& name, long long threads, double seconds, int64_t buffer_bytes) {
  const PeakLoops& loops = kernels().peak;
  const Kind* const kind =
      std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return name == k.name; });
  if (kind == std::end(kKinds) || !(loops.*kind->loop)) {
    throw py::value_error("kind: '" + name + "' is not measured at level " + kernels().level +
                          "; expected one of: " + list_kinds(loops));
  }
  if (!(seconds > 0 && seconds <= 60)) {
    throw py::value_error("seconds: " + std::to_string(seconds) +
                          " is out of range; expected more than 0 and at most 60");
  }
  const int count = resolve_threads(threads);
  int64_t per_thread = 0;
  if (kind->loop == &PeakLoops::read) {
    if (buffer_bytes < 0) {
      throw py::value_error("buffer_bytes: " + std::to_string(buffer_bytes) +
                            " is negative; expected a size, or 0 for one larger than the caches");
    }
    const int64_t wanted = buffer_bytes == 0 ? bytes_past_the_caches() : buffer_bytes;
    per_thread = std::max(wanted / count / kReadChunk, int64_t{1}) * kReadChunk;
  }
  py::gil_scoped_release release;
  const Workspace memory(static_cast<size_t>(per_thread) * count);
  return Measurement(loops.*kind->loop, count, seconds, static_cast<char*>(memory.data()), per_thread).run();
}

}  // namespace

void register_peak(py::module_& m) {
  m.def("peak_kinds", &peak_kinds);
  m.def("peak", &peak, py::arg("kind"), py::arg("threads"), py::arg("seconds"), py::arg("buffer_bytes") = 0);
}

}  // namespace simtile
