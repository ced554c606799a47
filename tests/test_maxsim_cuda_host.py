"""MaxSim's CUDA kernels, compiled for the CPU, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import Case, cases
from maxsim_cuda_host import SHARED_BYTES, Call, Device, Host
from test_maxsim import check

DTYPES = ("float32", "float16", "bfloat16")
ORDERS = st.integers(0, 9)


@pytest.fixture(scope="module")
def module():
    return build.load("maxsim")


def everything(case):
    return [range(len(case["documents"]))] * len(case["queries"])


@given(
    case=cases(most=4),
    dtype=st.sampled_from(DTYPES),
    query_dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["contiguous", "padded rows"]),
    shared_bytes=st.sampled_from([4096, SHARED_BYTES]),
    order=ORDERS,
)
def test_all_pairs_are_the_oracle(module, case, dtype, query_dtype, layout, shared_bytes, order):
    host = Host(module, order, shared_bytes=shared_bytes)
    call = Call(case, dtype, layout, query_dtype)
    result = call.run(host)
    check(call, result, call.oracle(), everything(case))
    np.testing.assert_array_equal(call.run(host, rows=False)[0], result[0])


@given(case=cases(most=4), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99), order=ORDERS)
def test_candidates_score_as_all_pairs_do(module, case, dtype, seed, order):
    rng = np.random.default_rng(seed)
    documents = len(case["documents"])
    candidates = rng.integers(-2, documents + 1, size=(len(case["queries"]), 5))
    none = (candidates < 0) | (candidates >= documents)
    call = Call(case, dtype)
    host = Host(module, order, multiprocessors=1)
    result = call.run(host, candidates)
    check(call, result, call.oracle(), np.where(none, -1, candidates))
    scores, argmax, values = call.run(Host(module))
    for q, row in enumerate(candidates):
        for c, n in enumerate(row):
            if not none[q, c]:
                np.testing.assert_array_equal(result[0][q, c], scores[q, n])
                np.testing.assert_array_equal(result[1][q][c], argmax[q][n])
                np.testing.assert_array_equal(result[2][q][c], values[q][n])


@pytest.mark.parametrize(
    ("queries", "documents", "host"),
    [
        ((130, 3, 257), (40, 0, 7), {}),  # queries that several groups share
        ((20,) * 9, (50, 33, 1), {}),  # several queries in a group
        ((3, 2), (0, 900, 1, 0, 5), {"multiprocessors": 9}),  # one document for many warps
        ((5, 0, 40, 1), (3,) * 40, {"most_maxima_bytes": 20000}),  # documents in many launches
        ((1,) * 80, (2, 9), {"shared_bytes": 2048}),
        ((1,) * 70, (2, 1), {"most_maxima_bytes": 1}),
    ],
    ids=str,
)
def test_groups_parts_and_launches(module, queries, documents, host):
    case = Case(queries, documents, 20, masks=("holes", "holes"))
    for dtype, query_dtype in (("float32", "float32"), ("bfloat16", "bfloat16")):
        call = Call(case, dtype, query_dtype=query_dtype)
        result = call.run(Host(module, 3, **host))
        check(call, result, call.oracle(), everything(case))
        np.testing.assert_array_equal(call.run(Host(module, **host), rows=False)[0], result[0])


@pytest.mark.parametrize("order", range(5))
def test_the_schedule_never_shows(module, order):
    case = Case((40, 7), (70, 0, 33, 5), 33, "special", ("holes", "holes"), {"normalize": True})
    call = Call(case, "float32")
    first, other = (call.run(Host(module, n)) for n in (0, order))
    for one, two in zip(first, other, strict=True):
        for x, y in zip(one, two, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("dtypes", "lengths", "dim", "plan"),
    [
        (("bfloat16", "bfloat16"), (32,) * 4, 128, (128, 1, True, 4)),
        (("float32", "bfloat16"), (32,) * 4, 128, (128, 3, True, 4)),
        (("float32", "float32"), (32,), 128, (32, 3, True, 1)),
        (("float32", "float32"), (32,) * 4, 256, (32, 3, True, 1)),  # 128 tokens take 192 KiB
        (("float32", "float32"), (200,), 768, (128, 3, False, 1)),
    ],
)
def test_what_the_dispatch_chooses(module, dtypes, lengths, dim, plan):
    """128 tokens of queries meet a document at once where shared memory holds them."""
    query_dtype, dtype = dtypes
    call = Call(Case(lengths, (3,), dim), dtype, query_dtype=query_dtype)
    found = module.plan(Host(module).given(call.arguments(None, np.empty((len(lengths), 1)))))
    names = ("columns", "planes", "staged", "queries_per_group")
    assert tuple(found[name] for name in names) == plan


@pytest.mark.gpu
@pytest.mark.parametrize("values", ["random", "special", "few", "zeros"])
@pytest.mark.parametrize("query_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_device_agrees_with_the_oracle(normalize, dtype, query_dtype, values):
    for queries, documents, dim in (
        ((32,) * 5, (180, 0, 1, 60, 300, 33) * 6, 128),
        ((130, 3, 257), (40, 0, 7), 96),
        ((1,), (1,), 1),
        ((40, 0, 9), (5000, 3), 33),
        ((16, 100), (70, 20), 2000),
    ):
        options = {"normalize": normalize, "zero_rows": "pad" if values == "zeros" else "score"}
        case = Case(queries, documents, dim, values, ("holes", "holes"), options)
        for layout in ("contiguous", "padded rows"):
            call = Call(case, dtype, layout, query_dtype)
            result = call.run(Device())
            check(call, result, call.oracle(), everything(case))
            np.testing.assert_array_equal(call.run(Device(), rows=False)[0], result[0])


@pytest.mark.gpu
def test_candidates_on_a_device():
    case = Case((32, 7, 200), (180, 0, 1, 60, 300), 128)
    candidates = np.array([[4, -1, 0], [1, 2, 3], [0, 0, 9]])
    call = Call(case, "bfloat16")
    result = call.run(Device(), candidates)
    check(call, result, call.oracle(), np.where(candidates > 4, -1, candidates))


@pytest.mark.gpu
def test_a_graph_captures_it():
    import torch

    import simtile

    torch.manual_seed(0)
    queries = torch.randn(4, 32, 128, device="cuda")
    documents = torch.randn(50, 60, 128, device="cuda", dtype=torch.bfloat16)
    mask = torch.rand(50, 60, device="cuda") < 0.7

    def scores():
        return simtile.maxsim(queries, documents, document_mask=mask, backend="cuda")

    scores()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = scores()
    queries.copy_(torch.randn_like(queries))
    graph.replay()
    torch.testing.assert_close(captured, scores(), rtol=0, atol=0)
