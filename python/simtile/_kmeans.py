"""Centroids of unit vectors: Lloyd's iterations by cosine, on MaxSim's own kernels.

Vectors are the tokens of queries and the centroids those of one document: what each token matches
is its nearest centroid, and the document's gradient is the sum of what matched each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs
from simtile.quantize import quantize
from simtile.quantized import Quantized

FloatArray = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

ITERATIONS = 8
# Tokens that one centroid is learnt from, at most.
SAMPLED_EACH = 256
# Vectors that a thread takes at a time: their codes, 64 KiB of 128 dimensions, stay in its cache.
_QUERY = 512


def default_count(tokens: int) -> int:
    """ColBERTv2's rule: the power of two at or below 16 √T."""
    return 1 << max(int(np.log2(16 * np.sqrt(max(tokens, 1)))), 0)


def train(
    vectors: FloatArray, count: int, *, seed: int = 0, threads: int | None = None
) -> FloatArray:
    """Unit centroids [count, D] of unit vectors [T, D], the same for the same seed.

    Vectors are assigned by int8 codes, whose products are exact, so that every computer learns
    from the same; two centroids that differ by less than the rounding serve a vector equally well.
    A centroid that loses all its vectors takes the place of the vector that is worst served.
    """
    thread_count = _inputs.check_threads(threads)
    rng: Any = np.random.default_rng(seed)
    total = len(vectors)
    if total > SAMPLED_EACH * count:
        vectors = vectors[np.sort(rng.choice(total, SAMPLED_EACH * count, replace=False))]
        total = len(vectors)
    if total <= count:  # each its own, the first ones repeated
        first: FloatArray = vectors[np.arange(count) % total]
        return first
    centroids: FloatArray = vectors[np.sort(rng.choice(total, count, replace=False))]
    codes = quantize(vectors, "int8_vector")
    whole = codes.codes.astype(np.int16)
    for _ in range(ITERATIONS):
        owner, similarity = _nearest(codes, whole, centroids, thread_count)
        sums = _sums(vectors, owner, centroids, thread_count).astype(np.float64)
        lost = np.flatnonzero(np.bincount(owner, minlength=count) == 0)
        if len(lost):
            sums[lost] = vectors[np.argsort(similarity, kind="stable")[: len(lost)]]
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centroids).astype(
            np.float32
        )
    return centroids


def _nearest(
    vectors: Quantized, whole: npt.NDArray[np.int16], centroids: FloatArray, threads: int
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Which centroid is nearest to each vector, the first of equals, and the product with it."""
    documents: Any = quantize(centroids, "int8_vector")
    starts = np.arange(0, len(whole), _QUERY)
    ends = np.minimum(starts + _QUERY, len(whole))
    nearest, similarity = np.empty(len(whole), np.int32), np.empty(len(whole), np.float32)
    arguments: list[Any] = [
        "int8",
        whole,
        starts,
        ends,
        None,
        vectors.scale,
        None,
        documents.codes,
        centroids.shape[1],
        *_one_run(centroids),
        None,
        documents.scale,
        *[None] * 4,  # of residuals
        False,
        0.0,
        None,
        np.empty((len(starts), 1), np.float32),
        nearest,
        similarity,
        threads,
    ]
    _core.maxsim_codes(*arguments)
    return nearest, similarity


def _sums(
    vectors: FloatArray, owner: npt.NDArray[np.int32], centroids: FloatArray, threads: int
) -> FloatArray:
    """The sum of each centroid's vectors, added in order, [K, D]."""
    sums = np.empty_like(centroids)
    arguments: list[Any] = [
        "float32",
        vectors,
        *_one_run(vectors),
        None,
        centroids,
        *_one_run(centroids),
        None,
        *[False] * 3,
        0.0,
        None,
        np.ones((1, 1), np.float32),
        owner,
        None,
        None,
        sums,
        threads,
    ]
    _core.maxsim_backward(*arguments)
    return sums


def _one_run(rows: FloatArray) -> tuple[Int64s, Int64s]:
    return np.zeros(1, np.int64), np.array([len(rows)])
