#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
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

// The driver's exit status. A driver that checked nothing has failed.
inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
