"""faiss's flat indexes and `knn`, with the same arrays in and out, searched by simtile.

``from simtile.integrations import faiss`` in place of ``import faiss`` for :class:`IndexFlatIP`,
:class:`IndexFlatL2`, :class:`IndexBinaryFlat`, :func:`knn` and :func:`knn_hamming`. What comes back
has faiss's types, order and padding. On purpose different (``docs/faiss.md``): equal scores come in
the order of their ids, float scores are sums in float64 rounded once, and arguments that faiss
leaves unchecked or refuses by an assertion raise an error that says what was expected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.integrations._faiss_inputs import byte_rows, float_rows, integer, into, positive
from simtile.integrations._selectors import (
    IDSelector,
    IDSelectorAll,
    IDSelectorAnd,
    IDSelectorArray,
    IDSelectorBatch,
    IDSelectorBitmap,
    IDSelectorNot,
    IDSelectorOr,
    IDSelectorRange,
    IDSelectorXOr,
    SearchParameters,
    allowed,
    mask_of,
)
from simtile.search import Metric, range_search, topk

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "IDSelector",
    "IDSelectorAll",
    "IDSelectorAnd",
    "IDSelectorArray",
    "IDSelectorBatch",
    "IDSelectorBitmap",
    "IDSelectorNot",
    "IDSelectorOr",
    "IDSelectorRange",
    "IDSelectorXOr",
    "IndexBinaryFlat",
    "IndexFlat",
    "IndexFlatIP",
    "IndexFlatL2",
    "SearchParameters",
    "knn",
    "knn_hamming",
]

Array = npt.NDArray[Any]

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1

_METRICS: dict[int, Metric] = {METRIC_INNER_PRODUCT: "dot", METRIC_L2: "l2"}
_FLOAT32 = np.finfo(np.float32)
_INT32_MAX = np.iinfo(np.int32).max


class _FlatCodes:
    """Vectors in the order in which they were added; a vector's id is its place.

    A subclass says what a row is (`_rows`) and how rows are scored (`_search`, `_range`).
    """

    is_trained = True
    verbose = False

    def __init__(self, dim: int, width: int, dtype: Any) -> None:
        self.d = dim
        # Twice the room when it is full, so that adding one vector at a time is linear.
        self._room = np.empty((0, width), dtype)
        self.ntotal = 0

    @property
    def _vectors(self) -> Array:
        return self._room[: self.ntotal]

    def _rows(self, name: str, x: Any) -> Array:
        raise NotImplementedError

    def _search(self, x: Array, k: int, allow: Array | None) -> tuple[Array, Array]:
        raise NotImplementedError

    def _range(self, x: Array, thresh: Any, allow: Array | None) -> tuple[Array, Array, Array]:
        raise NotImplementedError

    def train(self, x: Any) -> None:
        """Nothing to learn: a flat index is always trained."""

    def add(self, x: Any) -> None:
        """Append vectors; the first has id ``ntotal``. They are copied.

        Parameters
        ----------
        x : float32 [n, d], other floats are converted; of a binary index uint8 [n, d / 8]
        """
        rows = self._rows("x", x)
        total = self.ntotal + len(rows)
        if total > len(self._room):
            room = np.empty((max(total, 2 * len(self._room)), self._room.shape[1]), rows.dtype)
            room[: self.ntotal] = self._vectors
            self._room = room
        self._room[self.ntotal : total] = rows
        self.ntotal = total

    def add_with_ids(self, x: Any, ids: Any) -> None:
        """Not of a flat index, neither in faiss nor here; always raises."""
        raise RuntimeError(
            f"add_with_ids: {type(self).__name__} numbers its vectors itself; use "
            "simtile.FlatIndex, whose add takes ids"
        )

    def search(
        self,
        x: Any,
        k: int,
        *,
        params: Any = None,
        D: Any = None,
        I: Any = None,  # noqa: E741
    ) -> tuple[Array, Array]:
        """The k best vectors of each query, best first.

        Parameters
        ----------
        x : as in `add`, [nq, ...]
        k : int
            At least 1.
        params : SearchParameters, optional
            Its ``sel`` names the ids that may be found.
        D, I : arrays [nq, k], optional
            Filled and returned instead of new ones.

        Returns
        -------
        D : float32 [nq, k] inner products or squared distances; of a binary index int32 distances
        I : int64 [nq, k]
            Where fewer than k were found: -1, and in D the lowest float32 (inner product), the
            highest (L2) or 2147483647 (binary). A query with NaN finds nothing.
        """
        queries = self._rows("x", x)
        scores, ids = self._search(queries, positive("k", k), allowed(params, self.ntotal))
        return into("D", D, scores), into("I", I, ids)

    def range_search(
        self, x: Any, thresh: float, *, params: Any = None
    ) -> tuple[Array, Array, Array]:
        """All vectors nearer than a threshold; one exactly at the threshold is not among them.

        Parameters
        ----------
        x : as in `add`, [nq, ...]
        thresh : float
            Inner products above it, squared distances below it; of a binary index an int, and the
            distances below it.
        params : SearchParameters, optional

        Returns
        -------
        lims : uint64 [nq + 1]
            The results of query i are at lims[i] to lims[i + 1].
        D : float32 [lims[nq]], also of a binary index
        I : int64 [lims[nq]], ascending in each query
        """
        queries = self._rows("x", x)
        offsets, scores, ids = self._range(queries, thresh, allowed(params, self.ntotal))
        query = np.repeat(np.arange(len(queries)), np.diff(offsets))
        order = np.lexsort((ids, query))
        return offsets.astype(np.uint64), scores[order].astype(np.float32), ids[order]

    def assign(self, x: Any, k: int = 1) -> Array:
        """The ids of `search`, int64 [nq, k]."""
        return self.search(x, k)[1]

    def search_and_reconstruct(
        self, x: Any, k: int, *, params: Any = None
    ) -> tuple[Array, Array, Array]:
        """`search`, and the vectors found, [nq, k, ...]: NaN, or 255 in bytes, where id is -1."""
        scores, ids = self.search(x, k, params=params)
        floats = self._room.dtype.kind == "f"
        found = np.full(
            (*ids.shape, self._room.shape[1]), np.nan if floats else 255, self._room.dtype
        )
        found[ids >= 0] = self._vectors[ids[ids >= 0]]
        return scores, ids, found

    def reset(self) -> None:
        """Remove all vectors."""
        self.ntotal = 0
        self._room = self._room[:0].copy()

    def remove_ids(self, x: Any) -> int:
        """Remove vectors; those after them move up and their ids fall.

        Parameters
        ----------
        x : selector, or integers [n]
            Ids that no vector has are ignored.

        Returns
        -------
        int : how many were removed
        """
        selector = x if hasattr(x, "is_member") else IDSelectorBatch(x)
        removed = mask_of(selector, self.ntotal)
        count = int(removed.sum())
        if count:
            self._room = self._vectors[~removed]
            self.ntotal -= count
        return count

    def reconstruct(self, key: int) -> Array:
        """A copy of one vector.

        Raises
        ------
        IndexError
            There is no vector with this id.
        """
        vector: Array = self.reconstruct_n(integer("key", key), 1)[0]
        return vector

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Array:
        """A copy of `ni` vectors from id `n0` on, all that remain where it is -1."""
        last = self.ntotal if ni == -1 else n0 + ni
        if not 0 <= n0 <= last <= self.ntotal:
            raise IndexError(
                f"ids {n0} to {last - 1}: the index has {self.ntotal} vectors, from id 0 on"
            )
        vectors: Array = self._vectors[n0:last].copy()
        return vectors

    def reconstruct_batch(self, key: Any) -> Array:
        """A copy of the vectors with the ids of an integer array [n]."""
        ids = IDSelectorBatch(key).ids
        if ids.size and not 0 <= ids.min() <= ids.max() < self.ntotal:
            wrong = ids[(ids < 0) | (ids >= self.ntotal)][0]
            raise IndexError(f"id {wrong}: the index has {self.ntotal} vectors, from id 0 on")
        vectors: Array = self._vectors[ids]
        return vectors


class IndexFlat(_FlatCodes):
    """float32 vectors compared one by one, by inner product or squared distance.

    Parameters
    ----------
    d : int
        Dimensions.
    metric : METRIC_L2 or METRIC_INNER_PRODUCT
    """

    def __init__(self, d: int, metric: int = METRIC_L2) -> None:
        super().__init__(positive("d", d), d, np.float32)
        self.metric_type = _known_metric(metric)
        self.code_size = 4 * d

    def _rows(self, name: str, x: Any) -> Array:
        return float_rows(name, x, self.d)

    def _search(self, x: Array, k: int, allow: Array | None) -> tuple[Array, Array]:
        return _float_topk(x, self._vectors, k, self.metric_type, allow)

    def _range(self, x: Array, thresh: Any, allow: Array | None) -> tuple[Array, Array, Array]:
        limit = np.float32(thresh)
        if np.isnan(limit):
            return np.zeros(len(x) + 1, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
        offsets, scores, ids = range_search(
            x,
            self._vectors,
            float(limit),
            metric=_METRICS[self.metric_type],
            allow=allow,
            nan="ignore",
        )
        # simtile's range includes the threshold itself
        above = scores > limit if self.metric_type == METRIC_INNER_PRODUCT else scores < limit
        kept = np.concatenate([[0], np.cumsum(above)])
        return kept[offsets], scores[above], ids[above]


class IndexFlatIP(IndexFlat):
    """`IndexFlat` of inner products. ``IndexFlatIP(d)``."""

    def __init__(self, d: int) -> None:
        super().__init__(d, METRIC_INNER_PRODUCT)


class IndexFlatL2(IndexFlat):
    """`IndexFlat` of squared distances. ``IndexFlatL2(d)``."""

    def __init__(self, d: int) -> None:
        super().__init__(d, METRIC_L2)


class IndexBinaryFlat(_FlatCodes):
    """Packed bits compared one by one, by Hamming distance.

    Parameters
    ----------
    d : int
        Bits, a multiple of 8. Vectors are uint8 [n, d / 8].
    """

    metric_type = METRIC_L2  # what faiss says here as well

    def __init__(self, d: int) -> None:
        if positive("d", d) % 8:
            raise ValueError(f"d: found {d} bits, expected a multiple of 8")
        super().__init__(d, d // 8, np.uint8)
        self.code_size = d // 8

    def _rows(self, name: str, x: Any) -> Array:
        return byte_rows(name, x, self.code_size)

    def _search(self, x: Array, k: int, allow: Array | None) -> tuple[Array, Array]:
        return topk(x, self._vectors, k, metric="hamming", allow=allow)

    def _range(self, x: Array, thresh: Any, allow: Array | None) -> tuple[Array, Array, Array]:
        limit = integer("thresh", thresh)
        if limit <= 0:
            return np.zeros(len(x) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
        within = min(limit - 1, _INT32_MAX)
        return range_search(x, self._vectors, within, metric="hamming", allow=allow)


def knn(
    xq: Any, xb: Any, k: int, metric: int = METRIC_L2, metric_arg: float = 0.0
) -> tuple[Array, Array]:
    """The k nearest of the vectors xb for each of xq, without an index.

    Parameters
    ----------
    xq, xb : float32 [nq, d] and [nb, d]
        Other floats are converted.
    k : int
    metric : METRIC_L2 or METRIC_INNER_PRODUCT
        The others that faiss has are refused.
    metric_arg : float
        Of the metrics that are refused; without effect.

    Returns
    -------
    D : float32 [nq, k], I : int64 [nq, k]
        As `IndexFlat.search` returns them, padding included.
    """
    documents = float_rows("xb", xb, None)
    queries = float_rows("xq", xq, documents.shape[1])
    return _float_topk(queries, documents, positive("k", k), _known_metric(metric), None)


def knn_hamming(xq: Any, xb: Any, k: int, variant: str = "hc") -> tuple[Array, Array]:
    """The k nearest of the packed bits xb for each of xq, uint8 [nq, d] and [nb, d].

    Returns int32 distances and int64 ids, [nq, k], padded as `IndexBinaryFlat.search` pads. The
    variants "hc" and "mc", two algorithms in faiss, are the same here.
    """
    if variant not in ("hc", "mc"):
        raise NotImplementedError(f"variant: found {variant!r}, expected 'hc' or 'mc'")
    documents = byte_rows("xb", xb, None)
    queries = byte_rows("xq", xq, documents.shape[1])
    return topk(queries, documents, positive("k", k), metric="hamming")


def _float_topk(
    queries: Array, documents: Array, k: int, metric: int, allow: Array | None
) -> tuple[Array, Array]:
    scores, ids = topk(queries, documents, k, metric=_METRICS[metric], allow=allow, nan="ignore")
    # In faiss nothing beats an empty place whose score is the largest finite number: an infinite
    # distance, or an inner product of -inf, is not found.
    if metric == METRIC_INNER_PRODUCT:
        worst, found = _FLOAT32.min, scores > _FLOAT32.min
    else:
        worst, found = _FLOAT32.max, scores < _FLOAT32.max
    found &= ids >= 0
    return np.where(found, scores, worst), np.where(found, ids, np.int64(-1))


def _known_metric(metric: Any) -> int:
    if metric not in _METRICS:
        raise ValueError(
            f"metric: found {metric!r}, expected METRIC_INNER_PRODUCT ({METRIC_INNER_PRODUCT}) or "
            f"METRIC_L2 ({METRIC_L2})"
        )
    return int(metric)
