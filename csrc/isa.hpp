#pragma once

#include <string>
#include <vector>

#include "kernel_table.hpp"

namespace simtile {

// The compiled levels that this CPU and operating system can run, lowest first.
const std::vector<const KernelTable*>& detected_levels();

// The level in use: the highest detected one, or the one that the environment variable SIMTILE_ISA
// names. Throws std::invalid_argument for a name that this build does not have and
// std::runtime_error for a level that this machine lacks. Chosen once per process, unless:
const KernelTable& kernels();

// Take a detected level from now on, or with null the chosen one again. For tests, which go through
// all levels in one process; false if the machine lacks it.
bool use_level(const char* name);

// Whether SIMTILE_ISA chose the level.
bool level_is_forced();

// The processor's own name for its maker and its model; empty where it does not say.
std::string cpu_vendor();
std::string cpu_brand();

}  // namespace simtile
