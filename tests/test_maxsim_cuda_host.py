"""MaxSim's CUDA kernels, compiled for the CPU, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import Case, cases
from maxsim_cuda import SHARED_BYTES, Call, Host
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
