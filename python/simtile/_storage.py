"""Rows of documents that are added, replaced and removed while searches go on.

An index holds one `Storage`. A search takes its `snapshot` once and sees that state only; a writer
makes the next snapshot under a lock and publishes it in one assignment. Nothing that a snapshot
shows is written again: rows are appended behind the published ones, in memory that only the newest
snapshot's successor uses, and a removal copies the mask of the rows that are left.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile._id_map import IdMap, Numbers, as_array, is_ascending

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Columns = Mapping[str, Array]  # name → [n, …], all of one length

# A segment of fewer bytes is copied into a larger one when it is full; beyond, another is begun,
# with as much room as there are rows, but no more than MOST_ROOM: unused room is not resident, but
# counts where memory is not overcommitted.
COPIED_BYTES = 64 << 20
MOST_ROOM = 1 << 30
LEAST_ROOM = 1024  # rows
COMPACTED_ROWS = 1024  # fewer dead rows than this are not worth copying the others
PART_ROWS = 1 << 16  # rows copied at a time where all are copied


@dataclass(frozen=True)
class Segment:
    """Consecutive rows. Its arrays may be longer: behind `length` is room for the next rows."""

    first: int  # the row of the index that its first one is
    length: int
    room: Columns
    id_room: Numbers
    position_room: Numbers  # where documents stand in the order of `Snapshot.ids`
    alive_room: npt.NDArray[np.bool_] | None  # None: no row was removed
    fixed: bool  # a file's: not appended to, nor compacted

    @cached_property
    def columns(self) -> Columns:
        return {name: array[: self.length] for name, array in self.room.items()}

    @cached_property
    def ids(self) -> Numbers:
        return self.id_room[: self.length]

    @cached_property
    def alive(self) -> npt.NDArray[np.bool_] | None:
        return None if self.alive_room is None else self.alive_room[: self.length]

    @cached_property
    def tie_order(self) -> tuple[npt.NDArray[np.uint32], Int64s] | None:
        """The rank of each row by its id, and the ids by rank; None where ids ascend anyway."""
        if isinstance(self.ids, range) or is_ascending(self.ids):
            return None
        order = np.argsort(self.ids, kind="stable")
        rank = np.empty(self.length, np.uint32)
        rank[order] = np.arange(self.length, dtype=np.uint32)
        return rank, self.ids[order]

    @property
    def rank(self) -> npt.NDArray[np.uint32] | None:
        """By which equal scores are ordered, and what a search then finds in place of rows."""
        return None if self.tie_order is None else self.tie_order[0]

    def external_ids(self, found: Int64s) -> Int64s:
        """What a search of this segment found, rows or with `tie_order` ranks, as ids; -1 stays."""
        if self.tie_order is not None:
            ids: Numbers = self.tie_order[1]
        else:
            ids = self.ids
        if isinstance(ids, range):
            return np.where(found < 0, -1, found + ids.start)
        if not len(ids):
            return found
        return np.where(found < 0, -1, ids[found])

    @property
    def capacity(self) -> int:
        return min((len(array) for array in self.room.values()), default=0)


class Part(NamedTuple):
    """Rows of a segment, for copying: columns, ids and positions of those that are alive."""

    columns: Columns
    ids: Int64s
    positions: Int64s


@dataclass(frozen=True)
class Snapshot:
    """One state of an index. Immutable."""

    segments: tuple[Segment, ...] = ()
    id_map: IdMap = IdMap()  # noqa: RUF009 (immutable)
    automatic: bool | None = None  # whether ids are numbered here; None: nothing was added yet
    next_id: int = 0
    next_position: int = 0
    live: int = 0

    def __len__(self) -> int:
        return self.live

    @property
    def rows(self) -> int:
        """All rows, the removed ones among them."""
        return sum(segment.length for segment in self.segments)

    def find(self, ids: Int64s) -> Int64s:
        """The rows of ids, in their shape; -1 for an id that is not in the index."""
        rows = self.id_map.find(ids)
        for segment in self.segments:
            if segment.alive is not None:
                local = self.local_rows(segment, rows)
                here = local >= 0
                rows[here] = np.where(segment.alive[local[here]], rows[here], -1)
        return rows

    def local_rows(self, segment: Segment, rows: Int64s) -> Int64s:
        """Rows of the index as rows of a segment; -1 for those that lie elsewhere."""
        inside = (rows >= segment.first) & (rows < segment.first + segment.length)
        return np.where(inside, rows - segment.first, -1)

    @cached_property
    def ids(self) -> Int64s:
        """The ids, in the order in which documents were first added."""
        if len(self.segments) == 1 and self.ordered_rows is None:
            ids: Int64s = as_array(self.segments[0].ids).view()
        else:
            ids = self._joined([as_array(segment.ids) for segment in self.segments])
            if self.ordered_rows is not None:
                ids = ids[self.ordered_rows]
        ids.flags.writeable = False
        return ids

    @cached_property
    def ordered_rows(self) -> Int64s | None:
        """The row of each document in the order of `ids`; None where it is 0, 1, 2, …"""
        if self.live == self.rows and all(
            isinstance(segment.position_room, range) for segment in self.segments
        ):
            return None
        positions = self._joined([as_array(s.position_room)[: s.length] for s in self.segments])
        rows = np.flatnonzero(self.alive) if self.alive is not None else np.arange(self.rows)
        ordered: Int64s = rows[np.argsort(positions[rows], kind="stable")]
        return ordered

    @cached_property
    def alive(self) -> npt.NDArray[np.bool_] | None:
        """Which rows were not removed; None for all."""
        if self.live == self.rows:
            return None
        return np.concatenate(
            [
                np.ones(segment.length, bool) if segment.alive is None else segment.alive
                for segment in self.segments
            ]
        )

    def places(self, ids: Int64s) -> Int64s:
        """Where documents stand in the order of `ids`; -1 for an id that is not in the index."""
        rows = self.find(ids)
        if self.ordered_rows is None:
            return rows
        place = np.full(self.rows + 1, -1, np.int64)  # the last one is for row -1
        place[self.ordered_rows] = np.arange(self.live)
        return place[rows]

    def row_mask(self, segment: Segment, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """A mask [..., N] in the order of `ids` as one of a segment's rows, removed ones False."""
        if self.ordered_rows is None:
            return mask[..., segment.first : segment.first + segment.length]
        local = self.local_rows(segment, self.ordered_rows)
        here = np.flatnonzero(local >= 0)
        rows = np.zeros((*mask.shape[:-1], segment.length), bool)
        rows[..., local[here]] = mask[..., here]
        return rows

    def parts(
        self, names: Collection[str] | None = None, segments: tuple[Segment, ...] | None = None
    ) -> Iterator[Part]:
        """All documents in the order of `ids`, a part at a time: all columns, or those named."""
        chosen = self.segments if segments is None else segments
        in_order = all(isinstance(segment.position_room, range) for segment in chosen)
        if in_order:
            for segment in chosen:
                alive = segment.alive
                rows = range(segment.length) if alive is None else np.flatnonzero(alive)
                for start in range(0, len(rows), PART_ROWS):
                    yield _part(segment, rows[start : start + PART_ROWS], names)
            return
        inside = {id(segment) for segment in chosen}
        rows = np.arange(self.rows) if self.ordered_rows is None else self.ordered_rows
        kept = np.zeros(len(rows), bool)
        for segment in self.segments:
            if id(segment) in inside:
                kept |= self.local_rows(segment, rows) >= 0
        rows = rows[kept]
        for start in range(0, len(rows), PART_ROWS):
            yield self._gather(rows[start : start + PART_ROWS], names)

    def _gather(self, rows: Int64s, names: Collection[str] | None) -> Part:
        """Rows from several segments, in this order."""
        place, parts = [], []
        for segment in self.segments:
            local = self.local_rows(segment, rows)
            here = np.flatnonzero(local >= 0)
            if len(here):
                place.append(here)
                parts.append(_part(segment, local[here], names))
        back = np.argsort(np.concatenate(place), kind="stable")
        return Part(
            {
                name: np.concatenate([part.columns[name] for part in parts])[back]
                for name in parts[0].columns
            },
            np.concatenate([part.ids for part in parts])[back],
            np.concatenate([part.positions for part in parts])[back],
        )

    @staticmethod
    def _joined(arrays: list[Int64s]) -> Int64s:
        return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


