#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#include "affinity.hpp"
#include "threads.hpp"

namespace simtile {
namespace {

std::atomic<int> g_threads_set{0};  // by set_num_threads; 0: not set

// The number of threads that an environment variable asks for; 0 if it is unset or empty.
int threads_from_environment(const char* name, bool first_of_list) {
  const char* value = std::getenv(name);
  if (value == nullptr || value[0] == '\0') return 0;
  char* end = nullptr;
  const long threads = std::strtol(value, &end, 10);
  const bool number = end != value;
  while (*end == ' ') ++end;
  const bool ends = *end == '\0' || (first_of_list && *end == ',');
  if (!number || !ends || threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument(std::string(name) + ": '" + value +
                                "' is not a number of threads; expected a whole number from 1 to " +
                                std::to_string(kMaxThreads));
  }
  return static_cast<int>(threads);
}

int checked(long long threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads: " + std::to_string(threads) +
                                " is not a number of threads; expected a whole number from 1 to " +
                                std::to_string(kMaxThreads));
  }
  return static_cast<int>(threads);
}

// A whole file; empty if there is none. Not std::ifstream: where this module carries its own copy of libstdc++ and the
// process has another, streams find facets of the wrong one and crash.
std::string read_text(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return text;
  char part[4096];
  for (size_t size; (size = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, size);
  std::fclose(file);
  return text;
}

// The part of `text` from `begin` up to `separator`, which is passed.
std::string next_part(const std::string& text, size_t& begin, char separator) {
  const size_t end = text.find(separator, begin);
  const size_t size = end == std::string::npos ? end : end - begin;
  std::string part = text.substr(begin, size);
  begin = end == std::string::npos ? text.size() : end + 1;
  return part;
}

// CPUs of one cgroup directory; 0 for no limit.
int quota_of(const std::string& directory) {
  double quota = 0, period = 0;
  if (const std::string v2 = read_text(directory + "/cpu.max"); !v2.empty()) {
    size_t at = 0;
    quota = std::strtod(next_part(v2, at, ' ').c_str(), nullptr);  // 0 for "max"
    period = std::strtod(v2.c_str() + at, nullptr);
  } else {
    quota = std::strtod(read_text(directory + "/cpu.cfs_quota_us").c_str(), nullptr);
    period = std::strtod(read_text(directory + "/cpu.cfs_period_us").c_str(), nullptr);
  }
  if (quota <= 0 || period <= 0) return 0;
  const double cpus = quota / period;
  if (cpus >= kMaxThreads) return 0;
  const int whole = static_cast<int>(cpus);
  return whole + (cpus > whole);
}

// The tightest limit of a cgroup and its parents.
int quota_upwards(const std::string& mount, std::string path) {
  int limit = 0;
  for (;;) {
    const int quota = quota_of(mount + path);
    if (quota > 0 && (limit == 0 || quota < limit)) limit = quota;
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return limit;
    path.resize(slash);
  }
}

bool lists_cpu(const std::string& controllers) {
  for (size_t at = 0; at < controllers.size();) {
    if (next_part(controllers, at, ',') == "cpu") return true;
  }
  return false;
}

}  // namespace

int cgroup_limit(const std::string& root) {
  const std::string mounts = root + "/sys/fs/cgroup";
  int limit = 0;
  auto consider = [&limit](int quota) {
    if (quota > 0 && (limit == 0 || quota < limit)) limit = quota;
  };
  const std::string groups = read_text(root + "/proc/self/cgroup");
  for (size_t at = 0; at < groups.size();) {
    const std::string line = next_part(groups, at, '\n');  // hierarchy:controllers:path
    const size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (!path.empty() && path.back() == '/') path.pop_back();
    if (controllers.empty()) {
      consider(quota_upwards(mounts, path));
      consider(quota_upwards(mounts + "/unified", path));
    } else if (lists_cpu(controllers)) {
      consider(quota_upwards(mounts + "/cpu", path));
      consider(quota_upwards(mounts + "/" + controllers, path));
    }
  }
  return limit;
}

ThreadCount default_threads() {
  if (const int set = g_threads_set.load(std::memory_order_relaxed)) {
    return {set, "set_num_threads"};
  }
  if (const int threads = threads_from_environment("SIMTILE_NUM_THREADS", false)) {
    return {threads, "SIMTILE_NUM_THREADS"};
  }
  // A list is one number for each level of nested parallelism; the first is the outermost.
  if (const int threads = threads_from_environment("OMP_NUM_THREADS", true)) {
    return {threads, "OMP_NUM_THREADS"};
  }
  static const int cgroup = cgroup_limit("");
  const int cpus = AffinityMask::of_this_thread().count();
  if (cgroup > 0 && cgroup < cpus) return {cgroup, "cgroup"};
  return {cpus < kMaxThreads ? cpus : kMaxThreads, "affinity"};
}

void set_num_threads(long long threads) { g_threads_set.store(checked(threads), std::memory_order_relaxed); }

void unset_num_threads() { g_threads_set.store(0, std::memory_order_relaxed); }

int resolve_threads(long long threads) { return threads == 0 ? default_threads().threads : checked(threads); }

}  // namespace simtile
