"""`reference/pool.py` in NumPy float64, for larger sizes, with what errors are relative to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.info_nce import SMALLEST_NORM
from simtile.reference.pool import SMALLEST_WEIGHT

Array = npt.NDArray[Any]


class Pooled(NamedTuple):
    vectors: Array  # [N, dim]
    raw: Array  # [N, dim]
    totals: Array  # [N]
    positions: Array | None  # [N, dim] of "max", [N] of "cls" and "last"
    size: Array  # [N, dim]: what the vectors are rounded relative to


def pool(
    tokens: Array,
    mask: Array | None = None,
    how: str = "mean",
    *,
    weights: Array | None = None,
    dim: int | None = None,
    normalize: bool = True,
) -> Pooled:
    """Of tokens [N, L, D]; the mask is [N, L] and so are weights."""
    n, length, _ = tokens.shape
    x = tokens[:, :, :dim].astype(np.float64)
    kept = np.ones((n, length), bool) if mask is None else mask != 0
    w = kept.astype(np.float64)
    if weights is not None:
        w = np.where(kept, weights.astype(np.float64), 0.0)
    x = np.where(kept[:, :, None], x, 0.0)
    totals = w.sum(axis=1)
    divisor = np.where(totals < SMALLEST_WEIGHT, SMALLEST_WEIGHT, totals)[:, None]
    positions = None
    with np.errstate(invalid="ignore", over="ignore"):
        if how == "mean":
            raw = (w[:, :, None] * x).sum(axis=1) / divisor
            size = np.abs(w[:, :, None] * x).sum(axis=1) / divisor
        elif how == "max":
            raw, positions = _largest(x, kept)
            size = np.abs(raw)
        else:
            from_end = length - 1 - kept[:, ::-1].argmax(axis=1) if length else np.zeros(n, int)
            first = kept.argmax(axis=1) if length else np.zeros(n, int)
            positions = np.where(kept.any(axis=1), first if how == "cls" else from_end, -1)
            raw = np.zeros((n, x.shape[2]))
            there = positions >= 0
            raw[there] = x[there, positions[there]]
            size = np.abs(raw)
        vectors = raw
        if normalize:
            norm = np.linalg.norm(raw, axis=1, keepdims=True)
            divisor = np.where(np.isfinite(norm), np.maximum(norm, SMALLEST_NORM), np.nan)
            vectors, size = raw / divisor, size / divisor
            # And what a rounding of the norm changes.
            size = size + np.abs(vectors) * np.linalg.norm(size, axis=1, keepdims=True)
    return Pooled(vectors, raw, totals, positions, size)


def _largest(x: Array, kept: Array) -> tuple[Array, Array]:
    """Largest values [N, D], and where they are; 0 and -1 where nothing is kept."""
    n, length, width = x.shape
    if length == 0:
        return np.zeros((n, width)), np.full((n, width), -1)
    # argmax finds the first NaN, else the first of the largest; what is not kept is below -inf.
    ranked = np.where(np.isnan(x), np.inf, x)
    order = np.where(kept[:, :, None], np.where(np.isnan(x), 2, 1), 0)
    best_order = order.max(axis=1, keepdims=True)
    ranked = np.where(order == best_order, ranked, -np.inf)
    # Kept values of -inf come before what is not kept and stands as -inf too.
    first_best = (order == best_order).argmax(axis=1)
    positions = ranked.argmax(axis=1)
    lowest = np.take_along_axis(ranked, positions[:, None], 1)[:, 0] == -np.inf
    positions = np.where(lowest, first_best, positions)
    empty = ~kept.any(axis=1)
    raw = np.take_along_axis(x, positions[:, None], 1)[:, 0]
    raw[empty], positions[empty] = 0.0, -1
    return raw, positions


class Gradients(NamedTuple):
    tokens: Array  # [N, L, D]
    weights: Array  # [N, L]
    token_size: Array  # what they are rounded relative to, likewise
    weight_size: Array


def pool_grad(
    tokens: Array,
    grad: Array,
    mask: Array | None = None,
    how: str = "mean",
    *,
    weights: Array | None = None,
    normalize: bool = True,
) -> Gradients:
    """The gradients of Σ grad · result; `grad` is [N, dim]."""
    n, length, _ = tokens.shape
    dim = grad.shape[1]
    found = pool(tokens, mask, how, weights=weights, dim=dim, normalize=normalize)
    kept = np.ones((n, length), bool) if mask is None else mask != 0
    w = np.where(kept, 1.0 if weights is None else weights.astype(np.float64), 0.0)
    g = grad.astype(np.float64)
    size = np.abs(g)
    if normalize:
        norm = np.linalg.norm(found.raw, axis=1, keepdims=True)
        divisor = np.maximum(norm, SMALLEST_NORM)
        u = found.raw / divisor
        along = np.where(norm >= SMALLEST_NORM, (u * g).sum(axis=1, keepdims=True), 0.0)
        of_along = np.linalg.norm(g, axis=1, keepdims=True)
        g = (g - u * along) / divisor
        size = (size + (np.abs(u) + found.size) * of_along) / divisor
    result, sizes = np.zeros(tokens.shape), np.zeros(tokens.shape)
    weight_grad, weight_size = np.zeros((n, length)), np.zeros((n, length))
    if how == "mean":
        total = np.maximum(found.totals, SMALLEST_WEIGHT)[:, None]
        coefficients = w / total
        result[:, :, :dim] = coefficients[:, :, None] * g[:, None]
        sizes[:, :, :dim] = np.abs(coefficients[:, :, None]) * size[:, None]
        x = np.where(kept[:, :, None], tokens[:, :, :dim].astype(np.float64), 0.0)
        less = (found.raw * g).sum(axis=1)
        less = np.where(found.totals >= SMALLEST_WEIGHT, less, 0.0)
        products = np.einsum("nld,nd->nl", x, g)
        weight_grad = np.where(kept, (products - less[:, None]) / total, 0.0)
        terms = (
            np.einsum("nld,nd->nl", np.abs(x), size) + (np.abs(found.raw) * size).sum(1)[:, None]
        )
        weight_size = terms / total
    else:
        assert found.positions is not None
        positions = found.positions if how == "max" else found.positions[:, None]
        chosen = positions[:, None, :] == np.arange(length)[None, :, None]
        result[:, :, :dim] = np.where(chosen, g[:, None], 0.0)
        sizes[:, :, :dim] = np.where(chosen, size[:, None], 0.0)
    return Gradients(result, weight_grad, sizes, weight_size)
