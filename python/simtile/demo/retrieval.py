"""Recall of the right document, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit_rows(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows scaled to length 1; a zero row stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = x / np.maximum(length, np.float32(1e-12))
    return unit


def ranks(
    queries: npt.NDArray[np.float32],
    documents: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    *,
    block: int = 1024,
) -> npt.NDArray[np.int64]:
    """Rank of each query's target document by cosine similarity, 0 for the best.

    Parameters
    ----------
    queries : [N, D], documents : [M, D], targets : [N]
        Ties go to the lower document id; a NaN similarity ranks the target below every other.
    block
        Queries scored at a time, so that memory stays O(block · M).
    """
    documents = unit_rows(documents)
    ids = np.arange(len(documents))
    result = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = unit_rows(queries[rows]) @ documents.T  # [block, M]
        target = targets[rows, None]
        own = np.take_along_axis(scores, target, axis=1)
        tied_behind = (scores == own) & (ids > target)
        # counting "not lower" and not "higher" is what makes a NaN come last
        result[rows] = (~(scores < own) & ~tied_behind).sum(axis=1) - 1
    return result


def recall_at(k: int, found: npt.NDArray[np.int64]) -> float:
    """Share of queries whose target is among the first ``k``."""
    return float((found < k).mean())


def paired_standard_error(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    """Standard error of the mean of ``after - before`` over the same queries."""
    difference = after.astype(np.float64) - before.astype(np.float64)
    if len(difference) < 2:
        return float("nan")
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))
