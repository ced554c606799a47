#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>

#include "call.hpp"
#include "isa.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace simtile {
namespace {

py::object text_or_none(const std::string& text) { return text.empty() ? py::object(py::none()) : py::str(text); }

// Bytes of a cache, None where the system does not say.
py::object cache_bytes(int name) {
  const long bytes = name < 0 ? 0 : sysconf(name);
  return bytes > 0 ? py::object(py::int_(bytes)) : py::none();
}

#if defined(_SC_LEVEL1_DCACHE_SIZE)
constexpr int kCaches[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
#else
constexpr int kCaches[] = {-1, -1, -1};
#endif

py::typing::Dict<py::str, py::object> cpu_info() {
  py::typing::List<py::str> detected;
  for (const KernelTable* table : detected_levels()) detected.append(table->level);
  const ThreadCount count = default_threads();
  py::typing::Dict<py::str, py::object> info;
  info["vendor"] = text_or_none(cpu_vendor());
  info["brand"] = text_or_none(cpu_brand());
  info["detected"] = detected;
  info["level"] = kernels().level;
  info["forced"] = level_is_forced();
  info["threads"] = count.threads;
  info["threads_source"] = count.source;
  info["l1d"] = cache_bytes(kCaches[0]);
  info["l2"] = cache_bytes(kCaches[1]);
  info["l3"] = cache_bytes(kCaches[2]);
  return info;
}

void set_threads(std::optional<long long> threads) {
  if (threads) {
    set_num_threads(*threads);
  } else {
    unset_num_threads();
  }
}

void take_level(const std::optional<std::string>& level) {
  const std::string name = level.value_or("");
  if (!use_level(level ? name.c_str() : nullptr)) {
    throw py::value_error("level: found '" + name + "', expected one of cpu_info()[\"detected\"]");
  }
}

using Clock = std::chrono::steady_clock;

// For tests: `runs` times `tasks` tasks that each busy the CPU for `seconds`; the seconds taken.
double spin(double seconds, int64_t tasks, int64_t runs, long long threads) {
  auto body = [](void* context, int64_t, int) {
    const auto end = Clock::now() + std::chrono::duration<double>(*static_cast<double*>(context));
    while (Clock::now() < end) {
    }
  };
  const auto start = Clock::now();
  Call call(threads);
  for (int64_t i = 0; i < runs; ++i) call.executor().run(tasks, body, &seconds);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

void register_cpu(py::module_& m) {
  m.def("cpu_info", &cpu_info);
  m.def("set_num_threads", &set_threads, py::arg("threads"));
  m.def("num_threads", [] { return default_threads().threads; });
  m.def("_cgroup_limit", &cgroup_limit, py::arg("root"));
  // For tests, which go through all levels in one process; None: the chosen one again.
  m.def("_use_level", &take_level, py::arg("level"));
  m.def("_spin", &spin, py::arg("seconds"), py::arg("tasks"), py::arg("runs"), py::arg("threads"));
}

}  // namespace simtile
