"""The tokens of an index's documents: rows behind each other that are never written again.

A document is a run of rows of one segment. What is published is a tuple of segments, and the rows
of a `Storage` of documents, which say where each one's run is; both are of one moment in a `State`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _storage
from simtile._id_map import as_array
from simtile._lazy import cached_property
from simtile._snapshot import Array, Columns, Int64s, Snapshot
from simtile._token_encoding import Operand, TokenEncoding
from simtile._vectors import Rows

COMPACTED_TOKENS = 1 << 16  # fewer tokens of removed documents are not worth copying the others


@dataclass(frozen=True)
class Tokens:
    """Consecutive tokens. Behind `length` is room for the next."""

    first: int  # the number of the first one
    length: int
    room: Columns
    fixed: bool  # a file's: not appended to, nor compacted

    @cached_property
    def columns(self) -> Columns:
        return {name: array[: self.length] for name, array in self.room.items()}

    def operand(self, encoding: TokenEncoding) -> Operand:
        """What MaxSim reads, kept: codes are checked when this is made."""
        if not self.length:  # there may be no codec yet
            return Rows(np.empty((0, encoding.dim), np.float32), "float32", None)
        found: Operand | None = self.__dict__.get("_operand")
        if found is None:
            found = self.__dict__["_operand"] = encoding.operand(self.columns)
        return found

    @property
    def end(self) -> int:
        return self.first + self.length

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.room.values())


@dataclass(frozen=True)
class State:
    """Documents and their tokens as they were at one moment. Immutable.

    Rows are those of `snapshot`, in which removed documents still have theirs.
    """

    snapshot: Snapshot
    tokens: tuple[Tokens, ...]
    encoding: TokenEncoding

    @cached_property
    def starts(self) -> Int64s:
        """Where the tokens of each row begin, [R]."""
        return self._column("starts")

    @cached_property
    def ends(self) -> Int64s:
        return self._column("ends")

    @cached_property
    def row_ids(self) -> Int64s:
        """The id of each row, [R]."""
        return self.snapshot._joined([as_array(s.ids) for s in self.snapshot.segments])

    def _column(self, name: str) -> Int64s:
        columns = [segment.columns[name] for segment in self.snapshot.segments]
        return columns[0] if len(columns) == 1 else self.snapshot._joined(columns)

    def runs(self, rows: Int64s) -> Iterator[tuple[Tokens, Int64s, Int64s, Int64s]]:
        """Where the tokens of some rows are.

        Yields a segment, which of `rows` have their tokens there, and in which rows of the segment
        these begin and end. A document without tokens is in the first one.
        """
        if not self.tokens:
            nothing = Tokens(0, 0, self.encoding.empty(), fixed=True)
            zeros = np.zeros(len(rows), np.int64)
            yield nothing, np.arange(len(rows)), zeros, zeros
            return
        starts, ends = self.starts[rows], self.ends[rows]
        empty = starts == ends
        for i, segment in enumerate(self.tokens):
            inside = (starts >= segment.first) & (starts < segment.end) & ~empty
            if i == 0:
                inside |= empty
            here = np.flatnonzero(inside)
            if len(here):
                lengths = ends[here] - starts[here]
                begins = np.where(lengths > 0, starts[here] - segment.first, 0)
                yield segment, here, begins, begins + lengths

    def stored(self, name: str) -> Iterator[Array]:
        """A column of the tokens of all documents, in the order of `Snapshot.ids`, in parts."""
        for part in self.snapshot.parts(["starts", "ends"]):
            starts, ends = part.columns["starts"], part.columns["ends"]
            full = starts < ends
            starts, ends = starts[full], ends[full]
            firsts = np.array([segment.first for segment in self.tokens], np.int64)
            own = np.searchsorted(firsts, starts, side="right") - 1
            # Those that lie behind each other are written as one.
            breaks = np.flatnonzero((starts[1:] != ends[:-1]) | (own[1:] != own[:-1])) + 1
            for begin, end in zip([0, *breaks], [*breaks, len(starts)], strict=True):
                if begin < end:
                    segment = self.tokens[own[begin]]
                    first = int(starts[begin]) - segment.first
                    last = int(ends[end - 1]) - segment.first
                    yield segment.columns[name][first:last]


def append(tokens: tuple[Tokens, ...], columns: Columns) -> tuple[tuple[Tokens, ...], int]:
    """With more tokens, all in one segment; and the number of the first of them.

    They are written behind those that are published: who has `tokens` does not see them.
    """
    count = len(next(iter(columns.values())))
    before = list(tokens)
    last = before.pop() if before and not before[-1].fixed else None
    if last is not None and last.length + count > _capacity(last):
        if last.nbytes < _storage.COPIED_BYTES:
            room = max(last.length + count, 2 * last.length)
            last = replace(last, room=_copied(last.columns, room))
        else:
            before.append(last)
            last = None
    if last is None:
        first = before[-1].end if before else 0
        row_bytes = sum(array.nbytes for array in columns.values()) // max(count, 1) or 1
        room = max(count, min(first, _storage.MOST_ROOM // row_bytes))
        none = {name: array[:0] for name, array in columns.items()}
        last = Tokens(first, 0, _copied(none, room), fixed=False)
    start = last.end
    for name, array in columns.items():
        last.room[name][last.length : last.length + count] = array
    return (*before, replace(last, length=last.length + count)), start


def compacted(state: State) -> State:
    """The state without tokens of removed documents, once they are most of those outside files."""
    others = [segment for segment in state.tokens if not segment.fixed]
    if not others:
        return state
    first = others[0].first
    total = others[-1].end - first
    snapshot = state.snapshot
    alive = snapshot.alive
    lengths = state.ends - state.starts
    counted = (lengths > 0) & (state.starts >= first)
    if alive is not None:
        counted &= alive
    live = int(lengths[counted].sum())
    if total - live <= max(COMPACTED_TOKENS, live):
        return state
    rows = np.flatnonzero(counted)
    rows = rows[np.argsort(state.starts[rows], kind="stable")]
    room = {
        name: np.empty((live, *array.shape[1:]), array.dtype)
        for name, array in others[0].room.items()
    }
    starts, ends = state.starts.copy(), state.ends.copy()
    # What is gone has no tokens any more, as an empty document.
    gone = (state.starts >= first) & ~counted
    starts[gone] = ends[gone] = 0
    filled = 0
    for segment, here, begins, finishes in State(snapshot, tuple(others), state.encoding).runs(
        rows
    ):
        for row, begin, end in zip(rows[here], begins.tolist(), finishes.tolist(), strict=True):
            following = filled + end - begin
            for name, array in segment.columns.items():
                room[name][filled:following] = array[begin:end]
            starts[row], ends[row] = first + filled, first + following
            filled = following
    fixed = tuple(segment for segment in state.tokens if segment.fixed)
    kept = Tokens(first, live, room, fixed=False)
    segments = tuple(
        replace(
            segment,
            room={
                **segment.room,
                "starts": _with_room(starts, segment.first, segment.length, segment.capacity),
                "ends": _with_room(ends, segment.first, segment.length, segment.capacity),
            },
        )
        if not segment.fixed
        else segment
        for segment in snapshot.segments
    )
    return replace(state, snapshot=replace(snapshot, segments=segments), tokens=(*fixed, kept))


def _with_room(column: Int64s, first: int, length: int, capacity: int) -> Int64s:
    grown = np.empty(capacity, np.int64)
    grown[:length] = column[first : first + length]
    return grown


def _copied(columns: Columns, room: int) -> dict[str, npt.NDArray[Any]]:
    copies = {}
    for name, array in columns.items():
        copies[name] = np.empty((room, *array.shape[1:]), array.dtype)
        copies[name][: len(array)] = array
    return copies


def _capacity(segment: Tokens) -> int:
    return min(len(array) for array in segment.room.values())
