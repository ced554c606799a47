"""Hard negatives of blocks of queries: candidates, what is excluded of them, and what is taken.

The definition is `reference/mining.py`. Memory is that of a block's candidates, and of the results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs
from simtile._mining_inputs import Options, Ragged, call_filter
from simtile._mining_sources import Float32s, Int64s, Source

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Filter = Callable[[int, Int64s], Any]

# Of candidates of a block: some 40 bytes each while they are sorted out.
MOST_CANDIDATES = 1 << 21
MOST_QUERIES = 4096
# Where one search found too few different documents, the next looks at this many times as many.
WIDER = 4


class Mined(NamedTuple):
    """What was found; documents are numbered as the source's callers do."""

    indices: Int64s  # [N, k], -1 for none
    scores: Float32s  # [N, k], -inf for none
    positive_scores: Float32s | None  # of every positive, where they were asked for
    refused: dict[str, int]  # candidates that each limit removed
    candidates: int  # that were looked at


@dataclass
class Miner:
    """All that stays the same from block to block.

    `groups`: equal numbers for documents with equal ids, None if all differ; `distinct`: whether a
    query gets at most one document of each; `sample`: `random.Random.sample`.
    """

    source: Source
    positives: Ragged  # documents as the source numbers them
    options: Options
    groups: Int64s | None = None
    distinct: bool = True
    filter: Filter | None = None
    sample: Callable[[range, int], list[int]] | None = None
    nan: str = "raise"
    want_positive_scores: bool = False

    def run(self, block: int, report: Callable[[int, int], object]) -> Mined:
        queries, k = self.source.queries, self.options.k
        indices = np.full((queries, k), -1, np.int64)
        scores = np.full((queries, k), -np.inf, np.float32)
        wanted = self.want_positive_scores
        positive_scores = np.zeros(len(self.positives.rows), np.float32) if wanted else None
        refused: dict[str, int] = {}
        self._rescores: bool | None = None  # whether the filter gives scores; None: not known yet
        report(0, queries)
        for begin in range(0, queries, block):
            part = slice(begin, min(begin + block, queries))
            found, documents, own_scores = self._mine(part, refused)
            scores[part], indices[part] = found, self.source.names(documents)
            if positive_scores is not None and own_scores is not None:
                offsets = self.positives.offsets
                positive_scores[offsets[part.start] : offsets[part.stop]] = own_scores
            report(part.stop, queries)
        looked_at = queries * self.options.window
        return Mined(indices, scores, positive_scores, refused, looked_at)

    def _mine(
        self, part: slice, refused: dict[str, int]
    ) -> tuple[Float32s, Int64s, Float32s | None]:
        """Scores and documents [n, k] of some queries; the scores of their positives."""
        options, positives = self.options, self.positives.part(part.start, part.stop)
        scores, documents = self._candidates(part, positives)
        alive = documents >= 0
        if options.exclude:
            local = np.arange(len(documents))
            alive &= ~self._are_positives(documents, local, positives)
        own: Float32s | None = None
        if (options.has_margin or self.want_positive_scores) and self.source.has_scores_of_all:
            own = self._scores_of_positives(part, positives)
        if self.filter is not None:
            scores, alive, own = self._filtered(
                part.start, scores, documents, alive, positives, own
            )
            if self._rescores:
                order = np.lexsort((self.source.names(documents), -scores, ~alive), axis=1)
                scores = np.take_along_axis(scores, order, axis=1)
                documents = np.take_along_axis(documents, order, axis=1)
                alive = np.take_along_axis(alive, order, axis=1)
        self._limit(part.start, scores, alive, positives, own, refused)
        places, found = self._choose(alive)
        chosen = np.take_along_axis(documents, places, axis=1)
        best = np.take_along_axis(scores, places, axis=1)
        return np.where(found, best, np.float32(-np.inf)), np.where(found, chosen, -1), own

    def _candidates(self, part: slice, positives: Ragged) -> tuple[Float32s, Int64s]:
        """The window of every query, best first, one document of each group."""
        window = self.options.window
        if self.groups is None and not self.source.may_repeat:
            return self.source.search(part, max(1, min(window, self.source.documents)))
        queries = part.stop - part.start
        scores = np.full((queries, window), -np.inf, np.float32)
        documents = np.full((queries, window), -1, np.int64)
        rest = np.arange(queries)
        count = 2 * window  # most groups are small
        while len(rest):
            step = max(1, MOST_CANDIDATES // count)
            parts = [rest[begin : begin + step] for begin in range(0, len(rest), step)]
            short = [self._once(part, x, count, positives, scores, documents) for x in parts]
            rest = np.concatenate(short)
            count *= WIDER
        return scores, documents

    def _once(
        self,
        part: slice,
        local: Int64s,
        count: int,
        positives: Ragged,
        scores: Float32s,
        documents: Int64s,
    ) -> Int64s:
        """One search for some queries of a block, into their rows; those that need a wider one."""
        window, most = self.options.window, self.source.documents
        if not self.source.may_repeat:
            count = max(1, min(count, most))
        found, rows = self.source.search(part.start + local, count)
        keys = self._names(rows)
        if not self.distinct:  # only the positives' groups count as one
            keys = np.where(self._are_positives(rows, local, positives), keys, most + rows)
        numbered = np.arange(len(local))[:, None] * np.int64(2 * most + 1) + keys
        first = np.zeros(rows.size, bool)
        first[np.unique(numbered, return_index=True)[1]] = True
        first = first.reshape(rows.shape) & (rows >= 0)
        order = np.argsort(~first, axis=1, kind="stable")[:, :window]
        kept = np.take_along_axis(first, order, axis=1)
        into = local[:, None], np.arange(order.shape[1])
        scores[into] = np.where(kept, np.take_along_axis(found, order, axis=1), -np.inf)
        documents[into] = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
        exhausted = rows[:, -1] < 0
        if not self.source.may_repeat:
            exhausted |= count >= most
        short: Int64s = local[~exhausted & (first.sum(axis=1) < window)]
        return short

    def _scores_of_positives(self, part: slice, positives: Ragged) -> Float32s:
        given = positives.padded()
        if given.shape[1] == 0:
            return np.empty(0, np.float32)
        return self.source.score(part, given)[given >= 0]

    def _names(self, documents: Int64s) -> Int64s:
        """Equal for documents that are one by their ids."""
        if self.groups is None:
            return documents
        names: Int64s = self.groups[documents]
        return names

    def _are_positives(self, documents: Int64s, local: Int64s, positives: Ragged) -> Mask:
        """Which documents [n, C] of the queries `local` are positives, or have their id."""
        width = np.int64(self.source.documents + 1)
        own = positives.owners() * width + self._names(positives.rows)
        return np.isin(local[:, None] * width + self._names(documents), own)

    def _filtered(
        self,
        start: int,
        scores: Float32s,
        documents: Int64s,
        alive: Mask,
        positives: Ragged,
        own: Float32s | None,
    ) -> tuple[Float32s, Mask, Float32s | None]:
        """Scores and `alive` after the caller's function, and the scores of the positives."""
        assert self.filter is not None
        scores, alive = scores.copy(), alive.copy()
        wants_own = self.options.has_margin or self.want_positive_scores
        again = np.zeros(len(positives.rows), np.float32)
        for i in range(len(documents)):
            places = np.flatnonzero(alive[i])
            if len(places):
                answer = self._ask(start + i, documents[i, places])
                if answer.dtype == np.bool_:
                    alive[i, places] = answer
                else:
                    scores[i, places] = answer
            mine = slice(positives.offsets[i], positives.offsets[i + 1])
            if wants_own and self._rescores is not False and mine.stop > mine.start:
                answer = self._ask(start + i, positives.rows[mine])
                if answer.dtype != np.bool_:
                    again[mine] = answer
        return scores, alive, again if self._rescores and wants_own else own

    def _ask(self, query: int, documents: Int64s) -> Array:
        assert self.filter is not None
        answer = call_filter(self.filter, query, self.source.names(documents))
        rescores = answer.dtype != np.bool_
        if self._rescores is not None and rescores != self._rescores:
            raise TypeError(
                f"filter: found {answer.dtype} for query {query} and the other of bools and floats "
                "for one before, expected one of them for all queries"
            )
        self._rescores = rescores
        return answer

    def _limit(
        self,
        start: int,
        scores: Float32s,
        alive: Mask,
        positives: Ragged,
        own: Float32s | None,
        refused: dict[str, int],
    ) -> None:
        """Remove from `alive` what is too near to the query or too far from it."""
        options = self.options
        limits: list[tuple[str, Mask]] = []
        with np.errstate(invalid="ignore", over="ignore"):
            if options.has_margin:
                worst = self._worst_positives(start, alive, positives, own)[:, None]
            if options.absolute_margin is not None:
                margin = np.float32(options.absolute_margin)
                limits.append(("absolute_margin", scores + margin > worst))
            if options.relative_margin is not None:
                bound = worst - np.abs(worst) * np.float32(options.relative_margin)
                limits.append(("relative_margin", scores > bound))
            if options.max_score is not None:
                limits.append(("max_score", scores > np.float32(options.max_score)))
            if options.min_score is not None:
                limits.append(("min_score", scores < np.float32(options.min_score)))
        for name, beyond in limits:
            refused[name] = refused.get(name, 0) + int((beyond & alive).sum())
            alive &= ~beyond

    def _worst_positives(
        self, start: int, alive: Mask, positives: Ragged, own: Float32s | None
    ) -> Float32s:
        """The least score of each query's positives."""
        name = "absolute_margin" if self.options.absolute_margin is not None else "relative_margin"
        if own is None:
            raise ValueError(
                f"{name}: found it with candidates that bring their scores, which the positives "
                "have not; expected None, or a filter that returns scores"
            )
        none = positives.counts == 0
        if none.any():
            raise ValueError(
                f"{name}: found no positive of query {start + int(none.argmax())}, expected at "
                "least one of each query to keep a distance from"
            )
        worst: Float32s = np.minimum.reduceat(own, positives.offsets[:-1])
        unknown = np.isnan(worst) & alive.any(axis=1)
        if unknown.any() and self.nan == "raise":
            raise ValueError(
                f"documents: found NaN in a positive of query {start + int(unknown.argmax())}, "
                f"expected numbers because of {name}, or nan='ignore': then such a query gets no "
                "negatives"
            )
        alive &= ~np.isnan(worst)[:, None]
        return worst

    def _choose(self, alive: Mask) -> tuple[Int64s, Mask]:
        """Places [n, k] of what is taken of the candidates, and which of them there are."""
        options = self.options
        counts = np.minimum(alive.sum(axis=1), options.range_max) - options.range_min
        places = np.tile(np.arange(options.k), (len(alive), 1))
        if self.sample is not None:
            for i, count in enumerate(counts.tolist()):
                places[i] = sorted(self.sample(range(max(count, options.k)), options.k))
        found = places < counts[:, None]
        order = np.argsort(~alive, axis=1, kind="stable")
        places = np.minimum(places + options.range_min, alive.shape[1] - 1)
        return np.take_along_axis(order, places, axis=1), found


def block_of(block_size: object, window: int) -> int:
    """Queries of a block: the caller's number, or what takes some 100 MB at most."""
    if block_size is None:
        return max(1, min(MOST_QUERIES, MOST_CANDIDATES // window))
    size = _inputs.to_int("block_size", block_size, "an int or None")
    if size < 1:
        raise ValueError(f"block_size: found {size}, expected at least 1")
    return size
