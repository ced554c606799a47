"""triplet_loss against the lists, on arrays and tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairwise_cases import Case, cases, wide

import simtile
from simtile.reference import triplet as lists
from simtile.triplet import METRICS

ORDINARY = st.sampled_from(["", "mixed", "equal", "zeros"])


@given(
    cases(
        st.sampled_from([1, 7, 33]),
        st.sampled_from([1, 3, 111]),
        special=ORDINARY,
        metric=st.sampled_from(METRICS),
    ),
    st.sampled_from(["mean", "sum", "none"]),
)
def test_arrays_and_tensors_are_the_lists(case, reduction):
    arrays = [case._replace(seed=(case.seed + i) % 2**32).x for i in range(3)]
    options = {"margin": case.margin, "metric": case.metric, "normalize": case.normalize}
    exact = np.array(lists.triplet_losses(*(wide(x).tolist() for x in arrays), **options))
    expected = {"mean": exact.mean(), "sum": exact.sum(), "none": exact}[reduction]
    dtype = getattr(torch, case.dtype)
    tensors = [torch.tensor(wide(x)).to(dtype) for x in arrays]
    values = [
        simtile.triplet_loss(*arrays, reduction=reduction, **options),
        simtile.triplet_loss(*tensors, reduction=reduction, **options).numpy(),
    ]
    size = max(1.0, *(float(np.square(wide(x)).sum(axis=1).max()) for x in arrays))
    bound = (1e-13 if case.dtype == "float64" else 2e-6) * size * case.dimensions
    for value in values:
        assert np.asarray(value).dtype == (np.float64 if case.dtype == "float64" else np.float32)
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=bound * max(1, case.rows))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric, normalize):
    inputs = [torch.tensor(Case(9, 5, "float64", seed=i).x, requires_grad=True) for i in range(3)]

    def loss(*x):
        return simtile.triplet_loss(*x, margin=0.7, metric=metric, normalize=normalize)

    assert torch.autograd.gradcheck(loss, inputs)


def at(*distances):
    """Rows at these distances from 0."""
    return np.array([[d] for d in distances])


@pytest.mark.parametrize(
    ("positive", "negative", "margin", "expected"),
    [(0.2, 0.5, 0.1, 0.0), (0.5, 0.3, 0.1, 0.3), (0.3, 0.7, 0.1, 0.0), (0.3, 0.7, 0.5, 0.1)],
)
@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_known_cases(metric, positive, negative, margin, expected):
    rows = at(0.0), at(positive), at(negative)
    value = simtile.triplet_loss(*rows, margin=margin, metric=metric)
    assert value == pytest.approx(expected, abs=1e-15)
    value = simtile.triplet_loss(*map(torch.tensor, rows), margin=margin, metric=metric)
    assert value.item() == pytest.approx(expected, abs=1e-15)


def test_equal_rows_have_a_gradient():
    for metric in METRICS:
        x = torch.ones(3, 2, requires_grad=True)
        loss = simtile.triplet_loss(x, x.detach().clone(), torch.zeros(3, 2), metric=metric)
        loss.backward()
        assert x.grad.isfinite().all()


def test_nan_in_nan_out():
    x = np.ones((2, 3))
    bad = x.copy()
    bad[0, 1] = np.nan
    for metric in METRICS:
        assert np.isnan(simtile.triplet_loss(x, bad, x, metric=metric))
        tensors = map(torch.tensor, (x, bad, x))
        assert simtile.triplet_loss(*tensors, metric=metric).isnan()


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        (((3,), (3,), (3,)), {}, ValueError, r"anchor: found shape \[3\], expected \[N, D\]"),
        (((0, 3), (0, 3), (0, 3)), {}, ValueError, "at least one row"),
        (((2, 3), (3, 3), (2, 3)), {}, ValueError, r"positive: found shape \[3, 3\]"),
        (((2, 3), (2, 3), (2, 4)), {}, ValueError, r"negative: found shape \[2, 4\]"),
        (((2, 3),) * 3, {"metric": "dot"}, ValueError, "metric: found 'dot'"),
        (((2, 3),) * 3, {"reduction": "max"}, ValueError, "reduction: found 'max'"),
        (((2, 3),) * 3, {"margin": np.nan}, ValueError, "margin: found nan"),
    ],
)
def test_errors(shapes, options, error, message):
    for make in (np.zeros, torch.zeros):
        with pytest.raises(error, match=message):
            simtile.triplet_loss(*map(make, shapes), **options)
    with pytest.raises(TypeError, match=r"positive: found ndarray, expected a torch.Tensor"):
        simtile.triplet_loss(torch.zeros(2, 3), np.zeros((2, 3)), np.zeros((2, 3)))
