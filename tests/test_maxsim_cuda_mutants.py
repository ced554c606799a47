"""Planted mistakes in MaxSim's CUDA kernels: every one must be seen."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from maxsim_cases import Case
from maxsim_cuda_host import Call, Host
from test_maxsim import check
from test_maxsim_cuda_codes import Call as CodesCall
from test_maxsim_cuda_codes import check as check_codes
from test_maxsim_cuda_host import everything
from test_maxsim_cuda_residual import Call as ResidualCall
from test_maxsim_cuda_topk import SEVERAL_LAUNCHES, late, many

FOLDER = "kernels/maxsim/"
DISPATCH = "csrc/cuda/maxsim_dispatch.hpp"

MUTANTS = [
    build.Mutation(*planted)
    for planted in (
        (
            "columns read before they are placed",
            FOLDER + "cuda_queries.cuh",
            "  __syncthreads();  // every row is known\n",
            "",
        ),
        (
            "queries used before they are staged",
            FOLDER + "cuda_scan.cuh",
            "  __syncthreads();\n",
            "",
        ),
        (
            "ties to the later row",
            FOLDER + "cuda_work.cuh",
            "value == other && row < other_row",
            "value == other && row > other_row",
        ),
        (
            "a segment of the part before",
            FOLDER + "cuda_sum.cuh",
            "((tile + 1) * parts - 1) / total",
            "(tile * parts) / total",
        ),
        (
            "products of tokens that are none",
            FOLDER + "cuda_tile.cuh",
            "products[m][n][i] = own >> (8 * n + e) & 1 ? product : -INFINITY;",
            "products[m][n][i] = product;",
        ),
        (
            "not a number is nothing",
            FOLDER + "cuda_tile.cuh",
            "for (; rare; rare &= rare - 1) {",
            "for (rare = 0; rare; rare &= rare - 1) {",
        ),
        (
            "the higher bytes of a query left out",
            FOLDER + "cuda_tile.cuh",
            "dot += 256 * sums",
            "dot += 0 * sums",
        ),
        (
            "items counted once for all launches",
            DISPATCH,
            "if (args.candidates || work.first_group == 0)",
            "if (args.candidates || (work.first_group == 0 && work.first_item == 0))",
        ),
        (
            "the highest bit of a code first",
            FOLDER + "cuda_residual.cuh",
            "(stored >> (bits - 1 - b) & 1) << b",
            "(stored >> b & 1) << b",
        ),
        (
            "the upper eight values of four bits taken for the lower",
            FOLDER + "cuda_residual.cuh",
            "(selectors & 0x8888u) >> 1",
            "(selectors & 0u) >> 1",
        ),
        (
            "the higher bytes of a residual's query left out",
            FOLDER + "cuda_residual.cuh",
            "256u * static_cast<uint32_t>(high[d][n][i])",
            "0u * static_cast<uint32_t>(high[d][n][i])",
        ),
        (
            "the lower bytes of values left out",
            FOLDER + "cuda_residual.cuh",
            "b[1][half] = look_up(values.low, selectors)",
            "b[1][half] = 0",
        ),
        (
            "centroids multiplied before they are there",
            FOLDER + "cuda_centroids.cuh",
            "    __syncthreads();  // the rows are there\n",
            "",
        ),
        (
            "centroids overwritten while they are multiplied",
            FOLDER + "cuda_centroids.cuh",
            "    __syncthreads();  // and may be written again\n",
            "",
        ),
        (
            "a row's centroid taken for another's",
            FOLDER + "cuda_centroids.cuh",
            "__shfl_sync(kAllLanes, own_centroid, row)",
            "__shfl_sync(kAllLanes, own_centroid, row ^ 1)",
        ),
        (
            "products with centroids kept for other groups",
            DISPATCH,
            "(work.first_item == 0 || plan.groups > plan.launch_groups)",
            "work.first_item == 0",
        ),
        (
            "a candidate found as often as it is given",
            FOLDER + "cuda_topk.cuh",
            "  if (place > 0 && sorted[place - 1] == sorted[place]) document = -1;\n",
            "",
        ),
        (
            "candidates that are not allowed",
            FOLDER + "cuda_topk.cuh",
            "  if (document >= 0 && !args.allowed(query, document)) document = -1;\n",
            "",
        ),
        (
            "documents that are not allowed",
            FOLDER + "cuda_topk.cuh",
            "!(scored.chosen || scored.allowed(query, document))",
            "false",
        ),
        (
            "another query's mask",
            FOLDER + "cuda_topk.cuh",
            "bytes[query * stride + document]",
            "bytes[document]",
        ),
        (
            "not a number is found",
            FOLDER + "cuda_topk.cuh",
            "if (order != topk::no_order) key =",
            "key =",
        ),
        (
            "nothing kept from one launch to the next",
            FOLDER + "cuda_topk.cuh",
            "if (!args.first) {",
            "if (false) {",
        ),
        (
            "the threshold of another place",
            FOLDER + "cuda_topk.cuh",
            "threshold = min(threshold, list[args.keys - 1])",
            "threshold = min(threshold, list[args.keys - 2])",
        ),
        (
            "keys that were not put in order",
            FOLDER + "cuda_topk.cuh",
            "  topk::flush_list(list, args.list, count);\n",
            "",
        ),
        (
            "the mask of the first batch",
            "csrc/cuda/maxsim_topk_dispatch.hpp",
            "args.allow + first_query * args.allow_stride",
            "args.allow",
        ),
        (
            "orders of another query's documents",
            "csrc/cuda/maxsim_topk_dispatch.hpp",
            "chosen += work.first_query(work.first_group) * count + work.first_item",
            "chosen += work.first_item",
        ),
    )
]

# Together they see every mutant.
REVEALING = [
    (Case((40, 7), (70, 0, 33, 5), 33, "few", ("holes", "holes")), "bfloat16", {}),
    (Case((5, 9), (20, 3), 16, "apart", ("holes", "holes"), {"zero_rows": "pad"}), "float32", {}),
    (Case((5, 9), (20, 3), 16, "zeros", options={"zero_rows": "pad"}), "float16", {}),
    (Case((9, 4), (33, 5), 7, "special", options={"normalize": True}), "float32", {}),
    (Case((9, 4), (33, 5), 7, "special"), "float32", {}),
    (Case((300, 2), (9, 40), 20), "float32", {}),
    (Case((3, 2), (1, 1, 1, 300, *[1] * 20), 20), "float32", {"multiprocessors": 1}),
    (Case((3,), tuple(range(40)), 8), "float32", {"most_maxima_bytes": 10000}),
]

REVEALING_RESIDUALS = [
    ((2, (7, 9), (33, 2), 70, 1), {}),
    ((4, (3,), (20,), 33, 2), {}),
    ((1, (90,) * 3, (3,) * 15, 20, 1), {"most_maxima_bytes": 9000, "most_product_bytes": 6000}),
]


def fault(module):
    """What the revealing cases find first: a wrong result, or what the host shim forbids."""
    for order in (0, 1, 2, 3):
        for case, dtype, host in REVEALING:
            try:
                call = Call(case, dtype)
                result = call.run(Host(module, order, **host))
                check(call, result, call.oracle(), everything(case))
            except (AssertionError, RuntimeError) as error:
                return f"{case}, order {order}: {error}"
        try:
            check_codes(CodesCall("uint8", "int16", (7, 9), (33, 2), 33, 1), Host(module, order))
        except (AssertionError, RuntimeError) as error:
            return f"codes, order {order}: {error}"
        for arguments, host in REVEALING_RESIDUALS:
            try:
                check_codes(ResidualCall(*arguments), Host(module, order, **host))
            except (AssertionError, RuntimeError) as error:
                return f"{arguments}, order {order}: {error}"
        try:
            the_best(module, order)
        except (AssertionError, RuntimeError) as error:
            return f"the best, order {order}: {error}"
    return None


def the_best(module, order):
    """What is found of all documents and of candidates: in lists, and beyond them."""
    for k in (7, 1025):
        for listed in (None, 60):
            many(90, k, listed, order, module, multiprocessors=1, most_maxima_bytes=8000)
            many(9, k, listed, order, module, queries=SEVERAL_LAUNCHES)
    many(300, 2, None, order, module, queries=(1,) * 8, multiprocessors=1)
    many(90, 40, None, order, module, most_query_bytes=1)
    late(order, module)


@pytest.mark.deep
def test_no_mutant_no_fault():
    assert fault(build.load("maxsim")) is None


@pytest.mark.deep
@pytest.mark.parametrize("mutation", build.some(MUTANTS), ids=lambda mutation: mutation.name)
def test_mutant_is_caught(mutation):
    with np.errstate(all="ignore"):
        assert fault(build.load("maxsim", mutation=mutation)) is not None
