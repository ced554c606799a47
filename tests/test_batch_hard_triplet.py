"""batch_hard_triplet_loss on the CPU against the lists and the NumPy oracle."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pairwise_cases import (
    DTYPES,
    Case,
    cases,
    check_gradient,
    check_hardest,
    run_gradients,
    run_hardest,
    wide,
)
from tolerances import ROUNDOFF

import simtile
import simtile.ops.pairwise  # registers the operator, whichever test runs first
from simtile import _core, _pairwise
from simtile._pairwise import BATCH_HARD_METRICS
from simtile.reference import pairwise_numpy as oracle
from simtile.reference import triplet as lists

# No multiple of a vector, a register tile or a chunk of rows, and 1.
ODD_SIZES = st.sampled_from([1, 2, 7, 33, 111, 301])
ODD_DIMENSIONS = st.sampled_from([1, 3, 7, 64, 111, 515])


def check_loss(value, expected, dtype, size):
    assert abs(value - expected) <= 4 * ROUNDOFF["float64" if dtype == "float64" else "float32"] * (
        size + abs(expected)
    )


@given(
    cases(
        st.integers(1, 12),
        st.sampled_from([1, 2, 5]),
        special=st.sampled_from(["", "zeros", "mixed"]),
    )
)
def test_oracle_is_the_lists(case):
    x = wide(case.x)
    options = {
        "margin": case.margin,
        "metric": case.metric,
        "normalize": case.normalize,
        "skip_missing": case.seed % 2 == 0,
    }
    exact = lists.batch_hard_triplet_loss(x.tolist(), case.label_array.tolist(), **options)
    ours = oracle.batch_hard_triplet_loss(
        x,
        case.label_array,
        **options,
        chosen=(np.array(exact.positive), np.array(exact.negative)),
    )
    assert ours.loss == pytest.approx(exact.loss, rel=1e-12, abs=1e-14)
    scale = np.maximum(ours.grad_scale, 1e-300)[:, None]
    np.testing.assert_allclose(ours.grad / scale, np.array(exact.grad) / scale, atol=1e-10)
    chosen = oracle.batch_hard_triplet_loss(x, case.label_array, **options)
    np.testing.assert_array_equal(chosen.positive >= 0, ours.positive >= 0)
    assert chosen.loss == pytest.approx(exact.loss, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("metric", BATCH_HARD_METRICS)
def test_gradient_of_the_lists_is_the_slope(metric, normalize):
    case = Case(7, 3, "float64", labels=2, seed=5)
    x, labels = case.x, case.label_array
    options = {"margin": 2.0, "metric": metric, "normalize": normalize}

    def loss(v):
        return lists.batch_hard_triplet_loss(v.tolist(), labels, **options).loss

    grad = np.array(lists.batch_hard_triplet_loss(x.tolist(), labels, **options).grad)
    step = 1e-6
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        assert grad[at] == pytest.approx((loss(up) - loss(down)) / (2 * step), abs=1e-7)


@given(cases(ODD_SIZES, ODD_DIMENSIONS))
def test_chosen_pairs_are_the_hardest(case):
    check_hardest(case, run_hardest(case))


def direction_is_rounding(case, found):
    """Whether two different rows that were chosen are equal once normalised, but for rounding:
    the gradient of their distance is then a unit vector that the rounding has chosen, or 0."""
    if case.metric != "euclidean" or not case.normalize:
        return False
    x = wide(case.x)
    u = oracle.unit(x)
    for chosen in (found.positive, found.negative):
        is_near = np.square(u - u[chosen]).sum(axis=1) < 1e-24
        if (is_near & (chosen >= 0) & (x != x[chosen]).any(axis=1)).any():
            return True
    return False


@given(cases(ODD_SIZES, ODD_DIMENSIONS), st.booleans())
def test_loss_and_gradient_are_those_of_the_chosen_pairs(case, skip_missing):
    # Cosines of equal rows are 1 up to rounding, which then decides on which side of 0 a hinge is.
    assume(case.special != "equal" or case.margin != 0.0 or case.metric != "cosine")
    found = run_hardest(case)
    assume(not direction_is_rounding(case, found))
    weights = _pairwise.batch_hard_weights(found, case.margin, case.metric, skip_missing)
    exact = oracle.batch_hard_triplet_loss(
        wide(case.x),
        case.label_array,
        margin=case.margin,
        metric=case.metric,
        normalize=case.normalize,
        skip_missing=skip_missing,
        chosen=(found.positive, found.negative),
    )
    assert weights.loss == pytest.approx(exact.loss, rel=1e-9, abs=1e-12)
    grad = run_gradients(case, found, weights)
    check_gradient("pairwise.grad_chosen", case, grad, exact.grad, exact.grad_scale)


@given(cases(st.integers(1, 12), st.sampled_from([1, 3, 16]), layout=st.just("contiguous")))
def test_backend_reference_is_the_lists(case):
    options = {"margin": case.margin, "metric": case.metric, "normalize": case.normalize}
    exact = lists.batch_hard_triplet_loss(wide(case.x).tolist(), case.label_array, **options)
    value = simtile.batch_hard_triplet_loss(
        case.x, case.label_array, backend="reference", **options
    )
    with np.errstate(over="ignore"):
        assert value == type(value)(exact.loss)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_give_the_same_bits(dtype):
    case = Case(700, 65, dtype, labels=40, seed=3)
    results = []
    for threads in (1, 2, 3, 5):
        found = run_hardest(case, threads)
        weights = _pairwise.batch_hard_weights(found, 0.5, "euclidean", True)
        results.append(
            [x.tobytes() for x in (*found, run_gradients(case, found, weights, threads))]
        )
    assert results.count(results[0]) == len(results)


@pytest.mark.parametrize("metric", BATCH_HARD_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lowest_row(dtype, metric):
    # Every row has 99 equals with its label and 100 with the other, all over the tiles.
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(4), 100))
    points = rng.standard_normal((4, 19))
    case = Case(400, 19, dtype, metric=metric)
    x = points[group].astype(case.x.dtype)
    labels = group // 2
    n = len(x)
    found = _pairwise.hardest_pairs(_pairwise.as_kernel(x, dtype), dtype, labels, metric, False, 2)
    first = [int(np.flatnonzero(group == g)[0]) for g in range(4)]
    for i in range(n):
        twin = group[i] ^ 1  # further away than its equals
        assert found.positive[i] == first[twin]
        assert found.negative[i] in (first[2 - 2 * labels[i]], first[3 - 2 * labels[i]])


def test_label_numbers_do_not_matter():
    case = Case(50, 7, labels=5, seed=1)
    x, labels = case.x, case.label_array
    values = {
        float(simtile.batch_hard_triplet_loss(x, renamed))
        for renamed in (labels, -labels, labels.astype(np.int32), (labels % 1000).astype(np.int16))
    }
    assert len(values) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", BATCH_HARD_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite_in_nan_out(dtype, metric, value):
    case = Case(60, 9, dtype, metric=metric, labels=3, seed=2)
    x = case.x
    x[17, 4] = value
    x[41, 0] = value
    labels = case.label_array
    found = _pairwise.hardest_pairs(_pairwise.as_kernel(x, dtype), dtype, labels, metric, False, 1)
    for i in range(60):
        bad = [j for j in (range(60) if i in (17, 41) else (17, 41)) if j != i]
        same = [j for j in bad if labels[j] == labels[i]]
        other = [j for j in bad if labels[j] != labels[i]]
        if same:
            assert found.positive[i] == same[0]
            assert np.isnan(found.positive_distance[i])
        if other:
            assert found.negative[i] == other[0]
            assert np.isnan(found.negative_distance[i])
    assert np.isnan(simtile.batch_hard_triplet_loss(x, labels, metric=metric))
    grad = _pairwise.batch_hard(
        _pairwise.as_kernel(x, dtype), dtype, labels, 1.0, metric, False, True, True, "cpu", 1
    )[1]
    assert np.isnan(grad).all(axis=1).any()


def test_known_cases():
    # One label twice at distance 0.2, and another 0.5 away from the first.
    x = np.array([[0.0], [0.2], [-0.5], [-0.5]])
    labels = [0, 0, 1, 1]
    # rows: 0.2 - 0.5, 0.2 - 0.7, 0 - 0.5 twice
    assert simtile.batch_hard_triplet_loss(x, labels, margin=0.1) == 0
    assert simtile.batch_hard_triplet_loss(x, labels, margin=0.4) == pytest.approx(0.1 / 4)
    # Rows 2 and 3 lack a positive, and are left out of the mean.
    assert simtile.batch_hard_triplet_loss(x, [0, 0, 1, 2], margin=0.4) == pytest.approx(0.1 / 2)
    assert simtile.batch_hard_triplet_loss(x, [0, 1, 2, 3]) == 0
    assert simtile.batch_hard_triplet_loss(x, [0, 0, 0, 0]) == 0
    assert simtile.batch_hard_triplet_loss(x[:1], [0]) == 0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("metric", BATCH_HARD_METRICS)
def test_gradcheck_of_the_kernel(metric, normalize):
    x = torch.tensor(Case(23, 5, "float64", seed=4).x, requires_grad=True)
    labels = torch.arange(23) % 4

    def loss(x):
        return simtile.batch_hard_triplet_loss(
            x, labels, margin=1.5, metric=metric, normalize=normalize
        )

    assert torch.autograd.gradcheck(loss, x)


def test_operator():
    x = torch.randn(12, 5, requires_grad=True)
    arguments = (x, torch.arange(12) % 3, 1.0, "euclidean", False, True, True, "cpu", 1)
    torch.library.opcheck(torch.ops.simtile.batch_hard_triplet.default, arguments)


def test_tensors_are_arrays():
    case = Case(40, 8, "float32", labels=6, seed=6)
    x = torch.from_numpy(case.x).requires_grad_()
    loss = simtile.batch_hard_triplet_loss(x, torch.from_numpy(case.label_array))
    assert loss.dtype == torch.float32
    assert loss.item() == simtile.batch_hard_triplet_loss(case.x, case.label_array)
    (3 * loss).backward()
    exact = oracle.batch_hard_triplet_loss(wide(case.x), case.label_array, margin=1.0)
    np.testing.assert_allclose(x.grad.numpy(), 3 * exact.grad, atol=1e-6)
    with torch.no_grad():
        assert not simtile.batch_hard_triplet_loss(x, case.label_array.tolist()).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_come_in_its_type(dtype):
    x = torch.randn(20, 8, dtype=dtype, requires_grad=True)
    loss = simtile.batch_hard_triplet_loss(x, torch.arange(20) % 4)
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_compiled_and_differentiated_twice():
    x = torch.randn(16, 4, requires_grad=True)
    labels = torch.arange(16) % 4
    compiled = torch.compile(simtile.batch_hard_triplet_loss, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(x, labels), simtile.batch_hard_triplet_loss(x, labels)
    assert loss.item() == expected.item()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(expected, x, create_graph=True)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.zeros(3), [0]), {}, ValueError, r"embeddings: found shape \[3\], expected \[N, D\]"),
        ((np.zeros((0, 3)), []), {}, ValueError, "at least one row"),
        ((np.zeros((2, 3)), [0]), {}, ValueError, r"labels: found shape \[1\], expected \[2\]"),
        ((np.zeros((2, 3)), [0.5, 1]), {}, ValueError, "labels: found float64"),
        ((np.zeros((2, 3), np.int64), [0, 1]), {}, ValueError, "embeddings: found int64"),
        ((np.zeros((2, 3)), [0, 1]), {"metric": "manhattan"}, ValueError, "metric: found"),
        ((np.zeros((2, 3)), [0, 1]), {"margin": np.inf}, ValueError, "margin: found inf"),
        ((np.zeros((2, 3)), [0, 1]), {"margin": "1"}, TypeError, "margin: found '1'"),
        ((np.zeros((2, 3)), [0, 1]), {"backend": "triton"}, RuntimeError, "torch tensors"),
        ((np.zeros((2, 3)), [0, 1]), {"threads": 0}, ValueError, "threads: found 0"),
        ((torch.zeros(2, 3), [0.5, 1]), {}, ValueError, "labels: found float64"),
        ((torch.zeros(2, 3), [0, 1]), {"backend": "cuda"}, (ValueError, RuntimeError), "backend"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        simtile.batch_hard_triplet_loss(*arguments, **options)


def test_the_binding_checks_what_indexes_memory():
    x, indices, numbers = np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros(3)
    with pytest.raises(ValueError, match="labels: found 3"):
        _core.hardest_pairs(
            x, "float64", indices + 3, "cosine", False, indices, indices, numbers, numbers, 1
        )
    with pytest.raises(ValueError, match="which is no row"):
        _core.pair_gradients(
            x, "float64", "cosine", False, indices, indices - 2, numbers, numbers, x.copy(), 1
        )
