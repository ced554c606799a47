"""Gradients of the CPU's MaxSim: every level, element type, mask and layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from info_nce_backends import cpu_level
from maxsim_cases import Case, cases
from maxsim_kernel import LAYOUTS, STORED, TEMPERATURES, Call
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile import _core
from simtile.reference import maxsim_numpy as oracle
from simtile.reference.info_nce_numpy import norm, unit, unit_backward

LEVELS = simtile.cpu_info()["detected"]
ORDINARY = ("random", "few", "zeros", "apart", "integers")


def expected_gradients(call, grad_scores, argmax, candidates):
    """From the matches that the forward pass found: gradients and the sizes of their terms.

    Of tokens whose similarities round to the same number the kernel may find another than the
    oracle does. Also by how much a rounding of a similarity is multiplied in a share.
    """
    options = call.case.options
    temperature = call.temperature
    sides = [
        oracle.side_of(x, mask, options.get("normalize", False), options.get("zero_rows", "score"))
        for x, mask in zip(call.wide, call.case.mask_arrays, strict=True)
    ]
    left, right = sides
    grads = [[np.zeros_like(x) for x in side.raw] for side in sides]
    sizes = [[np.zeros_like(x) for x in side.raw] for side in sides]
    condition = 1.0
    # A share below the smallest normal number is 0, which a rounding of this size explains.
    smallest = 2.0**-126 / ROUNDOFF["float32"] if call.dtype != "float64" else 0.0
    for q, row in enumerate(candidates):
        count = max(left.there[q].sum(), 1) if options.get("length_normalize") else 1
        for c, n in enumerate(row):
            own, theirs = left.there[q], right.there[n] if n >= 0 else np.zeros(0, bool)
            if not own.any() or not theirs.any():
                continue
            tokens, others = left.scored[q][own], right.scored[n][theirs]
            place = np.searchsorted(np.flatnonzero(theirs), argmax[q][c][own])
            shares = np.zeros((len(tokens), len(others)))
            shares[np.arange(len(tokens)), place] = 1
            if temperature:
                similarity = tokens @ others.T
                smooth = oracle.smooth_max(similarity, similarity.max(1), temperature)
                shares = np.exp((similarity - smooth[:, None]) / temperature)
                largest = (np.abs(tokens) @ np.abs(others).T).max()
                condition = max(condition, 1 + largest / temperature)
            shares *= grad_scores[q, c] / count
            weight = abs(grad_scores[q, c] / count)
            rows, columns = np.flatnonzero(own), np.flatnonzero(theirs)
            if temperature:
                grads[0][q][rows] += shares @ others
                grads[1][n][columns] += shares.T @ tokens
                bounds = np.abs(shares) + smallest * weight
                sizes[0][q][rows] += bounds @ np.abs(others)
                sizes[1][n][columns] += bounds.T @ np.abs(tokens)
                continue
            # Not a matrix product: 0 times NaN is no term.
            for i, j in enumerate(place):
                for term, grad, size in (
                    (shares[i, j] * others[j], grads[0][q][rows[i]], sizes[0][q][rows[i]]),
                    (shares[i, j] * tokens[i], grads[1][n][columns[j]], sizes[1][n][columns[j]]),
                ):
                    grad += term
                    size += np.abs(term)
    if options.get("normalize"):
        for side, own, size in zip(sides, grads, sizes, strict=True):
            for x, there, grad, terms in zip(side.raw, side.there, own, size, strict=True):
                direction = np.abs(unit(x[there]))
                grad[there] = unit_backward(x[there], grad[there])
                along = (direction * terms[there]).sum(1, keepdims=True)
                terms[there] += along * direction
                terms[there] /= np.maximum(norm(x[there]), 1e-12)
    return grads, sizes, condition


def check_gradients(call, grad_scores, candidates=None, threads=1):
    result = call.run(candidates, threads)
    grads = call.backward(grad_scores, result, candidates, threads)
    everything = [range(len(call.wide[1]))] * len(call.wide[0])
    chosen = everything if candidates is None else candidates
    with np.errstate(all="ignore"):
        expected, sizes, condition = expected_gradients(call, grad_scores, result[1], chosen)
    roundoff = ROUNDOFFS["maxsim.gradients"] * ROUNDOFF[np.dtype(call.compute).name] * condition
    for runs, ours, theirs, terms in zip(
        (call.queries, call.documents), grads, expected, sizes, strict=True
    ):
        between = np.ones(len(ours), bool)
        for start, end, grad, size in zip(runs.starts, runs.ends, theirs, terms, strict=True):
            between[start:end] = False
            near(ours[start:end], grad, roundoff * size)
        assert (ours[between] == 0).all()
    return grads


def near(ours, theirs, bound):
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.isnan(ours[~finite]), np.isnan(theirs[~finite]))
    infinite = np.isinf(theirs)
    np.testing.assert_array_equal(ours[infinite], theirs[infinite])
    assert (np.abs(ours[finite] - theirs[finite]) <= bound[finite] + 1e-37).all()


@pytest.mark.parametrize("level", LEVELS)
@given(
    case=cases(most=4, values=ORDINARY, temperatures=(None, *TEMPERATURES)),
    dtype=st.sampled_from(sorted(STORED)),
    layout=st.sampled_from(LAYOUTS),
    chosen=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_gradients_are_those_of_the_formula(level, case, dtype, layout, chosen, threads):
    with cpu_level(level):
        call = Call(case, dtype, layout)
        rng = np.random.default_rng(case.seed)
        candidates, grad_scores = None, case["grad_scores"].astype(call.compute).astype(np.float64)
        if chosen:  # the same document twice, and none
            candidates = rng.integers(-1, len(case["documents"]), (len(case["queries"]), 3))
            grad_scores = rng.integers(-8, 9, candidates.shape) / 4
        grads = check_gradients(call, grad_scores, candidates, threads)
        result = call.run(candidates)
        for one, two in zip(grads, call.backward(grad_scores, result, candidates), strict=True):
            np.testing.assert_array_equal(one, two)  # on any number of threads


@given(case=cases(values=("random", "integers"), temperatures=(None, 0.5)))
def test_gradients_are_the_oracle(case):
    # Where lengths divide whole numbers, rounding decides which of two equal products is larger,
    # and so where a gradient goes; the test above follows what was matched.
    divided = case.values == "integers" and case.options["normalize"]
    assume(not divided or case.options["temperature"])
    call = Call(case, "float64", "gaps")
    grads = call.backward(case["grad_scores"], call.run())
    expected = oracle.maxsim_grad(
        *call.wide, case["grad_scores"], *case.mask_arrays, **case.options
    )
    for runs, ours, theirs in zip((call.queries, call.documents), grads, expected, strict=True):
        for x, y in zip(runs.split(ours), theirs, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@given(case=cases(values=("special",)), dtype=st.sampled_from(sorted(STORED)))
def test_infinities_and_nan_stay_with_what_they_match(case, dtype):
    call = Call(case, dtype)
    check_gradients(call, case["grad_scores"].astype(call.compute).astype(np.float64))


def test_smooth_gradients_of_nan():
    """Of a NaN among similarities; other documents and queries stay clean."""
    case = Case((2, 2), (3, 3), 4, options={"temperature": 1.0})
    case["documents"][0][1, 2] = np.nan
    call = Call(case, "float32")
    queries, documents = call.backward(np.array([[1.0, 1.0], [0.0, 1.0]]), call.run())
    assert np.isnan(queries).all()  # 0 times NaN too
    assert np.isnan(documents[:3]).all()
    assert np.isfinite(documents[3:]).all()


# Several blocks and panels, several passes along a row, many documents of a task and few.
LONG = [
    Case((32,), (180, 97, 1, 300), 128),
    Case((5, 0, 70, 33), (96, 12, 13, 193), 250, options={"normalize": True}),
    Case((33,) * 9, (13, 111), 111, masks=("holes", "holes")),
    Case((7, 50), (989,), 515, options={"normalize": True}),
    Case((70,), (989, 5), 65, options={"temperature": 0.5}),
    Case((33, 7), (111, 96), 515, options={"temperature": 2.0, "normalize": True}),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_ones(level, dtype, case):
    with cpu_level(level):
        call = Call(case, dtype)
        check_gradients(call, case["grad_scores"].astype(np.float32).astype(float), threads=2)


@pytest.mark.parametrize("temperature", [None, 0.3])
def test_huge_and_tiny_rows(temperature):
    options = {"normalize": True, "temperature": temperature}
    case = Case((7, 3), (33, 16), 33, options=options)
    for side in case.inputs:
        for x in side:
            x *= 10.0 ** np.random.default_rng(1).choice([-30, -5, 0, 30, 37], size=(len(x), 1))
    check_gradients(Call(case, "float32"), case["grad_scores"].astype(np.float32).astype(float))


def test_shares_of_a_tiny_temperature_are_at_most_whole():
    """Similarities are rounded on a scale where the temperature is nothing; 1/t is infinite."""
    case = Case((16,), (33,), 33, options={"temperature": 1e-300})
    hard = Case((16,), (33,), 33)
    grads = np.ones((1, 1))
    ours, theirs = (Call(own, "float32") for own in (case, hard))
    for smooth, plain in zip(
        ours.backward(grads, ours.run()), theirs.backward(grads, theirs.run()), strict=True
    ):
        np.testing.assert_allclose(smooth, plain, rtol=1e-5, atol=1e-5)


WRONG = {
    "overlap": ({"document_starts": np.array([0, 2])}, "documents_starts: runs of rows overlap"),
    "argmax": ({"argmax": np.full(4, 3, np.int32)}, "argmax: a row beyond its document"),
    "argmax shape": ({"argmax": np.zeros(3, np.int32)}, "argmax: shape"),
    "no document": ({"candidates": np.full((1, 2), -1)}, "argmax: a row beyond its document"),
    "grad_scores": ({"grad_scores": np.ones((1, 2))}, "grad_scores: dtype float64"),
    "grad_queries": ({"grad_queries": np.zeros((1, 4), np.float32)}, "grad_queries: shape"),
    "temperature": ({"temperature": np.nan}, "temperature: not 0 or a positive number"),
    "token_scores": ({"temperature": 1.0, "token_scores": None}, "token_scores: missing"),
}


def arguments():
    return {
        "dtype": "bfloat16",
        "queries": np.ones((2, 4), np.float32),
        "query_starts": np.array([0]),
        "query_ends": np.array([2]),
        "query_mask": None,
        "documents": np.ones((6, 4), ml_dtypes.bfloat16).view(np.uint16),
        "document_starts": np.array([0, 3]),
        "document_ends": np.array([3, 6]),
        "document_mask": None,
        "normalize": False,
        "pad_zero_rows": False,
        "length_normalize": False,
        "temperature": 0.0,
        "candidates": None,
        "grad_scores": np.ones((1, 2), np.float32),
        "argmax": np.zeros(4, np.int32),
        "token_scores": None,
        "grad_queries": np.full((2, 4), np.nan, np.float32),
        "grad_documents": np.full((6, 4), np.nan, np.float32),
        "threads": 1,
    }


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_refused(name):
    changed, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        _core.maxsim_backward(**{**arguments(), **changed})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_side_alone(temperature):
    both = arguments()
    both.update(temperature=temperature, token_scores=np.full(4, 4, np.float32))
    _core.maxsim_backward(**both)
    for name in ("grad_queries", "grad_documents"):
        alone = arguments()
        alone.update(temperature=temperature, token_scores=both["token_scores"])
        other = "grad_documents" if name == "grad_queries" else "grad_queries"
        alone[other] = None
        _core.maxsim_backward(**alone)
        assert np.isfinite(both[name]).all()
        np.testing.assert_array_equal(alone[name], both[name])
