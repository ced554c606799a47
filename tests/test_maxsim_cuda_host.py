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
