"""One search of an index, segment by segment: queries, the kernel, and what was found, by ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _search_call, _search_operands, _tensors, _vectors, search
from simtile._encoding import Encoding
from simtile._lazy import cached_property
from simtile._search_operands import WORST, Operands
from simtile._snapshot import Segment, Snapshot
from simtile.quantize import quantize
from simtile.quantized import Quantized

if TYPE_CHECKING:
    from simtile._index_device import DeviceSearch

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Search:
    """One search of a snapshot, on the CPU or a device.

    A `stage` is the place of an encoding among those of the index, of which a `FlatIndex` has one.
    The last one checks the queries.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        encodings: Sequence[Encoding],
        devices: Sequence[DeviceSearch] | None,
        queries: Any,
        nan: str,
        threads: int,
    ) -> None:
        self.snapshot, self.encodings, self.devices = snapshot, encodings, devices
        self.threads = threads
        self.masks: Sequence[Mask | None] = [segment.alive for segment in snapshot.segments]
        self._given, self._nan = queries, nan
        self._operands: dict[int, Operands] = {}
        self.last = len(encodings) - 1
        self.queries = self.operands(self.last).query_count

    def operands(self, stage: int) -> Operands:
        """The queries in the form of a stage, where they are searched, with no documents yet."""
        if stage not in self._operands:
            self._operands[stage] = self._made(stage)
        return self._operands[stage]

    def _made(self, stage: int) -> Operands:
        encoding, queries, searched = self.encodings[stage], self._given, None
        device = None if self.devices is None else self.devices[stage]
        hamming = encoding.metric == "hamming"
        if hamming:
            queries, searched = packed_queries(queries, encoding.dim, self._nan)
        if device is None:
            none = encoding.documents(encoding.empty())
            made = _search_operands.prepare_queries(queries, none, self._nan)
        else:
            made = device.operands(queries, encoding, self._nan)
            searched = None if searched is None else device.upload(searched)
        return replace(made, searched=searched) if hamming else made

    @property
    def searched(self) -> Mask:
        """Which queries are searched: all but those with NaN."""
        searched = self.operands(self.last).searched
        return np.ones(self.queries, bool) if searched is None else _tensors.as_array(searched)

    @cached_property
    def floats(self) -> npt.NDArray[np.float32]:
        """The queries of floats as the last stage has them, [Q, D]; zeros where there is NaN."""
        floats = np.zeros((self.queries, self.encodings[-1].dim), np.float32)
        floats[self.searched] = _tensors.as_array(self.operands(self.last).queries)
        return floats

    def only(self, queries: Int64s, on_cpu: bool = False) -> Search:
        """The same search for some of its queries, none of which has NaN."""
        devices = None if on_cpu else self.devices
        chosen = self.floats[queries]
        part = Search(self.snapshot, self.encodings, devices, chosen, "raise", self.threads)
        part.masks = [
            mask[queries] if mask is not None and mask.ndim == 2 else mask for mask in self.masks
        ]
        return part

    def topk(self, stage: int, k: int, candidates: Int64s | None = None) -> tuple[Array, Int64s]:
        """The best k of a stage: scores and ids; of candidates, ids [Q, C], where given."""
        rows = None if candidates is None else self._rows(candidates)
        operands, encoding = self.operands(stage), self.encodings[stage]
        device = None if self.devices is None else self.devices[stage]
        resident = (
            device is not None and rows is None and device.fits(self.snapshot.segments, encoding)
        )
        parts = []
        for segment, mask in zip(self.snapshot.segments, self.masks, strict=True):
            local = None if rows is None else self.snapshot.local_rows(segment, rows)
            if local is not None and not (local >= 0).any():
                continue
            if device is None:
                scores, found = _search_call.topk_rows(
                    self._of(stage, segment), k, mask, segment.rank, local, self.threads
                )
            elif local is None:
                scores, found = device.topk(segment, encoding, operands, mask, k, resident)
            else:
                scores, found = device.rescored(segment, encoding, operands, mask, k, local)
            parts.append((scores, segment.external_ids(found)))
        return best_of(parts, operands, k)

    def range(self, stage: int, threshold: float) -> tuple[Int64s, Array, Int64s]:
        """All documents within a threshold of a stage: offsets, scores and ids."""
        if self.devices is not None:
            raise RuntimeError(
                f"range_search runs on the CPU, and this index searches on "
                f"{self.devices[stage].device}; load it with device='cpu', or search for the best k"
            )
        parts = []
        for segment, mask in zip(self.snapshot.segments, self.masks, strict=True):
            offsets, scores, found = _search_call.range_rows(
                self._of(stage, segment), threshold, mask, segment.rank, self.threads
            )
            parts.append((offsets, scores, segment.external_ids(found)))
        return all_of(parts, self.operands(stage))

    def score(self, stage: int, rows: Int64s) -> Array:
        """A stage's scores of rows of the index [Q, C]; the worst for -1."""
        operands, encoding = self.operands(stage), self.encodings[stage]
        scores = np.full(rows.shape, WORST[encoding.metric], operands.score_dtype)
        for segment in self.snapshot.segments:
            local = self.snapshot.local_rows(segment, rows)
            here = local >= 0
            if not here.any():
                continue
            if self.devices is not None:
                found = self.devices[stage].score(segment, encoding, operands, local)
            else:
                found = _search_call.score_rows(self._of(stage, segment), local, self.threads)
            scores[here] = found[here]
        return scores

    def _rows(self, ids: Int64s) -> Int64s:
        rows = np.full(ids.shape, -1, np.int64)
        given = ids >= 0
        rows[given] = self.snapshot.find(ids[given])
        return rows

    def _of(self, stage: int, segment: Segment) -> Operands:
        documents = self.encodings[stage].documents(segment.columns)
        return replace(self.operands(stage), documents=documents)


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
    searched = _search_operands.prepare_queries(
        queries, _search_operands.Documents(rows.kind, "dot", rows.array[:0], dim), nan
    ).searched
    bits = quantize(queries, "binary")
    return (bits if searched is None else _kept(bits, searched)), searched


def _kept(bits: Quantized, rows: Any) -> Quantized:
    return Quantized(bits.codes[rows], None, None, bits.dim, bits.kind)


def candidate_rows(snapshot: Snapshot, ids: Any, queries: int) -> Int64s:
    """The rows of ids [Q, C]; -1 for -1."""
    array = _tensors.as_array(ids, "ids")
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
