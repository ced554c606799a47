"""An index that finds candidates in small codes and scores them again in larger ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import (
    _cascade_bounds,
    _files,
    _index_search,
    _inputs,
    _search_call,
    _vectors,
)
from simtile._encoding import Encoding
from simtile._index import DocumentIndex, damaged
from simtile._search_call import Operands
from simtile._snapshot import Snapshot
from simtile.quantized import PER_DIMENSION, Quantized

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Metric = Literal["cosine", "dot", "l2"]

# Candidates for each of the k that are wanted, by what a stage stores: measured, see the README of
# topk. Hamming distances of bits are the coarsest.
OVERSAMPLE = {"binary": 40, "int4": 8, "int4_vector": 8}
OTHER_OVERSAMPLE = 3
# Beyond this share of the documents a stage is passed over where a search is certified: the next
# one reads all of them in less time than it takes to pick them one by one.
MOST_WIDENED = 0.25


class Stage(NamedTuple):
    """What one stage of a search did."""

    dtype: str
    documents: int  # scored, over all queries
    kept: int  # handed on, for each query at most
    seconds: float


class Explanation(NamedTuple):
    """What a search did; `widened` is there where a bound was not met at first."""

    stages: list[Stage]
    widened: list[Stage]


class CascadeIndex(DocumentIndex):
    """Documents in several forms, from small to exact; a search goes through them in this order.

    The first stage looks at all documents and hands its best on; each further one scores only what
    it was handed. The last stage's scores are returned.

    Parameters
    ----------
    dim : int
    stages : sequence of str
        Two or more of `FlatIndex`'s dtypes, for example ("binary", "int8") or ("binary", "int8",
        "float32"). "binary" compares bits with bits and can only come first.
    oversample : sequence of float, optional
        For each stage but the last, how many times k documents it hands on, at least 1.
    metric : "cosine", "dot" or "l2"
    ranges : float [2, dim], optional
        As for `FlatIndex`, for all stages that have ranges.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.

    Notes
    -----
    Adding, removing, files, and searching from several threads: as `FlatIndex`. A mapped file's
    later stages are read only where candidates lie.

    Examples
    --------
    >>> index = simtile.CascadeIndex(768, ("binary", "int8"))
    >>> index.add(embeddings)
    >>> scores, ids = index.search(queries, 10)
    """

    FILE_KIND = "CascadeIndex"

    def __init__(
        self,
        dim: int,
        stages: Sequence[str] = ("binary", "int8"),
        *,
        oversample: Sequence[float] | None = None,
        metric: Metric = "cosine",
        ranges: npt.ArrayLike | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(_encodings(dim, stages, metric, ranges))
        if str(device) != "cpu":
            raise ValueError(f"device: found {str(device)!r}, expected 'cpu'")
        self._oversample = _check_oversample(oversample, self.stages)
        self._measured: tuple[Snapshot, list[_cascade_bounds.Form]] | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """What is stored of every document."""
        return tuple(encoding.dtype for encoding in self._encodings)

    @property
    def oversample(self) -> tuple[float, ...]:
        """How many times k documents a stage hands on, for each but the last."""
        return self._oversample

    def __repr__(self) -> str:
        return (
            f"CascadeIndex({self.dim}, {self.stages!r}, oversample={self.oversample}, "
            f"metric={self.metric!r}; {len(self)} documents, {self.nbytes} bytes)"
        )

    def search(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        k: int,
        *,
        allow: Any = None,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
        explain: bool = False,
        certify: bool = False,
    ) -> tuple[Any, ...]:
        """The best k documents of those that every stage handed on.

        Parameters
        ----------
        queries : array or torch.Tensor [Q, D]
            Floats.
        k, allow, nan, threads
            As `FlatIndex.search`. ``allow`` holds at every stage.
        explain : bool
            Return also what every stage did.
        certify : bool
            Prove, from bounds on how far the stages' forms of the documents are apart, that no
            other document belongs to the best k by the last stage's scores; where that cannot be
            proved, widen the search until it is: results are then those of a `FlatIndex` of the
            last stage. The first such search after a change reads all documents. With bits in the
            first stage the bounds are seldom met, and the next stage reads all documents.

        Returns
        -------
        scores : float32 [Q, k]
        ids : int64 [Q, k]
            As `FlatIndex.search`.
        certified : bool [Q], with ``certify``
            Whether the first candidates were proved to hold the best k, without widening.
        explanation : Explanation, with ``explain``
        """
        count = _search_call.check_k(k)
        run = _Run(self, queries, nan, allow, _inputs.check_threads(threads))
        kept, scores, ids = None, None, None
        reports, last_kept = [], []
        for stage, encoding in enumerate(self._encodings):
            started = time.perf_counter()
            wanted = count if stage == len(self._oversample) else self._handed_on(stage, count)
            documents = len(run.snapshot) * run.queries if kept is None else int((kept >= 0).sum())
            scores, ids = run.topk(stage, wanted, kept)
            kept = ids
            last_kept.append(scores[:, -1])
            reports.append(Stage(encoding.dtype, documents, wanted, time.perf_counter() - started))
        results: list[Any] = [scores, ids]
        widened: list[Stage] = []
        if certify:
            certified = self._certify(run, count, results, last_kept, widened)
            results.append(certified)
        found = _index_search.like_queries(queries, *results)
        return (*found, Explanation(reports, widened)) if explain else found

    def score(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        ids: npt.ArrayLike | torch.Tensor,
        *,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
    ) -> Any:
        """The last stage's scores of documents that were found elsewhere: `FlatIndex.score`."""
        run = _Run(self, queries, nan, None, _inputs.check_threads(threads))
        rows = _index_search.candidate_rows(run.snapshot, ids, run.queries)
        return _index_search.like_queries(queries, run.score(rows))[0]

    def range_search(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        threshold: float,
        *,
        allow: Any = None,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
    ) -> tuple[Any, Any, Any]:
        """All documents within a threshold of the last stage's scores: `FlatIndex.range_search`.

        The last stage reads all documents.
        """
        limit = _search_call.check_threshold(threshold)
        run = _Run(self, queries, nan, allow, _inputs.check_threads(threads))
        return _index_search.like_queries(queries, *run.range(len(self.stages) - 1, limit))

    def save(self, path: _files.PathLike) -> None:
        """Write the index to a file: `FlatIndex.save`."""
        self._save(path, {"stages": list(self.stages), "oversample": list(self.oversample)})

    @classmethod
    def load(
        cls,
        path: _files.PathLike,
        mmap: bool = True,
        *,
        verify: Literal["header", "full"] | None = None,
        device: str = "cpu",
    ) -> CascadeIndex:
        """Open a file that `save` wrote: `FlatIndex.load`."""
        contents = _files.read(path, cls.FILE_KIND, map_file=bool(mmap), verify=verify)
        described = contents.attributes
        try:
            index = cls(
                described.get("dim"),  # type: ignore[arg-type]
                described.get("stages"),  # type: ignore[arg-type]
                oversample=described.get("oversample"),
                metric=described.get("metric"),  # type: ignore[arg-type]
                device=device,
            )
        except (TypeError, ValueError) as error:
            raise damaged(path, str(error)) from None
        index._restore(path, contents, whole=verify == "full" or not mmap)
        return index

    def _check_documents(self, x: Any) -> _vectors.Rows | Quantized:
        if isinstance(x, Quantized):
            raise ValueError(
                f"x: found {x!r}, expected floats [N, {self.dim}]: each stage stores codes of its "
                "own"
            )
        return self._encodings[-1].check_documents(x)

    def _handed_on(self, stage: int, k: int) -> int:
        return max(k, int(np.ceil(k * self._oversample[stage])))

    def _forms(self, snapshot: Snapshot) -> list[_cascade_bounds.Form]:
        if self._measured is None or self._measured[0] is not snapshot:
            self._measured = (snapshot, _cascade_bounds.measure(self._encodings, snapshot))
        return self._measured[1]

    def _certify(
        self,
        run: _Run,
        k: int,
        results: list[Any],
        last_kept: list[Array],
        widened: list[Stage],
    ) -> npt.NDArray[np.bool_]:
        """Which results are proved; those that are not are replaced in `results` by such."""
        certified = np.ones(run.queries, bool)
        if len(run.snapshot) == 0:
            return certified
        forms = self._forms(run.snapshot)
        floats = run.floats()
        ascending = self.metric == "l2"
        # A place that no document took: all that are allowed were handed on.
        worst = results[0][:, -1].astype(np.float64)
        bounds = [
            _cascade_bounds.Bounds(encoding, form, self._encodings[-1], forms[-1], floats)
            for encoding, form in zip(self._encodings[:-1], forms[:-1], strict=True)
        ]
        for bound, kept in zip(bounds, last_kept, strict=False):
            hamming = bound.encoding.metric == "hamming"
            none = np.iinfo(np.int32).max if hamming else np.inf if ascending else -np.inf
            left_out = kept != none
            best = bound.better_than(np.where(left_out, kept, 0).astype(np.float64))
            proved = best > worst if ascending else best < worst
            certified &= ~left_out | proved
        open_queries = np.flatnonzero(~certified & run.searched)
        if len(open_queries):
            self._widen(run, k, results, bounds, worst, open_queries, widened)
        return certified

    def _widen(
        self,
        run: _Run,
        k: int,
        results: list[Any],
        bounds: list[_cascade_bounds.Bounds],
        worst: npt.NDArray[np.float64],
        left: Int64s,
        widened: list[Stage],
    ) -> None:
        """Search again for some queries, among all documents that can be as good as their k-th."""
        most = MOST_WIDENED * len(run.snapshot)
        for stage, bound in enumerate(bounds):
            started = time.perf_counter()
            limits = bound.needed(worst)
            possible = left[np.isfinite(limits[left]) & np.isfinite(worst[left])]
            done = []
            for query in possible:
                one = run.only(query)
                counted, _, ids = one.range(stage, float(limits[query]))
                if counted[-1] <= most:
                    scores, best = one.topk(len(bounds), k, ids[None, :])
                    results[0][query], results[1][query] = scores[0], best[0]
                    done.append(query)
            if len(possible):
                widened.append(
                    Stage(
                        bound.encoding.dtype,
                        len(run.snapshot) * len(possible),
                        len(done),
                        time.perf_counter() - started,
                    )
                )
            left = np.setdiff1d(left, np.array(done, np.int64))
        if len(left):
            started = time.perf_counter()
            rest = run.only(left)
            results[0][left], results[1][left] = rest.topk(len(bounds), k, None)
            widened.append(
                Stage(
                    self.stages[-1], len(run.snapshot) * len(left), k, time.perf_counter() - started
                )
            )


