"""Exact top-k in NumPy: `reference/topk.py` for sizes where lists are too slow. Integers are exact,
and scaled scores are the same float32 products, so that results are equal to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INT32 = np.iinfo(np.int32)


def hamming_topk(
    queries: Array, documents: Array, k: int, *, allow: Array | None = None
) -> tuple[Array, Array]:
    """uint8 [Q, W] and [N, W] -> int32 distances and int64 ids, [Q, k]."""
    bits, document_bits = (
        np.unpackbits(x, axis=1).astype(np.float32) for x in (queries, documents)
    )
    # |a| + |b| - 2 a·b, in integers below 2^24
    both = bits @ document_bits.T
    distances = bits.sum(1)[:, None] + document_bits.sum(1) - 2 * both
    return best(distances.astype(np.int32), k, allow, np.int32(INT32.max))


def int8_topk(
    queries: Array,
    documents: Array,
    k: int,
    *,
    query_scale: Array | None = None,
    document_scale: Array | None = None,
    allow: Array | None = None,
) -> tuple[Array, Array]:
    """int8 [Q, D] and [N, D] -> int32 or float32 scores and int64 ids, [Q, k]."""
    # integers below 2^53
    dots = (queries.astype(np.float64) @ documents.T.astype(np.float64)).astype(np.int32)
    if query_scale is None and document_scale is None:
        scores, ids = best(-dots.astype(np.int64), k, allow, np.int64(-INT32.min))
        return (-scores).astype(np.int32), ids
    one = np.ones(1, np.float32)
    of_query = one if query_scale is None else query_scale
    of_document = one if document_scale is None else document_scale
    with np.errstate(all="ignore"):
        scaled = dots.astype(np.float32) * (of_query[:, None] * of_document)
    scores, ids = best(np.float32(0) - scaled, k, allow, np.float32(np.inf))
    return np.float32(0) - scores, ids


def best(scores: Array, k: int, allow: Array | None, worst: Any) -> tuple[Array, Array]:
    """The k smallest of every row that are allowed and not NaN, ties to the lowest column."""
    queries = len(scores)
    usable = ~np.isnan(scores)
    if allow is not None:
        usable &= allow.astype(bool)
    found = np.full((queries, k), worst, scores.dtype)
    ids = np.full((queries, k), -1, np.int64)
    for i in range(queries):
        columns = np.flatnonzero(usable[i])
        order = columns[np.argsort(scores[i, columns], kind="stable")][:k]
        found[i, : len(order)] = scores[i, order]
        ids[i, : len(order)] = order
    return found, ids
