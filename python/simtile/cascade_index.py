"""An index that finds candidates in small codes and scores them again in larger ones."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _cascade_bounds, _files, _index_search, _inputs, _search_call, _vectors
from simtile._encoding import DTYPES, Encoding
from simtile._index import DocumentIndex
from simtile._index_search import Search
from simtile._snapshot import Snapshot
from simtile.ops._topk_call import MOST_K
from simtile.quantized import PER_DIMENSION, Quantized

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Metric = Literal["cosine", "dot", "l2"]

# Candidates for each of the k that are wanted, by what a stage stores: measured, see the README of
# topk. Hamming distances of bits are the coarsest.
OVERSAMPLE = {"binary": 40, "int4": 8, "int4_vector": 8}
OTHER_OVERSAMPLE = 3
# Beyond this share of the documents a stage is passed over where a search is certified: the next
# one reads all of them in less time than it takes to pick them one by one.
MOST_WIDENED = 0.25
SAMPLED = 1000  # documents that tell how large that share will be
TOGETHER = 16  # queries whose documents within a bound are looked for by one reading of all


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
    device : "cpu", "cuda" or "cuda:0", …
        As for `FlatIndex`. Only the first stage's documents are kept on the device or streamed; of
        later stages candidates are copied there by each search. k times the largest oversample is
        at most 65536. With ``certify`` the bounds, and what is found by them, are the CPU's.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.
    RuntimeError, ModuleNotFoundError
        What the device needs is missing.

    Notes
    -----
    Adding, removing, files, and searching from several threads: as `FlatIndex`. A mapped file's
    later stages are read only where candidates lie.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> embeddings = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    >>> index = simtile.CascadeIndex(64, ("binary", "int8"))
    >>> _ = index.add(embeddings)  # the ids that they were given
    >>> scores, ids = index.search(embeddings[:3], 10)
    >>> ids[:, 0]
    array([0, 1, 2])
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
        super().__init__(_encodings(dim, stages, metric, ranges), device)
        self._oversample = _check_oversample(oversample, self.stages)
        # Weakly of which snapshot: it may hold rows that the index no longer needs.
        self._measured: tuple[weakref.ref[Snapshot], list[_cascade_bounds.Form]] | None = None

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
            As `FlatIndex.search`; tensors where queries are, as is `certified`.
        certified : bool [Q], with ``certify``
            Whether the first candidates were proved to hold the best k, without widening.
        explanation : Explanation, with ``explain``
        """
        count = _search_call.check_k(k)
        if isinstance(queries, Quantized):
            raise ValueError(
                f"queries: found {queries!r}, expected floats [Q, {self.dim}]: each stage has a "
                "form of its own of them"
            )
        run = self._begin(queries, nan, allow, threads)
        self._check_kept(run, count)
        results: tuple[Array, Int64s] | None = None
        reports, last_kept = [], []
        for stage, encoding in enumerate(self._encodings):
            started = time.perf_counter()
            wanted = self._kept(run, stage, count)
            candidates = None if results is None else results[1]
            seen = int((candidates >= 0).sum()) if candidates is not None else _seen(run)
            results = run.topk(stage, wanted, candidates)
            last_kept.append((results[0][:, -1], results[1][:, -1]))
            reports.append(Stage(encoding.dtype, seen, wanted, time.perf_counter() - started))
        assert results is not None  # there are two stages or more
        widened: list[Stage] = []
        found: tuple[Any, ...] = results
        if certify:
            certified = self._certify(run, count, results, last_kept[:-1], widened)
            found = (*results, certified)
        found = _index_search.like_queries(queries, *found)
        return (*found, Explanation(reports, widened)) if explain else found

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
        names = ("dim", "stages", "oversample", "metric")
        return cls._load(path, mmap, verify, device, names)

    def _check_documents(self, x: Any) -> _vectors.Rows | Quantized:
        if isinstance(x, Quantized):
            raise ValueError(
                f"x: found {x!r}, expected floats [N, {self.dim}]: each stage stores codes of its "
                "own"
            )
        return self._encodings[-1].check_documents(x)

    def _kept(self, run: Search, stage: int, k: int) -> int:
        """How many documents a stage hands on."""
        if stage == run.last:
            return k
        return max(k, min(int(np.ceil(k * self._oversample[stage])), len(run.snapshot)))

    def _check_kept(self, run: Search, k: int) -> None:
        most = max(self._kept(run, stage, k) for stage in range(run.last + 1))
        if run.devices is not None and most > MOST_K:
            raise ValueError(
                f"k: found {k}, of which a stage hands on {most} documents with oversample "
                f"{self.oversample}, expected at most {MOST_K} on {run.devices[0].device}; "
                "load the index with device='cpu', or with less oversample"
            )

    def _forms(self, run: Search) -> list[_cascade_bounds.Form]:
        measured = self._measured
        if measured is None or measured[0]() is not run.snapshot:
            forms = _cascade_bounds.measure(run.encodings, run.snapshot)
            measured = self._measured = (weakref.ref(run.snapshot), forms)
        return measured[1]

    def _certify(
        self,
        run: Search,
        k: int,
        results: tuple[Array, Int64s],
        last_kept: list[tuple[Array, Int64s]],
        widened: list[Stage],
    ) -> Mask:
        """Which results are proved; those that are not are replaced in `results` by such."""
        certified = np.ones(run.queries, bool)
        if not len(run.snapshot) or not run.queries:
            return certified
        forms = self._forms(run)
        worst = results[0][:, -1].astype(np.float64)
        bounds = [
            _cascade_bounds.Bounds(encoding, form, run.encodings[-1], forms[-1], run.floats)
            for encoding, form in zip(run.encodings[:-1], forms[:-1], strict=True)
        ]
        for stage, (bound, (scores, ids)) in enumerate(zip(bounds, last_kept, strict=True)):
            # Where a place is left, all that are allowed were handed on.
            everything = (ids < 0) | (self._kept(run, stage, k) >= len(run.snapshot))
            proved = bound.excludes(scores.astype(np.float64), worst)
            certified &= bound.known & (everything | proved)
        certified |= ~run.searched
        left = np.flatnonzero(~certified)
        if len(left):
            self._widen(run, k, results, bounds, worst, left, widened)
        return certified

    def _widen(
        self,
        run: Search,
        k: int,
        results: tuple[Array, Int64s],
        bounds: list[_cascade_bounds.Bounds],
        worst: npt.NDArray[np.float64],
        left: Int64s,
        widened: list[Stage],
    ) -> None:
        """Search again for some queries, among all documents that can be as good as their k-th."""
        for stage, bound in enumerate(bounds):
            started = time.perf_counter()
            limits = bound.needed(worst)
            left_here = left[np.isfinite(limits[left]) & np.isfinite(worst[left])]
            chosen = left_here[_share(run, stage, left_here, limits) <= MOST_WIDENED]
            # Side by side those of about the same limit, as the loosest of them serves for all.
            chosen = chosen[np.argsort(limits[chosen], kind="stable")]
            done = []
            for start in range(0, len(chosen), TOGETHER):
                together = chosen[start : start + TOGETHER]
                part = run.only(together, on_cpu=True)
                loosest = _loosest(limits[together], _ascending(run, stage))
                offsets, _, ids = part.range(stage, loosest)
                few = np.diff(offsets) <= MOST_WIDENED * len(run.snapshot)
                found = part.topk(run.last, k, _rows_of(offsets, ids, few))
                for result, better in zip(results, found, strict=True):
                    result[together[few]] = better[few]
                done.append(together[few])
            if len(chosen):
                seconds = time.perf_counter() - started
                seen = len(run.snapshot) * len(chosen)
                widened.append(Stage(bound.encoding.dtype, seen, k, seconds))
                left = np.setdiff1d(left, np.concatenate(done))
        if len(left):
            started = time.perf_counter()
            for result, better in zip(results, run.only(left).topk(run.last, k), strict=True):
                result[left] = better
            seconds = time.perf_counter() - started
            widened.append(Stage(self.stages[-1], len(run.snapshot) * len(left), k, seconds))


