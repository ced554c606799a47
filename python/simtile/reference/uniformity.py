"""How embeddings lie on the sphere, in plain Python: alignment, uniformity, anisotropy.

    alignment   mean_i |x_i - y_i|^alpha                      over pairs of positives
    uniformity  log mean_{i<j} exp(-t |x_i - x_j|^2)          over all pairs
    anisotropy  mean_{i≠j} cos(x_i, x_j)                      over all pairs

The first two are Wang and Isola, "Understanding Contrastive Representation Learning through
Alignment and Uniformity on the Hypersphere", 2020, arXiv:2005.10242, eqs. 1 and 2 (of which
uniformity is the logarithm); the third is the measure of Ethayarajh, 2019, arXiv:1909.00512.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simtile.reference.triplet import Vector, add, distance, through_unit, unit


def alignment(
    x: Sequence[Vector], y: Sequence[Vector], alpha: float = 2.0, normalize: bool = True
) -> float:
    prepare = unit if normalize else list
    lengths = (distance(prepare(a), prepare(b), "euclidean") for a, b in zip(x, y, strict=True))
    return math.fsum(length**alpha for length in lengths) / len(x)


def uniformity(
    x: Sequence[Vector], t: float = 2.0, normalize: bool = True
) -> tuple[float, list[list[float]]]:
    """The value and its gradient [N][D].

    With e_ij = exp(-t |u_i - u_j|^2) and their sum E over i ≠ j, the gradient of row i is
    -4t / E · Σ_j e_ij (u_i - u_j). The largest exponent is taken out before exp.
    """
    u = [unit(v) for v in x] if normalize else [list(v) for v in x]
    n = len(u)
    exponents = [[-t * distance(a, b, "squared_euclidean") for b in u] for a in u]
    largest = max(exponents[i][j] for i in range(n) for j in range(n) if i != j)
    e = [
        [0.0 if i == j else math.exp(exponents[i][j] - largest) for j in range(n)] for i in range(n)
    ]
    total = math.fsum(math.fsum(row) for row in e)
    grad = [[0.0] * len(u[0]) for _ in range(n)]
    for i in range(n):
        for j in range(n):
            difference = [a - b for a, b in zip(u[i], u[j], strict=True)]
            add(grad[i], difference, -4.0 * t * e[i][j] / total)
    if normalize:
        grad = [through_unit(v, g) for v, g in zip(x, grad, strict=True)]
    return largest + math.log(total / (n * (n - 1))), grad


def anisotropy(x: Sequence[Vector]) -> float:
    """From pairs; the quick form is (|Σ u|² - Σ |u|²) / (N (N - 1))."""
    u = [unit(v) for v in x]
    n = len(u)
    cosines = (
        math.fsum(a * b for a, b in zip(u[i], u[j], strict=True))
        for i in range(n)
        for j in range(n)
        if i != j
    )
    return math.fsum(cosines) / (n * (n - 1))