class Storage:
    """The newest snapshot, and the only one who makes the next."""

    def __init__(self, snapshot: Snapshot = Snapshot()) -> None:
        self.snapshot = snapshot
        self.lock = threading.RLock()  # of writers; searches take none

    @classmethod
    def of_file(
        cls,
        columns: Columns,
        length: int,
        ids: Int64s | None,
        automatic: bool | None,
        next_id: int,
    ) -> Storage:
        """The rows of a file; `ids` None: 0, 1, 2, …"""
        if length == 0:
            return cls(Snapshot(automatic=automatic, next_id=next_id))
        numbers: Numbers = range(length) if ids is None else ids
        segment = Segment(0, length, columns, numbers, range(length), None, fixed=True)
        return cls(
            Snapshot(
                (segment,),
                IdMap().add(numbers, range(length)),
                automatic=automatic,
                next_id=next_id,
                next_position=length,
                live=length,
            )
        )

    def add(self, columns: Columns, ids: Int64s | None) -> Int64s:
        """Append documents and return their ids, numbered here where None; all of them or none.

        Raises
        ------
        ValueError
            An id is there already or given twice, or some ids are numbered here and some given.
        """
        length = len(next(iter(columns.values())))
        with self.lock:
            state = self.snapshot
            if state.automatic is not None and state.automatic != (ids is None):
                raise ValueError(
                    "ids: found None, expected ids because those before were given; pass one id "
                    "for each row"
                    if ids is None
                    else "ids: found ids, expected None because those before were numbered by the "
                    "index; to replace documents use update"
                )
            if length == 0:
                return np.empty(0, np.int64)
            numbers: Numbers
            if ids is None:
                numbers = range(state.next_id, state.next_id + length)
            else:
                check_once(ids)
                known = state.find(ids) >= 0
                if known.any():
                    raise ValueError(
                        f"ids: found {ids[known.argmax()]} at [{known.argmax()}], which is in the "
                        "index already; to replace a document use update"
                    )
                numbers = ids.copy()  # the caller's array may change
            following = range(state.next_position, state.next_position + length)
            state = _append(state, columns, numbers, following)
            self.snapshot = replace(
                state,
                automatic=ids is None,
                next_id=state.next_id + length if ids is None else 0,
                next_position=state.next_position + length,
            )
            return as_array(numbers)

    def check_known(self, ids: Int64s) -> None:
        """Raise unless all ids are in the index."""
        find_known(self.snapshot, ids)

    def update(self, columns: Columns, ids: Int64s) -> None:
        """Replace documents, which keep their places in the order of `Snapshot.ids`."""
        with self.lock:
            state = self.snapshot
            check_once(ids)
            rows = find_known(state, ids)
            if not len(ids):
                return
            positions = np.empty(len(ids), np.int64)
            for segment in state.segments:
                local = state.local_rows(segment, rows)
                here = local >= 0
                positions[here] = _take(segment.position_room, local[here])
            state = _append(_without(state, rows), columns, ids.copy(), positions)
            self.snapshot = _compacted(state)

    def remove(self, ids: Int64s) -> None:
        """Remove documents; an id that is not there removes none of them."""
        with self.lock:
            state = self.snapshot
            check_once(ids)
            rows = find_known(state, ids)
            if len(ids):
                self.snapshot = _compacted(_without(state, rows))


