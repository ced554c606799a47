"""Batches whose rows are no false negatives of each other: found, and made.

In-batch negatives take every other row's document for wrong. Where two rows share what their
documents say, a policy, a page, a label, each is taught to be far from what answers it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _tensors

__all__ = ["BatchAudit", "DistinctIdsBatchSampler", "audit_batch"]

SHOWN = 10  # ids of an audit that its text names


@dataclass(frozen=True)
class BatchAudit:
    """What `audit_batch` found; prints as a sentence, and iterates over the pairs.

    Attributes
    ----------
    rows : int
        Of the batch.
    groups : dict
        For every id that occurs more than once its rows, ascending.

    Examples
    --------
    >>> import simtile
    >>> audit = simtile.batches.BatchAudit(3, {"returns": [0, 1]})
    >>> len(audit), audit.affected
    (1, 2)
    """

    rows: int
    groups: dict[Hashable, list[int]]

    @property
    def pairs(self) -> npt.NDArray[np.int64]:
        """int64 [P, 2]: all pairs (i, j), i < j, that share an id, in ascending order."""
        parts = [np.empty((0, 2), np.int64)]
        for own in self.groups.values():
            at = np.asarray(own, np.int64)
            first, second = np.triu_indices(len(at), 1)
            parts.append(np.stack([at[first], at[second]], axis=1))
        found = np.concatenate(parts)
        return found[np.lexsort((found[:, 1], found[:, 0]))]

    @property
    def affected(self) -> int:
        """Rows that have a false negative in the batch."""
        return sum(len(own) for own in self.groups.values())

    def __len__(self) -> int:
        """The number of pairs."""
        return sum(len(own) * (len(own) - 1) // 2 for own in self.groups.values())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (tuple(pair) for pair in self.pairs.tolist())

    def __str__(self) -> str:
        if not self.groups:
            return f"none of {self.rows} rows would be each other's false negatives"
        named = [
            f"row {' ↔ row '.join(map(str, own[:SHOWN]))}"
            f"{f' and {len(own) - SHOWN} more' if len(own) > SHOWN else ''} (id {name!r})"
            for name, own in list(self.groups.items())[:SHOWN]
        ]
        if len(self.groups) > SHOWN:
            named.append(f"{len(self.groups) - SHOWN} more ids")
        return (
            f"{self.affected} of {self.rows} rows would be each other's false negatives: "
            + ", ".join(named)
        )


def audit_batch(ids: Any) -> BatchAudit:
    """Which rows of a batch would be each other's false negatives.

    Parameters
    ----------
    ids : integers [N], or a sequence of N hashable values
        What a row's document says: rows with equal ids must not be each other's negatives. Arrays,
        tensors, lists.

    Returns
    -------
    BatchAudit
        ``list(audit)`` are the pairs (i, j), i < j; ``len(audit)`` is their number, ``str(audit)``
        says it in words. False where there are none.

    Raises
    ------
    TypeError, ValueError
        ``ids`` is not one-dimensional, or has values that cannot be hashed, or NaN.

    Notes
    -----
    ``info_nce(..., query_ids=ids)`` takes such pairs out of the loss, and
    `DistinctIdsBatchSampler` makes batches that have none.

    Examples
    --------
    >>> import simtile
    >>> audit = simtile.audit_batch(["returns", "returns", "shipping"])
    >>> list(audit)
    [(0, 1)]
    >>> print(audit)
    2 of 3 rows would be each other's false negatives: row 0 ↔ row 1 (id 'returns')
    """
    groups = _groups(ids)
    return BatchAudit(
        sum(len(own) for own in groups.values()),
        {name: own for name, own in groups.items() if len(own) > 1},
    )


class DistinctIdsBatchSampler:
    """Batches in which no id occurs twice: a ``batch_sampler`` of torch's ``DataLoader``.

    Parameters
    ----------
    ids : integers [N], or a sequence of N hashable values
        Of the rows of the dataset, as in :func:`audit_batch`.
    batch_size : int
    drop_last : bool
        False: every row is in exactly one batch of an epoch, and there are no more batches than
        that needs, the larger of ⌈N / batch_size⌉ and the rows of the most frequent id. Batches
        are full while there are enough different ids; where one id dominates the last ones are
        small, down to one row. True: full batches only, as many as can be made, each row at most
        once an epoch; which are left out changes with the epoch.
    seed : int
        The order depends on it and on the epoch alone.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.

    Notes
    -----
    An epoch takes time in proportion to N, whatever the ids. ``set_epoch`` chooses the next one's
    order, as transformers and accelerate do; without it each pass has the same.

    Examples
    --------
    >>> import simtile
    >>> sampler = simtile.DistinctIdsBatchSampler([0, 0, 1, 1, 2, 2], batch_size=3)
    >>> [len(batch) for batch in sampler]
    [3, 3]
    >>> sampler.set_epoch(1)
    """

    def __init__(
        self, ids: Any, batch_size: int, *, drop_last: bool = False, seed: int = 0
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, None)):
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name}: found {value!r}, expected an int")
            if least is not None and value < least:
                raise ValueError(f"{name}: found {value}, expected at least {least}")
        self._groups = list(_groups(ids).values())
        self._rows = sum(map(len, self._groups))
        self.batch_size, self.drop_last = int(batch_size), bool(drop_last)
        self.seed, self.epoch = int(seed), 0
        counts = np.array([len(own) for own in self._groups], np.int64)
        self._batches = (_full_batches if drop_last else _batches)(counts, self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        """The exact number of batches of an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        chance = random.Random(f"{self.seed} {self.epoch}")  # as a text: no two pairs are one
        queues = [chance.sample(own, len(own)) for own in self._groups]
        if self.drop_last:
            queues = _kept(queues, self._batches, self._batches * self.batch_size, chance)
        stream = [group for group, queue in enumerate(queues) for _ in queue]
        chance.shuffle(stream)
        for groups in _Schedule(stream, len(queues)).batches(self._batches, self.batch_size):
            chance.shuffle(groups)
            yield [queues[group].pop() for group in groups]


