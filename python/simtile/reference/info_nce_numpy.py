"""InfoNCE in NumPy float64: `reference/info_nce.py` for sizes where lists are too slow.

It keeps the whole [N, candidates] matrix and takes care of the last digits, because it is what the
error of the kernels is measured against: the largest logit is subtracted, log1p keeps small losses
exact, and the derivative of the positive is minus the sum of the others, not p − 1.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile.reference.info_nce import SMALLEST_NORM

Array = npt.NDArray[np.float64]

# A probability this small may be rounded to zero without harm; the scales of `Oracle` say so.
NEGLIGIBLE = 1e-30


class Oracle(NamedTuple):
    """Row losses, the gradients of L = Σ_i row_weights[i] · losses[i], and the size of their terms.

    A gradient is a sum over candidates whose terms may cancel. The scales are the same sums with
    every term made positive, one number per vector: the size that rounding errors are relative to.
    """

    losses: Array  # [N]
    queries: Array  # [N, D]
    documents: Array  # [M, D]
    negatives: Array | None  # [N, K, D]
    temperature: float
    logit_scale: float  # largest Σ_k |q_k c_k| / temperature: a logit's rounding is relative to it
    query_scale: Array  # [N]
    document_scale: Array  # [M]
    negative_scale: Array | None  # [N, K]
    temperature_scale: float


def info_nce_grad(
    queries: npt.ArrayLike,
    documents: npt.ArrayLike,
    negatives: npt.ArrayLike | None = None,
    *,
    temperature: float = 0.05,
    normalize: bool = True,
    targets: npt.ArrayLike | None = None,
    negatives_scope: Literal["all", "own"] = "all",
    query_ids: npt.ArrayLike | None = None,
    document_ids: npt.ArrayLike | None = None,
    row_weights: npt.ArrayLike | None = None,
) -> Oracle:
    """What `simtile.reference.info_nce.info_nce_grad` computes, with arrays for lists."""
    raw_queries = np.asarray(queries, np.float64)
    raw_documents = np.asarray(documents, np.float64)
    n, dim = raw_queries.shape
    m = len(raw_documents)
    raw_negatives = None if negatives is None else np.asarray(negatives, np.float64)
    k = 0 if raw_negatives is None else raw_negatives.shape[1]
    # [M + N K, D]: the documents, then every query's negatives
    raw_candidates = raw_documents
    if raw_negatives is not None:
        raw_candidates = np.concatenate([raw_documents, raw_negatives.reshape(n * k, dim)])
    target = np.arange(n) if targets is None else np.asarray(targets, np.int64)
    weights = np.ones(n) if row_weights is None else np.asarray(row_weights, np.float64)
    rows = np.arange(n)

    allowed = np.ones((n, m + n * k), bool)
    if query_ids is not None and document_ids is not None:
        allowed[:, :m] = np.not_equal.outer(np.asarray(query_ids), np.asarray(document_ids))
        allowed[rows, target] = True
    if negatives_scope == "own":
        allowed[:, m:] = np.repeat(np.eye(n, dtype=bool), k, axis=1)

    with np.errstate(all="ignore"):  # NaN in, NaN out
        unit_queries = unit(raw_queries) if normalize else raw_queries
        unit_candidates = unit(raw_candidates) if normalize else raw_candidates

        logits = np.where(allowed, unit_queries @ unit_candidates.T / temperature, -np.inf)
        largest_at = np.argmax(logits, axis=1)  # a NaN counts as the largest
        largest = logits[rows, largest_at]
        exponentials = np.exp(logits - largest[:, None])
        exponentials[~allowed] = 0.0
        beside_largest = exponentials.copy()
        beside_largest[rows, largest_at] -= 1.0  # 0, or NaN
        losses = np.log1p(beside_largest.sum(axis=1)) + (largest - logits[rows, target])

        coefficients = exponentials / exponentials.sum(axis=1, keepdims=True)
        coefficients[~allowed] = 0.0  # also in a row of NaN
        coefficients[rows, target] = 0.0
        coefficients[rows, target] = -coefficients.sum(axis=1)
        steps = coefficients * (weights[:, None] / temperature)  # ∂L/∂(q_i · c_j)

        used_logits = np.where(allowed, logits, 0.0)
        grad_candidates = weighted_sums(steps.T, unit_queries, allowed.T)
        grad_queries = weighted_sums(steps, unit_candidates, allowed)

        terms = np.abs(steps) + allowed * (np.abs(weights)[:, None] * NEGLIGIBLE / temperature)
        query_scale = terms @ np.abs(unit_candidates).max(axis=1)
        candidate_scale = terms.T @ np.abs(unit_queries).max(axis=1)
        if normalize:
            grad_queries = unit_backward(raw_queries, grad_queries)
            grad_candidates = unit_backward(raw_candidates, grad_candidates)
            query_scale /= np.maximum(norm(raw_queries)[:, 0], SMALLEST_NORM)
            candidate_scale /= np.maximum(norm(raw_candidates)[:, 0], SMALLEST_NORM)

        grad_temperature = float(-(steps * used_logits).sum())
        logit_terms = np.abs(unit_queries) @ np.abs(unit_candidates).T / temperature
        logit_terms[~allowed] = 0.0
        temperature_scale = float((terms * logit_terms).sum())

    return Oracle(
        losses=losses,
        queries=grad_queries,
        documents=grad_candidates[:m],
        negatives=None if negatives is None else grad_candidates[m:].reshape(n, k, dim),
        temperature=grad_temperature,
        logit_scale=float(logit_terms.max()),
        query_scale=query_scale,
        document_scale=candidate_scale[:m],
        negative_scale=None if negatives is None else candidate_scale[m:].reshape(n, k),
        temperature_scale=temperature_scale,
    )


def weighted_sums(weights: Array, vectors: Array, allowed: npt.NDArray[np.bool_]) -> Array:
    """weights @ vectors in which a NaN stays with the rows that are allowed to see its vector."""
    if np.isfinite(vectors).all():
        return weights @ vectors
    return np.stack([w[a] @ vectors[a] for w, a in zip(weights, allowed, strict=True)])


def norm(vectors: npt.NDArray[Any]) -> Array:
    """[n, D] -> [n, 1]"""
    lengths: Array = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return lengths


def unit(vectors: Array) -> Array:
    return vectors / np.maximum(norm(vectors), SMALLEST_NORM)


def unit_backward(vectors: Array, grads: Array) -> Array:
    """The part of a gradient orthogonal to its vector, over the length of the vector."""
    lengths = np.maximum(norm(vectors), SMALLEST_NORM)
    directions = vectors / lengths
    along = (directions * grads).sum(axis=1, keepdims=True)
    along[norm(vectors) < SMALLEST_NORM] = 0.0  # such a vector was divided by a constant
    result: Array = (grads - along * directions) / lengths
    return result
