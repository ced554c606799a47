"""Which kernels MaxSim of tensors runs, and in which form they get what they are given."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import FORMS, Form
from maxsim_cases import cases

import simtile
from simtile import _maxsim_run
from simtile._maxsim_inputs import Given
from simtile.ops import _maxsim_tensors
from simtile.ops import maxsim as ops
from simtile.ops._maxsim_padded import padded

BOTH = {"return_argmax": True, "return_token_scores": True}


def as_tensors(x):
    return [torch.from_numpy(own) for own in x] if isinstance(x, list) else torch.from_numpy(x)


def arrays(x):
    return None if x is None else x.numpy()


def stand_in(of_batches):
    """Kernels for a GPU that run on the CPU, for batches only or for any form."""

    def check(*sides):
        for side in sides:
            assert side.offsets is None or not of_batches

    def forward(queries, documents, candidates, options, *, argmax, token_scores):
        check(queries, documents)
        found = _maxsim_run.forward(
            queries,
            documents,
            arrays(candidates),
            options,
            argmax=argmax,
            token_scores=token_scores,
        )
        return _maxsim_run.Found(*(None if x is None else torch.from_numpy(x) for x in found))

    def backward(queries, documents, candidates, options, *details_and_need):
        check(queries, documents)
        *details, need = details_and_need
        grads = _maxsim_run.backward(
            queries,
            documents,
            arrays(candidates),
            options,
            *map(arrays, details),
            need,
            backend="reference",
        )
        return tuple(None if x is None else torch.from_numpy(x) for x in grads)

    return SimpleNamespace(forward=forward, backward=backward)


@pytest.fixture
def kernels(monkeypatch):
    """Both backends, as if there were a GPU."""
    monkeypatch.setattr(ops, "choose", lambda backend, *_: backend)
    monkeypatch.setattr(_maxsim_tensors, "check_available", lambda backend: None)
    monkeypatch.setitem(sys.modules, "simtile.ops.maxsim_triton", stand_in(of_batches=True))
    monkeypatch.setitem(sys.modules, "simtile.ops.maxsim_cuda", stand_in(of_batches=False))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.usefixtures("kernels")
@given(
    case=cases(temperatures=(None, 0.4)),
    forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
)
def test_results_are_those_of_the_cpu(backend, case, forms):
    if not case["queries"] or not case["documents"]:
        return
    form = Form(case, *forms)
    inputs = [as_tensors(x) for x in form.arguments[:2]]
    masks = [x if x is None else as_tensors(x) for x in form.arguments[2:]]
    expected = simtile.maxsim(*inputs, *masks, **form.options, **BOTH)
    ours = simtile.maxsim(*inputs, *masks, **form.options, **BOTH, backend=backend)
    assert len(ours) == len(expected) == 3
    for x, y in zip(ours, expected, strict=True):
        assert type(x) is type(y)
        for one, other in zip(x, y, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("temperature", [None, 0.3])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.usefixtures("kernels")
def test_gradients_of_matrices_of_different_lengths(pairs, temperature):
    generator = torch.Generator().manual_seed(0)
    lengths = ((3, 0, 5), (4, 7, 2))
    sides = [[torch.randn(n, 5, generator=generator) for n in own] for own in lengths]
    mask = [torch.rand(n, generator=generator) < 0.7 for n in lengths[1]]
    call = simtile.maxsim_pairwise if pairs else simtile.maxsim
    results = []
    for backend in ("triton", "reference"):
        leaves = [[x.clone().requires_grad_() for x in side] for side in sides]
        scores = call(*leaves, None, mask, temperature=temperature, backend=backend)
        scores.square().sum().backward()
        results.append([scores.detach(), *(x.grad for side in leaves for x in side)])
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("kernels")
def test_cuda_has_no_gradients():
    q = torch.ones(2, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="backend: 'cuda' computes scores without gradients"):
        simtile.maxsim(q, q, backend="cuda")
    with torch.no_grad():
        assert (simtile.maxsim(q, q, backend="cuda") == 12).all()


def gpu_side(*shape, offsets=None, requires_grad=False):
    x = SimpleNamespace(is_cuda=True, shape=shape, requires_grad=requires_grad)
    return SimpleNamespace(x=x, offsets=offsets)


@pytest.mark.parametrize(
    ("packed", "candidates", "need_grad", "temperature", "element", "chosen"),
    [
        (False, None, False, 0.0, torch.float32, "auto"),
        (True, None, False, 0.0, torch.float32, "cuda"),
        (False, np.zeros((2, 1), int), False, 0.0, torch.bfloat16, "cuda"),
        (True, None, True, 0.0, torch.float32, "auto"),
        (True, None, False, 0.5, torch.float32, "auto"),
        (True, None, False, 0.0, torch.float64, "auto"),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_what_auto_takes_on_a_gpu(
    monkeypatch, packed, candidates, need_grad, temperature, element, chosen
):
    """ "auto" itself goes on to what all operations take there: Triton."""
    offsets = np.array([0, 3]) if packed else None
    sides = (gpu_side(2, 3, 4), gpu_side(3, 4, offsets=offsets))
    options = _maxsim_run.Options(temperature=temperature)
    for there in (True, False):
        monkeypatch.setattr(ops, "_HAS_CUDA", there)
        found = ops._choose("auto", sides, candidates, options, need_grad, element)
        assert found == (chosen if there else "auto")


def test_padding():
    offsets = np.array([0, 2, 2, 5])
    x = torch.arange(10.0).reshape(5, 2)
    mask = torch.tensor([True, False, True, True, False])
    batch = padded(Given("queries", x, offsets, mask))
    assert batch.side.x.shape == (3, 3, 2)
    assert batch.side.mask.tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    flat = torch.arange(10)
    details = batch.from_rows(flat, 2, -1)
    assert details.tolist() == [
        [[0, 1, -1], [2, 3, -1]],
        [[-1] * 3, [-1] * 3],
        [[4, 5, 6], [7, 8, 9]],
    ]
    assert torch.equal(batch.to_rows(details, 2), flat)
    assert torch.equal(batch.grad_rows(batch.side.x), x)
