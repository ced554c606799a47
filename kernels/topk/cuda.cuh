// Search on a device. README.md beside this file tells how the parts work together.
#pragma once

#include "topk/combine.cuh"
#include "topk/fold.cuh"
#include "topk/merge.cuh"
#include "topk/radix.cuh"
#include "topk/rows.cuh"
#include "topk/scan.cuh"
#include "topk/scan_float.cuh"
#include "topk/scan_mma.cuh"
