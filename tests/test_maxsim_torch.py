"""MaxSim with torch: autograd, the operators, compilation, autocast, every form of the inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maxsim_calls import FORMS, STORED, Form
from maxsim_cases import Case, cases

import simtile
from simtile.reference import maxsim_numpy as oracle

DTYPES = sorted(STORED)
BOTH = {"return_argmax": True, "return_token_scores": True}
BACKENDS = ["reference"]
ORDINARY = ("random", "few", "zeros", "apart", "integers")
forms = st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS))


def as_tensors(x):
    """An array, or each of a list, as tensors that share its memory where they can."""
    if x is None or isinstance(x, torch.Tensor):
        return x
    if isinstance(x, list):
        return [as_tensors(own) for own in x]
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def leaves(x):
    """As tensors that require gradients, of the same strides."""
    if isinstance(x, list):
        return [leaves(own) for own in x]
    return as_tensors(x).requires_grad_()


def gradients(x):
    """Of the leaves, in float64, a list of [L, D]."""
    return [own.grad.double().numpy() for own in x] if isinstance(x, list) else x.grad


def assert_same(ours, theirs):
    """Of tensors and arrays, or lists of them: the same bits."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for x, y in zip(ours, theirs, strict=True):
            assert_same(x, y)
        return
    assert isinstance(ours, torch.Tensor)
    np.testing.assert_array_equal(ours.detach().numpy(), theirs)
    assert str(ours.dtype) == f"torch.{theirs.dtype}"


@given(
    case=cases(),
    forms=forms,
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    empty=st.sampled_from([0.0, -1e9]),
)
def test_results_are_those_of_arrays(case, forms, dtypes, empty):
    form = Form(case, *forms, dtypes)
    options = {**form.options, "empty_score": empty}
    expected = simtile.maxsim(*form.arguments, **options, **BOTH)
    if any(isinstance(x, np.ndarray) or x for x in form.arguments[:2]):  # else there is no tensor
        result = simtile.maxsim(*map(as_tensors, form.arguments), **options, **BOTH)
        assert_same(result, expected)


def weighted(form, weights, **options):
    """Leaves, and the gradients of Σ weights · scores."""
    inputs = [leaves(x) for x in form.arguments[:2]]
    masks = [as_tensors(x) for x in form.arguments[2:]]
    scores = simtile.maxsim(*inputs, *masks, **form.options, **options)
    (scores * torch.from_numpy(weights)).sum().backward()
    return inputs


def check_gradients(form, inputs, expected):
    """Of leaves in the forms of a case, against the oracle's [L, D] of every matrix."""
    for leaf, grads, side in zip(inputs, expected, (form.queries, form.documents), strict=True):
        roundoff = np.finfo(np.float64 if form.compute == "float64" else np.float32).eps
        scale = max([np.abs(x).max(initial=0.0) for x in grads], default=0.0)
        for i, theirs in enumerate(grads):
            ours = leaf[i].grad if isinstance(leaf, list) else leaf.grad[i]
            assert ours.dtype == as_tensors(side[i]).dtype
            ours = ours.double().numpy()
            assert (ours[len(theirs) :] == 0).all()
            type_ = as_tensors(side[i]).dtype
            rounding = np.abs(theirs) * torch.finfo(type_).eps + torch.finfo(type_).tiny
            error = np.abs(ours[: len(theirs)] - theirs)
            assert (error <= 64 * roundoff * scale + rounding).all()


def in_range(case, dtypes):
    """Gradients that divide by lengths of about 0 leave the range of float16."""
    return not (case.options["normalize"] and case.values == "zeros" and "float16" in dtypes)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    case=cases(values=ORDINARY, temperatures=(None, None, 0.3)),
    forms=forms,
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
)
def test_gradients_are_the_oracle(backend, case, forms, dtypes):
    if not case["queries"] or not case["documents"] or not in_range(case, dtypes):
        return
    form = Form(case, *forms, dtypes)
    weights = case["grad_scores"]
    inputs = weighted(form, weights, backend=backend)
    expected = oracle.maxsim_grad(*form.wide, weights, *case.mask_arrays, **form.options)
    check_gradients(form, inputs, expected)


RAGGED = Case((3, 0, 5), (4, 7, 0, 2), 6, masks=("holes", "holes"), seed=3)
OPTIONS = [
    {},
    {"normalize": True},
    {"length_normalize": True, "zero_rows": "pad"},
    {"temperature": 0.5},
    {"temperature": 0.1, "normalize": True, "length_normalize": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", ["list", "wider"])
def test_gradcheck(form, options):
    form = Form(RAGGED, form, form, ("float64", "float64"))
    masks = [as_tensors(x) for x in form.arguments[2:]]
    sides = [x if isinstance(x, list) else [x] for x in form.arguments[:2]]
    # Numbers in the place of NaN: gradcheck moves every element.
    parts = [
        [
            torch.tensor(np.nan_to_num(x, nan=7.0).tolist(), dtype=torch.float64)
            .reshape(x.shape)
            .requires_grad_()
            for x in side
        ]
        for side in sides
    ]
    count = len(parts[0])

    def scores(*tensors):
        sides = [list(tensors[:count]), list(tensors[count:])]
        sides = [x[0] for x in sides] if form.padded else sides
        return simtile.maxsim(*sides, *masks, **options, backend=BACKENDS[0])

    assert torch.autograd.gradcheck(scores, (*parts[0], *parts[1]))
