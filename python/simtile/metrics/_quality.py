"""What a smaller index costs: the share of exact search's results that it finds, and measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _search_call, _tensors
from simtile.cascade_index import CascadeIndex
from simtile.flat_index import FlatIndex
from simtile.metrics._ranking import evaluate
from simtile.search import topk

Int64s = npt.NDArray[np.int64]
Metric = Literal["cosine", "dot", "l2"]

KINDS = ("float32", "int8", "int4", "binary", ("binary", "int8"))


class Quality(NamedTuple):
    """What a search of one form of the documents found.

    Examples
    --------
    >>> import simtile
    >>> row = simtile.metrics.Quality("int8", 64, 64.0, 0.99, {"ndcg@10": 0.7})
    >>> row.overlap, row.measures["ndcg@10"]
    (0.99, 0.7)
    """

    name: str
    width: int  # dimensions
    bytes: float  # of a document
    overlap: float  # share of the exact search's k that is among the k found
    measures: dict[str, float]  # of `evaluate`, where relevant documents were given


def overlap(exact: Any, found: Any) -> float:
    """The share of what exact search finds that another search found too.

    Parameters
    ----------
    exact, found : int [N, k] and [N, m], array or Tensor
        Ids, for the same queries; -1 for none. An empty place of ``exact`` is not counted.

    Returns
    -------
    float
        0 to 1: the mean over all places of ``exact``.

    Raises
    ------
    ValueError
        A wrong shape or type; nothing was found by exact search.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> simtile.metrics.overlap(np.array([[4, 2, 7], [1, 3, -1]]), np.array([[2, 4, 5], [3, 9, 8]]))
    0.6
    """
    a, b = (_ids(name, x) for name, x in (("exact", exact), ("found", found)))
    if len(a) != len(b):
        raise ValueError(
            f"found: found ids {list(b.shape)}, expected [{len(a)}, m] because those of exact are "
            f"{list(a.shape)}"
        )
    counted = a >= 0
    if not counted.any():
        raise ValueError(f"exact: found no id in {list(a.shape)}, expected at least one")
    # Row by row: all pairs of two long results at once would be a matrix of their own.
    hits = sum(
        int(np.isin(mine[places], others).sum())
        for mine, others, places in zip(a, b, counted, strict=True)
    )
    return hits / int(counted.sum())


def quality_by_bytes(
    queries: Any,
    documents: Any,
    kinds: Sequence[str | Sequence[str]] = KINDS,
    *,
    k: int = 10,
    relevant: Any = None,
    measures: Sequence[str] = ("ndcg@10",),
    metric: Metric = "cosine",
    threads: int | None = None,
) -> list[Quality]:
    """Search the documents in several forms, each once: what is found against bytes a document.

    Parameters
    ----------
    queries : floats [Q, D], array or Tensor
    documents : floats [N, D], likewise
        At least 100 rows for kinds with ranges, see :class:`simtile.FlatIndex`.
    kinds : sequence
        dtypes of `FlatIndex`, and sequences of them: the stages of a :class:`simtile.CascadeIndex`.
    k : int
        How many results overlap is counted over.
    relevant : optional
        As in :func:`evaluate`, for ``measures``; ids are rows of ``documents``.
    measures : sequence of str
        As in :func:`evaluate`; only where ``relevant`` is given.
    metric : "cosine", "dot" or "l2"
    threads : int, optional

    Returns
    -------
    list of Quality
        In the order of ``kinds``; ``bytes`` is all that the index stores, ids apart.

    Raises
    ------
    ValueError, TypeError
        As the indexes and :func:`evaluate`.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> rng = np.random.default_rng(0)
    >>> documents = rng.standard_normal((500, 64)).astype(np.float32)
    >>> queries = documents[:20] + 0.3 * rng.standard_normal((20, 64)).astype(np.float32)
    >>> rows = simtile.metrics.quality_by_bytes(queries, documents, ("float32", "binary"))
    >>> [(row.name, row.bytes, row.overlap == 1) for row in rows]
    [('float32', 256.0, True), ('binary', 8.0, False)]
    """
    ask = _Question(queries, documents, k, relevant, measures, metric, threads)
    return [ask.of_form(kind, documents, queries) for kind in kinds]


def quality_by_width(
    queries: Any,
    documents: Any,
    widths: Sequence[int],
    kind: str | Sequence[str] = "float32",
    *,
    k: int = 10,
    relevant: Any = None,
    measures: Sequence[str] = ("ndcg@10",),
    metric: Metric = "cosine",
    threads: int | None = None,
) -> list[Quality]:
    """Search with the first dimensions alone, as models trained by Matryoshka losses allow.

    Parameters
    ----------
    widths : sequence of int
        Each from 1 to D. With the metric "cosine" a prefix is as good as normalised.
    kind : str or sequence of str
        In which form the prefixes are stored: one of ``kinds`` of :func:`quality_by_bytes`.
    queries, documents, k, relevant, measures, metric, threads
        As in :func:`quality_by_bytes`.

    Returns
    -------
    list of Quality
        In the order of ``widths``; overlap is that with exact search in all D dimensions.

    Raises
    ------
    ValueError, TypeError
        As :func:`quality_by_bytes`; a width is not one.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> rng = np.random.default_rng(0)
    >>> documents = rng.standard_normal((500, 64)).astype(np.float32) / np.arange(1, 65)
    >>> rows = simtile.metrics.quality_by_width(documents[:20], documents, (4, 16, 64))
    >>> [row.width for row in rows], rows[-1].overlap, rows[0].overlap < rows[1].overlap
    ([4, 16, 64], 1.0, True)
    """
    ask = _Question(queries, documents, k, relevant, measures, metric, threads)
    for width in widths:
        is_integer = isinstance(width, (int, np.integer)) and not isinstance(width, bool)
        if not is_integer or not 1 <= width <= documents.shape[1]:
            raise ValueError(
                f"widths: found {width!r}, expected integers from 1 to {documents.shape[1]} "
                f"because documents are {list(documents.shape)}"
            )
    return [ask.of_form(kind, documents[:, :w], queries[:, :w]) for w in map(int, widths)]


class _Question:
    """Queries, and what exact search finds for them; how well forms of the documents answer."""

    def __init__(
        self,
        queries: Any,
        documents: Any,
        k: int,
        relevant: Any,
        measures: Sequence[str],
        metric: Metric,
        threads: int | None,
    ) -> None:
        _inputs.check_choice("metric", metric, ("cosine", "dot", "l2"))
        self.k = _search_call.check_k(k)
        self.relevant = relevant
        self.measures = [measures] if isinstance(measures, str) else list(measures)
        self.metric = metric
        self.threads = threads
        cutoffs = [int(name.rpartition("@")[2]) for name in self.measures if name[-1:].isdigit()]
        self.depth = max([self.k, *cutoffs]) if relevant is not None else self.k
        self.exact = topk(queries, documents, self.k, metric=metric, threads=threads)[1]

    def of_form(self, kind: str | Sequence[str], documents: Any, queries: Any) -> Quality:
        dim = documents.shape[1]
        index: FlatIndex | CascadeIndex
        if isinstance(kind, str):
            index, name = FlatIndex(dim, kind, metric=self.metric), kind  # type: ignore[arg-type]
        else:
            index, name = CascadeIndex(dim, kind, metric=self.metric), " → ".join(kind)
        index.add(documents)
        ids = index.search(queries, self.depth, threads=self.threads)[1]
        measured = {}
        if self.relevant is not None:
            measured = evaluate(ids, self.relevant, self.measures)
        return Quality(
            name, dim, index.nbytes / len(index), overlap(self.exact, ids[:, : self.k]), measured
        )


def _ids(name: str, x: Any) -> Int64s:
    array = _tensors.as_array(x)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected integers [N, k]"
        )
    return array
