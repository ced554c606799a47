"""Where hard negatives are searched: documents in memory or a mapped file, an index, or lists.

A source numbers documents 0 to M - 1. `search` looks at some of the queries and returns what is
best, best first; larger scores are better, whatever the metric.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simtile import _allow, _inputs, _search_call, _search_operands, _tensors, _vectors, search
from simtile._documents import NumberedDocuments
from simtile._index_search import Search
from simtile._mining_inputs import Ragged, Scored, check_known
from simtile.flat_index import FlatIndex
from simtile.quantized import PER_VECTOR, Quantized

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Chosen = slice | Int64s  # of the queries

METRICS = ("cosine", "dot", "l2")


class Source(Protocol):
    queries: int
    documents: int
    has_scores_of_all: bool  # whether `score` can be asked
    may_repeat: bool  # whether a document may be found twice for a query

    @property
    def known(self) -> str:
        """What numbers the caller may use, for messages."""

    def search(self, chosen: Chosen, count: int) -> tuple[Float32s, Int64s]:
        """The best `count` of each: scores and documents [n, count]; -inf and -1 for none."""

    def score(self, chosen: Chosen, documents: Int64s) -> Float32s:
        """The scores of documents [n, C]; -inf where they are -1."""

    def places(self, ids: Int64s) -> Int64s:
        """The numbers of documents as the caller names them; -1 for an unknown one."""

    def names(self, documents: Int64s) -> Int64s:
        """The reverse of `places`."""


class _Numbered:
    """Documents that the caller numbers 0 to M - 1 as well."""

    queries: int
    documents: int

    @property
    def known(self) -> str:
        return f"0 to {self.documents - 1}, a row of documents"

    def places(self, ids: Int64s) -> Int64s:
        return np.where((ids >= 0) & (ids < self.documents), ids, -1)

    def names(self, documents: Int64s) -> Int64s:
        return documents


class Rows(_Numbered):
    """Arrays, tensors, mapped files, codes."""

    has_scores_of_all = True
    may_repeat = False

    def __init__(
        self,
        queries: Any,
        documents: Any,
        metric: str,
        allow: Any,
        candidates: Ragged | None,
        nan: str,
        threads: int,
    ) -> None:
        self._documents = _search_operands.prepare_documents(documents, metric)
        self._given = as_rows(queries)
        self.queries, self.documents = len(self._given), len(self._documents)
        self._mask = _allow.resolve(allow, self.queries, self.documents)
        self._candidates = _padded_places(self, candidates)
        self._metric, self._nan, self._threads = metric, nan, threads

    def search(self, chosen: Chosen, count: int) -> tuple[Float32s, Int64s]:
        operands, backend = self._operands(chosen)
        mask = _own(self._mask, chosen)
        listed = None if self._candidates is None else self._candidates[chosen]
        if backend == "cuda":
            mask, listed = (
                None if x is None else _tensors.as_tensor(x, operands.gpu) for x in (mask, listed)
            )
        scores, rows = _search_call.topk_rows(
            operands, count, mask, candidates=listed, threads=self._threads, backend=backend
        )
        return similarities(self._metric, scores), _tensors.as_array(rows)

    def score(self, chosen: Chosen, documents: Int64s) -> Float32s:
        operands, backend = self._operands(chosen)
        listed = documents if backend == "cpu" else _tensors.as_tensor(documents, operands.gpu)
        found = _search_call.score_rows(operands, listed, self._threads, backend)
        return similarities(self._metric, found)

    def _operands(self, chosen: Chosen) -> tuple[_search_operands.Operands, str]:
        rows = taken(self._given, chosen)
        operands = _search_operands.prepare_queries(rows, self._documents, "ignore")
        check_nan(operands.searched, chosen, self._nan)
        return operands, search._choose("auto", operands)


class Index:
    """The documents of a `FlatIndex` as they are when mining begins."""

    has_scores_of_all = True
    may_repeat = False
    known = "an id of the index"

    def __init__(
        self,
        queries: Any,
        index: FlatIndex,
        allow: Any,
        candidates: Ragged | None,
        nan: str,
        threads: int,
    ) -> None:
        self._index, self._snapshot = index, index._storage.snapshot
        self._given = as_rows(queries)
        self.queries, self.documents = len(self._given), len(self._snapshot)
        self._mask = _allow.resolve(allow, self.queries, self.documents, self._snapshot.places)
        places = _padded_places(self, candidates)
        self._candidates = None if places is None else self.names(places)
        self._nan, self._threads = nan, threads

    def search(self, chosen: Chosen, count: int) -> tuple[Float32s, Int64s]:
        begun = self._begin(chosen)
        listed = None if self._candidates is None else self._candidates[chosen]
        mask = _own(self._mask, chosen)
        begun.masks = self._index._masks(self._snapshot, mask, begun.queries)
        scores, ids = (_tensors.as_array(x) for x in begun.topk(0, count, listed))
        return similarities(self._index.metric, scores), self.places(ids)

    def score(self, chosen: Chosen, documents: Int64s) -> Float32s:
        rows = np.full(documents.shape, -1, np.int64)
        given = documents >= 0
        rows[given] = self._snapshot.find(self.names(documents[given]))
        return similarities(self._index.metric, self._begin(chosen).score(0, rows))

    def places(self, ids: Int64s) -> Int64s:
        places = np.full(ids.shape, -1, np.int64)
        given = ids >= 0
        places[given] = self._snapshot.places(ids[given])
        return places

    def names(self, documents: Int64s) -> Int64s:
        ids = np.full(documents.shape, -1, np.int64)
        given = documents >= 0
        ids[given] = self._snapshot.ids[documents[given]]
        return ids

    def _begin(self, chosen: Chosen) -> Search:
        index = self._index
        begun = Search(
            self._snapshot,
            index._encodings,
            index._devices,
            taken(self._given, chosen),
            "ignore",
            self._threads,
        )
        check_nan(None if begun.searched.all() else begun.searched, chosen, self._nan)
        return begun


class Lists(_Numbered):
    """Candidates that bring their scores; queries and documents are counted, and not looked at."""

    has_scores_of_all = False
    may_repeat = True

    def __init__(self, queries: Any, documents: Any, candidates: Scored, allow: Any) -> None:
        self.queries, self.documents = len(queries), len(documents)
        rows = candidates.rows
        check_known(
            "candidates",
            Ragged(np.arange(0, rows.size + 1, max(1, rows.shape[1])), rows.ravel()),
            np.where(rows.ravel() == -1, 0, self.places(rows.ravel())),
            f"{self.known}, or -1 for none",
        )
        mask = _allow.resolve(allow, self.queries, self.documents)
        scores = candidates.scores
        if mask is not None:
            whole = np.broadcast_to(mask, (self.queries, self.documents))
            allowed = np.take_along_axis(whole, np.maximum(rows, 0), axis=1) & (rows >= 0)
            order = np.argsort(~allowed, axis=1, kind="stable")
            rows = np.take_along_axis(np.where(allowed, rows, -1), order, axis=1)
            scores = np.take_along_axis(np.where(allowed, scores, -np.inf), order, axis=1)
        self._scores, self._rows = scores.astype(np.float32), rows

    def search(self, chosen: Chosen, count: int) -> tuple[Float32s, Int64s]:
        return _resized(self._scores[chosen], count, -np.inf), _resized(
            self._rows[chosen], count, -1
        )

    def score(self, chosen: Chosen, documents: Int64s) -> Float32s:
        raise NotImplementedError


def similarities(metric: str, scores: Any) -> Float32s:
    """Scores of a search as numbers of which the larger is better."""
    array: Float32s = _tensors.as_array(scores)
    return -np.sqrt(array) if metric == "l2" else array


def check_nan(searched: Any, chosen: Chosen, nan: str) -> None:
    """Raise if a query has NaN and that is an error; `searched`: those without, None for all."""
    if nan != "raise" or searched is None:
        return
    missing = np.flatnonzero(~_tensors.as_array(searched))
    first = missing[0] + chosen.start if isinstance(chosen, slice) else chosen[missing[0]]
    raise ValueError(
        f"queries: found NaN in query {first}, expected numbers, or nan='ignore': then such a "
        "query gets no negatives"
    )


def as_rows(queries: Any) -> Any:
    """Queries of which some can be taken: an array, a tensor, or codes."""
    if isinstance(queries, Quantized) or _tensors.is_tensor(queries):
        return queries
    array = _tensors.to_array("queries", queries)
    if array.ndim != 2:
        _vectors.read("queries", array, "N")  # raises
    return array


def taken(queries: Any, chosen: Chosen) -> Any:
    if not isinstance(queries, Quantized) or isinstance(chosen, slice):
        return queries[chosen]
    scale = queries.scale[chosen] if queries.kind in PER_VECTOR else queries.scale
    return Quantized(queries.codes[chosen], scale, queries.offset, queries.dim, queries.kind)


def check_metric(metric: object, documents: Any) -> str:
    """The metric by which documents are searched."""
    if isinstance(documents, FlatIndex):
        own = documents.metric
        if metric is not None and metric != own:
            raise ValueError(
                f"metric: found {metric!r}, expected None or {own!r}, the metric of the index"
            )
        if own not in METRICS:
            raise ValueError(
                f"documents: found an index with metric {own!r}, expected one with 'cosine', 'dot' "
                "or 'l2'"
            )
        return own
    if isinstance(documents, NumberedDocuments):
        raise TypeError(
            f"documents: found a {type(documents).__name__}, expected arrays, a Quantized or a "
            "FlatIndex: other indexes do not score every document"
        )
    if metric is None:
        return "cosine"
    _inputs.check_choice("metric", metric, METRICS)
    return str(metric)


def _own(mask: Any, chosen: Chosen) -> Any:
    return mask if mask is None or mask.ndim == 1 else mask[chosen]


def _padded_places(source: Source, candidates: Ragged | None) -> Int64s | None:
    if candidates is None:
        return None
    places = source.places(candidates.rows)
    return check_known("candidates", candidates, places, source.known).padded()


def _resized(x: Array, count: int, missing: float) -> Array:
    """The first `count` columns, `missing` where there are fewer."""
    x = x[:, :count]
    return np.pad(x, ((0, 0), (0, count - x.shape[1])), constant_values=missing)