def check_once(ids: Int64s) -> None:
    """Raise if an id is given twice."""
    ascending = np.sort(ids)
    twice = ascending[1:] == ascending[:-1]
    if twice.any():
        repeated = ascending[twice.argmax()]
        first, second = np.flatnonzero(ids == repeated)[:2]
        raise ValueError(f"ids: found {repeated} at [{first}] and at [{second}], expected it once")


def find_known(snapshot: Snapshot, ids: Int64s) -> Int64s:
    """The rows of ids, in their shape; raises for one that is not in the index."""
    rows = snapshot.find(ids)
    unknown = np.argwhere(rows < 0)
    if len(unknown):
        place = tuple(unknown[0].tolist())
        raise ValueError(
            f"ids: found {ids[place]} at {list(place)}, which is not in the index"
            + (f"; {len(unknown)} are not" if len(unknown) > 1 else "")
        )
    return rows


def _append(state: Snapshot, columns: Columns, ids: Numbers, positions: Numbers) -> Snapshot:
    """The state with rows at the end; `live` counts them, nothing else is changed."""
    length, first = len(ids), state.rows
    id_map = state.id_map.add(ids, range(first, first + length))
    before = list(state.segments)
    last = before.pop() if before and not before[-1].fixed else None
    if last is not None and last.length + length > last.capacity:
        if sum(array.nbytes for array in last.columns.values()) < COPIED_BYTES:
            last = _with_room(last, max(last.length + length, 2 * last.length, LEAST_ROOM))
        else:
            before.append(last)
            last = None
    if last is None:
        last = _empty_segment(columns, first, length, state.rows)
    end = last.length + length
    for name, array in columns.items():
        last.room[name][last.length : end] = array
    capacity = last.capacity
    last = replace(
        last,
        length=end,
        id_room=_extended(last.id_room, last.length, capacity, ids),
        position_room=_extended(last.position_room, last.length, capacity, positions),
    )
    return replace(state, segments=(*before, last), id_map=id_map, live=state.live + length)


