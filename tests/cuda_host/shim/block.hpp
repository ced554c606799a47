// One block at a time: each of its CUDA threads is a fiber that runs until it must wait for others.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../device.hpp"
#include "fiber.hpp"
#include "memory.hpp"
#include "shared.hpp"

namespace cuda_host {

// What a kernel did that a GPU forbids or leaves undefined.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
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
  const char* operation;          // the last collective, barrier or copy it came to
  Source source;                  // where that stands
  unsigned mask;                  // of the collective
  const void* input;              // on its own stack
  void* output;                   // likewise
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

  SharedMemory& shared() { return shared_; }
  Thread& current() { return *current_; }
  Thread& lane(int number) { return threads_[size_t(current_->number / warp_size * warp_size + number)]; }

  // The running thread comes to a collective of the lanes in `mask`. True for the last of them: it computes for all of
  // them and calls complete(). The others return when that is done.
  bool arrive(const char* operation, unsigned mask, Source source, const void* input, void* output);
  void complete(unsigned mask);
  void order_memory_of(unsigned mask) { memory_.clocks.syncwarp(current_->number / warp_size, mask); }
  void barrier(Source source);

  void issue_copy(void* shared, const void* global, int valid_bytes, Source source, const void* place);
  void finish_copies(size_t left);

  // A load or store by kernel code at the code address `place`; `aligned`: it needs an address divisible by its size.
  void access(uintptr_t address, size_t bytes, bool write, bool aligned, const void* place);

  // Ends the launch with an error that names the running thread and the last intrinsic it came to, or the code address.
  [[noreturn]] void fail(const std::string& what);
  [[noreturn]] void fail(const std::string& what, const void* place);

 private:
  void run_block();
  void start_threads();
  Thread* next();
  void wait(State state);
  void exit_thread();
  [[noreturn]] void give_up(const std::string& failure);
  std::string deadlock() const;
  Warp& warp_of(const Thread& thread) { return warps_[size_t(thread.number / warp_size)]; }
  static void entry();

  const std::function<void()>* kernel_ = nullptr;
  size_t dynamic_bytes_ = 0;
  uint64_t order_ = 0;
  std::mt19937_64 random_;
  Stacks stacks_;
  SharedMemory shared_;
  MemoryCheck memory_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;  // null outside of kernel code
  size_t favourite_warp_ = 0;
  size_t at_barrier_ = 0, exited_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  Context scheduler_;
  std::string failure_;
};

Block& running_block();

}  // namespace cuda_host
