"""Exact top-k on a CUDA device: what the public search functions call for arrays that are there.

Arrays are of torch, CuPy or anything else that `simtile._device` reads; torch is not imported. A
call returns once its kernels are queued on the stream of ``queries`` (see `simtile._device`); it
neither waits nor, with ``out=`` and ``workspace=``, allocates, so a CUDA graph can capture it.
Arrays must live until the stream has got there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from simtile import _device, _gpu
from simtile._device import DeviceArray

MOST_DOCUMENTS = 2**32 - 1  # an id shares 64 bits with a 32-bit score


def hamming_topk(
    queries: Any,
    documents: Any,
    k: int,
    *,
    allow: Any = None,
    out: tuple[Any, Any] | None = None,
    workspace: Any = None,
) -> tuple[Any, Any]:
    """The k documents with the smallest Hamming distance to each query.

    Parameters
    ----------
    queries, documents : arrays on one CUDA device, uint8 [Q, W] and [N, W]
        Packed bits. Rows may have any stride, the elements of a row lie side by side.
    k : int
        At least 1. Beyond N, and where fewer documents are allowed, places hold id -1 and the
        largest int32.
    allow : array on the device, bool [N] or [Q, N], optional
        A document with False never appears.
    out : (scores, ids), optional
        Where results go: int32 [Q, k] and int64 [Q, k], C order. Without it they are allocated as
        the queries were, which needs torch tensors or CuPy arrays.
    workspace : array on the device, optional
        Scratch memory of at least `hamming_topk_workspace_bytes`, aligned to 256 bytes; allocated
        like ``out`` when None.

    Returns
    -------
    scores : int32 [Q, k]
        Distances, ascending.
    ids : int64 [Q, k]
        Rows of ``documents``; ties are in ascending order of ids.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    return _topk("hamming", queries, documents, k, None, None, allow, out, workspace)


