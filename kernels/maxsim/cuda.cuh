// MaxSim on a device: packing, then for some groups of queries and some documents at a time counting, scanning and summing; of residuals
// products with centroids as well. README.md beside this file tells how the parts work together.
#pragma once

#include "maxsim/cuda_queries.cuh"
#include "maxsim/cuda_scan.cuh"
#include "maxsim/cuda_sum.cuh"
