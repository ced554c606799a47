"""The definition: the lists against finite differences, the NumPy oracle against the lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_cases import Case, cases, run_lists, run_oracle, wide

from simtile.reference import info_nce as lists
from simtile.reference import info_nce_numpy as oracle

GRADIENTS = ("queries", "documents", "negatives")


def assert_same(ours, theirs, truth):
    """Two float64 results: equal but for roundings of a few units in the last place."""
    roundoff = 1e-15 * (1.0 + truth.logit_scale)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-9, atol=8 * roundoff)
    scales = (truth.query_scale, truth.document_scale, truth.negative_scale)
    for name, scale in zip(GRADIENTS, scales, strict=True):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None)
        if a is not None and np.size(a):
            error = np.abs(np.asarray(a) - b)
            assert (error <= (16 * roundoff * scale)[..., None]).all(), name
    assert abs(ours.temperature - theirs.temperature) <= 16 * roundoff * truth.temperature_scale


@given(cases(st.integers(1, 12), st.sampled_from([1, 3, 7, 16]), dtypes=["float64"]))
def test_numpy_is_the_lists(case):
    truth = run_oracle(case)
    assert_same(run_lists(case), truth, truth)


# Not so steep, and differentiable, for differences of 1e-6.
@settings(max_examples=15)
@given(
    cases(
        st.integers(1, 5),
        st.integers(1, 4),
        dtypes=["float64"],
        negatives=(None, 2),
        temperatures=[0.3, 2.0],
        special=(),
    )
)
def test_gradients_are_the_differences_of_the_losses(case):
    result = run_oracle(case)
    weights = np.ones(case.queries) if case["row_weights"] is None else case["row_weights"]

    def loss(inputs, temperature=case.temperature):
        options = {**case.options, "temperature": temperature}
        return weights @ oracle.info_nce_grad(*inputs, **options).losses

    inputs = [None if x is None else wide(x) for x in case.inputs]
    if case.normalize:  # curved on the scale of a short vector's length
        for x in inputs:
            if x is not None and np.sqrt((x * x).sum(-1)).min(initial=1.0) < 0.05:
                return
    step = 1e-6
    for k, name in enumerate(GRADIENTS):
        if inputs[k] is None:
            continue
        gradient = getattr(result, name)
        for index in np.ndindex(inputs[k].shape):
            moved = []
            for sign in (1.0, -1.0):
                inputs_moved = [None if x is None else x.copy() for x in inputs]
                inputs_moved[k][index] += sign * step
                moved.append(loss(inputs_moved))
            difference = (moved[0] - moved[1]) / (2 * step)
            assert gradient[index] == pytest.approx(difference, rel=1e-4, abs=1e-5)
    higher, lower = (loss(inputs, case.temperature + sign * step) for sign in (1.0, -1.0))
    assert result.temperature == pytest.approx((higher - lower) / (2 * step), rel=1e-4, abs=1e-5)


def test_the_loss_alone_is_the_loss_with_gradients():
    case = Case(4, 6, 3, negatives=2, dtype="float64", ids=True)
    arguments = [x.tolist() for x in case.inputs]
    ids = {name: case[name].tolist() for name in ("query_ids", "document_ids")}
    expected = lists.info_nce_grad(*arguments, **ids).losses
    assert lists.info_nce(*arguments, **ids) == expected


def test_row_weights_weigh_rows():
    case = Case(5, 5, 4, negatives=1, own=True, dtype="float64")
    q, d, x = (a.tolist() for a in case.inputs)
    options = {"temperature": 0.5, "negatives_scope": "own"}
    parts = [
        lists.info_nce_grad(q, d, x, row_weights=np.eye(5)[i].tolist(), **options) for i in range(5)
    ]
    whole = lists.info_nce_grad(q, d, x, row_weights=[1.0, -2.0, 0.5, 0.0, 3.0], **options)
    for name in GRADIENTS:
        expected = sum(
            w * np.array(getattr(part, name))
            for w, part in zip([1.0, -2.0, 0.5, 0.0, 3.0], parts, strict=True)
        )
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-12, atol=1e-14)


def test_oracle_keeps_the_digits_of_a_tiny_loss():
    # 1 - p underflows to a multiple of 2^-53 unless it is computed from the others.
    result = oracle.info_nce_grad([[1.0]], [[40.0], [0.0]], temperature=1.0, normalize=False)
    exact = math.log1p(math.exp(-40.0))
    assert result.losses[0] == pytest.approx(exact, rel=1e-14, abs=0.0)
    assert result.queries[0, 0] == pytest.approx(-40.0 * math.exp(-40.0), rel=1e-12, abs=0.0)


def test_a_vector_too_short_to_normalise_is_divided_by_1e_12():
    assert lists.unit([3e-13, 4e-13]) == pytest.approx([0.3, 0.4])
    assert lists.unit_backward([3e-13, 4e-13], [1.0, 2.0]) == pytest.approx([1e12, 2e12])
    assert lists.unit([0.0, 0.0]) == [0.0, 0.0]
    assert lists.unit([3.0, 4.0]) == pytest.approx([0.6, 0.8])
    # Along the vector nothing changes, across it the change is over its length.
    assert lists.unit_backward([3.0, 4.0], [3.0, 4.0]) == pytest.approx([0.0, 0.0], abs=1e-15)
    assert lists.unit_backward([3.0, 4.0], [-4.0, 3.0]) == pytest.approx([-0.8, 0.6])
