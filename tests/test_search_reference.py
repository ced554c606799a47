"""The definition of search: the NumPy oracle against the lists, and both against plain formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_cases import KINDS, METRICS, Case, Lists, cases
from topk_cases import check

from simtile.reference import topk as lists
from simtile.reference import topk_numpy as oracle

SMALL = {"documents": (0, 1, 7, 33), "queries": (0, 1, 3), "dims": (1, 3, 7, 31, 33, 70)}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_numpy_is_the_lists(kind, data):
    case = data.draw(cases((kind,), **SMALL))
    check(case.topk(oracle), case.topk(Lists))


@given(cases(**SMALL, candidates=None), st.data())
def test_numpy_is_the_lists_in_range(case, data):
    scores = case.topk(oracle)[0].ravel()
    exact = st.sampled_from(scores.tolist()) if scores.size else st.just(0.0)
    threshold = data.draw(st.one_of(exact, st.sampled_from((-math.inf, 0.0, 0.5, math.inf))))
    ours, theirs = (case.range_search(x, threshold) for x in (oracle, Lists))
    np.testing.assert_array_equal(ours[0], theirs[0])
    check(ours[1:], theirs[1:])


@given(cases(("int8", "uint8", "int4", "int8_vector", "bits"), **SMALL), st.booleans())
def test_numpy_is_the_lists_in_norms(case, inverse):
    ours, theirs = (case.code_norms(x, inverse) for x in (oracle, Lists))
    np.testing.assert_array_equal(ours, theirs)


@given(cases(**SMALL, candidates=20, allow="absent", rank=False))
def test_scores_of_rows_are_those_of_topk(case):
    scores = case.score_rows(oracle)
    found, ids = replace(case, k=case.documents + 1, candidates=None).topk(oracle)
    for i in range(case.queries):
        by_id = dict(zip(ids[i].tolist(), found[i].tolist(), strict=True))
        for row, score in zip(case["candidates"][i].tolist(), scores[i].tolist(), strict=True):
            # What topk does not find has no score.
            assert score == by_id[row] if row in by_id else math.isnan(score)


def plain_scores(case):
    """The formulas of the metrics in float64 on dequantised documents, and what they are held to.

    Returns scores and bounds, [Q, N]: the rounding of the query to integers moves every weight by
    half of the largest / 32639, and float32 by 2^-24 of what is rounded.
    """
    a = case.arrays
    documents = oracle.wide(case.stored, a["documents"], case.dim)
    q = a["queries"].astype(np.float64)
    scale = 1.0 if a["scale"] is None else a["scale"].astype(np.float64)
    offset = 0.0 if a["offset"] is None else a["offset"].astype(np.float64)
    magnitude = np.abs(documents).sum(1)
    if case.stored == "bits":
        scale, offset = 2.0, -1.0
    x = documents * scale + offset
    if case.kind in ("int8_vector", "int4_vector") and case.metric != "cosine":
        x = x * a["factor"].astype(np.float64)[:, None]
        magnitude = magnitude * np.abs(a["factor"])
    error = np.abs(q * scale).max(1, initial=0)[:, None] / 65278 * magnitude
    lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
    if case.metric == "dot":
        return q @ x.T, error + 1e-6 * lengths
    if case.metric == "cosine":
        with np.errstate(all="ignore"):
            return np.where(lengths, q @ x.T / lengths, 0), np.where(
                lengths, error / lengths, 0
            ) + 1e-6
    distances = ((q[:, None] - x) ** 2).sum(2)
    squares = (q**2).sum(1)[:, None] + (x**2).sum(1)
    return distances, 2 * error + 1e-6 * squares


@given(
    cases(
        tuple(kind for kind in KINDS if kind not in ("packed", "float64", "float16", "bfloat16")),
        documents=(1, 7, 33),
        queries=(1, 3),
        dims=(1, 7, 33, 200),
        layout="contiguous",
        allow="absent",
        rank=False,
        candidates=None,
        integer_queries=False,
    )
)
def test_the_score_is_the_formula(case):
    if case.values in ("special", "huge", "tiny"):  # beyond the range of float32
        return
    scores, ids = replace(case, k=case.documents).topk(oracle)
    expected, bound = plain_scores(case)
    for i in range(case.queries):
        error = np.abs(scores[i] - expected[i, ids[i]])
        assert (error <= bound[i, ids[i]]).all(), (error / bound[i, ids[i]]).max()


@pytest.mark.parametrize("metric", METRICS)
def test_integer_queries_are_exact(metric):
    case = Case("int8_vector", metric, 3, 50, 33, k=50, integer_queries=True, values="integers")
    scores, ids = case.topk(oracle)
    q, d = (case[name].astype(np.int64) for name in ("queries", "documents"))
    dots = q @ d.T
    for i in range(3):
        expected = dots[i]
        if metric == "l2":
            expected = ((q[i] - d) ** 2).sum(1)
        elif metric == "cosine":
            expected = dots[i] / np.linalg.norm(q[i]) / np.linalg.norm(d, axis=1)
        np.testing.assert_allclose(scores[i], expected[ids[i]], rtol=3e-7)
        if metric != "cosine":
            assert scores[i].tolist() == sorted(expected.tolist(), reverse=metric == "dot")


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "int8_vector", "int4_vector"])
def test_a_distance_is_not_below_zero(kind):
    case = Case(kind, "l2", 33, 33, 64, k=1, values="copies")
    scores, ids = case.topk(oracle)
    assert (scores >= 0).all()
    assert (scores == 0).any()  # what rounding had led below
    assert ids[:, 0].tolist() == list(range(33))
    check((scores, ids), case.topk(Lists))


def test_the_order_of_the_sum():
    terms = [0.0] * 70
    terms[0], terms[32], terms[64] = 1e16, 1.0, -1e16  # one lane: 1e16 + 1 loses the 1
    assert lists.lane_sum(terms) == 0.0
    terms[32], terms[1] = 0.0, 1.0  # another lane
    assert lists.lane_sum(terms) == 1.0
    terms = [0.0] * 32
    terms[0], terms[16], terms[8] = 1.0, 1e16, -1e16  # lane 0 takes lane 16 before lane 8
    assert lists.lane_sum(terms) == 0.0
    assert math.copysign(1.0, lists.lane_sum([-0.0])) == 1.0


def test_a_query_folded_by_hand():
    folded = lists.fold("int8", "dot", [1.0, -2.0, 0.5], [1.0, 0.5, 2.0], [1.0, 0.0, 4.0])
    assert folded.integers == [32639, -32639, 32639]
    assert folded.slope == 1.0 / 32639
    assert folded.level == 3.0
    assert lists.code_score("dot", folded, [1, 2, 3]) == 5.0
    halves = lists.fold("int8", "dot", [32639.0, 0.5, 1.5, -0.5])
    assert halves.integers == [32639, 0, 2, 0]  # half to even
    assert lists.fold("bits", "l2", [1.0, -1.0]).constant == 4.0
    assert lists.float32(lists.fold("bits", "cosine", [3.0, 3.0]).slope * 32639 * 2) == 2.0


def test_search_by_hand():
    documents = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [math.nan, 0.0], [2.0, 0.0]]
    scores, ids = lists.topk("float32", "cosine", [[1.0, 0.0]], documents, 6)
    assert ids == [[0, 4, 2, 1, -1, -1]]  # equal directions by id, NaN not found
    assert scores == [[1.0, 1.0, lists.float32(math.sqrt(0.5)), 0.0, -math.inf, -math.inf]]
    scores, ids = lists.topk("float32", "l2", [[1.0, 0.0]], documents, 2, rank=[4, 3, 2, 1, 0])
    assert (scores, ids) == ([[0.0, 1.0]], [[4, 0]])
    scores, ids = lists.topk("float32", "dot", [[1.0, 0.0]], documents, 3, candidates=[[1, 1, -1]])
    assert (scores, ids) == ([[0.0, -math.inf, -math.inf]], [[1, -1, -1]])
    scores, ids = lists.topk("packed", "hamming", [[0b1010]], [[0], [0b1010], [0b111]], 4)
    assert (scores, ids) == ([[0, 2, 3, 2**31 - 1]], [[1, 0, 2, -1]])


def test_layouts_by_hand():
    assert lists.unpack_bits([0b10100000, 0b01000000], 10) == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert lists.unpack_int4([0x8F, 0x07], 3) == [-1, -8, 7]