def _groups(ids: Any) -> dict[Hashable, list[int]]:
    """The rows of every id, in the order in which ids first occur."""
    values: Any = _tensors.as_array(ids) if _tensors.is_tensor(ids) else ids
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(
                f"ids: found {values.dtype} {list(values.shape)}, expected [N], one id for each row"
            )
        values = values.tolist()
    elif isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"ids: found {type(ids).__name__}, expected a sequence of N ids")
    groups: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        if value != value:
            raise ValueError(f"ids: found NaN for row {row}, which equals nothing")
        try:
            groups.setdefault(value, []).append(row)
        except TypeError:
            raise TypeError(
                f"ids: found {type(value).__name__} for row {row}, expected a hashable value, such "
                "as an int or a str"
            ) from None
    return groups


def _batches(counts: npt.NDArray[np.int64], size: int) -> int:
    """The fewest batches that hold every row."""
    return max(-(-int(counts.sum()) // size), int(counts.max(initial=0)))


def _full_batches(counts: npt.NDArray[np.int64], size: int) -> int:
    """The most batches of `size` different ids each.

    T of them can be made if the rows suffice of which no id has more than T.
    """
    low, high = 0, int(counts.sum()) // size
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) >= middle * size:
            low = middle
        else:
            high = middle - 1
    return low


def _kept(queues: list[list[int]], most: int, rows: int, chance: random.Random) -> list[list[int]]:
    """As many of the rows as are asked for, at most `most` of each id."""
    usable = [(group, row) for group, queue in enumerate(queues) for row in queue[:most]]
    kept: list[list[int]] = [[] for _ in queues]
    for group, row in chance.sample(usable, rows):
        kept[group].append(row)
    return kept


class _Schedule:
    """Groups for batch after batch, each group at most once in a batch.

    Groups come in the order of `stream`, which has one entry for each row. Two rules keep it to the
    number of batches: a group with as many rows left as there are batches is in all of them, and a
    batch is filled up while there are rows of other groups.
    """

    def __init__(self, stream: list[int], groups: int) -> None:
        self._stream, self._place = stream, 0
        self._left = [0] * groups
        for group in stream:
            self._left[group] += 1
        # By rows left; dictionaries as sets that keep their order.
        self._by_left: dict[int, dict[int, None]] = {}
        for group, count in enumerate(self._left):
            self._by_left.setdefault(count, {})[group] = None
        self._waiting = [0] * groups  # rows that the stream gave while their group was in the batch
        self._queue: deque[int] = deque()  # the groups that wait
        self._ahead = [0] * groups  # rows that were taken before the stream gave them

    def batches(self, count: int, size: int) -> Iterator[list[int]]:
        for remaining in range(count, 0, -1):
            batch: dict[int, None] = {}
            for group in list(self._by_left.get(remaining, ())):
                self._take(group, batch)
                if self._waiting[group]:
                    self._waiting[group] -= 1
                else:
                    self._ahead[group] += 1
            self._of_waiting(batch, size)
            self._of_stream(batch, size)
            yield list(batch)

    def _take(self, group: int, batch: dict[int, None]) -> None:
        batch[group] = None
        del self._by_left[self._left[group]][group]
        self._left[group] -= 1
        self._by_left.setdefault(self._left[group], {})[group] = None

    def _of_waiting(self, batch: dict[int, None], size: int) -> None:
        for _ in range(len(self._queue)):
            if len(batch) == size:
                return
            group = self._queue.popleft()
            if self._waiting[group] and group not in batch:
                self._take(group, batch)
                self._waiting[group] -= 1
            if self._waiting[group]:
                self._queue.append(group)

    def _of_stream(self, batch: dict[int, None], size: int) -> None:
        while len(batch) < size and self._place < len(self._stream):
            group = self._stream[self._place]
            self._place += 1
            if self._ahead[group]:
                self._ahead[group] -= 1
            elif group not in batch:
                self._take(group, batch)
            else:
                if not self._waiting[group]:
                    self._queue.append(group)
                self._waiting[group] += 1
