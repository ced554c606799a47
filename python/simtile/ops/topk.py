"""Exact search on a CUDA device: what the public search functions call for arrays that are there.

The arguments are those of `simtile._core.topk` and its siblings, the definition of every score is
`simtile.reference.topk`, and results are equal to the CPU's to the last bit. Arrays are of torch,
CuPy or anything else that `simtile._device` reads; torch is not imported.

A call returns once its kernels are queued on the stream of ``queries`` (see `simtile._device`); it
neither waits nor, with ``out=`` and ``workspace=``, allocates, so a CUDA graph can capture it.
Arrays must live until the stream has got there.
"""

from __future__ import annotations

from typing import Any

from simtile import _device, _gpu
from simtile._device import DeviceArray
from simtile.ops._topk_call import (
    SCORE_TYPES,
    Call,
    allocated,
    check,
    output,
    run,
    workspace_bytes,
)


def search(
    kind: str,
    metric: str,
    queries: Any,
    documents: Any,
    dim: int,
    scale: Any,
    offset: Any,
    factor: Any,
    addend: Any,
    query_scale: Any,
    k: int,
    allow: Any = None,
    rank: Any = None,
    candidates: Any = None,
    *,
    first_id: int = 0,
    out: tuple[Any, Any] | None = None,
    workspace: Any = None,
) -> tuple[Any, Any]:
    """The k best documents for every query.

    Parameters
    ----------
    kind : str
        Of the documents: "packed" bits for metric "hamming"; codes "bits", "int4", "int8", "uint8";
        "float32", "float16", "bfloat16".
    metric : str
        "hamming", "dot", "cosine" or "l2".
    queries : array on a CUDA device, float32 [Q, D]
        For packed documents uint8 [Q, ceil(D / 8)]; with ``query_scale`` int8 codes [Q, D]. Rows
        may have any stride, the elements of a row lie side by side; so for documents.
    documents : array, [N, D] or packed [N, ceil(D / 8)], int4 [N, ceil(D / 2)]
        N below 2^32.
    dim : int
        D; packed bits at most 262144, others 32768.
    scale, offset : float32 [D], or None
        Of codes: a document is code * scale + offset.
    factor, addend : float32 [N], or None
        Of a document's score, as in `simtile.reference.topk`.
    query_scale : float32 [Q], or None
    k : int
        From 1 to 65536. Beyond N, and where fewer documents are allowed, places hold id -1 and the
        worst score.
    allow : bool [N] or [Q, N]; uint32 or uint64 [words] or [Q, words]; optional
        A document with False never appears. Words have document i as bit i % 32 (64) of word
        i // 32 (64). A NumPy mask is copied to the device where queries are of torch.
    rank : uint32 [N], optional
        A permutation: the id of a row is rank[row], in results and for ties.
    candidates : int64 [Q, C], optional
        The only rows that a query may find; -1 is none, as is what is not below N, and twice the
        same counts once.
    first_id : int
        Added to every id: that of row 0, where documents are a part of more.
    out : (scores, ids), optional
        Where results go: [Q, k] in C order. Without it they are allocated as the queries were,
        which needs torch tensors or CuPy arrays.
    workspace : array on the device, optional
        Scratch memory of at least `search_workspace_bytes`, aligned to 256 bytes; allocated like
        ``out`` when None.

    Returns
    -------
    scores : float32 [Q, k], int32 for hamming
        Best first: ascending for hamming and l2, else descending.
    ids : int64 [Q, k]
        Ties are in ascending order of ids.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    arrays = (queries, documents, scale, offset, factor, addend, query_scale)
    call = check(kind, metric, dim, arrays, k, allow, rank, candidates, first_id)
    shape = (call.queries, call.k)
    types = (SCORE_TYPES[metric], "int64")
    out = allocated(call, queries, out, shape, types)
    scores, ids = (
        output(call, name, x, shape, dtype)
        for name, x, dtype in zip(("scores", "ids"), out, types, strict=True)
    )
    run(call, queries, workspace, (scores, ids), scores_only=False)
    return out[0], out[1]


def score_rows(
    kind: str,
    metric: str,
    queries: Any,
    documents: Any,
    dim: int,
    scale: Any,
    offset: Any,
    factor: Any,
    addend: Any,
    query_scale: Any,
    candidates: Any,
    *,
    out: Any = None,
    workspace: Any = None,
) -> Any:
    """The scores of rows, [Q, C]; the worst where the row is -1, NaN where the score is.

    Arguments are those of `search`; ``out`` is the array of scores.
    """
    arrays = (queries, documents, scale, offset, factor, addend, query_scale)
    if candidates is None:
        raise TypeError("candidates: found None, expected int64 [Q, C]")
    call = check(kind, metric, dim, arrays, 1, None, None, candidates, 0)
    shape = call.arrays["candidates"].shape
    given = None if out is None else (out,)
    (out,) = allocated(call, queries, given, shape, (SCORE_TYPES[metric],))
    scores = output(call, "scores", out, shape, SCORE_TYPES[metric])
    run(call, queries, workspace, (scores,), scores_only=True)
    return out


def merge(
    metric: str,
    first: tuple[Any, Any],
    second: tuple[Any, Any],
    k: int,
    *,
    out: tuple[Any, Any] | None = None,
) -> tuple[Any, Any]:
    """The k best of two results of the same queries, for documents that come in parts.

    Parameters
    ----------
    metric : str
    first, second : (scores, ids) on one CUDA device, [Q, k1] and [Q, k2] in C order
        As `search` returns them.
    k : int
        At most k1 + k2.
    out : (scores, ids), optional
        As in `search`.

    Returns
    -------
    scores, ids : [Q, k]
    """
    if metric not in SCORE_TYPES:
        raise ValueError(f"metric: found {metric!r}, expected one of {list(SCORE_TYPES)}")
    stream = _device.call_stream(first[0])
    lists: dict[str, DeviceArray] = {}
    types = (SCORE_TYPES[metric], "int64")
    for name, pair in (("first", first), ("second", second)):
        for what, x, dtype in zip(("scores", "ids"), pair, types, strict=True):
            array = _device.view(f"{name}: {what}", x, stream)
            if array.dtype != dtype or len(array.shape) != 2 or not array.is_contiguous:
                raise ValueError(f"{name}: {what}: found {array}, expected {dtype} [Q, k], C order")
            lists[f"{name}: {what}"] = array
        if lists[f"{name}: scores"].shape != lists[f"{name}: ids"].shape:
            raise ValueError(
                f"{name}: found {lists[f'{name}: scores']} and {lists[f'{name}: ids']}, expected "
                "one shape"
            )
    (q, k1), (q2, k2) = lists["first: scores"].shape, lists["second: scores"].shape
    if q != q2 or not 1 <= k <= k1 + k2:
        raise ValueError(
            f"second: found results of {q2} queries and k = {k}, expected {q} queries as in first "
            f"and k from 1 to {k1 + k2}"
        )
    call = Call("", metric, k, 0, 0, lists, _device.check_same_device(lists), stream)
    out = allocated(call, first[0], out, (q, k), types)
    scores, ids = (
        output(call, name, x, (q, k), dtype)
        for name, x, dtype in zip(("scores", "ids"), out, types, strict=True)
    )
    if q:
        with _device.ordered([*lists.values(), scores, ids], call.device, stream):
            _gpu.cuda_module().topk_merge(
                metric=metric,
                queries=q,
                k=k,
                first_count=k1,
                first_scores=lists["first: scores"].pointer,
                first_ids=lists["first: ids"].pointer,
                second_count=k2,
                second_scores=lists["second: scores"].pointer,
                second_ids=lists["second: ids"].pointer,
                scores=scores.pointer,
                ids=ids.pointer,
                device=call.device,
                stream=stream,
            )
    return out[0], out[1]


def search_workspace_bytes(
    kind: str,
    metric: str,
    queries: Any,
    documents: Any,
    dim: int,
    scale: Any,
    offset: Any,
    factor: Any,
    addend: Any,
    query_scale: Any,
    k: int,
    allow: Any = None,
    rank: Any = None,
    candidates: Any = None,
) -> int:
    """The bytes of scratch memory that `search` needs for these arguments."""
    arrays = (queries, documents, scale, offset, factor, addend, query_scale)
    call = check(kind, metric, dim, arrays, k, allow, rank, candidates, 0)
    return workspace_bytes(call, (), scores_only=False)
