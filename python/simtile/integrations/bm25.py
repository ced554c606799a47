"""Candidates by words: BM25, as `bm25s` computes it, for `simtile.mine_hard_negatives`.

::

    candidates = bm25_candidates(questions, passages, 50)
    simtile.mine_hard_negatives(
        questions, passages, positives, k=5, candidates=candidates, filter=is_irrelevant
    )

These keep BM25's scores. With ``candidates=candidates[1]``, and embeddings in the place of the
texts, what BM25 finds is scored by similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt

__all__ = ["bm25_candidates"]


def bm25_candidates(
    queries: Sequence[str],
    documents: Sequence[str] | bm25s.BM25,
    k: int,
    *,
    stopwords: str | list[str] | None = "en",
    stemmer: Any = None,
    method: str = "lucene",
    k1: float = 1.5,
    b: float = 0.75,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The k documents of every query that share the most telling words with it.

    Parameters
    ----------
    queries : N texts
    documents : M texts, or bm25s.BM25
        An index that was made of the documents with the same `stopwords` and `stemmer`, in which
        case the arguments after `stemmer` are its own.
    k : int
        At least 1.
    stopwords, stemmer, method, k1, b
        Of ``bm25s.tokenize`` and ``bm25s.BM25``.

    Returns
    -------
    scores : float32 [N, k]
        Best first; -inf for none.
    rows : int64 [N, k]
        Of the documents; -1 where fewer have a score above 0: with the methods "lucene",
        "robertson" and "atire" these are the documents that share a word with the query.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.
    """
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"k: found {k!r}, expected an int")
    if k < 1:
        raise ValueError(f"k: found {k}, expected at least 1")
    for name, texts in (("queries", queries), ("documents", documents)):
        if isinstance(texts, str):
            raise TypeError(f"{name}: found a str, expected a list of texts")

    def words_of(texts: Sequence[str]) -> list[list[str]]:
        options = {"stopwords": stopwords, "stemmer": stemmer, "return_ids": False}
        return bm25s.tokenize(list(texts), show_progress=False, **options)  # type: ignore[no-any-return]

    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    if isinstance(documents, bm25s.BM25):
        index, count = documents, int(documents.scores["num_docs"])
    else:
        index, count = bm25s.BM25(method=method, k1=k1, b=b), len(documents)
        words = words_of(documents)
        if not any(words):  # of none it can make no index
            return scores, rows
        index.index(words, show_progress=False)
    if not len(queries):
        return scores, rows
    found = min(k, count)
    # An index may hold its documents, and would give these instead of their rows.
    result = index.retrieve(words_of(queries), np.arange(count), found, show_progress=False)
    shared = result.scores > 0
    rows[:, :found] = np.where(shared, result.documents, -1)
    scores[:, :found] = np.where(shared, result.scores, -np.inf)
    return scores, rows
