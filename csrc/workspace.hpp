#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace simtile {

// Scratch memory of one call, aligned to a cache line, not initialised. Large blocks ask for huge
// pages: first touching 4 KiB pages costs as much as packing what is then written to them. For the
// same reason the process keeps one block of up to kKept bytes from call to call.
class Workspace {
 public:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kKept = size_t{48} << 20;

  explicit Workspace(size_t bytes) {
    if (bytes == 0) return;
    if (bytes > static_cast<size_t>(PTRDIFF_MAX) - 2 * kHugePage) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= kHugePage && bytes <= kKept) {
      Block* kept = kept_block().exchange(nullptr);
      if (kept != nullptr && kept->usable >= bytes) {
        adopt(kept);
        return;
      }
      release(kept);
    }
#endif
#if defined(__linux__)
    if (bytes >= kHugePage) {
      map(bytes);
      return;
    }
#endif
    data_ = std::aligned_alloc(kAlignment, round_up(bytes, kAlignment));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  ~Workspace() {
#if defined(__linux__)
    if (block_ != nullptr) {
      release(block_->usable <= kKept ? kept_block().exchange(block_) : block_);
      return;
    }
#endif
    std::free(data_);
  }

  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

#if defined(__linux__)
  // Described by its own first page, so that keeping one needs no other allocation.
  struct Block {
    size_t mapped;  // bytes from this on
    size_t offset;  // of the scratch memory
    size_t usable;
  };

  static std::atomic<Block*>& kept_block() {
    static std::atomic<Block*> kept{nullptr};
    return kept;
  }

  static void release(Block* block) {
    if (block != nullptr) munmap(block, block->mapped);
  }

  void adopt(Block* block) {
    block_ = block;
    data_ = reinterpret_cast<char*>(block) + block->offset;
  }

  void map(size_t bytes) {
    // One huge page more than needed, so that the block can start on a huge page's boundary.
    const size_t usable = round_up(bytes, kHugePage), size = usable + kHugePage + kHeader;
    void* mapping = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    const size_t start = reinterpret_cast<size_t>(mapping);
    const size_t offset = round_up(start + kHeader, kHugePage) - start;
    Block* block = static_cast<Block*>(mapping);
    *block = {size, offset, usable};
    adopt(block);
    madvise(data_, usable, MADV_HUGEPAGE);  // a wish: refused on kernels without them
  }

  static constexpr size_t kHeader = 4096;
  Block* block_ = nullptr;
#endif

  void* data_ = nullptr;
};

}  // namespace simtile
