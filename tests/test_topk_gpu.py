"""The top-k operations on a GPU: other libraries' arrays, streams, graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from search_cases import Case
from topk_cases import check

from simtile.ops import topk
from simtile.reference import topk_numpy as oracle

pytestmark = pytest.mark.gpu

CASES = [
    Case("packed", "hamming", 9, 3000, 384, 33, allow="per query"),
    Case("int8", "cosine", 17, 3000, 96, 10, allow="some"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)


def search(case, convert, **options):
    given = [convert(x) if isinstance(x, np.ndarray) else x for x in (*case.operands, case.k)]
    return topk.search(*given, convert(case["allow"]), **options)


def on_gpu(x):
    return torch.from_numpy(np.ascontiguousarray(x)).cuda()


@every_case
def test_cupy(case):
    cupy = pytest.importorskip("cupy")
    results = search(case, cupy.asarray)
    assert all(isinstance(x, cupy.ndarray) for x in results)
    check([x.get() for x in results], case.topk(oracle))


@every_case
def test_on_the_stream_of_cupy(case):
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Stream(non_blocking=True):
        results = search(case, cupy.asarray)
        check([x.get() for x in results], case.topk(oracle))


@every_case
def test_dlpack(case):
    class OnlyDLPack:
        def __init__(self, x):
            self.x = on_gpu(x)

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    dtype = torch.float32 if case.score_dtype == np.float32 else torch.int32
    shape = (case.queries, case.k)
    out = (
        torch.empty(shape, dtype=dtype, device="cuda"),
        torch.empty(shape, dtype=torch.int64, device="cuda"),
    )
    workspace = torch.empty(1 << 24, dtype=torch.uint8, device="cuda")
    search(case, OnlyDLPack, out=out, workspace=workspace)
    check([x.numpy(force=True) for x in out], case.topk(oracle))


@every_case
def test_cuda_graph(case):
    """Captured with outputs and memory of its own, replayed on other documents."""
    kept = {}

    def convert(x):
        if id(x) not in kept:
            kept[id(x)] = on_gpu(x)
        return kept[id(x)]

    scores, ids = search(case, convert)
    workspace = torch.empty(1 << 24, dtype=torch.uint8, device="cuda")
    out = torch.empty_like(scores), torch.empty_like(ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        search(case, convert, out=out, workspace=workspace)
    case_again = replace(case, seed=1)
    for name, array in case_again.arrays.items():
        if array is not None:
            convert(case[name]).copy_(on_gpu(array))
    for x in (*out, workspace):
        x.fill_(77)
    graph.replay()
    check([x.numpy(force=True) for x in out], case_again.topk(oracle))