class _Run:
    """One search: a snapshot, its queries in the form of each stage, and what they may find."""

    def __init__(
        self, index: CascadeIndex, queries: Any, nan: str, allow: Any, threads: int
    ) -> None:
        self.snapshot = index._storage.snapshot
        self.encodings = index._encodings
        self.threads = threads
        self.operands = [_operands(encoding, queries, nan) for encoding in self.encodings]
        self.queries = self.operands[-1].query_count
        self.masks = index._masks(self.snapshot, allow, self.queries)

    @property
    def searched(self) -> npt.NDArray[np.bool_]:
        searched = self.operands[-1].searched
        return np.ones(self.queries, bool) if searched is None else searched

    def floats(self) -> npt.NDArray[np.float64]:
        """All queries, zeros where there is NaN."""
        floats = np.zeros((self.queries, self.encodings[-1].dim))
        floats[self.searched] = self.operands[-1].queries
        return floats

    def only(self, queries: Any) -> _Run:
        """The same search for some of its queries, none of which has NaN."""
        chosen = np.atleast_1d(queries)
        place = np.cumsum(self.searched) - 1
        part = object.__new__(_Run)
        part.snapshot, part.encodings, part.threads = self.snapshot, self.encodings, self.threads
        part.operands = [
            replace(operands, queries=operands.queries[place[chosen]], searched=None)
            for operands in self.operands
        ]
        part.queries = len(chosen)
        part.masks = [
            mask[chosen] if mask is not None and mask.ndim == 2 else mask for mask in self.masks
        ]
        return part

    def topk(self, stage: int, k: int, candidates: Int64s | None) -> tuple[Array, Int64s]:
        """The best k of a stage: scores and ids; of candidates, ids [Q, C], where given."""
        rows = None if candidates is None else self._rows(candidates)
        parts = []
        for segment, mask in zip(self.snapshot.segments, self.masks, strict=True):
            local = None if rows is None else self.snapshot.local_rows(segment, rows)
            scores, found = _search_call.topk_rows(
                self._of(stage, segment), k, mask, segment.rank, local, self.threads
            )
            parts.append((scores, segment.external_ids(found)))
        return _index_search.best_of(parts, self.operands[stage], k)

    def range(self, stage: int, threshold: float) -> tuple[Int64s, Array, Int64s]:
        parts = []
        for segment, mask in zip(self.snapshot.segments, self.masks, strict=True):
            offsets, scores, found = _search_call.range_rows(
                self._of(stage, segment), threshold, mask, segment.rank, self.threads
            )
            parts.append((offsets, scores, segment.external_ids(found)))
        return _index_search.all_of(parts, self.operands[stage])

    def score(self, rows: Int64s) -> Array:
        """The last stage's scores of rows of the index [Q, C]."""
        operands = self.operands[-1]
        worst = _search_call.WORST[operands.documents.metric]
        scores = np.full(rows.shape, worst, operands.score_dtype)
        for segment in self.snapshot.segments:
            local = self.snapshot.local_rows(segment, rows)
            here = local >= 0
            if here.any():
                found = _search_call.score_rows(self._of(-1, segment), local, self.threads)
                scores[here] = found[here]
        return scores

    def _rows(self, ids: Int64s) -> Int64s:
        rows = np.full(ids.shape, -1, np.int64)
        given = ids >= 0
        rows[given] = self.snapshot.find(ids[given])
        return rows

    def _of(self, stage: int, segment: Any) -> Operands:
        documents = self.encodings[stage].documents(segment.columns)
        return replace(self.operands[stage], documents=documents)


