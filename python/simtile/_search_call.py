"""Searches of checked operands, which `search.py` and the indexes call, by the kernels or the
reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _tensors
from simtile._search_operands import WORST, Operands

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

MOST_RESULTS = 2**31 - 1  # of a query: more are no number of documents but a mistake


def check_k(k: object) -> int:
    count = _inputs.to_int("k", k)
    if count < 1:
        raise ValueError(f"k: found {count}, expected at least 1")
    if count > MOST_RESULTS:
        raise ValueError(f"k: found {count}, expected at most {MOST_RESULTS}")
    return count


def check_threshold(threshold: object) -> float:
    limit = _inputs.to_float("threshold", threshold)
    if math.isnan(limit):
        raise ValueError("threshold: found nan, expected a number")
    return limit


def topk_rows(
    operands: Operands,
    k: int,
    allow_mask: Mask | None = None,
    rank: npt.NDArray[np.uint32] | None = None,
    candidates: npt.NDArray[np.int64] | None = None,
    threads: int = 0,
    backend: str = "cpu",
) -> tuple[Array, npt.NDArray[np.int64]]:
    """The best k rows for every query: scores [Q, k] and rows, or their ranks, int64 [Q, k].

    Parameters
    ----------
    operands : Operands
    k : int
        At least 1.
    allow_mask : bool [N] or [Q, N], optional
        What `_allow.resolve` returns.
    rank : uint32 [N], optional
        A permutation: of rows whose scores are equal, the one of the lower rank comes first, and
        results are ranks.
    candidates : int64 [Q, C], optional
        The only rows a query may find; -1 is none, and one that occurs twice counts once.
    threads : int
        0 for the default.
    backend : "cpu", "cuda" or "reference"
        "cuda" takes tensors of one GPU, and returns such.
    """
    allowed = _of_searched(operands, allow_mask)
    listed = _of_searched(operands, candidates)
    if backend == "cuda":
        scores, ids = _cuda().search(*operands.arguments, k, allowed, rank, listed)
    else:
        shape = (len(operands.queries), k)
        scores, ids = np.empty(shape, operands.score_dtype), np.empty(shape, np.int64)
        _module(backend).topk(*operands.arguments, k, allowed, rank, listed, threads, scores, ids)
    worst = WORST[operands.documents.metric]
    return _for_all(operands, scores, worst), _for_all(operands, ids, np.int64(-1))


def range_rows(
    operands: Operands,
    threshold: float,
    allow_mask: Mask | None = None,
    rank: npt.NDArray[np.uint32] | None = None,
    threads: int = 0,
    backend: str = "cpu",
) -> tuple[npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    """All rows that are as good as the threshold: offsets [Q + 1], scores, rows or ranks."""
    allowed = _of_searched(operands, allow_mask)
    offsets, scores, ids = _module(backend).range_search(
        *operands.arguments, threshold, allowed, rank, threads
    )
    if operands.searched is not None:
        counts = np.zeros(len(operands.searched), np.int64)
        counts[operands.searched] = np.diff(offsets)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return offsets, scores, ids


def score_rows(
    operands: Operands,
    candidates: npt.NDArray[np.int64],
    threads: int = 0,
    backend: str = "cpu",
) -> Any:
    """The scores of rows [Q, C]; the worst score where a row is -1 or the query has NaN."""
    own = _of_searched(operands, candidates)
    if backend == "cuda":
        scores = _cuda().score_rows(*operands.arguments, own)
    else:
        scores = np.empty(own.shape, operands.score_dtype)
        _module(backend).score_rows(*operands.arguments, own, threads, scores)
    return _for_all(operands, scores, WORST[operands.documents.metric])


def _cuda() -> Any:
    from simtile.ops import topk

    return topk


def _module(backend: str) -> Any:
    if backend == "cpu":
        return _core
    from simtile.reference import topk_numpy

    return topk_numpy


def _of_searched(operands: Operands, x: Any) -> Any:
    """The rows of `x` that belong to queries that are searched; `x` itself if it serves for all."""
    if x is None or operands.searched is None or x.ndim == 1:
        return x
    return x[operands.searched]


def _for_all(operands: Operands, found: Any, missing: Any) -> Any:
    """Results for all queries that were given, `missing` for those that were not searched."""
    searched = operands.searched
    if searched is None:
        return found
    shape = (len(searched), found.shape[1])
    if _tensors.is_tensor(found):
        whole = found.new_full(shape, missing.item())
    else:
        whole = np.full(shape, missing, found.dtype)
    whole[searched] = found
    return whole
