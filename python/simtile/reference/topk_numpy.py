"""Exact search in NumPy: `reference/topk.py` for sizes where lists are too slow, equal to the last
bit. `topk`, `range_search`, `score_rows` and `code_norms` take the arguments of the functions of
the same names in `simtile._core`, so that either can run in the place of the other; the number of
threads changes nothing.

The kinds are those of the lists, as stored: float32, float64, float16, bfloat16 (uint16 arrays of
its bits), int8, uint8, int4 (two a byte), bits (eight a byte), and "packed", bits whose Hamming
distances are asked for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.reference.topk import FLOATS, MOST, WORST, Folded

Array = npt.NDArray[Any]
Wide = npt.NDArray[np.float64]


def topk(
    kind: str,
    metric: str,
    queries: Array,
    documents: Array,
    dim: int,
    scale: Array | None,
    offset: Array | None,
    factor: Array | None,
    addend: Array | None,
    query_scale: Array | None,
    k: int,
    allow: Array | None,
    rank: Array | None,
    candidates: Array | None,
    threads: int,
    scores: Array,
    ids: Array,
) -> None:
    """The k best documents for every query, into `scores` and `ids`, [Q, k]."""
    documents = wide(kind, documents, dim)
    for i, query in enumerate(queries):
        own_scale = None if query_scale is None else query_scale[i]
        scored = scores_of(
            kind, metric, query, documents, dim, scale, offset, factor, addend, own_scale
        )
        rows = allowed_rows(allow, i, len(documents))
        if candidates is not None:
            rows = np.intersect1d(rows, candidates[i])
        found = best_first(metric, scored, rows, rank)[:k]
        scores[i], ids[i] = worst(metric), -1
        scores[i, : len(found)] = plain_zeros(scored[found])
        ids[i, : len(found)] = found if rank is None else rank[found]


def range_search(
    kind: str,
    metric: str,
    queries: Array,
    documents: Array,
    dim: int,
    scale: Array | None,
    offset: Array | None,
    factor: Array | None,
    addend: Array | None,
    query_scale: Array | None,
    threshold: float,
    allow: Array | None,
    rank: Array | None,
    threads: int,
) -> tuple[Array, Array, Array]:
    """What is as good as the threshold or better: offsets [Q + 1], scores and ids, best first."""
    documents = wide(kind, documents, dim)
    with np.errstate(over="ignore"):
        limit = np.float64(np.float32(threshold))
    offsets = np.zeros(len(queries) + 1, np.int64)
    all_scores, all_ids = [np.empty(0, score_dtype(metric))], [np.empty(0, np.int64)]
    for i, query in enumerate(queries):
        own_scale = None if query_scale is None else query_scale[i]
        scored = scores_of(
            kind, metric, query, documents, dim, scale, offset, factor, addend, own_scale
        )
        rows = allowed_rows(allow, i, len(documents))
        exact = scored[rows].astype(np.float64)
        hits = exact >= limit if metric in ("cosine", "dot") else exact <= limit
        found = best_first(metric, scored, rows[hits], rank)
        offsets[i + 1] = offsets[i] + len(found)
        all_scores.append(plain_zeros(scored[found]))
        all_ids.append((found if rank is None else rank[found]).astype(np.int64))
    return offsets, np.concatenate(all_scores), np.concatenate(all_ids)


def score_rows(
    kind: str,
    metric: str,
    queries: Array,
    documents: Array,
    dim: int,
    scale: Array | None,
    offset: Array | None,
    factor: Array | None,
    addend: Array | None,
    query_scale: Array | None,
    candidates: Array,
    threads: int,
    scores: Array,
) -> None:
    """The scores of rows, [Q, C], into `scores`; the worst where the row is -1."""
    documents = wide(kind, documents, dim)
    for i, query in enumerate(queries):
        own_scale = None if query_scale is None else query_scale[i]
        scored = scores_of(
            kind, metric, query, documents, dim, scale, offset, factor, addend, own_scale
        )
        scores[i] = worst(metric)
        given = candidates[i] >= 0
        scores[i, given] = plain_zeros(scored[candidates[i, given]])


def code_norms(
    kind: str,
    documents: Array,
    dim: int,
    scale: Array | None,
    offset: Array | None,
    inverse: bool,
    threads: int,
    out: Array,
) -> None:
    """‖x‖² or 1/‖x‖ of every document, into float32 `out`, [N]."""
    codes = wide(kind, documents, dim)
    if kind == "bits":
        x = 2.0 * codes - 1.0
    else:
        x = codes if scale is None else codes * scale.astype(np.float64)
        x = x if offset is None else x + offset.astype(np.float64)
    with np.errstate(all="ignore"):
        squares = lane_sum(x * x)
        out[...] = np.where(squares == 0.0, 0.0, 1.0 / np.sqrt(squares)) if inverse else squares


def lane_sum(terms: Wide) -> Wide:
    """The sums over the last axis, in the order of the lists."""
    lanes = np.zeros((*terms.shape[:-1], 32))
    for begin in range(0, terms.shape[-1], 32):
        block = terms[..., begin : begin + 32]
        lanes[..., : block.shape[-1]] += block
    for half in (16, 8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def wide(kind: str, rows: Array, dim: int) -> Wide:
    """Rows as stored in float64, [N, dim]; bits are 0 and 1, "packed" bytes stay bytes."""
    if kind == "bfloat16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    elif kind == "bits":
        rows = np.unpackbits(rows, axis=1, count=dim)
    elif kind == "int4":
        halves = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), 2 * rows.shape[1])[
            :, :dim
        ]
        rows = (halves ^ 8).astype(np.int8) - 8
    return rows if kind == "packed" else rows.astype(np.float64)


def fold(
    kind: str,
    metric: str,
    query: Array,
    scale: Array | None,
    offset: Array | None,
    query_scale: np.float32 | None,
) -> tuple[Wide, Folded]:
    """As in the lists; the integers as an array, and not in the tuple."""
    dim = len(query)
    q = query.astype(np.float64)
    with np.errstate(all="ignore"):
        if query_scale is None:
            weights = q if scale is None else q * scale.astype(np.float64)
            largest = float(np.abs(weights).max())
            step = largest / MOST
            integers = np.zeros(dim)
            if 0.0 < largest < math.inf:
                integers = np.rint(weights * (MOST / largest))
        else:
            if scale is not None or offset is not None:
                raise ValueError("scale: the codes of an integer query cannot take it up")
            integers, step = q, float(query_scale)
            q = q * step
        if not math.isfinite(step):
            return np.zeros(dim), Folded([], math.nan, math.nan, math.nan)
        squares = float(lane_sum(q * q))
        if kind == "bits":
            slope, level, length = 2 * step, -float(lane_sum(q)), float(dim)
        else:
            level = 0.0 if offset is None else float(lane_sum(q * offset.astype(np.float64)))
            slope, length = step, 1.0
    if metric == "dot":
        return integers, Folded([], slope, level, 0.0)
    if metric == "l2":
        constant = squares + length if kind == "bits" else squares
        return integers, Folded([], -2 * slope, -2 * level, constant)
    norm = math.sqrt(squares) * math.sqrt(length)
    if norm == 0.0:
        return integers, Folded([], 0.0, 0.0, 0.0)
    return integers, Folded([], slope / norm, level / norm, 0.0)


def scores_of(
    kind: str,
    metric: str,
    query: Array,
    documents: Array,
    dim: int,
    scale: Array | None,
    offset: Array | None,
    factor: Array | None,
    addend: Array | None,
    query_scale: np.float32 | None,
) -> Array:
    """The scores of one query and documents that are `wide`: [N], float32 or int32."""
    if metric == "hamming":
        differ: Array = np.bitwise_xor(query, documents)
        distances: Array = np.unpackbits(differ, axis=1).sum(axis=1, dtype=np.int32)
        return distances
    with np.errstate(all="ignore"):
        if kind in FLOATS:
            q = query.astype(np.float64)
            if metric == "l2":
                difference = q - documents
                return lane_sum(difference * difference).astype(np.float32)
            dot = lane_sum(q * documents)
            if metric == "cosine":
                norm = np.sqrt(lane_sum(q * q)) * np.sqrt(lane_sum(documents * documents))
                dot = np.where(norm == 0.0, 0.0, dot / norm)
            return dot.astype(np.float32)
        integers, folded = fold(kind, metric, query, scale, offset, query_scale)
        dot = documents @ integers  # of integers whose sums stay below 2^53: exact
        m = 1.0 if factor is None else factor.astype(np.float64)
        n = 0.0 if addend is None else addend.astype(np.float64)
        score: Wide = ((folded.slope * dot + folded.level) * m + n) + folded.constant
        if metric == "l2":
            score = np.where(score < 0.0, 0.0, score)
        return score.astype(np.float32)


def best_first(metric: str, scored: Array, rows: Array, rank: Array | None) -> Array:
    """These rows without those whose score is NaN, best first, ties to the lowest id."""
    rows = rows[~np.isnan(scored[rows])]
    keys = scored[rows].astype(np.float64)
    ids = rows if rank is None else rank[rows]
    return rows[np.lexsort((ids, -keys if metric in ("cosine", "dot") else keys))]


def allowed_rows(allow: Array | None, query: int, documents: int) -> Array:
    if allow is None:
        return np.arange(documents)
    return np.flatnonzero(allow if allow.ndim == 1 else allow[query])


def score_dtype(metric: str) -> Any:
    return np.int32 if metric == "hamming" else np.float32


def worst(metric: str) -> Any:
    return score_dtype(metric)(WORST[metric])


def plain_zeros(scored: Array) -> Array:
    """-0 becomes 0."""
    positive: Array = scored + scored.dtype.type(0)
    return positive