def _operands(encoding: Encoding, queries: Any, nan: str) -> Operands:
    """Queries in the form of a stage, with no documents yet."""
    none = encoding.documents(encoding.empty())
    if encoding.metric != "hamming":
        return _search_call.prepare_queries(queries, none, nan)
    bits, searched = _index_search.packed_queries(queries, encoding.dim, nan)
    return replace(_search_call.prepare_queries(bits, none, nan), searched=searched)


def _encodings(dim: int, stages: Sequence[str], metric: str, ranges: Any) -> tuple[Encoding, ...]:
    if isinstance(stages, str) or not isinstance(stages, Sequence) or len(stages) < 2:
        raise ValueError(
            f"stages: found {stages!r}, expected two or more dtypes, for example "
            "('binary', 'int8'); for one use FlatIndex"
        )
    _inputs.check_choice("metric", metric, ("cosine", "dot", "l2"))
    encodings = []
    for i, dtype in enumerate(stages):
        if dtype == "binary" and i > 0:
            raise ValueError(
                f"stages: found 'binary' at {i}, expected it first: it is the coarsest"
            )
        of_stage = ranges if dtype in PER_DIMENSION else None
        own: Any = "hamming" if dtype == "binary" else metric
        encodings.append(replace(Encoding.of(dim, dtype, own, of_stage), prefix=f"stage{i}_"))
    if ranges is not None and all(encoding.ranges is None for encoding in encodings):
        raise ValueError(f"ranges: found some for stages {tuple(stages)!r}, which have none")
    return tuple(encodings)


def _check_oversample(oversample: Any, stages: tuple[str, ...]) -> tuple[float, ...]:
    if oversample is None:
        return tuple(float(OVERSAMPLE.get(dtype, OTHER_OVERSAMPLE)) for dtype in stages[:-1])
    wanted = f"expected {len(stages) - 1} numbers of at least 1, one for each stage but the last"
    if isinstance(oversample, (int, float)) and not isinstance(oversample, bool):
        oversample = (oversample,)
    try:
        factors = tuple(float(factor) for factor in oversample)
    except (TypeError, ValueError):
        raise ValueError(f"oversample: found {oversample!r}, {wanted}") from None
    if len(factors) != len(stages) - 1 or not all(1 <= factor < 1e9 for factor in factors):
        raise ValueError(f"oversample: found {oversample!r}, {wanted}")
    return factors
