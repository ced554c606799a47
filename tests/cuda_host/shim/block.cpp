// How the threads of a block take turns, and what is said when they wait for each other in vain.
#include "block.hpp"

#include <algorithm>
#include <numeric>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {

namespace {

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string lanes_text(unsigned mask) {
  std::string text;
  for (int lane = 0; lane < warp_size; ++lane)
    if (mask >> lane & 1) text += (text.empty() ? "" : ",") + std::to_string(lane);
  return text;
}

std::string name(const Thread& thread) { return "block " + triple(blockIdx) + " thread " + triple(thread.index); }

std::string place(const Thread& thread) {
  if (!thread.operation) return "before any barrier or warp intrinsic";
  return std::string(thread.operation) + " at " + thread.source.text();
}

}  // namespace

Block& running_block() {
  static Block block;
  return block;
}

void launch(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t dynamic_bytes, uint64_t order) {
  running_block().launch(kernel, grid, block, dynamic_bytes, order);
}

void* dynamic_shared() { return running_block().shared().dynamic().begin; }

void Block::launch(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t dynamic_bytes, uint64_t order) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    throw Error("launch: a block of " + std::to_string(threads) + " threads; expected 1 to 1024, and at most 64 in z");
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Error("launch: a grid of " + std::to_string(grid.x) + "x" + std::to_string(grid.y) + "x" +
                std::to_string(grid.z) + " blocks; expected 1 to 2^31-1 in x, 1 to 65535 in y and z");
  if (dynamic_bytes > largest_dynamic_bytes)
    throw Error("launch: " + std::to_string(dynamic_bytes) + " bytes of dynamic shared memory; a device has at most " +
                std::to_string(largest_dynamic_bytes) + " a block");

  kernel_ = &kernel;
  dynamic_bytes_ = dynamic_bytes;
  order_ = order;
  random_.seed(order);
  gridDim = grid;
  blockDim = block;
  scheduler_ = {};
  failure_.clear();
  threads_.resize(threads);
  warps_.resize((threads + warp_size - 1) / warp_size);
  // Only while they are in use: every module of a process has its own, and a guard page costs two of the system's
  // mappings, of which a process has 65,530.
  const Stacks::Lease lease(stacks_, threads);

  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), 0);
  if (order == 1) std::reverse(sequence.begin(), sequence.end());
  if (order > 1) std::shuffle(sequence.begin(), sequence.end(), random_);
  for (const uint64_t i : sequence) {
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    run_block();
  }
}

void Block::start_threads() {
  current_ = nullptr;
  favourite_warp_ = 0;
  at_barrier_ = exited_ = 0;
  first_at_barrier_ = nullptr;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    thread.number = int(i);
    const unsigned n = unsigned(i);
    thread.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    thread.state = State::ready;
    thread.operation = nullptr;
    thread.source = {};
    thread.copies.clear();
    thread.committed.clear();
    prepare(thread.context, stacks_.bottom(i), &Block::entry);
  }
  for (size_t w = 0; w < warps_.size(); ++w) {
    const size_t lanes = std::min<size_t>(warp_size, threads_.size() - w * warp_size);
    const unsigned present = lanes == warp_size ? ~0u : (1u << lanes) - 1;
    warps_[w] = {present, present, 0, 0};
  }
}

void Block::run_block() {
  shared_.begin_block(dynamic_bytes_);
  memory_.begin_block(shared_.dynamic(), threads_.size());
  start_threads();
  while (Thread* thread = next()) {
    current_ = thread;
    threadIdx = thread->index;
    switch_to(scheduler_, thread->context);
    current_ = nullptr;
    if (!failure_.empty()) throw Error(failure_);
  }
  if (exited_ != threads_.size()) throw Error(deadlock());
  if (const std::string damage = shared_.damage(); !damage.empty())
    throw Error("block " + triple(blockIdx) + ": dynamic shared memory was written " + damage);
}

// The thread that runs next; null when none can.
Thread* Block::next() {
  const size_t count = warps_.size();
  // Sixteen turns in one warp, on average, let warps get far ahead of one another.
  if (order_ > 1 && random_() % 16 == 0) favourite_warp_ = random_() % count;
  for (size_t i = 0; i < count; ++i) {
    const size_t w = order_ == 0 ? i : order_ == 1 ? count - 1 - i : (favourite_warp_ + i) % count;
    unsigned ready = warps_[w].ready;
    if (!ready) continue;
    int lane;
    if (order_ == 0) {
      lane = __builtin_ctz(ready);
    } else if (order_ == 1) {
      lane = 31 - __builtin_clz(ready);
    } else {
      for (unsigned skip = unsigned(random_() % unsigned(__builtin_popcount(ready))); skip; --skip) ready &= ready - 1;
      lane = __builtin_ctz(ready);
    }
    return &threads_[w * warp_size + size_t(lane)];
  }
  return nullptr;
}

void Block::entry() {
  Block& block = running_block();
  arrived(block.scheduler_);
  (*block.kernel_)();
  block.exit_thread();
}

void Block::wait(State state) {
  Thread& thread = *current_;
  thread.state = state;
  Warp& warp = warp_of(thread);
  const unsigned bit = 1u << thread.lane();
  if (state == State::ready) {
    warp.ready |= bit;
  } else {
    warp.ready &= ~bit;
  }
  switch_to(thread.context, scheduler_);
}

