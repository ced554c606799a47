"""Losses over all pairs by the Triton kernels, against the same oracle as on the CPU.

In Triton's interpreter, in a process of its own, and, marked gpu, on a device.
"""

import numpy as np
import pytest
import torch
import triton_launches
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise_cases import Case, cases, check_gradient, check_hardest, check_uniformity, wide
from simtile.kernels.pairwise import triton_configs as configs
from tolerances import TRITON, TRITON_ON_GPU
from triton_worker import Interpreter
from triton_worker import pairwise as in_interpreter

from simtile._pairwise import BATCH_HARD_METRICS, Hardest
from simtile.ops import pairwise_triton
from simtile.reference import pairwise_numpy as oracle

interpreter = Interpreter()
HALF = ("float32", "bfloat16", "float16")
SIZES = st.sampled_from([1, 2, 7, 33, 50])
DIMENSIONS = st.sampled_from([1, 3, 7, 40])


def by_interpreter(*arguments, **options):
    return interpreter(in_interpreter, *arguments, **options)


def by_device(*arguments):
    return in_interpreter(*arguments, device="cuda")


BACKENDS = [by_interpreter, pytest.param(by_device, marks=pytest.mark.gpu)]
fewer = settings(max_examples=max(4, settings.default.max_examples // 6))


@pytest.mark.slow
@pytest.mark.parametrize("run", BACKENDS)
def test_chosen_pairs_are_the_hardest(run):
    @fewer
    @given(cases(SIZES, DIMENSIONS, dtype=st.sampled_from(HALF)))
    def test(case):
        options = {"metric": case.metric, "normalize": case.normalize}
        positive, negative, distances = run("hardest", case.x, options, case.label_array)
        check_hardest(case, Hardest(positive, negative, *distances))

    test()


@pytest.mark.slow
@pytest.mark.parametrize("run", BACKENDS)
def test_loss_and_gradient_are_those_of_the_chosen_pairs(run):
    @fewer
    @given(cases(SIZES, DIMENSIONS, dtype=st.sampled_from(HALF)), st.booleans())
    def test(case, skip_missing):
        labels = case.label_array
        shared = {"metric": case.metric, "normalize": case.normalize}
        positive, negative, _ = run("hardest", case.x, shared, labels)
        options = {**shared, "margin": case.margin, "skip_missing": skip_missing}
        loss, grad = run("batch_hard_triplet", case.x, {**options, "need_grad": True}, labels)
        exact = oracle.batch_hard_triplet_loss(
            wide(case.x), labels, **options, chosen=(positive, negative)
        )
        assert float(loss) == pytest.approx(exact.loss, rel=1e-6, abs=1e-30)
        check_gradient("pairwise.grad_chosen", case, grad, exact.grad, exact.grad_scale)

    test()


@pytest.mark.parametrize("run", BACKENDS)
def test_uniformity(run):
    arithmetic = TRITON if run is by_interpreter else TRITON_ON_GPU

    @fewer
    @given(cases(st.sampled_from([2, 7, 33, 50]), DIMENSIONS, dtype=st.sampled_from(HALF)))
    def test(case):
        if not case.normalize and case.special in ("huge", "tiny"):
            case = case._replace(special="")
        options = {"t": case.t, "normalize": case.normalize, "need_grad": True}
        check_uniformity(case, *run("uniformity", case.x, options), arithmetic)

    test()


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("metric", BATCH_HARD_METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_in_nan_out(run, metric, value):
    case = Case(50, 9, labels=3, seed=2)
    x, labels = case.x, case.label_array
    x[17, 4] = value
    options = {"metric": metric, "normalize": False}
    positive, negative, distances = run("hardest", x, options, labels)
    for i in range(50):
        if i != 17:
            assert (negative if labels[i] != labels[17] else positive)[i] == 17
    assert np.isnan(distances).any(axis=0).all()
    options |= {"margin": 1.0, "skip_missing": True, "need_grad": True}
    loss, grad = run("batch_hard_triplet", x, options, labels)
    assert np.isnan(loss)
    assert np.isnan(grad).any()
    assert np.isnan(run("uniformity", x, {"t": 2.0, "normalize": True, "need_grad": False})[0])


def test_ties_go_to_the_lowest_row():
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 20))
    # Integers, because the interpreter's products of equal rows may differ in the last bit.
    x = np.random.default_rng(1).integers(-9, 10, (4, 19)).astype(np.float32)[group]
    first = [int(np.flatnonzero(group == g)[0]) for g in range(4)]
    positive, negative, _ = by_interpreter(
        "hardest", x, {"metric": "euclidean", "normalize": False}, group // 2
    )
    for i in range(len(x)):
        assert positive[i] == first[group[i] ^ 1]
        assert negative[i] in first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_compilation_for_all_sizes(dtype, monkeypatch):
    compiled = {}

    def record(launch):
        compiled.setdefault(launch.name, {}).setdefault(launch.key, []).append(launch.grid)

    monkeypatch.setattr(pairwise_triton, "family", lambda device: "sm80")
    with triton_launches.intercepted(pairwise_triton, record):
        for n in (2, 7, 16, 33, 989):
            x, labels = torch.ones(n, 64, dtype=dtype), torch.arange(n)
            pairwise_triton.batch_hard_triplet(x, labels, 1.0, "cosine", False, True, False)
            none = torch.full((n,), -1)
            zeros = torch.zeros(2, n, dtype=torch.float64)
            pairwise_triton.gather(x, none, none, zeros, "cosine", False)
            pairwise_triton.uniformity(x, 2.0, True, True)
    assert {name: len(keys) for name, keys in compiled.items()} == {
        "hardest": 1,
        "gather_chosen": 1,
        "exponent_sums": 1,
        "potential_gradients": 1,
    }


@pytest.mark.parametrize("family", ["sm80", "gfx942"])
def test_variants_are_those_that_run(family):
    names = [variant.name for variant in configs.variants(family)]
    assert len(set(names)) == len(names) == 15
