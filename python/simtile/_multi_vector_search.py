"""One search of an index of token vectors: queries, MaxSim of each segment, the best k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import (
    _core,
    _maxsim_codes,
    _maxsim_inputs,
    _tensors,
    _token_encoding,
    _vectors,
)
from simtile._encoding import Encoding
from simtile._index_search import Search
from simtile._maxsim_codes import Coded
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import State, Tokens
from simtile.quantized import Quantized

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SCORES = 1 << 22  # of all queries together that are held before the best of them are chosen
_NO_OFFSETS = np.zeros(1, np.int64)


class Queries:
    """Queries in float32, of length 1 where the index normalizes, and without NaN."""

    def __init__(self, queries: Any, query_mask: Any, encoding: TokenEncoding) -> None:
        if not isinstance(queries, (list, tuple)):
            queries = queries if _tensors.is_tensor(queries) else np.asarray(queries)
            if len(queries.shape) == 2:
                queries = queries[None]
                query_mask = None if query_mask is None else [query_mask]
        given = _maxsim_inputs.given("queries", queries, query_mask, "query_mask")
        self.device = given.x.device if _tensors.is_tensor(given.x) else None
        if given.dim == 0:  # a list of none
            given = given._replace(x=np.zeros((0, encoding.dim), np.float32))
        if given.dim != encoding.dim:
            found = f"{_tensors.dtype_name(given.x)} {list(given.x.shape)}"
            raise ValueError(
                f"queries: found {found}, expected {encoding.dim} dimensions as the index has"
            )
        x = _maxsim_inputs.widen(*_maxsim_inputs.elements(given), "float32")
        mask = None if given.mask is None else _tensors.as_array(given.mask)
        wrong = np.isnan(x).any(-1)
        if mask is not None:
            wrong &= mask
        if wrong.any():
            raise ValueError(
                f"queries: found NaN at {np.argwhere(wrong)[0].tolist()}, expected numbers: "
                "nothing could be compared with it"
            )
        if encoding.normalize:
            rows = _vectors.Rows(x.reshape(-1, encoding.dim), "float32", None)
            with np.errstate(invalid="ignore"):
                x = _token_encoding.normalized(rows).array.reshape(x.shape)
        self.given = given._replace(x=x, mask=mask)
        none = Given("tokens", np.empty((0, encoding.dim), np.float32), np.zeros(1, np.int64), None)
        self.side = _maxsim_inputs.pair_of_sides(self.given, none)[0]

    def __len__(self) -> int:
        return len(self.side)

    def pooled(self) -> Floats:
        """The mean of each query's tokens, [Q, D]."""
        rows, starts, ends, mask = self.side.arguments
        if mask is not None:
            rows = np.where(mask[:, None], rows, np.float32(0))
        return _token_encoding.pooled(_vectors.Rows(rows, "float32", None), starts, ends)


class MultiVectorSearch:
    """A search of one state of an index."""

    def __init__(self, state: State, queries: Queries, empty_score: float, threads: int) -> None:
        self.state, self.queries = state, queries
        self.empty_score, self.threads = empty_score, threads

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
        encoding = self.state.encoding
        tokens = segment.operand(encoding)
        if not isinstance(tokens, _vectors.Rows):
            # Floats are normalized before; of bits it is their length that is left.
            options = Options(
                normalize=encoding.normalize and encoding.dtype == "binary",
                empty_score=self.empty_score,
            )
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
        scores = np.empty((len(self.queries), count), np.float32)
        arguments: list[Any] = [
            tokens.kind,
            *self.queries.side.arguments,
            tokens.array,
            np.ascontiguousarray(starts),
            np.ascontiguousarray(ends),
            None,
            False,  # normalized before
            False,
            False,
            self.empty_score,
            0.0,
            candidates,
            scores,
            None,
            None,
            self.threads,
        ]
        _core.maxsim(*arguments)
        return scores

    def topk(self, k: int, allowed: Mask | None) -> tuple[Floats, Int64s]:
        """The best k: scores and ids. `allowed`: of rows, [R] or [Q, R]; None for all."""
        rows = np.arange(self.state.snapshot.rows)
        if allowed is not None:
            anyone = allowed if allowed.ndim == 1 else allowed.any(0)
            rows = np.flatnonzero(anyone)
        count = len(self.queries)
        step = max(1, SCORES // max(count, 1))
        found = none_found(count, k)
        for begin in range(0, len(rows), step):
            chunk = rows[begin : begin + step]
            scores = self.score(chunk)
            if allowed is not None and allowed.ndim == 2:
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


def pooled_encoding(dim: int) -> Encoding:
    """How the means of documents' tokens are stored and compared."""
    return replace(Encoding.of(dim, "bfloat16", "cosine"), prefix="pooled_")