void Block::exit_thread() {
  Thread& thread = *current_;
  Warp& warp = warp_of(thread);
  const unsigned bit = 1u << thread.lane();
  if (!thread.copies.empty()) fail("the thread returned with asynchronous copies that it never waited for");
  for (int i = 0; i < warp_size; ++i)
    if (warp.waiting >> i & 1 && lane(i).mask & bit)
      fail("the thread returned while lane " + std::to_string(i) + " waits for it in " + place(lane(i)));
  if (at_barrier_)
    fail("barrier divergence: the thread returned while " + name(*first_at_barrier_) + " waits in " +
         place(*first_at_barrier_));
  warp.exited |= bit;
  ++exited_;
  wait(State::exited);
  __builtin_unreachable();
}

void Block::barrier(Source source) {
  Thread& thread = *current_;
  thread.operation = "__syncthreads";
  thread.source = source;
  if (exited_) {
    const auto other =
        std::find_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.state == State::exited; });
    fail("barrier after exit: " + name(*other) + " has returned already");
  }
  if (at_barrier_ == 0) first_at_barrier_ = &thread;
  if (!(first_at_barrier_->source == source))
    fail("barrier divergence: " + name(*first_at_barrier_) + " waits in " + place(*first_at_barrier_));
  if (++at_barrier_ < threads_.size()) return wait(State::at_barrier);
  at_barrier_ = 0;
  memory_.clocks.syncthreads();
  for (Thread& each : threads_) each.state = State::ready;
  for (Warp& warp : warps_) warp.ready = warp.present;
  wait(State::ready);
}

bool Block::arrive(const char* operation, unsigned mask, Source source, const void* input, void* output) {
  Thread& thread = *current_;
  Warp& warp = warp_of(thread);
  const unsigned bit = 1u << thread.lane();
  thread.operation = operation;
  thread.source = source;
  thread.mask = mask;
  thread.input = input;
  thread.output = output;
  if (!(mask & bit)) fail("the calling lane " + std::to_string(thread.lane()) + " is not in its mask");
  if (mask & ~warp.present)
    fail("the mask names lanes that the block does not have: " + lanes_text(mask & ~warp.present));
  if (mask & warp.exited) fail("the mask names lanes that have returned: " + lanes_text(mask & warp.exited));
  unsigned arrived = bit;
  for (unsigned rest = warp.waiting & mask; rest; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    const Thread& other = lane(i);
    if (other.mask == mask) {
      if (std::strcmp(other.operation, operation) != 0 || !(other.source == source))
        fail("different collectives meet: lane " + std::to_string(i) + " waits in " + place(other));
      arrived |= 1u << i;
    } else if (other.mask & bit) {
      // Each waits for the other. A lane that waits for others first may still come here.
      fail("lanes meet with different masks: lane " + std::to_string(i) + " waits in " + place(other));
    }
  }
  if (arrived == mask) return true;
  warp.waiting |= bit;
  wait(State::at_collective);
  return false;
}

void Block::complete(unsigned mask) {
  Warp& warp = warp_of(*current_);
  warp.waiting &= ~mask;
  warp.ready |= mask;
  for (int i = 0; i < warp_size; ++i)
    if (mask >> i & 1) lane(i).state = State::ready;
  wait(State::ready);
}

void Block::access(uintptr_t address, size_t bytes, bool write, bool aligned, const void* place) {
  if (!current_ || stacks_.contains(address)) return;
  if (aligned && address % bytes)
    fail(std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes at an address that is not aligned",
         place);
  const void* pointer = reinterpret_cast<const void*>(address);
  if (!shared_.arena().contains(pointer)) return;
  const std::string wrong = memory_.access(current_->number, pointer, bytes, write, place);
  if (!wrong.empty()) fail(wrong, place);
}

void Block::fail(const std::string& what) { give_up(name(*current_) + ", " + place(*current_) + ": " + what); }

void Block::fail(const std::string& what, const void* place) {
  give_up(name(*current_) + ", " + source_of(place) + ": " + what);
}

// The fiber is left where it stands: kernels hold nothing that needs a destructor.
void Block::give_up(const std::string& failure) {
  failure_ = failure;
  switch_to(current_->context, scheduler_);
  __builtin_unreachable();
}

std::string Block::deadlock() const {
  std::string text = "deadlock:";
  int told = 0;
  for (const Thread& thread : threads_) {
    if (thread.state != State::at_collective) continue;
    unsigned missing = thread.mask;
    for (int lane = 0; lane < warp_size; ++lane) {
      if (!(missing >> lane & 1)) continue;
      const Thread& other = threads_[size_t(thread.number / warp_size * warp_size + lane)];
      if (other.state == State::at_collective && other.mask == thread.mask) missing &= ~(1u << lane);
    }
    const Thread& other = threads_[size_t(thread.number / warp_size * warp_size + __builtin_ctz(missing))];
    text += " " + name(thread) + " waits in " + place(thread) + " for lanes " + lanes_text(missing) +
            ", of which the first waits in " + place(other) + ";";
    if (++told == 2) break;
  }
  return text;
}

}  // namespace cuda_host
