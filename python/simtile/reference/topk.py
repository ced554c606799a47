"""Exact search in plain Python: the definition that every kernel and backend is held to.

Every document is scored; the best k of those that are allowed are kept, best first. Documents of
equal score come in the order of their ids. Where fewer than k are found, the remaining places hold
id -1 and the worst score. A document whose score is NaN is not found, and -0 is returned as 0.

    metric    score                       best       worst
    cosine    q·x / (‖q‖ ‖x‖)             largest    -inf    float32; 0 if one of the two is zero
    dot       q·x                         largest    -inf    float32
    l2        ‖q - x‖²                    smallest   inf     float32
    hamming   bits of q and x that differ smallest   2³¹-1   int32

Scores are defined to the last bit, so that neither processor, threads nor tiles show: sums are
taken in the order of `lane_sum` in double precision, products are rounded before they are added,
and a score is rounded to float32 once, at the end.

Of codes, x_i = code_i * scale_i + offset_i is the document. Scale and offset go into the query,
`fold`, which becomes integers of 15 bits and a sign; products with codes are then exact integers.

Documents are rows of numbers: floats, integer codes, or bits 0 and 1 that stand for -1 and 1.
`unpack_bits` and `unpack_int4` read them from bytes.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

Row = Sequence[float]
Codes = Sequence[int]
Mask = Sequence[bool] | Sequence[Sequence[bool]]

FLOATS = ("float32", "float64", "float16", "bfloat16")
CODES = ("int8", "uint8", "int4", "bits")
INT32_MAX = 2**31 - 1
MOST = 32639  # 127 * 256 + 127: the largest integer whose two bytes, hi and lo, are -127 to 127
WORST = {"cosine": -math.inf, "dot": -math.inf, "l2": math.inf, "hamming": INT32_MAX}


def lane_sum(terms: Row) -> float:
    """The sum of all terms, in double precision and in this order: 32 partial sums side by side,
    then the upper half of them is added to the lower, and so on. Vectors of any width can do it.
    """
    lanes = [0.0] * 32
    for i, term in enumerate(terms):
        lanes[i % 32] += term
    for half in (16, 8, 4, 2, 1):
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
    return lanes[0]


def lane_dot(a: Row, b: Row) -> float:
    return lane_sum([x * y for x, y in zip(a, b, strict=True)])


def float_score(metric: str, query: Row, document: Row) -> float:
    """Of two rows of floats of any type."""
    if metric == "l2":
        difference = [q - d for q, d in zip(query, document, strict=True)]
        return float32(lane_dot(difference, difference))
    dot = lane_dot(query, document)
    if metric == "dot":
        return float32(dot)
    norms = math.sqrt(lane_dot(query, query)) * math.sqrt(lane_dot(document, document))
    return 0.0 if norms == 0.0 else float32(dot / norms)


class Folded(NamedTuple):
    """A query for codes: the score of a document is ((slope·dot + level)·m + n) + constant, with
    dot = Σ integers_i·code_i and the document's own m and n, 1 and 0 if it has none.
    """

    integers: list[int]
    slope: float
    level: float
    constant: float


def fold(
    kind: str,
    metric: str,
    query: Row,
    scale: Row | None = None,
    offset: Row | None = None,
    query_scale: float | None = None,
) -> Folded:
    """Scale and offset of the codes, and what the metric does with the query, in one place.

    q·x = Σ q_i·scale_i·code_i + Σ q_i·offset_i. The first factors are rounded to multiples of their
    largest magnitude / 32639, that is with an error of at most 1/65278 of it; nothing else is. A
    query that is not finite gets a slope of NaN, and finds nothing.

    Parameters
    ----------
    query : [D]
        Floats; or int8 codes with one scale, `query_scale`: these are multiplied as they are.
    scale, offset : [D], optional
        Of the codes. Where documents have a scale each, it is m.
    """
    if query_scale is None:
        weights = [q * s for q, s in zip(query, scale or [1.0] * len(query), strict=True)]
        largest = math.nan if any(map(math.isnan, weights)) else max(map(abs, weights))
        step = largest / MOST
        integers = [0] * len(query)
        if 0.0 < largest < math.inf:
            factor = MOST / largest
            integers = [round(w * factor) for w in weights]  # half to even
    else:
        if scale is not None or offset is not None:
            raise ValueError("scale: the codes of an integer query cannot take it up")
        integers = [int(q) for q in query]
        step = query_scale
        query = [q * query_scale for q in query]
    if not math.isfinite(step):
        return Folded([0] * len(query), math.nan, math.nan, math.nan)

    squares = lane_dot(query, query)
    if kind == "bits":  # x_i = 2·bit_i - 1, ‖x‖² = D
        slope, level, length = 2 * step, -lane_sum(query), float(len(query))
    else:
        slope, level, length = step, 0.0 if offset is None else lane_dot(query, offset), 1.0
    if metric == "dot":
        return Folded(integers, slope, level, 0.0)
    if metric == "l2":  # ‖q‖² - 2 q·x + ‖x‖²
        constant = squares + length if kind == "bits" else squares
        return Folded(integers, -2 * slope, -2 * level, constant)
    norm = math.sqrt(squares) * math.sqrt(length)  # of a document's own, m is the inverse
    if norm == 0.0:
        return Folded(integers, 0.0, 0.0, 0.0)
    return Folded(integers, slope / norm, level / norm, 0.0)


def code_score(metric: str, folded: Folded, codes: Codes, m: float = 1.0, n: float = 0.0) -> float:
    """Of a folded query and a document's codes."""
    dot = sum(z * code for z, code in zip(folded.integers, codes, strict=True))
    score = ((folded.slope * dot + folded.level) * m + n) + folded.constant
    # Rounding may have led below zero; a comparison with NaN is false and leaves it.
    return float32(0.0 if metric == "l2" and score < 0.0 else score)