def _empty_segment(columns: Columns, first: int, length: int, rows: int) -> Segment:
    row_bytes = sum(array.nbytes for array in columns.values()) // length or 1
    # The first rows are given as much as they need: often there are no others.
    room = max(length, min(rows, MOST_ROOM // row_bytes))
    return Segment(
        first,
        0,
        {name: np.empty((room, *array.shape[1:]), array.dtype) for name, array in columns.items()},
        range(0),
        range(0),
        None,
        fixed=False,
    )


def _with_room(segment: Segment, capacity: int) -> Segment:
    def larger(array: Array) -> Array:
        grown = np.empty((capacity, *array.shape[1:]), array.dtype)
        grown[: segment.length] = array[: segment.length]
        return grown

    def numbers(values: Numbers) -> Numbers:
        return values if isinstance(values, range) else larger(values)

    alive = segment.alive_room
    if alive is not None:
        alive = np.append(alive[: segment.length], np.ones(capacity - segment.length, bool))
    return replace(
        segment,
        room={name: larger(array) for name, array in segment.room.items()},
        id_room=numbers(segment.id_room),
        position_room=numbers(segment.position_room),
        alive_room=alive,
    )


def _extended(room: Numbers, length: int, capacity: int, more: Numbers) -> Numbers:
    """Numbers with more behind the first `length`; a range for as long as it is one."""
    if isinstance(room, range):
        if isinstance(more, range) and (length == 0 or room.start + length == more.start):
            start = more.start if length == 0 else room.start
            return range(start, start + length + len(more))
        array = np.empty(capacity, np.int64)
        array[:length] = as_array(room[:length])
        room = array
    room[length : length + len(more)] = as_array(more)
    return room


def _without(state: Snapshot, rows: Int64s) -> Snapshot:
    """The state with rows marked as removed; each was alive and is given once."""
    segments = []
    for segment in state.segments:
        local = state.local_rows(segment, rows)
        local = local[local >= 0]
        if len(local):
            if segment.alive_room is None:
                alive = np.ones(max(segment.capacity, segment.length), bool)
            else:
                alive = segment.alive_room.copy()
            alive[local] = False
            sorted_before = {k: v for k, v in segment.__dict__.items() if k == "tie_order"}
            segment = replace(segment, alive_room=alive)
            segment.__dict__.update(sorted_before)  # the ids are the same
        segments.append(segment)
    return replace(state, segments=tuple(segments), live=state.live - len(rows))


def _compacted(state: Snapshot) -> Snapshot:
    """The state without the removed rows, once they are most of the rows outside files."""
    fixed = tuple(segment for segment in state.segments if segment.fixed)
    others = tuple(segment for segment in state.segments if not segment.fixed)
    rows = sum(segment.length for segment in others)
    live = sum(
        segment.length if segment.alive is None else int(np.count_nonzero(segment.alive))
        for segment in others
    )
    if rows - live <= max(COMPACTED_ROWS, live):
        return state
    compact = replace(state, segments=fixed, id_map=IdMap(), live=state.live - live)
    for segment in fixed:
        compact = replace(
            compact,
            id_map=compact.id_map.add(
                segment.ids, range(segment.first, segment.first + segment.length)
            ),
        )
    for part in state.parts(None, others):
        ids: Numbers = part.ids
        positions: Numbers = part.positions
        if not fixed:
            start = compact.rows
            positions = range(start, start + len(part.ids))
        compact = _append(compact, part.columns, ids, positions)
    if not fixed:
        compact = replace(compact, next_position=compact.rows)
    return compact


def _part(segment: Segment, rows: Numbers, names: Collection[str] | None) -> Part:
    """Copies of some rows, or views where they are consecutive."""
    index = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
    return Part(
        {
            name: array[index]
            for name, array in segment.columns.items()
            if names is None or name in names
        },
        _take(segment.id_room, rows),
        _take(segment.position_room, rows),
    )


def _take(numbers: Numbers, rows: Numbers) -> Int64s:
    if isinstance(numbers, range):
        return as_array(rows) + numbers.start
    return numbers[rows.start : rows.stop] if isinstance(rows, range) else numbers[rows]
