"""simtile.integrations.maxsim_cpu beside maxsim-cpu itself.

maxsim-cpu is a development requirement: without it this file fails, it is not skipped.
"""

import maxsim_cpu as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtile.integrations import maxsim_cpu as ours

seeds = st.integers(0, 2**32 - 1)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def same(own, theirs):
    assert type(own) is type(theirs)
    assert own.dtype == theirs.dtype
    assert own.shape == theirs.shape
    np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-4)


@given(
    tokens=st.sampled_from([0, 1, 7, 32]),
    count=st.sampled_from([0, 1, 2, 33]),
    length=st.sampled_from([1, 2, 7, 111]),
    dim=st.sampled_from([1, 7, 64, 128]),
    sign=st.sampled_from([None, 1, -1]),
    seed=seeds,
)
def test_scores(tokens, count, length, dim, sign, seed):
    rng = np.random.default_rng(seed)
    query, docs = random(rng, tokens, dim), random(rng, count, length, dim)
    if sign:
        query, docs = np.abs(query), sign * np.abs(docs)
    docs[rng.random((count, length)) < 0.2] = 0
    same(ours.maxsim_scores(query, docs), peer.maxsim_scores(query, docs))
    same(ours.maxsim_scores_variable(query, docs), peer.maxsim_scores_variable(query, docs))


@given(
    tokens=st.sampled_from([0, 1, 7, 32]),
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 33]), max_size=9),
    dim=st.sampled_from([1, 7, 64, 128]),
    seed=seeds,
)
def test_scores_variable(tokens, lengths, dim, seed):
    rng = np.random.default_rng(seed)
    query, docs = random(rng, tokens, dim), [-np.abs(random(rng, n, dim)) for n in lengths]
    for given_docs in (docs, tuple(docs)):
        same(
            ours.maxsim_scores_variable(query=query, docs=given_docs),
            peer.maxsim_scores_variable(query=query, docs=given_docs),
        )


def test_what_the_original_cannot_do():
    query, docs = np.ones((2, 4), np.float32), np.ones((3, 5, 4), np.float32)
    assert (ours.maxsim_scores(query, docs[:, :0]) == -np.inf).all()  # the original aborts
    assert (ours.maxsim_scores(query, docs.transpose(1, 0, 2)) == 8).all()
    docs[1, 2, 3] = np.nan  # the original leaves such a token out
    assert np.isnan(ours.maxsim_scores(query, docs)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("query", "docs", "error", "message"),
    [
        (np.ones((2, 4)), np.ones((1, 2, 4), np.float32), TypeError,
         r"query: found float64 \[2, 4\], expected a float32 array \[L, D\]"),
        (np.ones((2, 4), np.float32), [[1.0]], TypeError, "docs: found list"),
        (np.ones((1, 2, 4), np.float32), np.ones((1, 2, 4), np.float32), TypeError,
         r"query: found float32 \[1, 2, 4\]"),
        (np.ones((2, 4), np.float32), np.ones((1, 2, 5), np.float32), ValueError, "documents"),
    ],
)  # fmt: skip
def test_wrong_calls(query, docs, error, message):
    with pytest.raises(error, match=message):
        ours.maxsim_scores(query, docs)
    with pytest.raises(error):
        peer.maxsim_scores(query, docs)


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ("ab", "docs: found str"),
        ([[[1.0]]], r"docs\[0\]: found list"),
        ([np.ones((2, 4))], r"docs\[0\]: found float64"),
    ],
)
def test_wrong_lists(docs, message):
    query = np.ones((2, 4), np.float32)
    with pytest.raises(TypeError, match=message):
        ours.maxsim_scores_variable(query, docs)
    with pytest.raises(TypeError):
        peer.maxsim_scores_variable(query, docs)
