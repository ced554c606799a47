"""From ids of documents to rows of an index, when ids come in any order and a few at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._lazy import cached_property

Int64s = npt.NDArray[np.int64]
Numbers = range | Int64s  # int64 [n]; consecutive ones need no memory


def as_array(numbers: Numbers) -> Int64s:
    if isinstance(numbers, range):
        return np.arange(numbers.start, numbers.stop, dtype=np.int64)
    return numbers


class IdMap:
    """An immutable map from ids to rows; `add` gives a new one.

    Sorted runs, each at least twice as long as the next: adding m ids to n one at a time costs
    O(log n) each, where one sorted array would cost O(n). An id may be added again with a new row;
    the newest is found.
    """

    def __init__(self, runs: tuple[_Run, ...] = ()) -> None:
        self._runs = runs

    def add(self, ids: Numbers, rows: range) -> IdMap:
        """With the ids, each once, at consecutive rows."""
        runs = [*self._runs]
        added = _Run(ids, rows)
        if runs and (joined := _join(runs[-1], added)):
            return IdMap((*runs[:-1], joined))
        while runs and len(runs[-1]) < 2 * len(added):
            added = _merge(runs.pop(), added)
        return IdMap((*runs, added))

    def check(self) -> None:
        """Raise if a run, that of a file, has an id twice; else it is found when first searched."""
        for run in self._runs:
            if not isinstance(run.ids, range):
                _ = run.sorted

    def find(self, ids: Int64s) -> Int64s:
        """The rows of ids [n], in their shape; -1 for an unknown one."""
        rows = np.full(ids.shape, -1, np.int64)
        for run in reversed(self._runs):  # the newest first
            missing = rows < 0
            if not missing.any():
                break
            rows[missing] = run.find(ids[missing])
        return rows


class _Run:
    """Ids, each once, and their rows. Sorted when first needed: a mapped file opens at once."""

    def __init__(self, ids: Numbers, rows: Numbers) -> None:
        self.ids, self.rows = ids, rows

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def sorted(self) -> tuple[Int64s, Numbers]:
        ids = as_array(self.ids)
        if is_ascending(ids):
            return ids, self.rows
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        if len(ids) > 1 and (twice := ids[1:] == ids[:-1]).any():
            raise ValueError(f"the index has the id {ids[twice.argmax()]} twice: its file is wrong")
        if isinstance(self.rows, range):
            return ids, order + self.rows.start
        return ids, self.rows[order]

    def find(self, ids: Int64s) -> Int64s:
        if isinstance(self.ids, range) and isinstance(self.rows, range):
            inside = (ids >= self.ids.start) & (ids < self.ids.stop)
            return np.where(inside, ids - (self.ids.start - self.rows.start), -1)
        known, rows = self.sorted
        if not len(known):
            return np.full(ids.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        found = known[place] == ids
        at = place + rows.start if isinstance(rows, range) else rows[place]
        return np.where(found, at, -1)


def is_ascending(ids: npt.NDArray[Any]) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def _join(first: _Run, second: _Run) -> _Run | None:
    """Two runs of consecutive ids as one, where the second goes on from the first."""
    if not (isinstance(first.ids, range) and isinstance(first.rows, range)):
        return None
    if not (isinstance(second.ids, range) and isinstance(second.rows, range)):
        return None
    if first.ids.stop != second.ids.start or first.rows.stop != second.rows.start:
        return None
    return _Run(range(first.ids.start, second.ids.stop), range(first.rows.start, second.rows.stop))


def _merge(older: _Run, newer: _Run) -> _Run:
    pieces = [(run.sorted[0], as_array(run.sorted[1])) for run in (older, newer)]
    ids = np.concatenate([piece[0] for piece in pieces])
    rows = np.concatenate([piece[1] for piece in pieces])
    order = np.argsort(ids, kind="stable")  # of equal ids the newer one comes last
    ids, rows = ids[order], rows[order]
    if len(ids):
        last = np.append(ids[1:] != ids[:-1], True)
        ids, rows = ids[last], rows[last]
    return _Run(ids, rows)
