"""Exact search: the best documents for every query, by every metric, in every element type.

The definition is `reference/topk.py`, the kernels and their story are in `kernels/topk/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from simtile import _allow, _inputs, _search_call, _search_operands, _tensors, _vectors
from simtile._search_operands import METRICS, WORST, Operands
from simtile.quantized import Quantized

if TYPE_CHECKING:
    import torch

Metric = Literal["cosine", "dot", "l2", "hamming"]
Backend = Literal["auto", "cpu", "cuda", "reference"]
Vectors: TypeAlias = "npt.ArrayLike | torch.Tensor | Quantized"

BACKENDS = ("auto", "cpu", "cuda", "reference")


def topk(
    queries: Vectors,
    documents: Vectors,
    k: int,
    *,
    metric: Metric = "cosine",
    allow: Any = None,
    nan: Literal["raise", "ignore"] = "raise",
    backend: Backend = "auto",
    threads: int | None = None,
) -> tuple[Any, Any]:
    r"""The k best documents for every query, exactly; the matrix of scores is never stored.

    Parameters
    ----------
    queries : array or Tensor [Q, D], or Quantized
        float32, float64, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy), cast to the type in
        which the documents are searched: float64 for float64 documents, else float32. uint8
        [Q, W] or a Quantized of kind "binary" with ``metric="hamming"``. Other Quantized queries
        are multiplied as the integers they are where documents are of kind "int8_vector" or
        "int4_vector" and queries too, or where both have one scale for all dimensions and no
        offset; in all other cases they are dequantised.
    documents : array or Tensor [N, D], or Quantized
        Floats of the same types, the codes that :func:`simtile.quantize` returns, or packed bits,
        uint8 [N, W], with ``metric="hamming"``. Rows may have any stride; a last axis that is not
        contiguous costs a copy. int8 arrays without their scale are refused.
    k : int
        At least 1, and any number beyond N.
    metric : "cosine", "dot", "l2" or "hamming"
        With x̂ the document, code · scale + offset for codes, ±1 for bits that a float query is
        compared with:

        .. math:: \frac{q \cdot \hat x}{\|q\|\,\|\hat x\|}, \quad q \cdot \hat x, \quad
            \|q - \hat x\|^2, \quad \text{number of bits that differ}

        A cosine with a zero vector is 0.
    allow : bool [N] or [Q, N], or integers [A], optional
        A mask of the documents that may be found, for all queries or for each one, or their rows.
        An empty list allows nothing. An array that cannot be applied as it was meant raises, one of
        [N] integers that are all 0 or 1 among them.
    nan : "raise" or "ignore"
        Whether a query with NaN is an error, or finds nothing. A document whose score is NaN is
        never found.
    backend : "auto", "cpu", "cuda" or "reference"
        "auto" searches where queries and documents are, on the CPU or on a GPU, which takes
        everything but float64 documents, and k up to 65,536. A named backend never falls back.
        "reference" is the definition in NumPy.
    threads : int, optional
        Threads for this call on the CPU; see :func:`simtile.set_num_threads` for the default. One
        query uses all of them.

    Returns
    -------
    scores : [Q, k]
        Best first: float32 descending for "cosine" and "dot", float32 ascending for "l2", int32
        ascending for "hamming".
    ids : int64 [Q, k]
        Rows of ``documents``; of equal scores the lowest first. Where a query finds fewer than k,
        the remaining places hold id -1 and the score -inf, inf or 2^31 - 1. Both are arrays or
        tensors as ``queries`` are, on their device.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; a query has NaN.
    RuntimeError
        The named backend is not available, or not for arrays of this place.

    Notes
    -----
    Scores are defined to the last bit, and equal for every processor, number of threads and
    backend: products of floats are added in double precision in a fixed order, a float query for
    codes is rounded to integers of 15 bits and a sign after scale and offset have been folded into
    it (an error of at most max |q_i scale_i| / 65278 a dimension and unit of code) and everything
    after that is exact up to the final roundings. ``kernels/topk/README.md`` has the formulas.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> documents = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], np.float32)
    >>> simtile.topk(np.array([[2.0, 0.0]], np.float32), documents, 2)
    (array([[1. , 0.8]], dtype=float32), array([[0, 1]]))

    Codes of a quarter of the bytes, and only documents that are allowed:

    >>> codes = simtile.quantize(documents, "int8_vector")
    >>> public = np.array([False, True, True])
    >>> scores, ids = simtile.topk(np.array([[2.0, 0.0]], np.float32), codes, 1, allow=public)
    >>> ids
    array([[1]])
    """
    k = _search_call.check_k(k)
    thread_count = _inputs.check_threads(threads)
    operands = _search_operands.prepare(queries, documents, metric, nan)
    mask = _mask(allow, operands)
    chosen = _choose(backend, operands)
    found = _search_call.topk_rows(operands, k, mask, threads=thread_count, backend=chosen)
    return _like_queries(operands, *found)


def range_search(
    queries: Vectors,
    documents: Vectors,
    threshold: float,
    *,
    metric: Metric = "cosine",
    allow: Any = None,
    nan: Literal["raise", "ignore"] = "raise",
    backend: Backend = "auto",
    threads: int | None = None,
) -> tuple[Any, Any, Any]:
    """All documents whose score is as good as a threshold, or better.

    Parameters
    ----------
    threshold : float
        Found are scores ≥ threshold for "cosine" and "dot", and ≤ threshold for "l2", whose scores
        are squared distances, and for "hamming". It is rounded to float32, as scores are.
    queries, documents, metric, allow, nan, backend, threads
        As in :func:`simtile.topk`.

    Returns
    -------
    offsets : int64 [Q + 1]
        What query i finds is ``scores[offsets[i]:offsets[i + 1]]``, and ids likewise.
    scores : [H]
        Best first for each query, in the types of :func:`simtile.topk`.
    ids : int64 [H]
        Of equal scores the lowest first.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As :func:`simtile.topk`; the documents are on a GPU.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]], np.float32)
    >>> offsets, scores, ids = simtile.range_search(x, x, 0.95)
    >>> ids[offsets[0] : offsets[1]]  # what is nearly the first row: itself and the last one
    array([0, 2])
    """
    limit = _search_call.check_threshold(threshold)
    thread_count = _inputs.check_threads(threads)
    operands = _search_operands.prepare(queries, documents, metric, nan)
    mask = _mask(allow, operands)
    chosen = _choose(backend, operands)
    if chosen == "cuda":
        raise RuntimeError(
            f"backend: a search by range does not run on a GPU and documents are on {operands.gpu};"
            " move documents and queries to the CPU"
        )
    found = _search_call.range_rows(operands, limit, mask, threads=thread_count, backend=chosen)
    return _like_queries(operands, *found)


def merge_topk(
    results: Sequence[tuple[Any, Any]], *, metric: Metric | None = None, k: int | None = None
) -> tuple[Any, Any]:
    """The best of several results of the same queries, as of one search over all documents.

    Parameters
    ----------
    results : list of (scores, ids)
        What :func:`simtile.topk` or an index returned: [Q, k_i] each, best first. Ids are those of
        one numbering of all documents; one that occurs more than once counts once, with its best
        score.
    metric : str, optional
        What the results were searched with. int32 scores are taken for "hamming", float32 scores
        for "cosine" or "dot"; results of "l2" need ``metric="l2"``.
    k : int, optional
        How many to keep; as many as the longest result by default.

    Returns
    -------
    scores : [Q, k]
    ids : int64 [Q, k]
        Ordered and padded as in :func:`simtile.topk`; arrays or tensors as the first result's.

    Raises
    ------
    ValueError, TypeError
        A result is not as described, or is not ordered as the metric is.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> documents = np.array([[1, 0], [3, 0], [2, 0], [4, 0]], np.float32)
    >>> query = np.array([[1, 0]], np.float32)
    >>> parts = []
    >>> for first in (0, 2):  # of two machines, or files
    ...     scores, ids = simtile.topk(query, documents[first : first + 2], 2, metric="dot")
    ...     parts.append((scores, ids + first))
    >>> simtile.merge_topk(parts)
    (array([[4., 3.]], dtype=float32), array([[3, 1]]))
    """
    if isinstance(results, tuple) or not isinstance(results, Sequence) or len(results) == 0:
        found = "an empty list" if isinstance(results, list) else type(results).__name__
        raise TypeError(f"results: found {found}, expected a list of at least one (scores, ids)")
    if metric is not None:
        _inputs.check_choice("metric", metric, METRICS)
    pairs = [_result_arrays(i, pair) for i, pair in enumerate(results)]
    first = pairs[0][0]
    for i, (scores, _) in enumerate(pairs):
        if scores.dtype != first.dtype or len(scores) != len(first):
            raise ValueError(
                f"results[{i}]: found scores {scores.dtype} {list(scores.shape)}, expected "
                f"{first.dtype} [{len(first)}, k] because those of results[0] are "
                f"{first.dtype} {list(first.shape)}"
            )
    if (first.dtype == np.int32) != (metric == "hamming") and metric is not None:
        raise ValueError(f"metric: found {metric!r} for {first.dtype} scores, expected another")
    order = metric or ("hamming" if first.dtype == np.int32 else "cosine")
    count = max(ids.shape[1] for _, ids in pairs) if k is None else _search_call.check_k(k)
    merged = _merge(pairs, order, count)
    device = results[0][0].device if _tensors.is_tensor(results[0][0]) else None
    return _vectors.result(device, merged[0]), _vectors.result(device, merged[1])


def _result_arrays(i: int, pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"results[{i}]: found {type(pair).__name__}, expected a pair (scores, ids)")
    scores, ids = (_tensors.as_array(x, f"results[{i}]") for x in pair)
    if scores.dtype not in (np.float32, np.int32) or ids.dtype != np.int64:
        raise ValueError(
            f"results[{i}]: found scores {scores.dtype} and ids {ids.dtype}, expected float32 or "
            "int32, and int64"
        )
    if scores.ndim != 2 or scores.shape != ids.shape:
        raise ValueError(
            f"results[{i}]: found scores {list(scores.shape)} and ids {list(ids.shape)}, expected "
            "both [Q, k]"
        )
    return scores, ids


def _merge(pairs: list[tuple[Any, Any]], metric: str, k: int) -> tuple[Any, Any]:
    descending = metric in ("cosine", "dot")
    missing = WORST[metric]
    for i, (scores, ids) in enumerate(pairs):
        # What follows the last one found, and is worse than everything, must be in order as well.
        wrong = scores[:, 1:] > scores[:, :-1] if descending else scores[:, 1:] < scores[:, :-1]
        if wrong.any() or (scores[ids < 0] != missing).any():
            raise ValueError(
                f"results[{i}]: found scores that are not in the order of {metric!r}, best first "
                f"with {missing} where the id is -1; pass the metric that they were searched with"
            )
    scores = np.concatenate([scores for scores, _ in pairs], axis=1)
    ids = np.concatenate([ids for _, ids in pairs], axis=1)
    if (merged := _merge_numbers(scores, ids, descending, missing, k)) is not None:
        return merged
    keys = scores.astype(np.float64)  # exact
    keys = -keys if descending else keys
    keys[(ids < 0) | np.isnan(keys)] = np.nan  # sorted last

    def ordered(*by: Any) -> tuple[Any, Any, Any]:
        order = np.lexsort(by, axis=1)
        return tuple(np.take_along_axis(x, order, axis=1) for x in (scores, ids, keys))  # type: ignore[return-value]

    scores, ids, keys = ordered(keys, ids)
    keys[:, 1:][ids[:, 1:] == ids[:, :-1]] = np.nan
    scores, ids, keys = ordered(ids, keys)
    none = np.isnan(keys)
    scores[none], ids[none] = missing, -1
    return _padded(scores[:, :k], ids[:, :k], missing, k)


def _padded(scores: Any, ids: Any, missing: float, k: int) -> tuple[Any, Any]:
    pad = ((0, 0), (0, max(0, k - scores.shape[1])))
    return np.pad(scores, pad, constant_values=missing), np.pad(ids, pad, constant_values=-1)


def _merge_numbers(
    scores: Any, ids: Any, descending: bool, missing: float, k: int
) -> tuple[Any, Any] | None:
    """By one sort of 64-bit numbers, a score's bits before its id: many times faster.

    None where ids need more than 32 bits, where a document is in several results, and for -0,
    which equals 0 and has other bits.
    """
    sign, none = np.uint32(1 << 31), np.uint64(2**64 - 1)
    bits = scores.view(np.uint32)
    floats = scores.dtype == np.float32
    if ids.max(initial=-1) >= 2**32 - 1 or (floats and (bits == sign).any()):
        return None
    in_order = np.sort(ids, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        return None
    key = np.where((bits & sign != 0) & floats, ~bits, bits ^ sign)  # ascending
    numbers = (~key if descending else key).astype(np.uint64) << np.uint64(32) | ids.astype(
        np.uint64
    )
    numbers[(ids < 0) | (scores != scores)] = none
    if k < numbers.shape[1]:
        numbers = np.partition(numbers, k, axis=1)[:, :k]
    numbers.sort(axis=1)
    key = (numbers >> np.uint64(32)).astype(np.uint32)
    key = ~key if descending else key
    bits = np.where((key & sign == 0) & floats, ~key, key ^ sign)
    scores, ids = bits.view(scores.dtype), (numbers & np.uint64(2**32 - 1)).astype(np.int64)
    scores[numbers == none], ids[numbers == none] = missing, -1
    return _padded(scores, ids, missing, k)


def _choose(backend: str, operands: Operands) -> str:
    """ "cpu", "cuda" or "reference": where these operands are searched."""
    _inputs.check_choice("backend", backend, BACKENDS)
    if operands.gpu is None:
        if backend == "cuda":
            raise RuntimeError(
                "backend: 'cuda' searches tensors of a GPU, and documents are on the CPU; move "
                "documents and queries with x.cuda(), or use 'cpu'"
            )
        return "cpu" if backend == "auto" else backend
    if backend not in ("auto", "cuda"):
        raise RuntimeError(
            f"backend: {backend!r} searches on the CPU, and documents are on {operands.gpu}; move "
            "documents and queries with x.cpu(), or use 'cuda'"
        )
    if operands.documents.kind == "float64":
        raise RuntimeError(
            "backend: float64 documents are not searched on a GPU, and documents are on "
            f"{operands.gpu}; pass documents.float(), or move them to the CPU"
        )
    return "cuda"


def _mask(allow: Any, operands: Operands) -> Any:
    if operands.gpu is None:
        return _allow.resolve(allow, operands.query_count, len(operands.documents))
    mask = _allow.resolve(allow, operands.query_count, len(operands.documents))
    return None if mask is None else _tensors.as_tensor(mask, operands.gpu)


def _like_queries(operands: Operands, *found: Any) -> tuple[Any, ...]:
    return tuple(_vectors.result(operands.device, x) for x in found)
