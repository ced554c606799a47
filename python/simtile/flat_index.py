"""An exact index of one representation: every search looks at every document.

What a search returns is defined by `reference/topk.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from simtile import _files, _index_search, _readers, _search_call
from simtile._encoding import Encoding, check_ids
from simtile._index import DocumentIndex

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Dtype = Literal[
    "float32",
    "bfloat16",
    "float16",
    "int8",
    "uint8",
    "int4",
    "binary",
    "int8_vector",
    "int4_vector",
]
Metric = Literal["cosine", "dot", "l2", "hamming"]


class FlatIndex(DocumentIndex):
    """Documents that are searched exactly, each of them by every search.

    Parameters
    ----------
    dim : int
        Dimensions of a document; bits for "binary".
    dtype : str
        What is stored:

        * "float32", "bfloat16", "float16": the floats, rounded to the nearest (float64 to bfloat16
          by way of float32).
        * "int8", "uint8", "int4": 256 or 16 levels for each dimension (see `simtile.quantize`). The
          ranges are those of the first `add`, of at least 100 documents, or ``ranges``, and stay.
        * "int8_vector", "int4_vector": symmetric, with one scale for each document.
        * "binary": one bit for each dimension, x > 0. Packed bits, uint8 [N, ⌈dim/8⌉], are taken
          as they are.
    metric : "cosine", "dot", "l2" or "hamming"
        "hamming" compares bits with bits: of dtype "binary", queries being packed bits, or floats
        that are packed here. Other metrics compare float queries with what the codes stand for.
    ranges : float [2, dim], optional
        For "int8", "uint8" and "int4".
    device : "cpu", "cuda" or "cuda:0", …
        Where searches run. Documents are copied to a device when first searched, and stay there if
        they fit; else they are streamed through it from the host's memory, or the mapped file, by
        every search. Results are equal to the CPU's, and a call waits for them; k is at most 65536.
        `range_search` needs the CPU.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.
    RuntimeError, ModuleNotFoundError
        What the device needs is missing.

    Notes
    -----
    Any number of threads may search while others add, update and remove: a search sees the
    documents as they were at one moment, all or none of those of another call. Writers wait for
    each other.

    Scores are of float32, of int32 for "hamming"; equal scores come lowest id first; a place
    without a document has id -1 and the worst score. The same documents give the same scores and
    ids whatever order and number of calls they were added in.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> embeddings = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    >>> index = simtile.FlatIndex(32, "int8")
    >>> _ = index.add(embeddings, ids=np.arange(1000, 1200))
    >>> scores, ids = index.search(embeddings[:2], 3)
    >>> ids[:, 0]
    array([1000, 1001])
    >>> index.save("documents.simtile")
    >>> simtile.FlatIndex.load("documents.simtile").search(embeddings[:2], 3, allow=[1007])[1]
    array([[1007,   -1,   -1],
           [1007,   -1,   -1]])
    """

    FILE_KIND = "FlatIndex"

    def __init__(
        self,
        dim: int,
        dtype: Dtype = "float32",
        *,
        metric: Metric = "cosine",
        ranges: npt.ArrayLike | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__((Encoding.of(dim, dtype, metric, ranges),), device)

    @property
    def dtype(self) -> str:
        """What is stored."""
        return self._encodings[0].dtype

    @property
    def ranges(self) -> Array | None:
        """Float32 [2, dim] of "int8", "uint8" and "int4" once they are known, else None."""
        return self._encodings[0].ranges

    def __repr__(self) -> str:
        return (
            f"FlatIndex({self.dim}, {self.dtype!r}, metric={self.metric!r}; {len(self)} documents, "
            f"{self.nbytes} bytes)"
        )

    def search(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        k: int,
        *,
        allow: Any = None,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
    ) -> tuple[Any, Any]:
        """The best k documents for every query.

        Parameters
        ----------
        queries : array or torch.Tensor [Q, D], or Quantized
            Floats; for "hamming" floats, packed bits or a `Quantized` of kind "binary".
        k : int
            At least 1.
        allow : bool [N] or [Q, N], or int [A], optional
            Which documents may be found: a mask in the order of `ids`, or ids. An unknown id is an
            error, an empty list allows nothing. Pass ids where another thread may remove documents
            meanwhile.
        nan : "raise" or "ignore"
            Whether a query with NaN is an error or finds nothing.
        threads : int, optional

        Returns
        -------
        scores : float32 [Q, k], int32 for "hamming"
            Best first: descending for "cosine" and "dot", ascending for "l2" (squared distances)
            and "hamming".
        ids : int64 [Q, k]
            Both are tensors where queries are, on the device of the queries.

        Raises
        ------
        ValueError, TypeError
            An argument has another type, shape or value.
        """
        count = _search_call.check_k(k)
        found = self._begin(queries, nan, allow, threads).topk(0, count)
        return _index_search.like_queries(queries, *found)

    def save(self, path: _files.PathLike) -> None:
        """Write the index to a file, which is replaced at once or, with an error, left as it was.

        See `docs/file-format.md`. The documents saved are those of one moment. A file that this or
        another index has mapped may be overwritten.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        self._save(path, {"dtype": self.dtype})

    @classmethod
    def load(
        cls,
        path: _files.PathLike,
        mmap: bool = True,
        *,
        verify: Literal["header", "full"] | None = None,
        device: str = "cpu",
    ) -> FlatIndex:
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : str or path
        mmap : bool
            Map the file, which takes milliseconds whatever its size: pages are read when searches
            first touch them, and shared between processes. What is added later is in memory. The
            file may be replaced or removed, but must not be changed in place.
        verify : "header" or "full", optional
            "full" compares everything with checksums; it is the default without mmap. "header" is
            the default with mmap, and compares what says where and of what type the arrays are:
            it finds a file that is cut off, foreign or of another version, and cannot be made to
            read beyond the file, but not a changed byte within a document, whose scores are then
            wrong, or within an id.

        Raises
        ------
        ValueError
            The file is not one of a FlatIndex that can be read here, or it is damaged.
        OSError
            It cannot be opened.
        """
        return cls._load(path, mmap, verify, device, ("dim", "dtype", "metric"))

    @classmethod
    def from_faiss(cls, index: Any, *, metric: Metric | None = None) -> FlatIndex:
        """The documents of an exact index of faiss.

        Parameters
        ----------
        index : faiss.IndexFlat, IndexFlatIP, IndexFlatL2, IndexScalarQuantizer, IndexBinaryFlat
            Or an IndexIDMap, IndexIDMap2 or IndexBinaryIDMap of one, whose ids are kept; without
            one documents are numbered. Scalar quantizers of 8 bits become "uint8", of 4 "int4",
            with their ranges, others "float16" and "bfloat16"; codes are copied as they are.
        metric : str, optional
            In place of the index's own: "dot" for the inner product, "l2", or "hamming".

        Raises
        ------
        TypeError, ValueError
            The index is of another class or kind, or has a vector with NaN or an infinity.

        Notes
        -----
        faiss computes in float32 (and in 4 and 8 bits with one more rounding), so scores may differ
        in the last digits. Its distances of bits and of "l2" are the same numbers.
        """
        return cls._of_found(_readers.read_faiss(index), metric)

    @classmethod
    def from_usearch(cls, index: Any, *, metric: Metric | None = None) -> FlatIndex:
        """The documents and keys of an index of usearch.

        Parameters
        ----------
        index : usearch.index.Index
            Of float64 (stored as float32), float32, float16, bfloat16, int8 ("int8_vector" with
            the scale 1) or bits; one vector for each key.
        metric : str, optional
            In place of the index's own: "cosine", "dot" for the inner product, "l2" or "hamming".

        Raises
        ------
        TypeError, ValueError
            As `from_faiss`.

        Notes
        -----
        usearch returns distances: 1 - cosine, 1 - dot, and squared ones for "l2".
        """
        return cls._of_found(_readers.read_usearch(index), metric)

    @classmethod
    def _of_found(cls, found: _readers.Found, metric: Metric | None) -> FlatIndex:
        own: Any = found.metric
        dtype: Any = found.dtype
        index = cls(found.dim, dtype, metric=metric or own, ranges=found.ranges)
        documents = found.documents(index._encodings[0])
        index._add(documents, None if found.ids is None else check_ids("index", found.ids))
        return index
