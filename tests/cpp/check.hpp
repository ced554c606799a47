#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

// The C++ drivers' whole test framework: they must build with nothing but a compiler.
namespace check {

inline int passed = 0, failed = 0;

inline void that(bool ok, const char* what, const char* file, int line) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("%s:%d: failed: %s\n", file, line, what);
}

// Threads of each case: one and three, or what `--threads N` says where a run is slow.
inline std::vector<int> thread_counts(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--threads") == 0) return {std::atoi(argv[2])};
  return {1, 3};
}

constexpr uint64_t kEmptyDigest = 0xcbf29ce484222325, kDigestPrime = 0x100000001b3;  // FNV-1a
inline uint64_t digest = kEmptyDigest;
inline long long digested = 0;

// Results that have the same bits at every level of every processor: whole numbers, and floats whose operations are rounded
// one by one. A NaN counts as a NaN: which of them an operation makes is the processor's choice.
template <typename T>
void same_everywhere(const T* values, size_t count) {
  for (size_t i = 0; i < count; i++) {
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, values + i, sizeof(T));
    if constexpr (std::is_floating_point_v<T>)
      if (values[i] != values[i]) std::memset(bytes, 0xff, sizeof(T));
    for (const unsigned char byte : bytes) digest = (digest ^ byte) * kDigestPrime;
  }
  digested += static_cast<long long>(count);
}

// Of the level that is done; the next begins anew.
inline void print_digest(const char* level) {
  std::printf("digest %s %016llx of %lld values\n", level, static_cast<unsigned long long>(digest), digested);
  digest = kEmptyDigest;
  digested = 0;
}

// The driver's exit status. A driver that checked nothing has failed.
inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
