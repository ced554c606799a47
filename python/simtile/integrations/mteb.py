"""A search backend for mteb: its ``IndexEncoderSearchProtocol`` over simtile's indexes.

::

    import mteb
    from mteb.models import SearchEncoderWrapper
    from simtile.integrations.mteb import SimtileSearchIndex

    model = mteb.get_model("sentence-transformers/all-MiniLM-L6-v2")
    model = SearchEncoderWrapper(model, index_backend=SimtileSearchIndex(model, dtype="int8"))
    results = mteb.evaluate(model, tasks)

mteb itself is not imported: what it calls is all that this needs. With dtype "float32" results are
those of mteb's own search, up to the last digits of a score; smaller dtypes and cascades show what
they would cost on a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.cascade_index import CascadeIndex
from simtile.flat_index import FlatIndex
from simtile.integrations._embeddings import to_numpy

__all__ = ["SimtileSearchIndex"]

Array = npt.NDArray[Any]

# of mteb's ScoringFunction
METRICS = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}


class SimtileSearchIndex:
    """What ``SearchEncoderWrapper(index_backend=…)`` expects.

    Parameters
    ----------
    model : mteb's encoder
        Its ``mteb_model_meta.similarity_fn_name`` says how embeddings are compared: cosine, dot
        product or Euclidean distance.
    dtype : str or sequence of str
        One of `FlatIndex`'s dtypes, or the stages of a `CascadeIndex`. Those with ranges need 100
        documents in the first call of `add_documents`.
    threads : int, optional

    Raises
    ------
    ValueError
        The model compares embeddings in another way; an unknown dtype.

    Notes
    -----
    Scores of Euclidean distance are the distances with a minus, as mteb has them.

    Examples
    --------
    What mteb does with it, for a stand-in of its model:

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(mteb_model_meta=SimpleNamespace(similarity_fn_name="dot"))
    >>> index = SimtileSearchIndex(model)
    >>> index.add_documents(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    >>> index.search(np.array([[0.5, 2.0, 1.0]], np.float32), 2)
    ([[2.0, 1.0]], [[1, 2]])
    """

    def __init__(
        self, model: Any, dtype: str | Sequence[str] = "float32", *, threads: int | None = None
    ) -> None:
        self._metric: Any = _metric_of(model)
        self._dtype: Any = dtype if isinstance(dtype, str) else tuple(dtype)
        self._threads = threads
        self._new(1)  # an unknown dtype is an error here, not after hours of encoding
        self._index: FlatIndex | CascadeIndex | None = None
        self._places: dict[str, int] = {}

    def add_documents(self, embeddings: Any, idxs: Sequence[str]) -> None:
        """Add documents [N, D] with their names, after those that are there already.

        Raises
        ------
        ValueError
            There are not as many names as embeddings, or one is there already.
        """
        rows = to_numpy("embeddings", embeddings)
        names = list(idxs)
        if rows.ndim != 2 or len(rows) != len(names):
            raise ValueError(
                f"idxs: found {len(names)} for embeddings {list(rows.shape)}, expected as many as "
                "embeddings [N, D] has rows"
            )
        known = dict(self._places)
        for name in names:
            if known.setdefault(name, len(known)) != len(known) - 1:
                raise ValueError(f"idxs: found {name!r} more than once, expected each id once")
        if self._index is None:
            self._index = self._new(rows.shape[1])
        self._index.add(rows)
        self._places = known

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[[Any, Any], Any] | None = None,
        top_ranked: Any = None,
        query_idx_to_id: Any = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """The best of all documents, or of those named for each query.

        Parameters
        ----------
        embeddings : floats [Q, D]
        top_k : int
        similarity_fn
            Without effect: the model given at first says how embeddings are compared.
        top_ranked : {query: [names]}, optional
            Candidates; indices in the result then count these. A query without any finds nothing.
        query_idx_to_id : {row of embeddings: query}
            Needed with ``top_ranked``.

        Returns
        -------
        scores, indices : lists of Q lists of at most top_k
            Best first; of equal scores the lowest index. Lists are shorter where there are fewer.

        Raises
        ------
        ValueError
            No documents were added; a candidate is not among them; a query has NaN.
        """
        if self._index is None:
            raise ValueError(
                "search: found no documents, expected add_documents to be called first"
            )
        queries = to_numpy("embeddings", embeddings)
        if top_ranked is None:
            scores, ids = self._index.search(queries, top_k, threads=self._threads)[:2]
            return self._lists(scores, ids, np.asarray(ids))
        if query_idx_to_id is None:
            raise ValueError("query_idx_to_id: found None, expected it because of top_ranked")
        candidates = [
            [self._place(name) for name in top_ranked.get(query_idx_to_id[i]) or []]
            for i in range(len(queries))
        ]
        most = max([1, *map(len, candidates)])
        ids = np.full((len(queries), most), -1, np.int64)
        for row, places in zip(ids, candidates, strict=True):
            row[: len(places)] = places
        scores = self._index.score(queries, ids, threads=self._threads)
        worse = scores if self._metric == "l2" else -scores
        # Empty places last, whatever the score of a candidate.
        order = np.lexsort((np.where(ids < 0, 0, worse), ids < 0), axis=1)[:, :top_k]
        scores, ids = (np.take_along_axis(x, order, axis=1) for x in (scores, ids))
        return self._lists(scores, ids, order)

    def clear(self) -> None:
        """Forget all documents."""
        self._index, self._places = None, {}

    def _new(self, dim: int) -> FlatIndex | CascadeIndex:
        if isinstance(self._dtype, str):
            return FlatIndex(dim, self._dtype, metric=self._metric)  # type: ignore[arg-type]
        return CascadeIndex(dim, self._dtype, metric=self._metric)

    def _place(self, name: str) -> int:
        if name not in self._places:
            raise ValueError(
                f"top_ranked: found {name!r}, expected ids of documents that were added"
            )
        return self._places[name]

    def _lists(
        self, scores: Array, ids: Array, indices: Array
    ) -> tuple[list[list[float]], list[list[int]]]:
        if self._metric == "l2":
            scores = -np.sqrt(scores.astype(np.float64))
        there = ids >= 0
        return (
            [row[keep].tolist() for row, keep in zip(scores, there, strict=True)],
            [row[keep].tolist() for row, keep in zip(indices, there, strict=True)],
        )


def _metric_of(model: Any) -> str:
    meta = getattr(model, "mteb_model_meta", None)
    name = getattr(meta, "similarity_fn_name", None)
    value = str(getattr(name, "value", name))
    if value not in METRICS:
        raise ValueError(
            f"model: found the similarity {value!r} in its mteb_model_meta, expected one of "
            f"{', '.join(map(repr, METRICS))}"
        )
    return METRICS[value]
