#pragma once

#include <cstdint>

namespace simtile {

// Ctrl-C is looked for between tasks, so one that could be several multiplies at most so many numbers: half a second's
// work without AVX.
constexpr int64_t kTaskProducts = int64_t{1} << 30;

// What a kernel may ask of its host: run `tasks` independent tasks on up to `threads` workers and
// return when all are done. Tasks are claimed in increasing order, whoever is free first, so a task
// must not depend on which worker runs it; `worker` only selects scratch space.
// run() may throw (cancelled call); a kernel therefore holds no resources of its own.
struct Executor {
  using Body = void (*)(void* context, int64_t task, int worker);

  int threads;  // worker ids are in [0, threads); the caller is worker 0
  void* host;
  void (*run_impl)(void* host, int64_t tasks, Body body, void* context);

  // always_inline: at -O0 it would otherwise be a weak symbol of every ISA level.
  [[gnu::always_inline]] void run(int64_t tasks, Body body, void* context) const {
    run_impl(host, tasks, body, context);
  }
};

}  // namespace simtile
