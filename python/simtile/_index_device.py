"""Searching an index's documents on a CUDA device: kept there, or streamed through it in blocks.

The rows stay in the host's memory or in the mapped file, which files are written from; the device
has copies. Blocks go through two slots: while one is searched the next is copied, from pinned
memory, on a stream of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simtile import _gpu, _search_call, _search_operands, _tensors, _vectors
from simtile._encoding import Encoding
from simtile._search_operands import Documents, Operands
from simtile._snapshot import Columns, Segment
from simtile.quantized import Quantized

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Tensors = Mapping[str, Any]

# Of the free memory; the rest is for masks, results and what a search needs to work.
RESIDENT_SHARE = 0.8
BLOCK_BYTES = 256 << 20  # 10 ms over PCIe 4.0 ×16, long beside a launch and a merge


class Rows(Protocol):
    """Rows that a device keeps a copy of, with room for more behind them."""

    @property
    def room(self) -> Columns: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def length(self) -> int: ...


class Columned(Protocol):
    """What names the columns of rows."""

    def columns(self) -> Mapping[str, Any]: ...


class DeviceSearch:
    """The device's side of one encoding of an index."""

    def __init__(self, device: Any) -> None:
        self.device = _cuda_device(device)
        self._mirrors: list[_Mirror] = []
        self._lock = threading.Lock()

    def operands(self, queries: Any, encoding: Encoding, nan: str) -> Operands:
        """Queries on the device, with no documents yet."""
        if isinstance(queries, Quantized) or _tensors.is_tensor(queries):
            moved = queries.to(self.device)
        else:
            rows = _vectors.read("queries", queries, "Q")
            floats = rows.kind == "bfloat16"
            array = _vectors.cast("queries", rows, "float32") if floats else rows.array
            moved = _tensors.as_tensor(array, self.device)
        none = {name: self.upload(array) for name, array in encoding.empty().items()}
        return _search_operands.prepare_queries(moved, self._documents(encoding, none), nan)

    def topk(
        self,
        segment: Segment,
        encoding: Encoding,
        operands: Operands,
        mask: Mask | None,
        k: int,
        resident: bool,
    ) -> tuple[Array, Int64s]:
        """The best k of a segment, with what `Segment.external_ids` takes."""
        rank = segment.rank
        best: Any = None
        for start, columns in self._blocks(segment, encoding, resident):
            documents = self._documents(encoding, columns)
            end = start + len(documents)
            scores: Any
            ids: Any
            scores, ids = _search_call.topk_rows(
                replace(operands, documents=documents),
                k,
                None if mask is None else self.upload(mask[..., start:end]),
                None if rank is None else self.upload(rank[start:end]),
                backend="cuda",
            )
            if rank is None and start:
                ids = ids + (ids >= 0) * start
            found = (scores.contiguous(), ids.contiguous())
            best = found if best is None else _ops().merge(encoding.metric, best, found, k)
        return _tensors.as_array(best[0]), _tensors.as_array(best[1])

    def rescored(
        self,
        segment: Segment,
        encoding: Encoding,
        operands: Operands,
        mask: Mask | None,
        k: int,
        local: Int64s,
    ) -> tuple[Array, Int64s]:
        """`topk` of a segment's rows [Q, C], none where -1; only these rows are copied."""
        if mask is not None:
            allowed = mask[local] if mask.ndim == 1 else np.take_along_axis(mask, local, 1)
            local = np.where(allowed & (local >= 0), local, -1)
        rows, gathered, places = self._gathered(segment, encoding, operands, local)
        if not len(rows):
            worst = _search_operands.WORST[encoding.metric]
            shape = (len(local), k)
            return np.full(shape, worst, operands.score_dtype), np.full(shape, -1, np.int64)
        rank = rows.astype(np.uint32) if segment.rank is None else segment.rank[rows]
        scores: Any
        ids: Any
        scores, ids = _search_call.topk_rows(
            gathered, k, None, self.upload(rank), places, backend="cuda"
        )
        return _tensors.as_array(scores), _tensors.as_array(ids)

    def score(
        self, segment: Segment, encoding: Encoding, operands: Operands, local: Int64s
    ) -> Array:
        """The scores of a segment's rows [Q, C], none where -1."""
        _, gathered, places = self._gathered(segment, encoding, operands, local)
        return _tensors.as_array(_search_call.score_rows(gathered, places, backend="cuda"))

    def _gathered(
        self, segment: Segment, encoding: Encoding, operands: Operands, local: Int64s
    ) -> tuple[Int64s, Operands, Any]:
        """Some rows of a segment, ascending; a search of them; and where `local` is among them."""
        rows, places = np.unique(local, return_inverse=True)
        places = places.reshape(local.shape)
        if len(rows) and rows[0] < 0:
            rows, places = rows[1:], places - 1
        columns = {name: self.upload(segment.columns[name][rows]) for name in encoding.columns()}
        documents = self._documents(encoding, columns)
        return rows, replace(operands, documents=documents), self.upload(places.astype(np.int64))

    def _documents(self, encoding: Encoding, columns: Tensors) -> Documents:
        documents = encoding.documents(columns)
        if documents.scale is None:
            return documents
        return replace(
            documents, scale=self.upload(encoding.scale), offset=self.upload(encoding.offset)
        )

    def upload(self, array: Any) -> Any:
        """An array, or a tensor, on the device."""
        host = array if _tensors.is_tensor(array) else np.ascontiguousarray(array)
        return _tensors.as_tensor(host, self.device)

    def fits(self, segments: Sequence[Rows], encoding: Columned) -> bool:
        """Whether all rows can be kept on the device, without those that are gone."""
        with self._lock:
            rooms = [segment.room for segment in segments]
            self._mirrors = [m for m in self._mirrors if any(m.room is room for room in rooms)]
            there = sum(mirror.nbytes for mirror in self._mirrors)
        needed = sum(
            segment.room[name].nbytes for segment in segments for name in encoding.columns()
        )
        free: int = _cuda().mem_get_info(self.device)[0]
        return needed <= RESIDENT_SHARE * (free + there)

    def _blocks(
        self, segment: Segment, encoding: Encoding, resident: bool
    ) -> Iterator[tuple[int, Tensors]]:
        """Where a block begins, and its columns on the device until the next one is asked for."""
        if resident:
            yield 0, self.mirrored(segment, encoding)
            return
        with self._lock:
            self._mirrors = []
        columns = {name: segment.columns[name] for name in encoding.columns()}
        row_bytes = sum(array.nbytes for array in columns.values()) // segment.length or 1
        rows = min(max(1, BLOCK_BYTES // row_bytes), segment.length)
        slots = [
            _Slot(self.device, columns, rows) for _ in range(2 if rows < segment.length else 1)
        ]
        searching, copying = _cuda().current_stream(self.device), _cuda().Stream(self.device)
        copying.wait_stream(searching)  # the slots' memory may have been freed there just now
        starts = range(0, segment.length, rows)
        try:
            slots[0].fill(columns, 0, rows, copying)
            for i, start in enumerate(starts):
                if i + 1 < len(starts):  # copied while this block is searched
                    slots[(i + 1) % 2].fill(columns, starts[i + 1], rows, copying)
                slot = slots[i % 2]
                searching.wait_event(slot.copied)
                end = min(start + rows, segment.length)
                yield start, {name: column[: end - start] for name, column in slot.device.items()}
                slot.searched.record(searching)
        finally:
            copying.synchronize()  # also where a search has failed: the slots are freed now

    def mirrored(self, segment: Rows, encoding: Columned) -> Tensors:
        """A segment's rows on the device, copied when they are first seen."""
        with self._lock:
            mirror = next((m for m in self._mirrors if m.room is segment.room), None)
            if mirror is None:
                columns = {
                    name: _empty(segment.room[name], self.device) for name in encoding.columns()
                }
                mirror = _Mirror(segment.room, columns)
                self._mirrors.append(mirror)
            # Behind the rows that a search may be reading; such a copy waits for its own end.
            for name, column in mirror.columns.items():
                array = segment.columns[name]
                step = max(1, BLOCK_BYTES * segment.length // max(1, array.nbytes))
                for start in range(mirror.length, segment.length, step):
                    end = min(start + step, segment.length)
                    column[start:end].copy_(self.upload(array[start:end]))
            mirror.length = max(mirror.length, segment.length)
            return {name: column[: segment.length] for name, column in mirror.columns.items()}


class _Mirror:
    """A copy of a segment's room; its first `length` rows have been copied."""

    def __init__(self, room: Mapping[str, Array], columns: Tensors) -> None:
        self.room, self.columns, self.length = room, columns, 0

    @property
    def nbytes(self) -> int:
        return sum(self.room[name].nbytes for name in self.columns)


class _Slot:
    """A block's place on the device, and pinned memory that it is copied from."""

    def __init__(self, device: Any, columns: Mapping[str, Array], rows: int) -> None:
        self.device = {name: _empty(array[:rows], device) for name, array in columns.items()}
        self.pinned = {name: _empty(array[:rows], None) for name, array in columns.items()}
        self.copied, self.searched = _cuda().Event(), _cuda().Event()

    def fill(self, columns: Mapping[str, Array], start: int, rows: int, stream: Any) -> None:
        """Begin to copy a block; the device waits for the search of the one before."""
        self.copied.synchronize()  # the pinned memory is read until then
        stream.wait_event(self.searched)
        for name, array in columns.items():
            block = array[start : start + rows]
            pinned = self.pinned[name][: len(block)]
            pinned.numpy()[:] = block
            _copy(self.device[name][: len(block)], pinned, stream)
        self.copied.record(stream)


def _copy(target: Any, source: Any, stream: Any) -> None:
    with _cuda().stream(stream):
        target.copy_(source, non_blocking=True)


def _empty(array: Array, device: Any) -> Any:
    """A tensor of an array's shape and type: on a device, or where that is None pinned."""
    import torch

    dtype = getattr(torch, array.dtype.name)
    if device is None:
        return torch.empty(array.shape, dtype=dtype, pin_memory=True)
    return torch.empty(array.shape, dtype=dtype, device=device)


def _cuda_device(device: Any) -> Any:
    """A device as torch has it, that the kernels can be run on."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"device: {device!r} needs torch, which is not installed: pip install 'simtile[gpu]'",
            name="torch",
        ) from None
    try:
        found: Any = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device: found {device!r}, expected 'cpu', 'cuda' or 'cuda:0', …"
        ) from None
    if found.type != "cuda":
        raise ValueError(f"device: found {device!r}, expected 'cpu', 'cuda' or 'cuda:0', …")
    _gpu.cuda_module()
    if not torch.cuda.is_available():
        raise RuntimeError(f"device: found {device!r}, and torch finds no CUDA device")
    if found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def _cuda() -> Any:
    import torch

    return torch.cuda


def _ops() -> Any:
    from simtile.ops import topk

    return topk
