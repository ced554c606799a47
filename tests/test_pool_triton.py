"""simtile.pool by its Triton kernels, against the same oracle as on the CPU.

In Triton's interpreter, in a process of its own, and, marked gpu, on a device.
"""

import numpy as np
import pytest
import torch
import triton_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_cases import BAD, TENSOR_LAYOUTS, VALUES, Case, cases, check, oracle, oracle_grad
from simtile.kernels.pool import triton_configs as configs
from tolerances import TRITON
from triton_worker import Interpreter
from triton_worker import pool as in_interpreter

from simtile import _pool
from simtile.ops import pool_triton

interpreter = Interpreter()
HALF = ("float32", "bfloat16", "float16")
SMALL = (
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0, 1, 7, 20]),
    st.sampled_from([1, 3, 40, 130]),
)


def by_interpreter(*arguments):
    return interpreter(in_interpreter, *arguments)


def by_device(case, grad=None):
    return in_interpreter(case, grad, "cuda")


BACKENDS = [by_interpreter, pytest.param(by_device, marks=pytest.mark.gpu)]


def check_vectors(case, found):
    truth = oracle(case)
    check("pool.vectors", found[0], truth.vectors, truth.size, case.dtype, TRITON)
    if truth.positions is not None:
        np.testing.assert_array_equal(found[3], truth.positions)


@pytest.mark.parametrize("run", BACKENDS)
def test_vectors_are_the_oracles(run):
    @settings(max_examples=max(10, settings.default.max_examples))
    @given(cases(*SMALL, HALF, TENSOR_LAYOUTS, (*VALUES, *BAD)))
    def test(case):
        check_vectors(case, run(case))

    test()


@pytest.mark.parametrize("run", BACKENDS)
def test_gradients_are_the_oracles(run):
    @settings(max_examples=max(6, settings.default.max_examples // 2))
    @given(cases(*SMALL, HALF, TENSOR_LAYOUTS, ("ordinary", "ties", "huge", "zeros")))
    def test(case):
        tokens, weights = run(case, case.grad())
        truth = oracle_grad(case)
        check("pool.grad_tokens", tokens, truth.tokens, truth.token_size, case.dtype, TRITON)
        if weights is not None:
            check("pool.grad_weights", weights, truth.weights, truth.weight_size, "float32", TRITON)

    test()


@pytest.mark.parametrize("how", _pool.HOW)
def test_packed_tokens_are_a_batch(how):
    case = Case(4, 9, 70, 65, "float32", how, "holes", how == "mean", seed=5)
    for grad in (None, case.grad()):
        padded = by_interpreter(case, grad)
        packed = by_interpreter(case, grad, "cpu", None, True)
        for ours, expected in zip(packed, padded, strict=True):
            if expected is not None:
                np.testing.assert_array_equal(ours.reshape(expected.shape), expected)


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("normalize", [False, True])
def test_more_columns_than_a_program_has(how, normalize):
    case = Case(3, 5, 300, 290, "bfloat16", how, "left", normalize=normalize, seed=6)
    check_vectors(case, by_interpreter(case, None, "cpu", 128))


@pytest.mark.gpu
@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("dtype", HALF)
def test_larger_batches_on_a_device(how, dtype):
    for width, dim in ((384, 384), (5000, 4999)):
        case = Case(257, 128, width, dim, dtype, how, "right", how == "mean", seed=7)
        check_vectors(case, by_device(case))
        tokens, weights = by_device(case, case.grad())
        truth = oracle_grad(case)
        check("pool.grad_tokens", tokens, truth.tokens, truth.token_size, dtype, TRITON)
        if weights is not None:
            check("pool.grad_weights", weights, truth.weights, truth.weight_size, "float32", TRITON)


def launches_of(dtype):
    """What the calls of all kinds launch, by their keys."""
    launches = {}

    def record(launch):
        launches[launch.key] = launch

    with triton_launches.intercepted(pool_triton, record):
        for n, length in ((1, 1), (2, 7), (16, 16), (33, 128)):
            x = torch.zeros(n, length, 768, dtype=getattr(torch, dtype))
            mask, weights = torch.ones(n, length, dtype=torch.bool), torch.ones(n, length)
            packed = x.reshape(-1, 768), torch.arange(n + 1) * length
            for how in _pool.HOW:
                own = weights if how == "mean" else None
                pool_triton.forward(x, own, None, mask, how, 768, True, True)
                pool_triton.forward(packed[0], None, packed[1], None, how, 768, False, False)
            grad, positions = torch.zeros(n, 768), torch.zeros(n, 768, dtype=torch.int32)
            pool_triton.spread(grad, None, weights, None, x.shape, x.dtype)
            pool_triton.spread(grad, packed[1], None, positions, packed[0].shape, x.dtype)
            pool_triton.dots(x, None, mask, grad)
            pool_triton.dots(packed[0], packed[1], None, grad)
    return launches


@pytest.mark.parametrize("dtype", configs.DTYPES)
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype):
    ahead = {}
    for variant in configs.variants("sm90"):
        if variant.dtype == dtype:
            ahead[variant.kernel.__name__, frozenset(variant.constexprs.items())] = variant
    launches = launches_of(dtype)
    assert len(launches) == len(ahead)  # for all numbers of rows and tokens
    for launch in launches.values():
        names = list(launch.signature)
        compiled_in = {names[i]: value for (i,), value in launch.constexprs.items()}
        variant = ahead[launch.name, frozenset(compiled_in.items())]
        assert launch.signature == variant.signature
        assert launch.options["num_warps"] == variant.num_warps
        found = {names[i] for (i,), attributes in launch.attributes.items() if attributes}
        assert found == set(variant.divisible)


@pytest.mark.parametrize("family", ["sm80", "gfx942"])
def test_variants_are_those_that_run(family):
    names = [variant.name for variant in configs.variants(family)]
    assert len(set(names)) == len(names) == 3 * 7


def test_tokens_are_read_sixteen_bytes_a_thread():
    launches = []
    with triton_launches.intercepted(pool_triton, launches.append):
        for x in (torch.zeros(2, 5, 768), torch.zeros(2, 5, 769)[..., :768]):
            pool_triton.forward(x, None, None, None, "mean", 768, True, False)
    whole, apart = (launch.compile(80).asm["ptx"] for launch in launches)
    assert "ld.global.v4.b32" in whole
    assert "ld.global.v4.b32" not in apart  # what lies anywhere cannot be
