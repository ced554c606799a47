// cp.async: a copy is carried out when its thread waits for it, so that whoever does not wait finds what is wrong.
#include "block.hpp"

namespace cuda_host {

void Block::issue_copy(void* shared, const void* global, int valid_bytes, Source source, const void* place) {
  Thread& thread = *current_;
  thread.operation = "cp_async_16";
  thread.source = source;
  if (reinterpret_cast<uintptr_t>(shared) % 16) fail("the shared address is not aligned to 16 bytes");
  if (reinterpret_cast<uintptr_t>(global) % 16) fail("the global address is not aligned to 16 bytes");
  if (!shared_.dynamic().contains(shared, 16)) fail("the destination is not in shared memory");
  if (valid_bytes < 0 || valid_bytes > 16) fail(std::to_string(valid_bytes) + " bytes of source; expected 0 to 16");
  if (const std::string wrong = memory_.copy_issued(thread.number, shared, place); !wrong.empty()) fail(wrong);
  // A device may write at any time from now on.
  std::memset(shared, unwritten, 16);
  thread.copies.push_back({shared, global, valid_bytes});
}

// All but the last `left` committed groups.
void Block::finish_copies(size_t left) {
  Thread& thread = *current_;
  if (thread.committed.size() <= left) return;
  const size_t groups = thread.committed.size() - left, count = thread.committed[groups - 1];
  for (size_t i = 0; i < count; ++i) {
    const AsyncCopy& copy = thread.copies[i];
    std::memset(copy.shared, 0, 16);
    std::memcpy(copy.shared, copy.global, size_t(copy.valid_bytes));
    memory_.copy_done(thread.number, copy.shared);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + ptrdiff_t(count));
  thread.committed.erase(thread.committed.begin(), thread.committed.begin() + ptrdiff_t(groups));
  for (size_t& end : thread.committed) end -= count;
}

void copy_async(void* shared, const void* global, int valid_bytes, Source source) {
  running_block().issue_copy(shared, global, valid_bytes, source, __builtin_return_address(0));
}

void commit_copies() {
  Thread& thread = running_block().current();
  thread.committed.push_back(thread.copies.size());
}

void wait_for_copies(int left) { running_block().finish_copies(size_t(left)); }

}  // namespace cuda_host