def code_norm(
    kind: str, codes: Codes, scale: Row | None = None, offset: Row | None = None, *, inverse: bool
) -> float:
    """‖x‖², or 1/‖x‖ and 0 for a zero row, in float32: n and m of a document."""
    if kind == "bits":
        x: Row = [2.0 * bit - 1.0 for bit in codes]
    else:
        scale, offset = scale or [1.0] * len(codes), offset or [0.0] * len(codes)
        x = [c * s + o for c, s, o in zip(codes, scale, offset, strict=True)]
    squares = lane_dot(x, x)
    if not inverse:
        return float32(squares)
    return 0.0 if squares == 0.0 else float32(1.0 / math.sqrt(squares))


def scores(
    kind: str,
    metric: str,
    query: Row,
    documents: Sequence[Row],
    *,
    scale: Row | None = None,
    offset: Row | None = None,
    factor: Row | None = None,
    addend: Row | None = None,
    query_scale: float | None = None,
) -> list[float]:
    """The score of every document.

    Parameters
    ----------
    kind : str
        Of the documents: one of FLOATS or CODES, or "packed" bytes for hamming.
    query : [D]
    documents : [N][D]
    scale, offset : [D], optional
    factor, addend : [N], optional
        m and n of `Folded`. For cosine m is 1/‖x‖; where documents have a scale each, it is m for
        dot and l2, and for cosine m is 1/‖code‖. For l2 n is ‖x‖².
    query_scale : float, optional
        The query is int8 codes with this scale.
    """
    if metric == "hamming":
        return [
            sum((int(q) ^ int(d)).bit_count() for q, d in zip(query, row, strict=True))
            for row in documents
        ]
    if kind in FLOATS:
        return [float_score(metric, query, row) for row in documents]
    folded = fold(kind, metric, query, scale, offset, query_scale)
    return [
        code_score(
            metric,
            folded,
            [int(code) for code in row],
            1.0 if factor is None else factor[j],
            0.0 if addend is None else addend[j],
        )
        for j, row in enumerate(documents)
    ]


