"""Token embeddings pooled to one vector for each row, in plain Python.

Of the tokens x_l of a row that its mask keeps, with weights w_l (1 where none are given):

    mean        Σ w_l x_l / max(Σ w_l, 1e-9)
    cls, last   the first and the last of them
    max         for each dimension the largest value; NaN if there is one
    none kept   0 in every dimension, whatever is asked for

p is the first `dim` dimensions of that, and with `normalize` the result is p / max(|p|, 1e-12), or
NaN where |p| is infinite. The first three are Reimers and Gurevych, "Sentence-BERT", 2019,
arXiv:1908.10084, section 3; weights that grow with the position Muennighoff, "SGPT", 2022,
arXiv:2202.08904, eq. 2; widths Kusupati et al., "Matryoshka Representation Learning", 2022,
arXiv:2205.13147.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from simtile.reference.info_nce import SMALLEST_NORM, Vector

# What sentence-transformers divides a smaller sum of weights by.
SMALLEST_WEIGHT = 1e-9

Matrix = Sequence[Vector]


class Pooled(NamedTuple):
    vectors: list[list[float]]  # [N][dim]
    raw: list[list[float]]  # [N][dim], before they are normalised
    totals: list[float]  # [N], of weights; of the other three how many tokens are kept
    # [N][dim] of "max", [N][1] of "cls" and "last": the token it comes from, -1 if from none
    positions: list[list[int]]


def pool(
    tokens: Sequence[Matrix],
    mask: Sequence[Sequence[int]] | None = None,
    how: str = "mean",
    *,
    weights: Sequence[Vector] | None = None,
    dim: int,
    normalize: bool = True,
) -> Pooled:
    """Pooled vectors of rows of tokens.

    Parameters
    ----------
    tokens : [N][L_n][D]
    mask : [N][L_n], optional
        0 where there is no token.
    how : "mean", "cls", "max" or "last"
    weights : [N][L_n], optional
        Of the mean.
    dim : int
    normalize : bool
    """
    result = Pooled([], [], [], [])
    for n, row in enumerate(tokens):
        kept = [t for t in range(len(row)) if mask is None or mask[n][t] != 0]
        w = {t: 1.0 if weights is None else weights[n][t] for t in kept}
        total = math.fsum(w.values()) if all(map(math.isfinite, w.values())) else sum(w.values())
        raw, positions = pool_row(row, kept, w, total, how, dim)
        result.raw.append(raw)
        result.totals.append(total)
        result.positions.append(positions)
        result.vectors.append(unit(raw) if normalize else raw)
    return result


def pool_row(
    row: Matrix, kept: list[int], w: dict[int, float], total: float, how: str, dim: int
) -> tuple[list[float], list[int]]:
    """The pooled vector of a row, not normalised, and where it comes from."""
    if how == "mean":
        sums = [sum(w[t] * row[t][c] for t in kept) for c in range(dim)]
        divisor = SMALLEST_WEIGHT if total < SMALLEST_WEIGHT else total
        return [s / divisor for s in sums], []
    if not kept:
        return [0.0] * dim, [-1] * (dim if how == "max" else 1)
    if how != "max":
        position = kept[0] if how == "cls" else kept[-1]
        return list(row[position][:dim]), [position]
    positions = [largest(row, kept, c) for c in range(dim)]
    return [row[t][c] for c, t in enumerate(positions)], positions


def largest(row: Matrix, kept: list[int], c: int) -> int:
    """The first token with the largest value of dimension c; the first NaN is larger than all."""
    best = kept[0]
    for t in kept[1:]:
        x, y = row[t][c], row[best][c]
        if x > y or (math.isnan(x) and not math.isnan(y)):
            best = t
    return best


def unit(x: Vector) -> list[float]:
    norm = math.hypot(*x)
    if not math.isfinite(norm):
        return [math.nan] * len(x)
    return [value / max(norm, SMALLEST_NORM) for value in x]


class Gradients(NamedTuple):
    tokens: list[list[list[float]]]  # [N][L_n][D]
    weights: list[list[float]]  # [N][L_n]


def pool_grad(
    tokens: Sequence[Matrix],
    grad: Sequence[Vector],
    mask: Sequence[Sequence[int]] | None = None,
    how: str = "mean",
    *,
    weights: Sequence[Vector] | None = None,
    normalize: bool = True,
) -> Gradients:
    """The gradients of Σ grad · result; `grad` is [N][dim].

    The largest value is that of one token, the first of equal ones, as torch.max chooses. A sum of
    weights below 1e-9 is a constant.
    """
    dim = len(grad[0]) if grad else 0
    found = pool(tokens, mask, how, weights=weights, dim=dim, normalize=normalize)
    result = Gradients([], [])
    for n, row in enumerate(tokens):
        g = through_unit(found.raw[n], grad[n]) if normalize else list(grad[n])
        rest = [0.0] * (len(row[0]) - dim) if row else []
        total, divisor = found.totals[n], max(found.totals[n], SMALLEST_WEIGHT)
        along = math.fsum(a * b for a, b in zip(found.raw[n], g, strict=True))
        grad_tokens, grad_weights = [], []
        for t, x in enumerate(row):
            kept = mask is None or mask[n][t] != 0
            weight = 1.0 if weights is None else weights[n][t]
            if how == "mean":
                coefficient = weight / divisor if kept else 0.0
                own = [coefficient * value for value in g]
            else:
                positions = found.positions[n] * (1 if how == "max" else dim)
                own = [
                    value if position == t else 0.0
                    for value, position in zip(g, positions, strict=True)
                ]
            grad_tokens.append(own + rest)
            product = math.fsum(a * b for a, b in zip(x[:dim], g, strict=True))
            less = along if total >= SMALLEST_WEIGHT else 0.0
            grad_weights.append((product - less) / divisor if kept and how == "mean" else 0.0)
        result.tokens.append(grad_tokens)
        result.weights.append(grad_weights)
    return result


def through_unit(x: Vector, grad: Vector) -> list[float]:
    """The gradient of x where `grad` is that of unit(x)."""
    norm = math.hypot(*x)
    divisor = max(norm, SMALLEST_NORM)
    u = [value / divisor for value in x]
    along = math.fsum(a * b for a, b in zip(u, grad, strict=True)) if norm >= SMALLEST_NORM else 0.0
    return [(g - value * along) / divisor for g, value in zip(grad, u, strict=True)]
