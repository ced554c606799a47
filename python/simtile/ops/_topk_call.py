"""A search on a CUDA device from the arguments of `simtile.ops.topk` to those of the kernels."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from simtile import _device, _gpu
from simtile._device import DeviceArray

MOST_DOCUMENTS = 2**32 - 1  # an id shares 64 bits with a 32-bit score
MOST_K = 65536

# What documents and queries of a kind are stored as, and elements of a byte where several share one
DOCUMENT_TYPES = {
    "packed": ("uint8",),
    "bits": ("uint8",),
    "int4": ("uint8",),
    "int8": ("int8",),
    "uint8": ("uint8",),
    "float32": ("float32",),
    "float16": ("float16",),
    "bfloat16": ("bfloat16", "uint16", "int16"),  # libraries without the type hold its bits
}
ELEMENTS = {"packed": 8, "bits": 8, "int4": 2}
SCORE_TYPES = {"hamming": "int32", "dot": "float32", "cosine": "float32", "l2": "float32"}


class Call(NamedTuple):
    """Inputs that were checked."""

    kind: str
    metric: str
    k: int
    dim: int
    first_id: int
    arrays: dict[str, DeviceArray]
    device: int
    stream: int

    @property
    def queries(self) -> int:
        return self.arrays["queries"].shape[0]


def integer(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: found {value!r}, expected an int")
    found = operator.index(value)
    if not least <= found <= most:
        hint = "; search on the CPU, which takes any k" if name == "k" and found > most else ""
        raise ValueError(f"{name}: found {found}, expected {least} to {most}{hint}")
    return found


def check(
    kind: str,
    metric: str,
    dim: int,
    inputs: tuple[Any, ...],
    k: int,
    allow: Any,
    rank: Any,
    candidates: Any,
    first_id: int,
) -> Call:
    if kind not in DOCUMENT_TYPES:
        raise ValueError(
            f"kind: found {kind!r}, expected one of {list(DOCUMENT_TYPES)} on a CUDA device; "
            "search on the CPU"
        )
    if metric not in SCORE_TYPES or (metric == "hamming") != (kind == "packed"):
        expected = "'hamming'" if kind == "packed" else "'dot', 'cosine' or 'l2'"
        raise ValueError(f"metric: found {metric!r} for {kind} documents, expected {expected}")
    k = integer("k", k, 1, MOST_K)
    first_id = integer("first_id", first_id, 0, 2**62)
    dim = integer("dim", dim, 1, 262144 if kind == "packed" else 32768)
    queries, documents, scale, offset, factor, addend, query_scale = inputs
    stream = _device.call_stream(queries)
    given = {
        "queries": queries,
        "documents": documents,
        "scale": scale,
        "offset": offset,
        "factor": factor,
        "addend": addend,
        "query_scale": query_scale,
        "allow": _uploaded(allow, queries),
        "rank": rank,
        "candidates": candidates,
    }
    arrays = {
        name: _device.view(name, x, stream)
        for name, x in given.items()
        if x is not None or name in ("queries", "documents")
    }
    query_type = "int8" if "query_scale" in arrays else "float32"
    query_types = ("uint8",) if kind == "packed" else (query_type,)
    per_byte = ELEMENTS.get(kind, 1)
    _check_matrix("queries", arrays["queries"], query_types, "Q", dim, 8 if kind == "packed" else 1)
    _check_matrix("documents", arrays["documents"], DOCUMENT_TYPES[kind], "N", dim, per_byte)
    q, n = arrays["queries"].shape[0], arrays["documents"].shape[0]
    if n > MOST_DOCUMENTS:
        raise ValueError(
            f"documents: found {n} rows, expected fewer than 2^32; search them in parts and merge"
        )
    vectors = {
        "scale": ("float32", dim, "dimension"),
        "offset": ("float32", dim, "dimension"),
        "factor": ("float32", n, "document"),
        "addend": ("float32", n, "document"),
        "query_scale": ("float32", q, "query"),
        "rank": ("uint32", n, "document"),
    }
    for name, (dtype, size, per) in vectors.items():
        if name in arrays:
            _check_vector(name, arrays[name], dtype, size, per)
    if "allow" in arrays:
        _check_allow(arrays["allow"], q, n)
    if "candidates" in arrays:
        rows = arrays["candidates"]
        if rows.dtype != "int64" or len(rows.shape) != 2 or rows.shape[0] != q:
            raise ValueError(f"candidates: found {rows}, expected int64 [{q}, C]")
        if not rows.is_contiguous:
            raise ValueError("candidates: found gaps between elements, expected C order")
    return Call(kind, metric, k, dim, first_id, arrays, _device.check_same_device(arrays), stream)


def _uploaded(allow: Any, queries: Any) -> Any:
    """A NumPy mask as a tensor beside the queries; everything else as it is."""
    if isinstance(allow, np.ndarray) and _device.is_torch(queries):
        import torch

        return torch.from_numpy(np.require(allow, requirements=("C", "W"))).to(queries.device)
    return allow


def _check_matrix(
    name: str, array: DeviceArray, dtypes: tuple[str, ...], rows: str, dim: int, per_byte: int
) -> None:
    width = -(-dim // per_byte)
    if array.dtype not in dtypes:
        raise ValueError(f"{name}: found {array}, expected {' or '.join(dtypes)} [{rows}, {width}]")
    if len(array.shape) != 2 or array.shape[1] != width:
        hint = "; a single vector is x[None, :]" if len(array.shape) == 1 else ""
        raise ValueError(
            f"{name}: found {array}, expected [{rows}, {width}] of {dim} dimensions{hint}"
        )
    _check_rows(name, array)


def _check_vector(name: str, array: DeviceArray, dtype: str, size: int, per: str) -> None:
    if array.dtype != dtype or array.shape != (size,) or not array.is_contiguous:
        raise ValueError(
            f"{name}: found {array} with strides {list(array.strides)} bytes, expected {dtype} "
            f"[{size}], one per {per}, side by side"
        )


def _check_rows(name: str, array: DeviceArray) -> None:
    """Raise unless the elements of a row lie side by side, and rows come one after the other."""
    if 0 in array.shape:  # its strides say nothing
        return
    beside = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    forward = len(array.shape) == 1 or array.shape[0] <= 1 or array.strides[0] >= 0
    if not (beside and forward):
        raise ValueError(
            f"{name}: found strides {list(array.strides)} bytes, expected {array.itemsize} in the "
            "last axis and none below 0; pass a copy (torch: x.contiguous(), CuPy: "
            "cupy.ascontiguousarray(x))"
        )


def _check_allow(allow: DeviceArray, q: int, n: int) -> None:
    bits = {"bool": 1, "uint32": 32, "uint64": 64}.get(allow.dtype)
    if bits is None:
        raise ValueError(
            f"allow: found {allow}, expected a mask of bool [{n}] or [{q}, {n}], or words of "
            "uint32 or uint64; ids are not taken here: mask[ids] = True makes one"
        )
    words = -(-n // bits)
    if allow.shape not in ((words,), (q, words)):
        raise ValueError(
            f"allow: found {allow}, expected [{words}], one {'bit' if bits > 1 else 'value'} per "
            f"document, or [{q}, {words}], one row per query"
        )
    _check_rows("allow", allow)


def allocated(
    call: Call, like: Any, out: Any, shape: tuple[int, ...], types: tuple[str, ...]
) -> tuple[Any, ...]:
    """`out`, or new arrays like `like`."""
    if out is not None:
        if not isinstance(out, (tuple, list)) or len(out) != len(types):
            raise TypeError(f"out: found {type(out).__name__}, expected a pair (scores, ids)")
        return tuple(out)
    empty = _device.allocator(like)
    if empty is None:
        expected = " and ".join(f"{dtype} {list(shape)}" for dtype in types)
        raise ValueError(
            f"out: found None, expected {expected} on cuda:{call.device}: memory like that of "
            f"{type(like).__module__}.{type(like).__qualname__} cannot be allocated here"
        )
    return tuple(empty(shape, dtype) for dtype in types)


def output(call: Call, name: str, x: Any, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    array = _device.view(f"out: {name}", x, call.stream)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"out: {name}: found {array}, expected {dtype} {list(shape)}")
    if not array.is_contiguous or array.read_only:
        raise ValueError(
            f"out: {name}: found {'read-only memory' if array.read_only else 'gaps'}, expected "
            "an array in C order that can be written"
        )
    reference = next(iter(call.arrays))
    _device.check_same_device({reference: call.arrays[reference], f"out: {name}": array})
    return array


def _workspace(call: Call, workspace: Any, needed: int) -> DeviceArray:
    array = _device.view("workspace", workspace, call.stream)
    if array.nbytes < needed or array.pointer % 256 or not array.is_contiguous or array.read_only:
        raise ValueError(
            f"workspace: found {array}, {array.nbytes} bytes at address {array.pointer:#x}, "
            f"expected at least {needed} bytes without gaps, aligned to 256, that can be written"
        )
    _device.check_same_device({"queries": call.arrays["queries"], "workspace": array})
    return array


def run(
    call: Call,
    like: Any,
    workspace: Any,
    outputs: tuple[DeviceArray, ...],
    *,
    scores_only: bool,
) -> None:
    if outputs[0].nbytes == 0:
        return
    needed = workspace_bytes(call, outputs, scores_only=scores_only)
    empty = _device.allocator(like)
    if workspace is None:
        if empty is None and needed:
            raise ValueError(
                f"workspace: found None, expected {needed} bytes on cuda:{call.device}: memory "
                f"like that of {type(like).__module__}.{type(like).__qualname__} cannot be "
                "allocated here"
            )
        workspace = empty((needed,), "uint8") if empty is not None else None
    arrays = [*call.arrays.values(), *outputs]
    address, size = 0, 0
    if workspace is not None:
        memory = _workspace(call, workspace, needed)
        address, size = memory.pointer, memory.nbytes
        arrays.append(memory)
    with _device.ordered(arrays, call.device, call.stream):
        _gpu.cuda_module().topk(
            arguments(call, outputs),
            device=call.device,
            stream=call.stream,
            workspace=address,
            workspace_bytes=size,
            scores_only=scores_only,
        )


def arguments(call: Call, outputs: tuple[DeviceArray, ...]) -> Any:
    queries, documents = call.arrays["queries"], call.arrays["documents"]
    allow = call.arrays.get("allow")
    # Words of 64 are pairs of words of 32: devices are little-endian.
    as_bits = allow is not None and allow.dtype != "bool"

    def pointer(name: str) -> int:
        array = call.arrays.get(name)
        # The null pointer of an empty array would read as an argument that was not given.
        return 0 if array is None else array.pointer or queries.pointer

    stride = 0 if allow is None or len(allow.shape) == 1 else _row_stride(allow)
    scores, ids = (*(x.pointer for x in outputs), 0, 0)[:2]
    candidates = call.arrays.get("candidates")
    return _gpu.cuda_module().TopkArgs(
        kind=call.kind,
        metric=call.metric,
        queries=queries.shape[0],
        documents=documents.shape[0],
        dim=call.dim,
        queries_data=queries.pointer,
        queries_stride=_row_stride(queries),
        documents_data=documents.pointer,
        documents_stride=_row_stride(documents),
        allow=0 if as_bits else pointer("allow"),
        allow_bits=pointer("allow") if as_bits else 0,
        allow_stride=stride // 4 if as_bits else stride,
        candidate_count=0 if candidates is None else candidates.shape[1],
        k=call.k,
        first_id=call.first_id,
        scores=scores,
        ids=ids,
        **{
            name: pointer(name)
            for name in (
                "scale",
                "offset",
                "factor",
                "addend",
                "query_scale",
                "rank",
                "candidates",
            )
        },
    )


def workspace_bytes(call: Call, outputs: tuple[DeviceArray, ...], *, scores_only: bool) -> int:
    if call.queries == 0:
        return 0
    needed: int = _gpu.cuda_module().topk_workspace_bytes(
        arguments(call, outputs), device=call.device, scores_only=scores_only
    )
    return needed


def _row_stride(array: DeviceArray) -> int:
    # Of a single row it is whatever the producer found handy.
    return array.strides[0] if array.shape[0] > 1 else array.shape[1] * array.itemsize
