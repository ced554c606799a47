"""The CPU's MaxSim against the float64 oracle: every level, element type, mask and layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from info_nce_backends import cpu_level
from maxsim_calls import near
from maxsim_cases import Case, cases
from maxsim_kernel import EMPTY_SCORE, LAYOUTS, STORED, TEMPERATURES, Call
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile import _core

LEVELS = simtile.cpu_info()["detected"]


def check(call, result, expected, documents):
    """`documents[q][c]`: which one, or −1, the scores of a query are of."""
    scores, argmax, values = result
    roundoff = ROUNDOFFS["maxsim.scores"] * ROUNDOFF[np.dtype(call.compute).name]
    temperature = call.case.options.get("temperature") or 0.0
    exact = call.case.values in ("few", "integers") and not call.case.options.get("normalize")
    for q, row in enumerate(documents):
        for c, n in enumerate(row):
            if n < 0:
                assert scores[q, c] == EMPTY_SCORE
                assert (argmax[q][c] == -1).all()
                assert (values[q][c] == 0).all()
                continue
            # The logarithm's roundings are relative to the temperature.
            length = len(values[q][c])
            bound = roundoff * (expected.scale[q, n] + length * temperature)
            near(scores[q, c], expected.scores[q, n], bound)
            near(values[q][c], expected.token_scores[q][n], bound)
            same = (argmax[q][c] < 0) == (expected.argmax[q][n] < 0)
            assert same.all()
            if exact:
                np.testing.assert_array_equal(argmax[q][c], expected.argmax[q][n])


@pytest.mark.parametrize("level", LEVELS)
@given(
    case=cases(most=4, temperatures=TEMPERATURES),
    dtype=st.sampled_from(sorted(STORED)),
    layout=st.sampled_from(LAYOUTS),
    threads=st.sampled_from([1, 2]),
)
def test_all_pairs_are_the_oracle(level, case, dtype, layout, threads):
    with cpu_level(level):
        call = Call(case, dtype, layout)
        result = call.run(threads=threads)
        everything = [range(len(case["documents"]))] * len(case["queries"])
        check(call, result, call.oracle(), everything)
        np.testing.assert_array_equal(call.run(rows=False)[0], result[0])


@pytest.mark.parametrize("level", LEVELS)
@given(case=cases(most=4, temperatures=TEMPERATURES), dtype=st.sampled_from(sorted(STORED)))
def test_candidates_are_the_oracle(level, case, dtype):
    with cpu_level(level):
        call = Call(case, dtype)
        rng = np.random.default_rng(case.seed)
        shape = (len(case["queries"]), 3)
        chosen = rng.integers(-1, max(len(case["documents"]), 1), size=shape)
        if not case["documents"]:
            chosen[...] = -1
        check(call, call.run(chosen, threads=2), call.oracle(), chosen)


# Several chunks and tiles of a document, several groups of queries, several passes along a row.
LONG = [
    Case((32,), (180, 97, 1, 300), 128),
    Case((5, 0, 70, 33), (96, 12, 13, 193), 250, "special"),
    Case((33,) * 40, (13, 111), 111, masks=("holes", "holes")),
    Case((7,), (989,), 515, options={"normalize": True}),
    Case((7,), (989,), 33, options={"temperature": 0.5}),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", sorted(STORED))
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_ones_are_the_oracle(level, dtype, case):
    with cpu_level(level):
        call = Call(case, dtype)
        everything = [range(len(case["documents"]))] * len(case["queries"])
        check(call, call.run(threads=2), call.oracle(), everything)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("level", LEVELS)
def test_a_pair_scores_the_same_wherever_it_stands(level, temperature):
    """In any tile, panel, group, thread: so equal documents tie."""
    rng = np.random.default_rng(0)
    document, query = rng.normal(size=(50, 96)), rng.normal(size=(20, 96))
    others = [rng.normal(size=(n, 96)) for n in (1, 13, 200, 7)]
    case = Case((1,), (1,), 96, options={"temperature": temperature})
    case.arrays["documents"] = [document, *others, document, others[2], document]
    case.arrays["queries"] = [others[1], query, others[2], others[0], query]
    with cpu_level(level):
        call = Call(case, "float32")
        scores = call.run(threads=2)[0]
        repeated = scores[np.ix_([1, 4], [0, 5, 7])]
        assert (repeated == repeated[0, 0]).all()
        np.testing.assert_array_equal(call.run(threads=1)[0], scores)
        # Of many query tokens the AMX level multiplies float32 in planes, but not with candidates.
        case.arrays["queries"] = [others[1], query, others[3], query]
        call = Call(case, "float32")
        scores = call.run(threads=2)[0]
        chosen = np.array([[5, 0, 7]] * 4)
        assert (call.run(chosen)[0][[1, 3]] == scores[3, 5]).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_not_finite_changes_nobody_else(level, dtype):
    """Neither a query beside it nor a token that shares a panel is computed another way."""
    rng = np.random.default_rng(4)
    case = Case((9, 5, 9), (40, 33), 64, seed=2)
    alone = Case((9,), (40, 33), 64)
    alone.arrays["queries"] = [case["queries"][2]]
    alone.arrays["documents"] = case["documents"]
    case["queries"][0][3, 7] = np.nan
    case["queries"][1][2] = np.inf
    case["documents"][1][5] = np.where(rng.random(64) < 0.5, 0, np.inf)
    with cpu_level(level):
        scores = Call(case, dtype).run(threads=1)[0]
        assert np.isnan(scores[0]).all()
        np.testing.assert_array_equal(scores[2], Call(alone, dtype).run()[0][0])


def test_huge_and_tiny_rows_have_directions():
    case = Case((7, 3), (33, 16), 33, options={"normalize": True})
    for side in case.inputs:
        for x in side:
            x *= 10.0 ** np.random.default_rng(1).choice([-30, 0, 30], size=(len(x), 1))
    call = Call(case, "float32")
    expected = call.oracle()
    near(call.run()[0], expected.scores, 1e-5)
    # Rows of 1e-30 are shorter than what a row is divided by, and score about nothing.
    assert np.isfinite(expected.scores).all()


def test_smooth_maximum_of_extremes():
    """Infinities and NaN are their own; no temperature leaves the range of numbers."""
    rows = [[-np.inf], [3e38], [-3e38], [1.0], [1.0]]
    for temperature in (1e-300, 1e-30, 1e30):
        case = Case((1,), (5,) * 5, 1, options={"temperature": temperature})
        case.arrays["queries"] = [np.ones((1, 1))]
        chosen = ([0, 0, 0], [0, 1, 1], [2, 1, 3], [3, 4, 3], [0, 2, 2])
        case.arrays["documents"] = [np.array([rows[i] for i in own]) for own in chosen]
        call = Call(case, "float32")
        expected = call.oracle().scores[0]
        assert expected[0] == -np.inf
        np.testing.assert_allclose(call.run()[0][0], expected.astype(np.float32), rtol=1e-6)


WRONG = {
    "queries": ({"queries": np.zeros((2, 5), np.float32)}, "queries: shape"),
    "dtype": ({"queries": np.zeros((2, 4))}, "queries: dtype float64"),
    "starts": ({"query_starts": np.array([3])}, "queries_starts: a run of rows"),
    "ends": ({"document_ends": np.array([9])}, "documents_starts: a run of rows"),
    "mask": ({"document_mask": np.zeros(2, bool)}, "documents_mask: shape"),
    "mask dtype": ({"query_mask": np.zeros(2, np.uint8)}, "queries_mask: not of dtype bool"),
    "temperature": ({"temperature": -1.0}, "temperature: not 0 or a positive number"),
    "candidates": ({"candidates": np.array([[1]])}, "candidates: beyond the documents"),
    "scores": ({"scores": np.zeros((1, 2), np.float32)}, "scores: shape"),
    "argmax": ({"argmax": np.zeros(3, np.int32)}, "argmax: shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_refused(name):
    given = {
        "dtype": "float32",
        "queries": np.zeros((2, 4), np.float32),
        "query_starts": np.array([0]),
        "query_ends": np.array([2]),
        "query_mask": None,
        "documents": np.zeros((3, 4), np.float32),
        "document_starts": np.array([0]),
        "document_ends": np.array([3]),
        "document_mask": None,
        "normalize": False,
        "pad_zero_rows": False,
        "length_normalize": False,
        "empty_score": 0.0,
        "temperature": 0.0,
        "candidates": None,
        "scores": np.zeros((1, 1), np.float32),
        "argmax": None,
        "token_scores": None,
        "threads": 1,
    }
    _core.maxsim(**given)
    changed, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        _core.maxsim(**{**given, **changed})
