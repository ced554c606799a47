"""The sigmoid loss by its Triton kernels, against the same oracle as on the CPU.

In Triton's interpreter, in a process of its own, and, marked gpu, on a device.
"""

import numpy as np
import pytest
import torch
import triton_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from siglip_cases import check_case, siglip_case, siglip_cases
from simtile.kernels.siglip import triton_configs as configs
from tolerances import TRITON, TRITON_ON_GPU
from triton_worker import Interpreter
from triton_worker import siglip as in_interpreter

import simtile
from simtile.ops import siglip_triton

interpreter = Interpreter()
HALF = ("float32", "bfloat16", "float16")


def by_interpreter(case, dtype, need=(True, True)):
    return interpreter(in_interpreter, case, dtype, need)


def by_device(case, dtype, need=(True, True)):
    return in_interpreter(case, dtype, need, device="cuda")


BACKENDS = [by_interpreter, pytest.param(by_device, marks=pytest.mark.gpu)]
fewer = settings(max_examples=max(4, settings.default.max_examples // 6))


@pytest.mark.parametrize("run", BACKENDS)
def test_is_the_oracle(run):
    arithmetic = TRITON if run is by_interpreter else TRITON_ON_GPU

    @fewer
    @given(siglip_cases(st.sampled_from([1, 2, 7, 33]), st.sampled_from([1, 3, 7, 40]), HALF))
    def test(drawn):
        case, dtype = drawn
        check_case(case, dtype, run(case, dtype), arithmetic)

    test()


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)])
def test_outputs_that_are_not_wanted(run, need):
    case = siglip_case(37, 9, 5)
    everything, some = run(case, "float32"), run(case, "float32", need)
    assert [x is not None for x in some[1:3]] == list(need)
    for ours, full in zip(some, everything, strict=True):
        if ours is not None:
            np.testing.assert_array_equal(ours, full)


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("side", ["queries", "documents"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_in_nan_out(run, side, value):
    case = siglip_case(33, 7, 3, seed=1)
    case.arrays[side][31, 2] = value
    losses, grad_queries, grad_documents, *scalars = run(case, "float32")
    assert np.isnan(losses[31])
    assert np.isnan([grad_queries[31], grad_documents[31]]).all()
    assert np.isnan(scalars).all()
    if side == "queries":
        assert np.isfinite(np.delete(losses, 31)).all()
        assert np.isfinite(np.delete(grad_queries, 31, axis=0)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
def test_a_larger_batch_on_a_device(dtype):
    case = siglip_case(989, 384, 1000, seed=2)
    result = in_interpreter(case, dtype, (True, True), device="cuda", chunk_bytes=2**20)
    check_case(case, dtype, result, TRITON_ON_GPU)
    tensors = [torch.tensor(x, dtype=getattr(torch, dtype), device="cuda") for x in case.inputs[:2]]
    loss = simtile.siglip_loss(*tensors)
    assert loss.item() == pytest.approx(result[0].mean(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_compilation_for_all_sizes(dtype, monkeypatch):
    compiled = {}

    def record(launch):
        compiled.setdefault(launch.name, set()).add(launch.key)

    monkeypatch.setattr(siglip_triton, "family", lambda device: "sm80")
    numbers = [torch.tensor(x) for x in (0.1, -10.0)]
    with triton_launches.intercepted(siglip_triton, record):
        for n, m in ((1, 1), (2, 7), (16, 16), (33, 989)):
            q, d = torch.ones(n, 64, dtype=dtype), torch.ones(m, 64, dtype=dtype)
            for need in ((True, True), (False, False)):
                siglip_triton.run(q, d, *numbers, True, 1.0, need, chunk_bytes=1)
    counts = {name: len(keys) for name, keys in compiled.items()}
    assert counts == {"coefficients": 2, "products": 2}  # with and without; turned and not


@pytest.mark.parametrize("family", ["sm80", "gfx942"])
def test_variants_are_those_that_run(family):
    names = [variant.name for variant in configs.variants(family)]
    assert len(set(names)) == len(names) == 12
