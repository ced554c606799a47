"""MaxSim of codes in plain Python: the definition of every number, to the last bit.

Queries become whole numbers (`fold`), dot products with codes are exact, and a similarity is a few
operations in float32, each rounded. Scores add similarities up in double precision, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from simtile.reference.maxsim import NO_TOKEN, Pair
from simtile.reference.topk import float32

LARGEST_WHOLE = 32639  # 127 · 256 + 127


class Folded(NamedTuple):
    """A query's token."""

    whole: list[int]
    unit: float  # what a similarity is multiplied with
    term: float  # addend; or what the dot product with a residual is multiplied with


def fold(
    query: Sequence[float],
    largest_code: int,
    *,
    scale: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
) -> Folded:
    """A token of floats for codes that stand for code · scale + offset.

    z_i = round(w_i · L / max|w|), half to even, with w_i = q_i · scale_i and L the largest number
    up to 32639 for which Σ z_i code_i stays within 32 bits.
    """
    weights = [q * s for q, s in zip(query, scale, strict=True)] if scale else list(query)
    most = min(LARGEST_WHOLE, (2**31 - 1) // (largest_code * len(query)))
    size = max(map(abs, weights))
    constant = 0.0
    for q, o in zip(query, offset or [0.0] * len(query), strict=True):
        constant += q * o
    if not all(map(math.isfinite, weights)):
        return Folded([0] * len(query), math.nan, math.nan)
    unit = size / most if size else 1.0
    whole = [round(w * (most / size)) if size else 0 for w in weights]
    return Folded(whole, float32(unit), float32(constant / unit))


def fold_for_bits(query: Sequence[float], *, normalize: bool = False) -> Folded:
    """For bits, 0 and 1, that stand for -1 and 1: q · (2b - 1) = 2 (q · b - Σq / 2).

    `normalize`: they are divided by √D, their length.
    """
    size = max(map(abs, query))
    if not all(map(math.isfinite, query)):
        return Folded([0] * len(query), math.nan, math.nan)
    most = min(LARGEST_WHOLE, (2**31 - 1) // len(query))
    unit = size / most if size else 1.0
    total = 0.0
    for x in query:
        total += x
    root = math.sqrt(len(query)) if normalize else 1.0
    return Folded(fold(query, 1).whole, float32(2 * unit / root), float32(-(total / unit) / 2))


def similarity(query: Folded, codes: Sequence[int], factor: float = 1.0) -> float:
    """(dot + addend) · factor, in units of the query's token; the factor is the document's token's.

    The maximum is of these, and is multiplied with the unit afterwards.
    """
    dot = sum(z * code for z, code in zip(query.whole, codes, strict=True))
    return float32(float32(float32(dot) + query.term) * factor)


def residual_similarity(
    query: Sequence[float],
    centroid: Sequence[float],
    codes: Sequence[int],
    whole_weights: Sequence[int],
    weight_unit: float,
    inverse_norm: float,
) -> float:
    """(weight · dot + q · centroid) · inverse norm; the unit is 1.

    `whole_weights` W = 256 · high + low are what buckets stand for, in units of `weight_unit`. The
    dots with high and low, both int8, are exact; 256 · one + the other is not. q · centroid is
    summed up in float32, in order.
    """
    folded = fold(query, 128)
    high, low = 0, 0
    for z, code in zip(folded.whole, codes, strict=True):
        low_byte = (whole_weights[code] + 128) % 256 - 128
        high += z * (whole_weights[code] - low_byte) // 256
        low += z * low_byte
    dot = float32(float32(high) * 256 + float32(low))
    product = 0.0
    for q, c in zip(query, centroid, strict=True):
        product = float32(product + float32(float32(q) * c))
    weight = float32(folded.unit * weight_unit)
    return float32(float32(float32(dot * weight) + product) * inverse_norm)


def pair(similarities: Sequence[Sequence[float]], units: Sequence[float]) -> Pair:
    """The score of a query and a document: of each query token the largest, the first of equals.

    `similarities` [Lq][Ld] are in the tokens' `units`.
    """
    score, argmax, values = 0.0, [], []
    for row, unit in zip(similarities, units, strict=True):
        best = NO_TOKEN
        for j, x in enumerate(row):
            if best == NO_TOKEN or x > row[best] or (math.isnan(x) and not math.isnan(row[best])):
                best = j
        argmax.append(best)
        values.append(float32(row[best] * unit) if row else 0.0)
        score += values[-1]
    return Pair(float32(score), argmax, values)
