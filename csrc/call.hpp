#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include "threads.hpp"
#include "workspace.hpp"

namespace simtile {

// A public call's time in the kernels: `threads` checked, the GIL released, Ctrl-C honoured.
//
//   Call call(threads);               // with the GIL; throws for a bad number of threads
//   kernels().operation(args, call.executor());
//
// The GIL is held again once it is destroyed. An interrupt leaves executor().run() as Cancelled
// with the Python error already set; module.cpp translates it.
class Call {
 public:
  explicit Call(long long threads) : run_(resolve_threads(threads), &Call::poll, this), state_(PyEval_SaveThread()) {}
  ~Call() { take_gil(state_); }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Executor executor() { return run_.executor(); }

 private:
  // While the interpreter shuts down, Python before 3.14 ends a thread that asks for the GIL by
  // unwinding its stack, which must not pass a destructor. From 3.14 on it never returns: so here.
  static void take_gil(PyThreadState* state) {
    try {
      PyEval_RestoreThread(state);
    } catch (...) {
      for (;;) pause();
    }
  }

  static bool poll(void* context) {
    Call& self = *static_cast<Call*>(context);
    take_gil(self.state_);
    const bool interrupted = PyErr_CheckSignals() != 0;
    self.state_ = PyEval_SaveThread();
    return interrupted;
  }

  Run run_;
  PyThreadState* state_;
};

// At most the threads of a call that the work is worth waking: one for each `work_per_thread`, and one more.
inline long long useful_threads(double work, double work_per_thread, long long threads) {
  const long long wanted = resolve_threads(threads);
  const double useful = work / work_per_thread + 1;
  return useful < static_cast<double>(wanted) ? static_cast<long long>(useful) : wanted;
}

// A kernel with its scratch memory, on so many threads.
template <class Variant, class Args>
void run_variant(const Variant& variant, const Args& args, long long threads) {
  Call call(threads);
  const Executor executor = call.executor();
  const Workspace workspace(static_cast<size_t>(variant.workspace_bytes(args, executor.threads)));
  variant.run(args, executor, workspace.data());
}

}  // namespace simtile
