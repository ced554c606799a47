"""One state of the rows of an index, as a search sees it. Immutable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile._id_map import IdMap, Numbers, as_array, is_ascending
from simtile._lazy import cached_property

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Columns = Mapping[str, Array]  # name → [n, …], all of one length

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
    def id_ends(self) -> tuple[int, int]:
        """The lowest and the highest id, of removed rows too."""
        if isinstance(self.ids, range):
            return self.ids[0], self.ids[-1]
        return int(self.ids.min()), int(self.ids.max())

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


def _part(segment: Segment, rows: Numbers, names: Collection[str] | None) -> Part:
    """Copies of some rows, or views where they are consecutive."""
    index = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
    return Part(
        {
            name: array[index]
            for name, array in segment.columns.items()
            if names is None or name in names
        },
        take(segment.id_room, rows),
        take(segment.position_room, rows),
    )


def take(numbers: Numbers, rows: Numbers) -> Int64s:
    if isinstance(numbers, range):
        return as_array(rows) + numbers.start
    return numbers[rows.start : rows.stop] if isinstance(rows, range) else numbers[rows]
