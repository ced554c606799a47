"""Mistakes planted in the CUDA forward of info_nce: every one must be seen on the CPU."""

import pytest
from cuda_host import build
from info_nce_cuda_host import SHARED_BYTES, bf16_case, check, run

ORDERS = (0, 1, 5)
KERNEL, ROWS = "kernels/info_nce/cuda.cuh", "kernels/info_nce/cuda_rows.cuh"
DISPATCH = "csrc/cuda/info_nce_dispatch.hpp"

MUTANTS = [
    build.Mutation(name, file, old, new)
    for name, file, old, new in (
        (
            "rows staged before their scales are known",
            KERNEL,
            "        __syncthreads();  // the rows' scales are known, and",
            "        // and",
        ),
        (
            "fragments read before the rows are staged",
            KERNEL,
            "        __syncthreads();  // the staged rows",
            "",
        ),
        (
            "warps merged before they are done",
            KERNEL,
            "  __syncthreads();  // what every warp has seen",
            "",
        ),
        (
            "lanes of a row merged once too little",
            KERNEL,
            "for (int distance = 1; distance < 4; distance *= 2)",
            "for (int distance = 1; distance < 2; distance *= 2)",
        ),
        (
            "lanes of other rows merged",
            KERNEL,
            "for (int distance = 1; distance < 4; distance *= 2)",
            "for (int distance = 4; distance < 16; distance *= 2)",
        ),
        (
            "factor of another column",
            KERNEL,
            "4 * (2 * (lane % 4) + e) + n);",
            "4 * (lane % 4 + 4 * e) + n);",
        ),
        (
            "norm of a column without half of its dimensions",
            KERNEL,
            "    sum += __shfl_xor_sync(kAllLanes, sum, 2);\n    mine",
            "    mine",
        ),
        (
            "norm of a query without a lane",
            KERNEL,
            "for (int distance = 16; distance > 0; distance /= 2)",
            "for (int distance = 16; distance > 1; distance /= 2)",
        ),
        (
            "one column too many",
            KERNEL,
            "const int64_t left = min(candidates.count - base,",
            "const int64_t left = min(candidates.count + 1 - base,",
        ),
        (
            "last column left out",
            KERNEL,
            "const int64_t left = min(candidates.count - base,",
            "const int64_t left = min(candidates.count - 1 - base,",
        ),
        (
            "last group of the negatives left out",
            KERNEL,
            "document_groups + (negatives.count + kColumns - 1) / kColumns;",
            "document_groups + negatives.count / kColumns;",
        ),
        (
            "own negatives and the next row's first",
            KERNEL,
            "first_columns(own + args.negatives)",
            "first_columns(own + args.negatives + 1)",
        ),
        (
            "own negatives of the row before",
            KERNEL,
            "const int64_t own = r * args.negatives - base;",
            "const int64_t own = (r - 1) * args.negatives - base;",
        ),
        (
            "negatives of the first block",
            KERNEL,
            "(args.own_negatives ? first_row * args.negatives * args.negatives_stride : 0)",
            "0",
        ),
        (
            "the positive masked by its id",
            KERNEL,
            "~duplicates[m][half] | (positive >= 0 ? 1u << positive : 0)",
            "~duplicates[m][half]",
        ),
        (
            "ids of the rows eight below",
            KERNEL,
            "duplicates[r / 16][r / 8 % 2] = equal;",
            "duplicates[r / 16][1 - r / 8 % 2] = equal;",
        ),
        (
            "the positive among the others",
            KERNEL,
            "seen.others += is_positive ? 0 :",
            "seen.others += false ? 0 :",
        ),
        (
            "sum not moved to the new maximum",
            KERNEL,
            "others *= __expf(before - reference());",
            "others *= before == -INFINITY ? 0.0f : 1.0f;",
        ),
        (
            "no floor under the norm",
            ROWS,
            "value <= floor ? numerator / floor : value;",
            "value <= floor ? numerator / value : value;",
        ),
        (
            "overflowing norms believed",
            KERNEL,
            "if (!(mine < kLargeSquares)) {",
            "if (false) {",
        ),
        (
            "slice after the first begins with the second step",
            KERNEL,
            "queries.row(row) + begin : nullptr;",
            "queries.row(row) + begin + (begin > 0 ? kStep : 0) : nullptr;",
        ),
        (
            "what follows a row not masked",
            ROWS,
            "left > 2 * i + 1 ? words[i] : left > 2 * i ? words[i] & 0xffffu : 0;",
            "left > 2 * i ? words[i] : 0;",
        ),
        (
            "chunk of the wrong lane",
            ROWS,
            "(t + distance) % 4;\n    const uint4 given = t < distance",
            "(t + distance) % 4;\n    const uint4 given = t <= distance",
        ),
        (
            "rows of half a chunk called aligned",
            DISPATCH,
            "args.dimensions % 8 == 0 &&",
            "args.dimensions % 4 == 0 &&",
        ),
    )
]

# Together they see every mutant, in slices and not.
REVEALING = [
    (bf16_case(33, 111, 64, 3, own=True, ids=True, temperature=0.3), SHARED_BYTES),
    (bf16_case(40, 75, 96, 2, ids=True, special=("huge rows", "tiny rows")), SHARED_BYTES),
    (bf16_case(20, 40, 333, 1, layout="padded rows", temperature=1.0, targets=True), 8192),
    (bf16_case(9, 13, 320, targets=True, temperature=1.0), 8192),
    (bf16_case(7, 9, 20, normalize=False, layout="every other row", temperature=0.01), 8192),
]


def fault(module):
    """What the revealing cases find first: a wrong result, or what the host shim forbids."""
    for case, shared_bytes in REVEALING:
        for order in ORDERS:
            try:
                check(case, run(case, order=order, shared_bytes=shared_bytes, module=module))
            except (AssertionError, RuntimeError) as error:
                return f"{case}, order {order}: {error}"
    return None


def test_no_mutant_no_fault():
    assert fault(build.load("info_nce")) is None


@pytest.mark.deep
@pytest.mark.parametrize("mutation", build.some(MUTANTS), ids=lambda mutation: mutation.name)
def test_mutant_is_caught(mutation):
    assert fault(build.load("info_nce", mutation=mutation)) is not None
