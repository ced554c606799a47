// Top-k on a device: scan the documents in splits, merge the splits' lists. README.md beside this file tells how.
#pragma once

#include "topk/merge.cuh"
#include "topk/scan.cuh"
#include "topk/scan_mma.cuh"
