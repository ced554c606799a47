#pragma once

#include <pthread.h>

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace simtile {

// The CPUs that a thread may run on. Where the system has no such masks, all of them.
class AffinityMask {
 public:
  static AffinityMask of_this_thread() {
    AffinityMask mask;
#if defined(__linux__)
    mask.known_ = sched_getaffinity(0, sizeof mask.bits_, mask.set()) == 0;
#endif
    return mask;
  }

  // The CPU this thread is running on now; -1 if the system does not say.
  static int current_cpu() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
  }

  static AffinityMask of_cpu(int cpu) {
    AffinityMask mask;
#if defined(__linux__)
    mask.known_ = cpu >= 0 && cpu < kMaxCpus;
    if (mask.known_) CPU_SET_S(cpu, sizeof mask.bits_, mask.set());
#else
    static_cast<void>(cpu);
#endif
    return mask;
  }

  void remove(int cpu) {
#if defined(__linux__)
    if (cpu >= 0 && cpu < kMaxCpus) CPU_CLR_S(cpu, sizeof bits_, set());
#else
    static_cast<void>(cpu);
#endif
  }

  // Only a wish: a CPU may have gone offline, or out of the cgroup's set, since the mask was read.
  void apply_to(pthread_t thread) const {
#if defined(__linux__)
    if (known_) pthread_setaffinity_np(thread, sizeof bits_, set());
#else
    static_cast<void>(thread);
#endif
  }

  int count() const {
#if defined(__linux__)
    if (known_) return CPU_COUNT_S(sizeof bits_, set());
#endif
    const unsigned cpus = std::thread::hardware_concurrency();
    return cpus == 0 ? 1 : static_cast<int>(cpus);
  }

 private:
#if defined(__linux__)
  static constexpr int kMaxCpus = 8192;  // the largest that Linux can be configured for

  cpu_set_t* set() { return reinterpret_cast<cpu_set_t*>(bits_); }
  const cpu_set_t* set() const { return reinterpret_cast<const cpu_set_t*>(bits_); }

  unsigned long bits_[kMaxCpus / (8 * sizeof(unsigned long))] = {};
  bool known_ = false;
#endif
};

}  // namespace simtile
