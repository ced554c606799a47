"""MaxSim in NumPy float64: `reference/maxsim.py` for sizes where lists are too slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.info_nce_numpy import unit, unit_backward
from simtile.reference.maxsim import NO_TOKEN, ZeroRows

Array = npt.NDArray[np.float64]
Matrices = npt.NDArray[Any] | Sequence[npt.ArrayLike]  # [B, L, D], or [L, D] of each length


class Oracle(NamedTuple):
    """Scores, what each token of a query matched, and the size of the terms they are sums of."""

    scores: Array  # [Q, N]
    argmax: list[list[npt.NDArray[np.int32]]]  # [Q][N] of [Lq]
    token_scores: list[list[Array]]  # [Q][N] of [Lq]
    scale: Array  # [Q, N]: Σ_i max_j Σ_k |q_ik d_jk|, what a score's rounding is relative to


class Gradients(NamedTuple):
    """The gradients of Σ grad_scores[q, n] · scores[q, n], each of the shape of its input."""

    queries: list[Array]
    documents: list[Array]


class Side(NamedTuple):
    """One collection of matrices: tokens in float64, as they are scored, and which are there."""

    raw: list[Array]
    scored: list[Array]
    there: list[npt.NDArray[np.bool_]]


def maxsim(
    queries: Matrices,
    documents: Matrices,
    query_mask: Matrices | None = None,
    document_mask: Matrices | None = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
) -> Oracle:
    """What `simtile.reference.maxsim.maxsim` computes, with arrays for lists."""
    left = side_of(queries, query_mask, normalize, zero_rows)
    right = side_of(documents, document_mask, normalize, zero_rows)
    shape = (len(left.raw), len(right.raw))
    scores, scale = np.zeros(shape), np.zeros(shape)
    argmax: list[list[npt.NDArray[np.int32]]] = []
    token_scores: list[list[Array]] = []
    for q, (tokens, own) in enumerate(zip(left.scored, left.there, strict=True)):
        argmax.append([])
        token_scores.append([])
        for n, (others, theirs) in enumerate(zip(right.scored, right.there, strict=True)):
            best = np.full(len(tokens), NO_TOKEN, np.int32)
            value = np.zeros(len(tokens))
            if own.any() and theirs.any():
                similarity = similarities(tokens[own], others[theirs])
                place = similarity.argmax(1)  # the first NaN, or else the first largest
                best[own] = np.flatnonzero(theirs)[place]
                value[own] = similarity[np.arange(len(place)), place]
                if temperature:
                    value[own] = smooth_max(similarity, value[own], temperature)
                sizes = similarities(np.abs(tokens[own]), np.abs(others[theirs]))
                scale[q, n] = sizes.max(1).sum()
            with np.errstate(all="ignore"):
                scores[q, n] = value.sum()
            argmax[q].append(best)
            token_scores[q].append(value)
        if length_normalize:
            scores[q] /= max(own.sum(), 1)
            scale[q] /= max(own.sum(), 1)
    for n, theirs in enumerate(right.there):
        if not theirs.any():
            scores[:, n] = empty_score
    return Oracle(scores, argmax, token_scores, scale)


def maxsim_grad(
    queries: Matrices,
    documents: Matrices,
    grad_scores: npt.ArrayLike,
    query_mask: Matrices | None = None,
    document_mask: Matrices | None = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
) -> Gradients:
    """The gradients of `simtile.reference.maxsim.maxsim_grad`."""
    left = side_of(queries, query_mask, normalize, zero_rows)
    right = side_of(documents, document_mask, normalize, zero_rows)
    weights = np.asarray(grad_scores, np.float64)
    grad_queries = [np.zeros_like(x) for x in left.raw]
    grad_documents = [np.zeros_like(x) for x in right.raw]
    for q, (tokens, own) in enumerate(zip(left.scored, left.there, strict=True)):
        for n, (others, theirs) in enumerate(zip(right.scored, right.there, strict=True)):
            if not own.any() or not theirs.any():
                continue
            similarity = similarities(tokens[own], others[theirs])
            place = similarity.argmax(1)
            shares = np.zeros_like(similarity)
            shares[np.arange(len(place)), place] = 1
            if temperature:
                largest = similarity[np.arange(len(place)), place]
                smooth = smooth_max(similarity, largest, temperature)
                with np.errstate(all="ignore"):
                    shares = np.exp((similarity - smooth[:, None]) / temperature)
            shares *= weights[q, n] / (own.sum() if length_normalize else 1)
            with np.errstate(all="ignore"):
                grad_queries[q][own] += shares @ others[theirs]
                grad_documents[n][theirs] += shares.T @ tokens[own]
    if normalize:
        for side, grads in ((left, grad_queries), (right, grad_documents)):
            for x, grad, own in zip(side.raw, grads, side.there, strict=True):
                grad[own] = unit_backward(x[own], grad[own])
    return Gradients(grad_queries, grad_documents)


def side_of(
    matrices: Matrices, mask: Matrices | None, normalize: bool, zero_rows: ZeroRows
) -> Side:
    raw = [np.asarray(x, np.float64) for x in matrices]
    there = [np.ones(len(x), bool) for x in raw]
    if mask is not None:
        there = [np.asarray(own, bool) for own in mask]
    if zero_rows == "pad":
        there = [own & (x != 0).any(-1) for own, x in zip(there, raw, strict=True)]
    with np.errstate(all="ignore"):
        scored = [unit(x) if normalize else x for x in raw]
    return Side(raw, scored, there)


def similarities(tokens: Array, others: Array) -> Array:
    with np.errstate(all="ignore"):
        products: Array = tokens @ others.T
    return products


def smooth_max(similarity: Array, largest: Array, temperature: float) -> Array:
    with np.errstate(all="ignore"):
        total = np.exp((similarity - largest[:, None]) / temperature).sum(1)
        smooth: Array = largest + temperature * np.log(total)
    return np.where(np.isfinite(largest), smooth, largest)
