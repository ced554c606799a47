"""Exact top-k in plain Python: the definition that every backend of the two searches is held to.

Both score every document and keep the best k of those that are allowed, best first; documents of
equal score come in the order of their ids. Where fewer than k are found, the remaining places hold
id -1 and the worst score of the type.

    hamming_topk   the number of bits that differ, ascending
    int8_topk      the dot product of int8 codes, descending; with scales, in float32,
                   float(dot) * (query_scale * document_scale)
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

Codes = Sequence[int]
Mask = Sequence[bool] | Sequence[Sequence[bool]]

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def hamming_topk(
    queries: Sequence[Codes], documents: Sequence[Codes], k: int, *, allow: Mask | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """The k documents with the fewest bits that differ from the query's.

    Parameters
    ----------
    queries : [Q][W], each a byte of 8 packed bits
    documents : [N][W]
    k : int
    allow : [N] or [Q][N], optional
        A document with False is not found, by any query or by this query.

    Returns
    -------
    distances : [Q][k]
    ids : [Q][k]
    """
    distances, ids = [], []
    for i, query in enumerate(queries):
        found = select(
            lambda j, query=query: float(distance(query, documents[j])),  # type: ignore[misc]
            allowed(allow, i, len(documents)),
            k,
        )
        distances.append([int(score) for score, _ in found] + [INT32_MAX] * (k - len(found)))
        ids.append([j for _, j in found] + [-1] * (k - len(found)))
    return distances, ids


def int8_topk(
    queries: Sequence[Codes],
    documents: Sequence[Codes],
    k: int,
    *,
    query_scale: Sequence[float] | None = None,
    document_scale: Sequence[float] | None = None,
    allow: Mask | None = None,
) -> tuple[list[list[float]], list[list[int]]]:
    """The k documents with the largest dot products.

    Parameters
    ----------
    queries : [Q][D], from -128 to 127
    documents : [N][D]
    k : int
    query_scale, document_scale : [Q] and [N] float32, optional
        With one of them the scores are float32 and an absent one is 1. A document whose score is
        NaN is not found; 0 and -0 are equal, and returned as 0.
    allow : [N] or [Q][N], optional

    Returns
    -------
    scores : [Q][k], integers without scales
    ids : [Q][k]
    """
    scaled = query_scale is not None or document_scale is not None
    scores, ids = [], []
    for i, query in enumerate(queries):

        def score(j: int, i: int = i, query: Codes = query) -> float:
            dot = sum(a * b for a, b in zip(query, documents[j], strict=True))
            if not scaled:
                return -dot
            of_query = 1.0 if query_scale is None else query_scale[i]
            of_document = 1.0 if document_scale is None else document_scale[j]
            return -float32(float32(dot) * float32(of_query * of_document))

        found = select(score, allowed(allow, i, len(documents)), k)
        worst = -math.inf if scaled else INT32_MIN
        # 0 - 0.0 is 0.0, where -(0.0) is -0.0.
        scores.append([0 - negated for negated, _ in found] + [worst] * (k - len(found)))
        ids.append([j for _, j in found] + [-1] * (k - len(found)))
    return scores, ids


def select(
    score: Callable[[int], float], documents: Sequence[int], k: int
) -> list[tuple[float, int]]:
    """The k smallest scores that are not NaN, with their documents."""
    scored = [(score(j), j) for j in documents]
    return sorted(pair for pair in scored if not math.isnan(pair[0]))[:k]


def allowed(allow: Mask | None, query: int, documents: int) -> list[int]:
    if allow is None:
        return list(range(documents))
    own = [row for row in allow if isinstance(row, Sequence)]  # none where it is one mask for all
    mask = own[query] if own else allow
    return [j for j in range(documents) if mask[j]]


def distance(a: Codes, b: Codes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def float32(x: float) -> float:
    """Rounded to float32. Products of two float32 are exact in Python's floats before that."""
    return ctypes.c_float(x).value