def int8_topk(
    queries: Any,
    documents: Any,
    k: int,
    *,
    query_scale: Any = None,
    document_scale: Any = None,
    allow: Any = None,
    out: tuple[Any, Any] | None = None,
    workspace: Any = None,
) -> tuple[Any, Any]:
    """The k documents with the largest dot product of int8 codes with each query.

    Parameters
    ----------
    queries, documents : arrays on one CUDA device, int8 [Q, D] and [N, D]
        Symmetric codes, D at most 32768. Rows may have any stride, the elements of a row lie side
        by side.
    k : int
        At least 1. Beyond N, and where fewer documents are allowed, places hold id -1 and the
        worst score: the smallest int32, or -inf with a scale.
    query_scale, document_scale : arrays on the device, float32 [Q] and [N], optional
        With either, a score is ``float32(dot) * (query_scale * document_scale)``, an absent scale
        being 1; without both it is the integer dot product.
    allow, out, workspace
        As in `hamming_topk`; scores in ``out`` are int32, or float32 with a scale.

    Returns
    -------
    scores : int32 or float32 [Q, k]
        Descending.
    ids : int64 [Q, k]
        Rows of ``documents``; ties are in ascending order of ids.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    return _topk("int8", queries, documents, k, query_scale, document_scale, allow, out, workspace)


def hamming_topk_workspace_bytes(queries: Any, documents: Any, k: int, *, allow: Any = None) -> int:
    """The bytes of scratch memory that `hamming_topk` needs for these arguments."""
    call = _check("hamming", queries, documents, k, None, None, allow)
    return _workspace_bytes(call, 0, 0)


def int8_topk_workspace_bytes(
    queries: Any,
    documents: Any,
    k: int,
    *,
    query_scale: Any = None,
    document_scale: Any = None,
    allow: Any = None,
) -> int:
    """The bytes of scratch memory that `int8_topk` needs for these arguments."""
    call = _check("int8", queries, documents, k, query_scale, document_scale, allow)
    return _workspace_bytes(call, 0, 0)


class _Call(NamedTuple):
    """Inputs that were checked."""

    metric: str
    k: int
    arrays: dict[str, DeviceArray]
    device: int
    stream: int

    @property
    def score_dtype(self) -> str:
        scaled = self.arrays.keys() & {"query_scale", "document_scale"}
        return "float32" if scaled else "int32"

    @property
    def result_shape(self) -> tuple[int, int]:
        return self.arrays["queries"].shape[0], self.k


def _topk(
    metric: str,
    queries: Any,
    documents: Any,
    k: int,
    query_scale: Any,
    document_scale: Any,
    allow: Any,
    out: tuple[Any, Any] | None,
    workspace: Any,
) -> tuple[Any, Any]:
    call = _check(metric, queries, documents, k, query_scale, document_scale, allow)
    empty = _device.allocator(queries)
    if out is None:
        if empty is None:
            raise ValueError(
                f"out: found None, expected (scores, ids), {call.score_dtype} and int64 "
                f"{list(call.result_shape)} on cuda:{call.device}: memory like that of "
                f"{type(queries).__module__}.{type(queries).__qualname__} cannot be allocated here"
            )
        out = (empty(call.result_shape, call.score_dtype), empty(call.result_shape, "int64"))
    scores, ids = _outputs(call, out)
    if call.result_shape[0] == 0:
        return out
    needed = _workspace_bytes(call, scores.pointer, ids.pointer)
    if workspace is None:
        if empty is None and needed:
            raise ValueError(
                f"workspace: found None, expected {needed} bytes on cuda:{call.device}: memory "
                f"like that of {type(queries).__module__}.{type(queries).__qualname__} cannot be "
                "allocated here"
            )
        workspace = empty((needed,), "uint8") if empty is not None else None
    arrays = [*call.arrays.values(), scores, ids]
    address, size = 0, 0
    if workspace is not None:
        memory = _workspace(call, workspace, needed)
        address, size = memory.pointer, memory.nbytes
        arrays.append(memory)
    cuda = _gpu.cuda_module()
    with _device.ordered(arrays, call.device, call.stream):
        cuda.topk(
            _arguments(call, scores.pointer, ids.pointer),
            device=call.device,
            stream=call.stream,
            workspace=address,
            workspace_bytes=size,
        )
    return out


def _check(
    metric: str,
    queries: Any,
    documents: Any,
    k: int,
    query_scale: Any,
    document_scale: Any,
    allow: Any,
) -> _Call:
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"k: found {k!r}, expected an int")
    k = int(k)
    if k < 1:
        raise ValueError(f"k: found {k}, expected at least 1")
    stream = _device.call_stream(queries)
    given = {
        "queries": queries,
        "documents": documents,
        "query_scale": query_scale,
        "document_scale": document_scale,
        "allow": allow,
    }
    arrays = {
        name: _device.view(name, x, stream)
        for name, x in given.items()
        if x is not None or name in ("queries", "documents")
    }
    dtype, hint = {
        "hamming": ("uint8", "packed bits, as numpy.packbits and simtile.quantize make them"),
        "int8": ("int8", "symmetric codes"),
    }[metric]
    for name, rows in (("queries", "Q"), ("documents", "N")):
        _check_matrix(name, arrays[name], dtype, rows, hint)
    q, width = arrays["queries"].shape
    n = arrays["documents"].shape[0]
    if arrays["documents"].shape[1] != width:
        raise ValueError(
            f"documents: found {arrays['documents']}, expected [N, {width}] because queries are "
            f"{list(arrays['queries'].shape)}"
        )
    if n > MOST_DOCUMENTS:
        raise ValueError(
            f"documents: found {n} rows, expected fewer than 2^32; search them in parts and merge"
        )
    for name, size, per in (("query_scale", q, "query"), ("document_scale", n, "document")):
        scale = arrays.get(name)
        if scale is not None and (
            scale.dtype != "float32" or scale.shape != (size,) or not scale.is_contiguous
        ):
            raise ValueError(
                f"{name}: found {scale} with strides {list(scale.strides)} bytes, expected float32 "
                f"[{size}], one per {per}, side by side"
            )
    if "allow" in arrays:
        _check_allow(arrays["allow"], q, n)
    return _Call(metric, k, arrays, _device.check_same_device(arrays), stream)


def _check_matrix(name: str, array: DeviceArray, dtype: str, rows: str, what: str) -> None:
    if array.dtype != dtype:
        raise ValueError(f"{name}: found {array}, expected {dtype} ({what})")
    if len(array.shape) != 2:
        hint = "; a single vector is x[None, :]" if len(array.shape) == 1 else ""
        raise ValueError(f"{name}: found {array}, expected [{rows}, W]{hint}")
    if array.shape[1] == 0:
        raise ValueError(f"{name}: found {array}, expected at least one column")
    _check_rows(name, array)


def _check_rows(name: str, array: DeviceArray) -> None:
    """Raise unless the elements of a row lie side by side, and rows come one after the other."""
    beside = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    forward = len(array.shape) == 1 or array.shape[0] <= 1 or array.strides[0] >= 0
    if not (beside and forward):
        raise ValueError(
            f"{name}: found strides {list(array.strides)} bytes, expected {array.itemsize} in the "
            "last axis and none below 0; pass a copy (torch: x.contiguous(), CuPy: "
            "cupy.ascontiguousarray(x))"
        )


def _check_allow(allow: DeviceArray, q: int, n: int) -> None:
    if allow.dtype != "bool":
        raise ValueError(
            f"allow: found {allow}, expected a mask of bool [{n}] or [{q}, {n}]; "
            "ids are not taken here: mask[ids] = True makes one"
        )
    if allow.shape not in ((n,), (q, n)):
        raise ValueError(
            f"allow: found {allow}, expected [{n}], one per document, or [{q}, {n}], one row per "
            "query"
        )
    _check_rows("allow", allow)


def _outputs(call: _Call, out: tuple[Any, Any]) -> tuple[DeviceArray, DeviceArray]:
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out: found {type(out).__name__}, expected a pair (scores, ids)")
    views = []
    for name, x, dtype in (("scores", out[0], call.score_dtype), ("ids", out[1], "int64")):
        array = _device.view(f"out: {name}", x, call.stream)
        if array.dtype != dtype or array.shape != call.result_shape:
            raise ValueError(
                f"out: {name}: found {array}, expected {dtype} {list(call.result_shape)}"
            )
        if not array.is_contiguous or array.read_only:
            raise ValueError(
                f"out: {name}: found {'read-only memory' if array.read_only else 'gaps'}, expected "
                "an array in C order that can be written"
            )
        _device.check_same_device({"queries": call.arrays["queries"], f"out: {name}": array})
        views.append(array)
    return views[0], views[1]


def _workspace(call: _Call, workspace: Any, needed: int) -> DeviceArray:
    array = _device.view("workspace", workspace, call.stream)
    if array.nbytes < needed or array.pointer % 256 or not array.is_contiguous or array.read_only:
        raise ValueError(
            f"workspace: found {array}, {array.nbytes} bytes at address {array.pointer:#x}, "
            f"expected at least {needed} bytes without gaps, aligned to 256, that can be written"
        )
    _device.check_same_device({"queries": call.arrays["queries"], "workspace": array})
    return array


def _arguments(call: _Call, scores: int, ids: int) -> Any:
    queries, documents = call.arrays["queries"], call.arrays["documents"]
    allow = call.arrays.get("allow")

    def pointer(name: str) -> int:
        array = call.arrays.get(name)
        # The null pointer of an empty array would read as an argument that was not given.
        return 0 if array is None else array.pointer or queries.pointer

    return _gpu.cuda_module().TopkArgs(
        metric=call.metric,
        queries=queries.shape[0],
        documents=documents.shape[0],
        row_bytes=queries.shape[1],
        queries_data=queries.pointer,
        queries_stride=_row_stride(queries),
        documents_data=documents.pointer,
        documents_stride=_row_stride(documents),
        query_scales=pointer("query_scale"),
        document_scales=pointer("document_scale"),
        allow=pointer("allow"),
        allow_stride=0 if allow is None or len(allow.shape) == 1 else _row_stride(allow),
        k=call.k,
        scores=scores,
        ids=ids,
    )


def _workspace_bytes(call: _Call, scores: int, ids: int) -> int:
    if call.result_shape[0] == 0:
        return 0
    needed: int = _gpu.cuda_module().topk_workspace_bytes(
        _arguments(call, scores, ids), device=call.device
    )
    return needed


def _row_stride(array: DeviceArray) -> int:
    # Of a single row it is whatever the producer found handy.
    return array.strides[0] if array.shape[0] > 1 else array.shape[1] * array.itemsize
