#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace simtile {

// Scratch memory of one call, aligned to a cache line, not initialised. Large blocks ask for huge
// pages: first touching 4 KiB pages costs as much as packing what is then written to them.
class Workspace {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Workspace(size_t bytes) {
    if (bytes == 0) return;
    if (bytes > static_cast<size_t>(PTRDIFF_MAX) - 2 * kHugePage) throw std::bad_alloc();
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
    if (mapped_bytes_ != 0) {
      munmap(mapping_, mapped_bytes_);
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
  void map(size_t bytes) {
    // One huge page more than needed, so that the block can start on a huge page's boundary.
    const size_t size = round_up(bytes, kHugePage) + kHugePage;
    void* mapping =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = mapping;
    mapped_bytes_ = size;
    data_ = reinterpret_cast<void*>(round_up(reinterpret_cast<size_t>(mapping), kHugePage));
    madvise(data_, size - kHugePage, MADV_HUGEPAGE);  // a wish: refused on kernels without them
  }
#endif

  void* data_ = nullptr;
  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
};

}  // namespace simtile
