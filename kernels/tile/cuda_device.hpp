#pragma once

#include <cstddef>

namespace simtile::cuda {

// What a dispatch must know of the device it launches on. Plain, so that host tests can make one up.
struct Device {
  int multiprocessors;                 // streaming multiprocessors
  std::size_t shared_bytes_per_block;  // the most dynamic shared memory one block may opt in to
  int compute_capability;              // 10 * major + minor: 80, 86, 89, 90, 100, 120
};

}  // namespace simtile::cuda