def best_first(
    metric: str, scored: Row, rows: Sequence[int], rank: Sequence[int] | None = None
) -> list[tuple[float, int]]:
    """(score, id) of these rows, best first, without NaN. With `rank` a row's id is rank[row]."""
    descending = metric in ("cosine", "dot")
    found = [
        (-scored[j] if descending else scored[j], j if rank is None else rank[j])
        for j in rows
        if not math.isnan(scored[j])
    ]
    # 0 - 0.0 is 0.0, where -(0.0) is -0.0.
    return [(0 - key if descending else 0 + key, id) for key, id in sorted(found)]


def topk(
    kind: str,
    metric: str,
    queries: Sequence[Row],
    documents: Sequence[Row],
    k: int,
    *,
    scale: Row | None = None,
    offset: Row | None = None,
    factor: Row | None = None,
    addend: Row | None = None,
    query_scale: Row | None = None,
    allow: Mask | None = None,
    rank: Sequence[int] | None = None,
    candidates: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[float]], list[list[int]]]:
    """The k best documents for every query.

    Parameters
    ----------
    kind, metric, documents, scale, offset, factor, addend
        As in `scores`.
    queries : [Q][D]
    k : int
    query_scale : [Q], optional
    allow : [N] or [Q][N], optional
        A document with False is not found, by any query or by this query.
    rank : [N], optional
        A permutation. The id of a row is rank[row], in results and for ties.
    candidates : [Q][C], optional
        The only rows that a query may find; -1 is none, and twice the same row counts once.

    Returns
    -------
    scores : [Q][k]
    ids : [Q][k]
    """
    all_scores, all_ids = [], []
    for i, query in enumerate(queries):
        own_scale = None if query_scale is None else query_scale[i]
        scored = scores(
            kind,
            metric,
            query,
            documents,
            scale=scale,
            offset=offset,
            factor=factor,
            addend=addend,
            query_scale=own_scale,
        )
        rows = allowed(allow, i, len(documents))
        if candidates is not None:
            wanted = set(candidates[i])
            rows = [j for j in rows if j in wanted]
        found = best_first(metric, scored, rows, rank)[:k]
        missing = k - len(found)
        all_scores.append([score for score, _ in found] + [WORST[metric]] * missing)
        all_ids.append([id for _, id in found] + [-1] * missing)
    return all_scores, all_ids


def within(
    metric: str, scored: Row, rows: Sequence[int], threshold: float, rank: Sequence[int] | None
) -> list[tuple[float, int]]:
    """What a search by range finds: (score, id) as good as the threshold or better, best first.

    The threshold is rounded to float32, as scores are.
    """
    threshold = float32(threshold)
    if metric in ("cosine", "dot"):
        hits = [j for j in rows if scored[j] >= threshold]
    else:
        hits = [j for j in rows if scored[j] <= threshold]
    return best_first(metric, scored, hits, rank)


def unpack_bits(row: Sequence[int], dim: int) -> list[int]:
    """The bits of a row of bytes, the most significant first."""
    return [row[i // 8] >> (7 - i % 8) & 1 for i in range(dim)]


def unpack_int4(row: Sequence[int], dim: int) -> list[int]:
    """Codes of -8 to 7 in two's complement: the even in the low half of a byte, the odd above."""
    halves = [row[i // 2] >> (4 * (i % 2)) & 15 for i in range(dim)]
    return [half - 16 if half > 7 else half for half in halves]


def allowed(allow: Mask | None, query: int, documents: int) -> list[int]:
    if allow is None:
        return list(range(documents))
    own = [row for row in allow if isinstance(row, Sequence)]  # none where it is one mask for all
    mask = own[query] if own else allow
    return [j for j in range(documents) if mask[j]]


def float32(x: float) -> float:
    """Rounded to float32."""
    return ctypes.c_float(x).value
