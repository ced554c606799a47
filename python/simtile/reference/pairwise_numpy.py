"""`reference/triplet.py` and `reference/uniformity.py` in NumPy float64, for larger sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.triplet import SMALLEST_NORM

Array = npt.NDArray[np.float64]


class BatchHard(NamedTuple):
    loss: float
    grad: Array  # [N, D]
    positive: npt.NDArray[Any]  # [N], -1 if none
    negative: npt.NDArray[Any]
    grad_scale: Array  # [N]: size of the terms that were added up in a row of the gradient


def unit(x: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        result: Array = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), SMALLEST_NORM)
        return result


def distances(u: Array, metric: str) -> Array:
    """[N, N], from differences and not from products, which cancel."""
    if metric == "cosine":
        found: Array = 1.0 - u @ u.T
        return found
    square = np.stack([np.square(row - u).sum(axis=1) for row in u])
    return np.sqrt(square) if metric == "euclidean" else square


def through_unit(x: Array, grad: Array) -> Array:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    u = x / np.maximum(norm, SMALLEST_NORM)
    along = np.where(norm > SMALLEST_NORM, (u * grad).sum(axis=1, keepdims=True), 0.0)
    result: Array = (grad - u * along) / np.maximum(norm, SMALLEST_NORM)
    return result


def batch_hard_triplet_loss(
    x: Array,
    labels: npt.NDArray[Any],
    *,
    margin: float = 1.0,
    metric: str = "euclidean",
    normalize: bool = False,
    skip_missing: bool = True,
    chosen: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
) -> BatchHard:
    """As the lists; `chosen` are positives and negatives to use instead of the hardest."""
    normalize = normalize or metric == "cosine"
    u = unit(x) if normalize else x
    n = len(u)
    rows = np.arange(n)
    d = distances(u, metric)
    same = labels[:, None] == labels
    is_positive = same & ~np.eye(n, dtype=bool)
    positive = np.where(is_positive.any(1), np.where(is_positive, d, -np.inf).argmax(1), -1)
    negative = np.where((~same).any(1), np.where(same, np.inf, d).argmin(1), -1)
    if chosen is not None:
        positive, negative = chosen
    has = positive >= 0, negative >= 0
    raw = np.where(has[0], d[rows, positive], 0.0) - d[rows, negative] + margin
    raw = np.where(has[1], raw, margin)
    counted = has[0] & has[1] if skip_missing else np.ones(n, bool)
    active = counted & (raw >= 0)
    weight = 1.0 / max(counted.sum(), 1)
    grad, scale = np.zeros_like(u), np.zeros(n)
    for i in np.flatnonzero(active & has[1]):
        for sign, j in ((weight, positive[i]), (-weight, negative[i])):
            if j < 0:
                continue
            if metric == "cosine":
                towards, back = -u[j], -u[i]
                size = 1.0
            else:
                factor = 2.0
                if metric == "euclidean":
                    factor = 0.0 if d[i, j] == 0 else 1.0 / d[i, j]
                towards = factor * (u[i] - u[j])
                back = -towards
                size = factor * (np.linalg.norm(u[i]) + np.linalg.norm(u[j]))
            grad[i] += sign * towards
            grad[j] += sign * back
            scale[i] += weight * size
            scale[j] += weight * size
    if normalize:
        grad = through_unit(x, grad)
        scale = scale / np.maximum(np.linalg.norm(x, axis=1), SMALLEST_NORM)
    return BatchHard(float(raw[active].sum() * weight), grad, positive, negative, scale)


class Uniformity(NamedTuple):
    value: float
    grad: Array  # [N, D]
    grad_scale: Array  # [N]
    largest: float  # of the exponents that count: t |u_i - u_j|^2 and what it was computed from


def uniformity(x: Array, t: float = 2.0, normalize: bool = True) -> Uniformity:
    u = unit(x) if normalize else x
    n = len(u)
    exponents = -t * distances(u, "squared_euclidean")
    np.fill_diagonal(exponents, -np.inf)
    largest = exponents.max()
    e = np.exp(exponents - largest)
    total = e.sum()
    sums = e.sum(axis=1)
    factor = 4.0 * t / total
    grad = -factor * (sums[:, None] * u - e @ u)
    lengths = np.linalg.norm(u, axis=1)
    scale = factor * (sums * lengths + e @ lengths)
    if normalize:
        grad = through_unit(x, grad)
        scale = scale / np.maximum(np.linalg.norm(x, axis=1), SMALLEST_NORM)
    size = t * 4.0 * float(np.square(lengths).max())
    return Uniformity(float(largest + np.log(total / (n * (n - 1)))), grad, scale, size)


def alignment(x: Array, y: Array, alpha: float = 2.0, normalize: bool = True) -> float:
    difference = unit(x) - unit(y) if normalize else x - y
    return float((np.linalg.norm(difference, axis=1) ** alpha).mean())


def anisotropy(x: Array) -> float:
    u = unit(x)
    n = len(u)
    cosines = u @ u.T
    np.fill_diagonal(cosines, 0.0)
    return float(cosines.sum() / (n * (n - 1)))
