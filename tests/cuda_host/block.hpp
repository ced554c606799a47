// One block at a time: each of its CUDA threads is a fiber that runs until it must wait for others.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "shared.hpp"
#include "types.hpp"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_host {

// What a kernel did that a GPU forbids or leaves undefined.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in a kernel. As a default argument of an intrinsic it is the place of the call.
struct Source {
  const char* file = "";
  int line = 0;
  static constexpr Source here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Source& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

constexpr int warp_size = 32;

enum class State { ready, at_collective, at_barrier, exited };

struct AsyncCopy {
  void* shared;
  const void* global;
  int valid_bytes;  // of 16; the rest becomes zero
};

struct Thread {
  Context context;
  uint3 index;
  int number;  // in the block, x fastest
  State state;
  const char* operation;  // the last collective or barrier it came to
  Source source;          // where that stands
  unsigned mask;          // of the collective
  const void* input;      // on its own stack
  void* output;
  std::vector<AsyncCopy> copies;  // issued and not yet carried out
  std::vector<size_t> committed;  // number of copies before the end of each committed group
  int lane() const { return number % warp_size; }
};

struct Warp {
  unsigned present;  // lanes that exist
  unsigned ready;
  unsigned waiting;  // at a collective
  unsigned exited;
};

class Block {
 public:
  // 0: warps and lanes forward, each as far as it can run; 1: backward; from 2: a seed for random interleavings.
  void launch(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t dynamic_bytes, uint64_t order);

  Thread& current() { return *current_; }
  SharedMemory& shared() { return shared_; }

  // The running thread comes to a collective of the lanes in `mask`. True for the last of them: it computes for all of
  // them and calls complete(). The others return when that is done.
  bool arrive(const char* operation, unsigned mask, Source source, const void* input, void* output);
  void complete(unsigned mask);
  Thread& lane(int number) { return threads_[size_t(current_->number / warp_size * warp_size + number)]; }

  void barrier(Source source);

  // Ends the launch with an error that names the running thread and its last known place.
  [[noreturn]] void fail(const std::string& what);

 private:
  void run_block();
  void start_threads();
  Thread* next();
  void wait(State state);
  void exit_thread();
  [[noreturn]] void fail_from_scheduler(const std::string& what);
  std::string deadlock();
  std::string name(const Thread& thread) const;
  static std::string place(const Thread& thread);
  Warp& warp_of(const Thread& thread) { return warps_[size_t(thread.number / warp_size)]; }
  static void entry();

  const std::function<void()>* kernel_ = nullptr;
  size_t dynamic_bytes_ = 0;
  uint64_t order_ = 0;
  std::mt19937_64 random_;
  Stacks stacks_;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  size_t favourite_warp_ = 0;
  int at_barrier_ = 0, exited_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  Context scheduler_;
  std::string failure_;
};

inline Block& running_block() {
  static Block block;
  return block;
}

}  // namespace cuda_host

#include "scheduler.hpp"
