"""Triplet losses in plain Python: the definition that every backend is held to.

With a distance d between the (normalised) rows u,

    triplet     loss_i = max(0, d(a_i, p_i) - d(a_i, n_i) + margin)

(Schroff, Kalenichenko and Philbin, "FaceNet", 2015, arXiv:1503.03832, eq. 3), and batch-hard takes
for every row the furthest row with its label and the nearest row with another:

    batch-hard  loss_i = max(0, max_{j ≠ i, y_j = y_i} d(u_i, u_j)
                                - min_{y_j ≠ y_i} d(u_i, u_j) + margin)

(Hermans, Beyer and Leibe, "In Defense of the Triplet Loss", 2017, arXiv:1703.07737, eq. 5), the
mean being over the rows that have both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Vector = Sequence[float]

# What torch.nn.functional.normalize divides a shorter vector by.
SMALLEST_NORM = 1e-12


class BatchHard(NamedTuple):
    loss: float
    grad: list[list[float]]  # [N][D]
    positive: list[int]  # of each row the furthest with its label, -1 if none
    negative: list[int]  # the nearest with another


def unit(x: Vector) -> list[float]:
    """The vector divided by its norm, which has a floor."""
    norm = max(math.sqrt(math.fsum(v * v for v in x)), SMALLEST_NORM)
    return [v / norm for v in x]


def distance(x: Vector, y: Vector, metric: str) -> float:
    """Between two vectors; those of "cosine" are normalised already."""
    if metric == "cosine":
        return 1.0 - math.fsum(a * b for a, b in zip(x, y, strict=True))
    if metric == "manhattan":
        return math.fsum(abs(a - b) for a, b in zip(x, y, strict=True))
    square = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return math.sqrt(square) if metric == "euclidean" else square


def distance_gradient(x: Vector, y: Vector, metric: str) -> list[float]:
    """Of the distance with respect to x; 0 for the Euclidean distance of equal vectors."""
    if metric == "cosine":
        return [-b for b in y]
    if metric == "manhattan":
        return [float((a > b) - (a < b)) for a, b in zip(x, y, strict=True)]
    if metric == "squared_euclidean":
        return [2.0 * (a - b) for a, b in zip(x, y, strict=True)]
    d = distance(x, y, metric)
    return [0.0 if d == 0.0 else (a - b) / d for a, b in zip(x, y, strict=True)]


def triplet_losses(
    anchors: Sequence[Vector],
    positives: Sequence[Vector],
    negatives: Sequence[Vector],
    *,
    margin: float = 1.0,
    metric: str = "euclidean",
    normalize: bool = False,
) -> list[float]:
    """The loss of every triplet."""
    prepare = unit if normalize or metric == "cosine" else list
    losses = []
    for anchor, positive, negative in zip(anchors, positives, negatives, strict=True):
        a, p, n = prepare(anchor), prepare(positive), prepare(negative)
        losses.append(max(0.0, distance(a, p, metric) - distance(a, n, metric) + margin))
    return losses


def batch_hard_triplet_loss(
    embeddings: Sequence[Vector],
    labels: Sequence[int],
    *,
    margin: float = 1.0,
    metric: str = "euclidean",
    normalize: bool = False,
    skip_missing: bool = True,
) -> BatchHard:
    """Loss, gradient and what was chosen; ties go to the lowest row. A row with a NaN or an
    infinity makes the loss NaN.

    With ``skip_missing`` rows without a positive or a negative are left out of the mean. Without
    it they count, as in sentence-transformers: a missing positive has distance 0, and a row that
    has no negative contributes the margin.
    """
    normalize = normalize or metric == "cosine"
    u = [unit(x) for x in embeddings] if normalize else [list(x) for x in embeddings]
    n = len(u)
    positive, negative, raw = [-1] * n, [-1] * n, [0.0] * n
    for i in range(n):
        nearest, furthest = math.inf, -math.inf
        for j in range(n):
            d = distance(u[i], u[j], metric)
            if labels[j] != labels[i]:
                if negative[i] < 0 or d < nearest:
                    nearest, negative[i] = d, j
            elif j != i and (positive[i] < 0 or d > furthest):
                furthest, positive[i] = d, j
        raw[i] = (0.0 if positive[i] < 0 else furthest) - nearest + margin
        if negative[i] < 0:
            raw[i] = margin

    if not all(math.isfinite(v) for x in embeddings for v in x):
        raw = [math.nan] * n
    counted = [i for i in range(n) if not skip_missing or (positive[i] >= 0 and negative[i] >= 0)]
    active = [i for i in counted if not raw[i] < 0.0]  # NaN counts
    grad_unit = [[0.0] * len(u[0]) for _ in range(n)]
    for i in active:
        if negative[i] < 0:
            continue
        for sign, j in ((1.0, positive[i]), (-1.0, negative[i])):
            if j >= 0:
                add(grad_unit[i], distance_gradient(u[i], u[j], metric), sign / len(counted))
                add(grad_unit[j], distance_gradient(u[j], u[i], metric), sign / len(counted))
    grad = grad_unit
    if normalize:
        grad = [through_unit(x, g) for x, g in zip(embeddings, grad_unit, strict=True)]
    loss = math.fsum(raw[i] for i in active) / len(counted) if counted else 0.0
    return BatchHard(loss, grad, positive, negative)


def add(total: list[float], values: Vector, weight: float) -> None:
    for c, value in enumerate(values):
        total[c] += weight * value


def through_unit(x: Vector, grad: Vector) -> list[float]:
    """From the gradient with respect to `unit(x)` to that with respect to x."""
    norm = math.sqrt(math.fsum(v * v for v in x))
    if norm <= SMALLEST_NORM:
        return [g / SMALLEST_NORM for g in grad]
    u = unit(x)
    along = math.fsum(a * g for a, g in zip(u, grad, strict=True))
    return [(g - a * along) / norm for a, g in zip(u, grad, strict=True)]
