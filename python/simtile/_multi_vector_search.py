"""One search of an index of token vectors: MaxSim of each segment, and the best k."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _maxsim_codes, _maxsim_run, _vectors
from simtile._encoding import FLOATS, Encoding
from simtile._id_map import is_ascending
from simtile._index_search import Search
from simtile._maxsim_codes import Coded
from simtile._maxsim_run import Found, Options
from simtile._maxsim_sides import Side
from simtile._multi_vector_device import TokenDevice
from simtile._multi_vector_inputs import Queries
from simtile._token_storage import State, Tokens
from simtile.quantized import Quantized

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SCORES = 1 << 22  # of all queries together that are held before the best of them are chosen
_NO_OFFSETS = np.zeros(1, np.int64)


class MultiVectorSearch:
    """A search of one state of an index."""

    def __init__(
        self,
        state: State,
        device: TokenDevice | None,
        queries: Queries,
        empty_score: float,
        threads: int,
    ) -> None:
        self.state, self.device, self.queries = state, device, queries
        self.empty_score, self.threads = empty_score, threads

    @property
    def options(self) -> Options:
        """Floats are normalized before; of bits it is their length that is left."""
        encoding = self.state.encoding
        bits = encoding.normalize and encoding.dtype == "binary"
        return Options(normalize=bits, empty_score=self.empty_score)

    def score(self, rows: Int64s, candidates: Int64s | None = None) -> Floats:
        """Scores of rows [R] with all queries, [Q, R].

        With candidates, int64 [Q, C], of those places in `rows` [Q, C]; -inf where -1.
        """
        count = len(self.queries)
        shape = (count, len(rows)) if candidates is None else candidates.shape
        scores = np.full(shape, -np.inf, np.float32)
        if not scores.size:
            return scores
        for segment, here, starts, ends in self.state.runs(rows):
            if candidates is None and len(here) == len(rows):
                return self._run(segment, starts, ends, None)
            if candidates is None:
                scores[:, here] = self._run(segment, starts, ends, None)
            else:
                place = np.full(len(rows) + 1, -1, np.int64)  # the last one is for -1
                place[here] = np.arange(len(here))
                local = place[candidates]
                part = self._run(segment, starts, ends, local)
                scores[local >= 0] = part[local >= 0]
        return scores

    def _run(
        self, segment: Tokens, starts: Int64s, ends: Int64s, candidates: Int64s | None
    ) -> Floats:
        encoding, options = self.state.encoding, self.options
        if self.device is not None and (starts < ends).any():
            return self.device.score(
                self.state.tokens,
                segment,
                encoding,
                self.queries,
                (starts, ends),
                candidates,
                options,
            )
        tokens = segment.operand(encoding)
        if not isinstance(tokens, _vectors.Rows):
            kind = tokens.kind if isinstance(tokens, Quantized) else "residual"
            coded = Coded(tokens, kind, _NO_OFFSETS, None, None, (starts, ends))
            found = _maxsim_codes.run(
                self.queries.given,
                coded,
                candidates,
                options,
                argmax=False,
                token_scores=False,
                backend="cpu",
                threads=self.threads,
            )
            coded_scores: Floats = found.scores
            return coded_scores
        count = len(starts) if candidates is None else candidates.shape[1]
        found = Found(np.empty((len(self.queries), count), np.float32), None, None)
        documents = side_of(tokens, starts, ends)
        _maxsim_run.score(self.queries.side, documents, candidates, options, found, self.threads)
        scores: Floats = found.scores
        return scores

    def topk(self, k: int, allowed: Mask | None) -> tuple[Floats, Int64s]:
        """The best k: scores and ids. `allowed`: of rows, [R] or [Q, R]; None for all."""
        rows = np.arange(self.state.snapshot.rows)
        if allowed is not None:
            anyone = allowed if allowed.ndim == 1 else allowed.any(0)
            rows = np.flatnonzero(anyone)
        each = allowed if allowed is not None and allowed.ndim == 2 else None
        if self.state.encoding.dtype in FLOATS and self.device is None:
            return self._best_floats(k, rows, each)
        return self._best_scored(k, rows, each)

    def _best_floats(self, k: int, rows: Int64s, allowed: Mask | None) -> tuple[Floats, Int64s]:
        """The best k of some rows, as the kernel finds them without a matrix of scores."""
        if not len(rows):
            return none_found(len(self.queries), k)
        ids = self.state.row_ids[rows]
        if not is_ascending(ids):  # the kernel orders equal scores by the place of the document
            order = np.argsort(ids, kind="stable")
            rows, ids = rows[order], ids[order]
        parts = []
        for segment, here, starts, ends in self.state.runs(rows):
            tokens: Any = segment.operand(self.state.encoding)
            scores, places = _maxsim_run.best(
                self.queries.side,
                side_of(tokens, starts, ends),
                None,
                self.options,
                None if allowed is None else np.ascontiguousarray(allowed[:, rows[here]]),
                min(k, len(here)),
                self.threads,
            )
            parts.append((scores, np.where(places < 0, -1, ids[here][places])))
        if len(parts) == 1 and parts[0][0].shape[1] == k:
            return parts[0]
        return _merged(parts, k)

    def _best_scored(self, k: int, rows: Int64s, allowed: Mask | None) -> tuple[Floats, Int64s]:
        """The best k of some rows, from the scores of some of them at a time."""
        count = len(self.queries)
        step = max(1, SCORES // max(count, 1))
        found = none_found(count, k)
        for begin in range(0, len(rows), step):
            chunk = rows[begin : begin + step]
            scores = self.score(chunk)
            if allowed is not None:
                scores[~allowed[:, chunk]] = np.nan
            ids = np.broadcast_to(self.state.row_ids[chunk], scores.shape)
            if begin:
                scores = np.concatenate([found[0], scores], axis=1)
                ids = np.concatenate([found[1], ids], axis=1)
            found = best(scores, ids, k)
        return found

    def rescored(self, ids: Int64s, k: int) -> tuple[Floats, Int64s]:
        """The best k of candidates, ids [Q, C], each once in a row; -1 for none."""
        there = ids >= 0
        chosen = self.state.snapshot.find(ids[there])
        rows, place = np.unique(chosen, return_inverse=True)
        candidates = np.full(ids.shape, -1, np.int64)
        candidates[there] = place.reshape(-1)
        return best(self.score(rows, candidates), ids, k)

    def pooled_topk(self, encoding: Encoding, masks: list[Mask | None], count: int) -> Int64s:
        """The ids of the `count` documents whose pooled vectors are most similar, [Q, count]."""
        search = Search(
            self.state.snapshot, (encoding,), None, self.queries.pooled(), "raise", self.threads
        )
        search.masks = masks
        return search.topk(0, count)[1]


def side_of(tokens: _vectors.Rows, starts: Int64s, ends: Int64s) -> Side:
    """Documents of floats, runs of a segment's rows."""
    starts, ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
    return Side("tokens", tokens, starts, ends, None, None)


def _merged(parts: list[tuple[Floats, Int64s]], k: int) -> tuple[Floats, Int64s]:
    """The best k of what was found in each segment."""
    scores, ids = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return best(scores, ids, k)


def none_found(queries: int, k: int) -> tuple[Floats, Int64s]:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)


def best(scores: Floats, ids: Int64s, k: int) -> tuple[Floats, Int64s]:
    """The best k of scores [Q, C] of ids [Q, C], each once in a row; not where NaN or id -1."""
    found, found_ids = none_found(len(scores), k)
    for q, (row, own) in enumerate(zip(scores, ids, strict=True)):
        places = np.flatnonzero((own >= 0) & ~np.isnan(row))
        if len(places) > k:
            kth = np.partition(row[places], len(places) - k)[len(places) - k]
            places = places[row[places] >= kth]
        places = places[np.lexsort((own[places], -row[places]))][:k]
        found[q, : len(places)] = row[places]
        found_ids[q, : len(places)] = own[places]
    return found, found_ids
