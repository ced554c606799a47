"""Rows of documents that are added, replaced and removed while searches go on.

An index holds one `Storage`. A search takes its `snapshot` once and sees that state only; a writer
makes the next snapshot under a lock and publishes it in one assignment. Nothing that a snapshot
shows is written again: rows are appended behind the published ones, in memory that only the newest
snapshot's successor uses, and a removal copies the mask of the rows that are left.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from simtile._id_map import IdMap, Numbers, as_array
from simtile._snapshot import Array, Columns, Int64s, Segment, Snapshot, take

# A segment of fewer bytes is copied into a larger one when it is full; beyond, another is begun,
# with as much room as there are rows, but no more than MOST_ROOM: unused room is not resident, but
# counts where memory is not overcommitted.
COPIED_BYTES = 64 << 20
MOST_ROOM = 1 << 30
LEAST_ROOM = 1024  # rows
COMPACTED_ROWS = 1024  # fewer dead rows than this are not worth copying the others

_storages: weakref.WeakSet[Storage] = weakref.WeakSet()


def _leave_all_to_child() -> None:
    for storage in _storages:
        storage.leave_to_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_child)


class Storage:
    """The newest snapshot, and the only one who makes the next."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot = Snapshot() if snapshot is None else snapshot
        self.lock = threading.RLock()  # of writers; searches take none
        self._undo: Callable[[], None] | None = None
        _storages.add(self)

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

    @contextmanager
    def writing(self, undo: Callable[[], None]) -> Iterator[None]:
        """As the only writer. `undo` is called after an error; and in a child that is forked by
        another thread meanwhile, in which the writer is no more.
        """
        with self.lock:
            self._undo = undo
            try:
                yield
            except BaseException:
                undo()
                raise
            finally:
                self._undo = None

    def leave_to_child(self) -> None:
        """Without the writer that there was when this process was forked, and its lock."""
        if self._undo is not None:
            self._undo()
            self._undo = None
        self.lock = threading.RLock()

    def add(self, columns: Columns, ids: Int64s | None) -> Int64s:
        """Append documents and return their ids, numbered here where None; all of them or none.

        Raises
        ------
        ValueError
            An id is there already or given twice, or some ids are numbered here and some given,
            or the numbers do not suffice.
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
                if state.next_id + length >= 2**63:  # a file may say any next id
                    raise ValueError(
                        f"ids: found None, but the next id is {state.next_id}, and {length} more "
                        "would pass the largest int64; make a new index"
                    )
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
            added = as_array(numbers)  # before anything is published: it takes memory
            state = _append(state, columns, numbers, following)
            self.snapshot = replace(
                state,
                automatic=ids is None,
                next_id=state.next_id + length if ids is None else 0,
                next_position=state.next_position + length,
            )
            return added

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
                positions[here] = take(segment.position_room, local[here])
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
