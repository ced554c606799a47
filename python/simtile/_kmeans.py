"""Centroids of unit vectors: Lloyd's iterations by cosine, on simtile's own exact search."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.search import topk

FloatArray = npt.NDArray[np.float32]

ITERATIONS = 8
# Tokens that one centroid is learnt from, at most.
SAMPLED_EACH = 256


def default_count(tokens: int) -> int:
    """ColBERTv2's rule: the power of two at or below 16 √T."""
    return 1 << max(int(np.log2(16 * np.sqrt(max(tokens, 1)))), 0)


def train(
    vectors: FloatArray, count: int, *, seed: int = 0, threads: int | None = None
) -> FloatArray:
    """Unit centroids [count, D] of unit vectors [T, D], the same for the same seed.

    A centroid that loses all its vectors takes the place of the vector that is worst served.
    """
    rng: Any = np.random.default_rng(seed)
    total = len(vectors)
    if total > SAMPLED_EACH * count:
        vectors = vectors[np.sort(rng.choice(total, SAMPLED_EACH * count, replace=False))]
        total = len(vectors)
    if total <= count:  # each its own, the first ones repeated
        first: FloatArray = vectors[np.arange(count) % total]
        return first
    centroids: FloatArray = vectors[np.sort(rng.choice(total, count, replace=False))]
    for _ in range(ITERATIONS):
        scores, ids = topk(vectors, centroids, 1, metric="dot", threads=threads)
        owner = ids[:, 0]
        sums = np.zeros_like(centroids, dtype=np.float64)
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(count + 1))
        present = bounds[1:] > bounds[:-1]
        sums[present] = np.add.reduceat(
            vectors[order].astype(np.float64), bounds[:-1][present], axis=0
        )
        lost = np.flatnonzero(~present)
        if len(lost):
            sums[lost] = vectors[np.argsort(scores[:, 0], kind="stable")[: len(lost)]]
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centroids).astype(
            np.float32
        )
    return centroids
