#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "info_nce/args.hpp"

namespace {

using simtile::Element;

// Memory that touches a page which may not be touched, at its end or at its beginning.
class Guarded {
 public:
  explicit Guarded(size_t bytes, bool at_end = true) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inside = (bytes + page - 1) / page * page;
    mapped_ = inside + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + inside, page, PROT_NONE);
    data_ = base_ + page + (at_end ? inside - bytes : 0);
    std::memset(data_, 0xff, bytes);  // NaN in every float format
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  void* data() const { return data_; }
  char* bytes() const { return data_; }

 private:
  char* base_;
  char* data_;
  size_t mapped_;
};

inline size_t element_bytes(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// Writes x in the element type and returns what was really stored. Halves are cut to 8 bits of mantissa, which both formats hold.
inline double write(Element element, void* at, double x) {
  if (element == Element::float64) {
    std::memcpy(at, &x, 8);
    return x;
  }
  float f = static_cast<float>(x);
  if (element == Element::float32) {
    std::memcpy(at, &f, 4);
    return f;
  }
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  bits &= 0xffff0000;
  std::memcpy(&f, &bits, 4);
  const uint16_t half = static_cast<uint16_t>(bits >> 16);
  const uint16_t as_f16 =
      static_cast<uint16_t>((half & 0x8000) | ((((bits >> 23) & 0xff) - 112) << 10) | ((bits >> 13) & 0x3ff));
  std::memcpy(at, element == Element::bfloat16 ? &half : &as_f16, 2);
  return f;
}

}  // namespace
