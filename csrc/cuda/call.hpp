// What every binding does with the integers that stand for device memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace simtile::cuda {

inline constexpr std::uintptr_t kWorkspaceAlignment = 256;

template <typename T>
T* as_pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void require(bool holds, const std::string& message) {
  if (!holds) throw pybind11::value_error(message);
}

inline void require_at_least(const char* name, int64_t value, int64_t least) {
  require(value >= least,
          std::string(name) + ": found " + std::to_string(value) + ", expected at least " + std::to_string(least));
}

// A null pointer is what an empty array has.
inline void require_memory(const char* name, std::uintptr_t address, bool is_read) {
  require(address != 0 || !is_read, std::string(name) + ": found a null pointer, expected device memory");
}

inline void require_workspace(std::uintptr_t address, int64_t bytes, int64_t needed) {
  require(bytes >= needed,
          "workspace: found " + std::to_string(bytes) + " bytes, expected at least " + std::to_string(needed));
  require(address % kWorkspaceAlignment == 0 && (address != 0 || needed == 0),
          "workspace: found address " + std::to_string(address) + ", expected device memory aligned to " +
              std::to_string(kWorkspaceAlignment) + " bytes");
}

}  // namespace simtile::cuda
