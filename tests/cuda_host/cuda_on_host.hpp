// CUDA kernels compiled by a C++ compiler and run on the CPU. Included before everything else (-include), so that a kernel's
// source is the one that nvcc compiles. What it checks and what it cannot: README.md beside this file.
#pragma once

#ifdef __CUDACC__
#error "this header stands in for CUDA; nvcc has its own"
#endif

#define SIMTILE_CUDA_HOST 1

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "device.hpp"
#include "intrinsics.hpp"
#include "types.hpp"
