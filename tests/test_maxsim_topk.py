"""The best documents by MaxSim are those of all scores, sorted: every level, mask and option."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from info_nce_backends import cpu_level
from maxsim_cases import Case, cases, draw_tokens
from maxsim_kernel import EMPTY_SCORE, LAYOUTS, POISON, TEMPERATURES, Call

import simtile
from simtile import _core

LEVELS = simtile.cpu_info()["detected"]

DTYPES = ("bfloat16", "float16", "float32")


def search(call, k, allow=None, candidates=None, threads=1):
    scores = np.full((len(call.queries.starts), k), POISON, np.float32)
    ids = np.full(scores.shape, POISON, np.int64)
    _core.maxsim_topk(
        call.dtype,
        *call.queries.arguments,
        *call.documents.arguments,
        *call.options,
        EMPTY_SCORE,
        call.temperature,
        k,
        allow,
        candidates,
        scores,
        ids,
        threads,
    )
    return scores, ids


def sorted_scores(scores, k, allow=None, candidates=None):
    """The same from a matrix of scores."""
    best = np.full((len(scores), k), -np.inf, np.float32)
    ids = np.full(best.shape, -1, np.int64)
    for q, row in enumerate(scores):
        own = range(len(row)) if candidates is None else candidates[q]
        may = None if allow is None else np.broadcast_to(allow, (len(scores), allow.shape[-1]))[q]
        found = {
            (-score, n)
            for score, n in zip(row.tolist(), own, strict=True)
            if n >= 0 and score == score and (may is None or may[n])
        }
        for place, (score, n) in enumerate(sorted(found)[:k]):
            best[q, place], ids[q, place] = -score, n
    return best, ids


def check(call, k, **given):
    scores = call.run(given.get("candidates"), rows=False)[0]
    threads = given.pop("threads", 1)
    expected = sorted_scores(scores, k, **given)
    found = search(call, k, threads=threads, **given)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("level", LEVELS)
@given(
    case=cases(most=5, temperatures=TEMPERATURES),
    dtype=st.sampled_from(DTYPES),
    k=st.integers(1, 7),
    allowed=st.sampled_from(["all", "some", "some of each", "none"]),
    chosen=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    threads=st.sampled_from([1, 2]),
)
def test_the_best_are_those_of_all_scores(level, case, dtype, k, allowed, chosen, layout, threads):
    rng = np.random.default_rng(case.seed)
    queries, documents = len(case["queries"]), len(case["documents"])
    allow = {
        "all": None,
        "some": rng.random(documents) < 0.5,
        "some of each": rng.random((queries, documents)) < 0.5,
        "none": np.zeros(documents, bool),
    }[allowed]
    candidates = rng.integers(-1, documents, (queries, 6)) if chosen else None
    with cpu_level(level):
        check(Call(case, dtype, layout), k, allow=allow, candidates=candidates, threads=threads)


def many(values, dim=70, documents=120, queries=(32, 5, 0, 33, 8), scale=1.0):
    """Enough documents that most are not scored."""
    rng = np.random.default_rng(5)
    case = Case(queries, (1,), dim)
    lengths = rng.integers(0, 40, documents)
    case.arrays["queries"] = [scale * draw_tokens(rng, n, dim, values) for n in queries]
    own = [draw_tokens(rng, n, dim, values) for n in lengths]
    case.arrays["documents"] = [own[i] for i in rng.integers(0, documents, documents)]  # some equal
    return case


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["random", "few", "zeros", "special", "integers"])
def test_the_best_of_many(level, dtype, values):
    with cpu_level(level):
        call = Call(many(values), dtype)
        for k, threads in ((1, 1), (7, 2), (119, 1), (500, 2)):
            check(call, k, threads=threads)
        call.case.options["length_normalize"] = True
        check(call, 3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-18, 1e18, 1e30, 1e37])
def test_the_best_of_huge_and_tiny_ones(level, scale):
    """What a bound rests on leaves the range of floats before the scores do."""
    with cpu_level(level):
        check(Call(many("random", scale=scale), "float32"), 4)
        case = many("random")
        case.arrays["documents"] = [scale * x for x in case["documents"]]
        check(Call(case, "float32"), 4)
        check(Call(case, "bfloat16"), 4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_below_the_rounding_of_a_bound_decide(level, dtype):
    """All documents are nearly one, so nothing may be left out by a rounded product."""
    rng = np.random.default_rng(8)
    case = Case((32, 7), (1,), 128)
    case.arrays["queries"] = [rng.normal(size=(n, 128)) for n in (32, 7)]
    one = rng.normal(size=(20, 128))
    case.arrays["documents"] = [
        (one * (1 + 2.0**-9 * rng.normal(size=one.shape))).astype(ml_dtypes.bfloat16)
        for _ in range(150)
    ]
    with cpu_level(level):
        check(Call(case, dtype), 9)


WRONG = {
    "float64": ({"dtype": "float64"}, "dtype: float64 is scored by maxsim only"),
    "k": ({"k": 0}, "k: below 1"),
    "allow": ({"allow": np.ones(2, bool)}, "allow: shape"),
    "allow of queries": ({"allow": np.ones((2, 1), bool)}, "allow: shape"),
    "allow dtype": ({"allow": np.ones(1, np.uint8)}, "allow: not of dtype bool"),
    "scores": ({"scores": np.zeros((1, 2), np.float32)}, "scores: shape"),
    "ids": ({"ids": np.zeros((1, 1), np.int32)}, "ids: dtype"),
    "candidates": ({"candidates": np.array([[1]])}, "candidates: beyond the documents"),
    "temperature": ({"temperature": np.inf}, "temperature: not 0 or a positive number"),
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
        "k": 1,
        "allow": None,
        "candidates": None,
        "scores": np.zeros((1, 1), np.float32),
        "ids": np.zeros((1, 1), np.int64),
        "threads": 1,
    }
    _core.maxsim_topk(**given)
    changed, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        _core.maxsim_topk(**{**given, **changed})
