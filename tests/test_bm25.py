"""Candidates of bm25s for mining."""

import math

import bm25s
import numpy as np
import pytest
from test_mining import PASSAGES, QUERY, is_irrelevant

import simtile
from simtile.integrations.bm25 import bm25_candidates


def test_lexically_close_and_irrelevant():
    candidates = bm25_candidates([QUERY], PASSAGES, 4, stopwords=None)
    found = simtile.mine_hard_negatives(
        [QUERY], PASSAGES, k=2, candidates=candidates, filter=is_irrelevant
    )
    assert [PASSAGES[i] for i in found.indices[0]] == [PASSAGES[2], PASSAGES[1]]


def test_scores_are_those_of_the_formula():
    """Lucene's: idf · tf / (tf + k1 (1 - b + b length / mean length))."""
    documents = ["red fox", "red red hen house", "blue hen"]
    scores, rows = bm25_candidates(["red hen"], documents, 3, stopwords=None)

    def score(words, length):
        idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # both words are in two of three
        parts = [tf / (tf + 1.5 * (0.25 + 0.75 * length / (8 / 3))) for tf in words]
        return idf * sum(parts)

    right = [score([1], 2), score([2, 1], 4), score([1], 2)]
    assert rows[0, 0] == 1
    assert sorted(rows[0].tolist()) == [0, 1, 2]
    np.testing.assert_allclose(scores[0], np.array(right)[rows[0]], rtol=1e-5)
    index = bm25s.BM25(corpus=documents)
    index.index(bm25s.tokenize(documents, stopwords=None, show_progress=False), show_progress=False)
    again = bm25_candidates(["red hen"], index, 3, stopwords=None)
    np.testing.assert_array_equal(again[0], scores)


def test_documents_without_a_shared_word_are_none():
    scores, rows = bm25_candidates(["fox", "unknown"], ["red fox", "hen"], 5, stopwords=None)
    assert rows.tolist() == [[0, -1, -1, -1, -1], [-1] * 5]
    assert np.isneginf(scores[rows < 0]).all()
    assert (bm25_candidates(["", "the of"], ["red fox"], 2)[1] == -1).all()
    assert bm25_candidates([], ["a"], 2)[1].shape == (0, 2)
    assert (bm25_candidates(["a"], [], 2)[1] == -1).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="k: found 0, expected at least 1"):
        bm25_candidates(["a"], ["a"], 0)
    with pytest.raises(TypeError, match=r"k: found 1\.5, expected an int"):
        bm25_candidates(["a"], ["a"], 1.5)
    with pytest.raises(TypeError, match="queries: found a str, expected a list"):
        bm25_candidates("a", ["a"], 1)
