"""What comes before and after the kernel when an index is searched segment by segment."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _search_call, _tensors, _vectors, search
from simtile._search_call import WORST, Operands
from simtile._snapshot import Snapshot
from simtile.quantize import quantize
from simtile.quantized import Quantized

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


def packed_queries(queries: Any, dim: int, nan: str) -> tuple[Any, Any]:
    """Queries of Hamming distances as bits: floats are packed, packed ones are checked.

    Also the queries that are searched, [Q] bool, if some have NaN, and then only their bits; else
    None.
    """
    if isinstance(queries, Quantized):
        if queries.kind == "binary" and queries.dim == dim:
            _encoding.check_packed("queries", queries.numpy().codes, dim)
        return queries, None  # others are refused with the reason
    rows = _vectors.read("queries", queries, "Q")
    if rows.kind == "uint8":
        _encoding.check_packed("queries", _tensors.as_array(rows.array), dim)
        return queries, None
    if rows.kind == "int8":
        raise ValueError(
            f"queries: found {rows}, expected floats or packed bits, uint8 "
            f"[Q, {(dim + 7) // 8}]; sentence-transformers' 'binary' is x.view(np.uint8) ^ 0x80"
        )
    if rows.array.shape[1] != dim:
        raise ValueError(f"queries: found {rows}, expected [Q, {dim}]")
    # Of the same kind, and NaN where it is no number: queries as they are searched elsewhere.
    searched = _search_call.prepare_queries(
        queries, _search_call.Documents(rows.kind, "dot", rows.array[:0], dim), nan
    ).searched
    bits = quantize(queries, "binary")
    return (bits if searched is None else _kept(bits, searched)), searched


def _kept(bits: Quantized, rows: Any) -> Quantized:
    return Quantized(bits.codes[rows], None, None, bits.dim, bits.kind)


def candidate_rows(snapshot: Snapshot, ids: Any, queries: int) -> Int64s:
    """The rows of ids [Q, C]; -1 for -1."""
    array = _tensors.as_array(ids)
    if array.dtype.kind not in "iu" or array.ndim != 2 or len(array) != queries:
        raise ValueError(
            f"ids: found {array.dtype} {list(array.shape)}, expected integers [{queries}, C], "
            "some documents for each query"
        )
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"ids: found {array.max()}, which is not in the index")
    wanted = array.astype(np.int64)
    rows = np.full(wanted.shape, -1, np.int64)
    given = wanted != -1
    if given.any():
        found = snapshot.find(wanted)
        if (found[given] < 0).any():
            place = np.argwhere(given & (found < 0))[0]
            raise ValueError(
                f"ids: found {wanted[tuple(place)]} at {place.tolist()}, which is not in the "
                "index; -1 stands for no document"
            )
        rows[given] = found[given]
    return rows


def best_of(parts: list[tuple[Array, Int64s]], operands: Operands, k: int) -> tuple[Array, Int64s]:
    """The best k of what was found in each segment, by score, then id."""
    if not parts:
        shape = (operands.query_count, k)
        worst = WORST[operands.documents.metric]
        return np.full(shape, worst, operands.score_dtype), np.full(shape, -1, np.int64)
    if len(parts) == 1:
        return parts[0]
    metric: Any = operands.documents.metric
    scores, ids = search.merge_topk(parts, metric=metric, k=k)
    return scores, ids


def all_of(
    parts: list[tuple[Int64s, Array, Int64s]], operands: Operands
) -> tuple[Int64s, Array, Int64s]:
    """What was found in all segments: for each query best first, then by id."""
    queries = operands.query_count
    if not parts:
        none = np.empty(0, operands.score_dtype)
        return np.zeros(queries + 1, np.int64), none, np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0]
    query = np.concatenate([np.repeat(np.arange(queries), np.diff(part[0])) for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    ids = np.concatenate([part[2] for part in parts])
    descending = operands.documents.metric in ("cosine", "dot")
    keys = -scores if descending else scores
    order = np.lexsort((ids, keys, query))
    offsets = np.zeros(queries + 1, np.int64)
    np.cumsum(np.bincount(query, minlength=queries), out=offsets[1:])
    return offsets, scores[order], ids[order]


def like_queries(queries: Any, *found: Any) -> tuple[Any, ...]:
    """Arrays, or tensors on the device of the queries where these are tensors."""
    given = queries.codes if isinstance(queries, Quantized) else queries
    device = given.device if _tensors.is_tensor(given) else None
    return tuple(_vectors.result(device, x) for x in found)
