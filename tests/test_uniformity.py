"""uniformity, alignment and anisotropy against the lists and the NumPy oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairwise_cases import DTYPES, NUMPY, Case, cases, check_uniformity, run_uniformity, wide

import simtile
import simtile.ops.pairwise  # registers the operator, whichever test runs first
from simtile.reference import pairwise_numpy as oracle
from simtile.reference import uniformity as lists

ODD_SIZES = st.sampled_from([2, 3, 7, 33, 111, 301])
ODD_DIMENSIONS = st.sampled_from([1, 3, 7, 64, 111, 515])
ORDINARY = st.sampled_from(["", "mixed", "equal", "zeros"])


def in_range(special, normalize):
    """Squares of huge rows leave float32."""
    return normalize or special not in ("huge", "tiny")


@given(cases(st.integers(2, 9), st.sampled_from([1, 2, 5]), special=ORDINARY))
def test_oracle_is_the_lists(case):
    x = wide(case.x)
    value, grad = lists.uniformity(x.tolist(), case.t, case.normalize)
    ours = oracle.uniformity(x, case.t, case.normalize)
    assert ours.value == pytest.approx(value, rel=1e-10, abs=1e-12)
    scale = np.maximum(ours.grad_scale, 1e-300)[:, None]
    np.testing.assert_allclose(ours.grad / scale, np.array(grad) / scale, atol=1e-9)
    y = x[::-1]
    for alpha in (1.0, 2.0, 3.5):
        exact = lists.alignment(x.tolist(), y.tolist(), alpha, case.normalize)
        assert oracle.alignment(x, y, alpha, case.normalize) == pytest.approx(
            exact, rel=1e-12, abs=1e-12
        )
    assert oracle.anisotropy(x) == pytest.approx(lists.anisotropy(x.tolist()), abs=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_of_the_lists_is_the_slope(normalize):
    x = Case(6, 3, "float64", seed=5).x
    _, grad = lists.uniformity(x.tolist(), 2.0, normalize)
    step = 1e-6
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        ends = [lists.uniformity(v.tolist(), 2.0, normalize)[0] for v in (up, down)]
        assert grad[at[0]][at[1]] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@given(cases(ODD_SIZES, ODD_DIMENSIONS))
def test_kernel_is_the_oracle(case):
    if not in_range(case.special, case.normalize):
        case = case._replace(special="")
    check_uniformity(case, *run_uniformity(case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_distances_whose_exponentials_vanish(dtype):
    # Every exponential is 0 in float32; their logarithm is not lost.
    x = (8 * np.eye(40)[:, :40]).astype(NUMPY[dtype])
    value = simtile.uniformity(x, t=4.0, normalize=False)
    assert value == pytest.approx(-4 * 128.0, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_repeats(dtype):
    case = Case(500, 33, dtype, normalize=True, seed=3)
    runs = [run_uniformity(case, threads) for threads in (2, 2, 1, 3)]
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].tobytes() == runs[1][1].tobytes()
    for value, grad in runs:
        check_uniformity(case, value, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_nan_out(dtype, value):
    x = Case(50, 7, dtype, seed=1).x
    x[31, 2] = value
    assert np.isnan(simtile.uniformity(x))
    assert np.isnan(simtile.anisotropy(x))
    assert np.isnan(simtile.alignment(x, x[::-1]))


def test_known_cases():
    two = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert simtile.uniformity(two) == pytest.approx(-4.0)  # e^(-2 · 2)
    assert simtile.uniformity(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-12)
    assert simtile.alignment(two, two[::-1]) == pytest.approx(2.0)
    assert simtile.alignment(two, two[::-1], alpha=1) == pytest.approx(np.sqrt(2.0))
    assert simtile.anisotropy(two) == 0
    assert simtile.anisotropy(np.ones((5, 3))) == pytest.approx(1.0)
    assert simtile.anisotropy(np.array([[1.0, 2.0], [-1.0, -2.0]])) == pytest.approx(-1.0)


@given(cases(st.sampled_from([2, 7, 33]), st.sampled_from([1, 3, 16]), special=ORDINARY))
def test_alignment_and_anisotropy(case):
    x = case.x
    y = case._replace(seed=case.seed ^ 1).x
    tensors = [torch.from_numpy(np.ascontiguousarray(wide(v))) for v in (x, y)]
    if case.dtype != "float64":
        tensors = [v.to(getattr(torch, case.dtype)) for v in tensors]
    for alpha in (1, 2, 3.5):
        exact = oracle.alignment(wide(x), wide(y), alpha, case.normalize)
        for value in (
            simtile.alignment(x, y, alpha, case.normalize),
            simtile.alignment(*tensors, alpha, case.normalize).item(),
        ):
            assert float(value) == pytest.approx(exact, rel=2e-5, abs=1e-6)
    exact = oracle.anisotropy(wide(x))
    for value in (simtile.anisotropy(x), simtile.anisotropy(tensors[0]).item()):
        assert float(value) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(normalize):
    x = torch.tensor(Case(23, 5, "float64", seed=4).x, requires_grad=True)
    y = torch.tensor(Case(23, 5, "float64", seed=5).x, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda v: simtile.uniformity(v, normalize=normalize), x)
    assert check(simtile.anisotropy, x)
    for alpha in (1, 2, 3.5):
        assert check(lambda v, w, a=alpha: simtile.alignment(v, w, a, normalize), (x, y))


def test_alignment_of_equal_rows_has_a_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    for alpha in (1, 2, 3):
        (grad,) = torch.autograd.grad(simtile.alignment(x, x.detach().clone(), alpha), x)
        assert (grad == 0).all()


def test_operator():
    x = torch.randn(12, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.simtile.uniformity.default, (x, 2.0, True, True, "cpu", 1))


def test_tensors_are_arrays():
    case = Case(40, 8, seed=6)
    x = torch.from_numpy(case.x).requires_grad_()
    value = simtile.uniformity(x)
    assert value.item() == simtile.uniformity(case.x)
    (3 * value).backward()
    exact = oracle.uniformity(wide(case.x))
    np.testing.assert_allclose(x.grad.numpy(), 3 * exact.grad, atol=1e-6)
    reference = simtile.uniformity(case.x, backend="reference")
    assert reference == np.float32(lists.uniformity(wide(case.x).tolist())[0])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (simtile.uniformity, (np.zeros((1, 3)),), "x: found shape .1, 3., expected at least 2 row"),
        (simtile.uniformity, (torch.zeros(3),), r"x: found shape \[3\], expected \[N, D\]"),
        (
            simtile.uniformity,
            (np.zeros((3, 3)), 0.0),
            "t: found 0.0, expected a finite number above",
        ),
        (simtile.alignment, (np.zeros((3, 3)), np.zeros((2, 3))), "y: found shape .2, 3."),
        (simtile.alignment, (np.zeros((3, 3)), np.zeros((3, 3)), -1), "alpha: found -1.0"),
        (simtile.alignment, (torch.zeros(3, 3), torch.zeros(2, 3)), "y: found shape .2, 3."),
        (simtile.anisotropy, (np.zeros((1, 3)),), "at least 2 rows"),
        (simtile.anisotropy, (np.zeros((3, 3), np.int8),), "x: found int8"),
    ],
)
def test_errors(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