def _seen(run: Search) -> int:
    return len(run.snapshot) * run.queries


def _share(
    run: Search, stage: int, queries: Int64s, limits: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """About which share of the documents is within a stage's limit for some queries."""
    if not len(queries):
        return np.empty(0)
    rows = np.linspace(0, run.snapshot.rows - 1, min(SAMPLED, run.snapshot.rows)).astype(np.int64)
    part = run.only(queries, on_cpu=True)
    scores = part.score(stage, np.tile(rows, (len(queries), 1)))
    own = limits[queries, None]
    within = scores <= own if _ascending(run, stage) else scores >= own
    share: npt.NDArray[np.float64] = within.mean(1)
    return share


def _ascending(run: Search, stage: int) -> bool:
    return run.encodings[stage].metric in ("hamming", "l2")


def _loosest(limits: npt.NDArray[np.float64], ascending: bool) -> float:
    """The limit that includes what each of them does, in float32, in which scores are compared."""
    limit = limits.max() if ascending else limits.min()
    away = np.float32(np.inf if ascending else -np.inf)
    with np.errstate(over="ignore"):
        return float(np.nextafter(np.float32(limit), away))


def _rows_of(offsets: Int64s, ids: Int64s, chosen: Mask) -> Int64s:
    """What a range search found as one row for each query, -1 behind it; none if not chosen."""
    counts = np.where(chosen, np.diff(offsets), 0)
    rows = np.full((len(counts), max(1, int(counts.max(initial=0)))), -1, np.int64)
    for query in np.flatnonzero(chosen):
        rows[query, : counts[query]] = ids[offsets[query] : offsets[query + 1]]
    return rows


def _encodings(dim: int, stages: Sequence[str], metric: str, ranges: Any) -> tuple[Encoding, ...]:
    if isinstance(stages, str) or not isinstance(stages, Sequence) or len(stages) < 2:
        raise ValueError(
            f"stages: found {stages!r}, expected two or more dtypes, for example "
            "('binary', 'int8'); for one use FlatIndex"
        )
    _inputs.check_choice("metric", metric, ("cosine", "dot", "l2"))
    encodings = []
    for i, dtype in enumerate(stages):
        _inputs.check_choice(f"stages[{i}]", dtype, DTYPES)
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
    wanted = f"expected numbers of at least 1, {len(stages) - 1}: for each stage but the last"
    if isinstance(oversample, (int, float)) and not isinstance(oversample, bool):
        oversample = (oversample,)
    try:
        factors = tuple(_inputs.to_float("oversample", factor) for factor in oversample)
    except (TypeError, ValueError):
        raise ValueError(f"oversample: found {oversample!r}, {wanted}") from None
    if len(factors) != len(stages) - 1 or not all(1 <= factor < 1e9 for factor in factors):
        raise ValueError(f"oversample: found {oversample!r}, {wanted}")
    return factors
