"""An index of documents that are matrices of token vectors, searched by MaxSim.

What a search returns is defined by `reference/maxsim.py` on the tokens that are stored.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simtile import (
    _allow,
    _files,
    _index_search,
    _inputs,
    _multi_vector_file,
    _multi_vector_inputs,
    _search_call,
    _vectors,
)
from simtile._documents import damaged
from simtile._multi_vector_device import TokenDevice
from simtile._multi_vector_inputs import Queries
from simtile._multi_vector_search import MultiVectorSearch
from simtile._token_documents import Matrices, TokenDocuments
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import State
from simtile.residual import ResidualCodec

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Dtype = Literal[
    "float32", "bfloat16", "float16", "int8", "binary", "residual1", "residual2", "residual4"
]


class MultiVectorIndex(TokenDocuments):
    """Documents of token vectors, searched by late interaction (MaxSim).

    Parameters
    ----------
    dim : int
        Dimensions of a token.
    dtype : str
        What is stored of a token:

        * "float32", "bfloat16", "float16": the floats, rounded to the nearest.
        * "int8": symmetric, with one scale for each token ("int8_vector" of `simtile.quantize`).
        * "binary": one bit for each dimension, x > 0, which stands for 1 or -1.
        * "residual1", "residual2", "residual4": the nearest of some centroids and 1, 2 or 4 bits
          for each dimension of the rest (`ResidualCodec`), always of length 1. The codec is learnt
          from the first `add`, of at least 100 tokens, or is ``codec``, and stays.
    normalize : bool
        Divide tokens of documents and queries by max(‖x‖, 1e-12); those of documents before they
        are rounded. Bits are then divided by √dim.
    centroids : int or float32 [K, dim], optional
        For "residual1", "residual2" and "residual4": how many centroids are learnt, or which they
        are. Without it as `ResidualCodec.train` chooses.
    codec : ResidualCodec, optional
        In place of one that is learnt.
    device : "cpu", "cuda" or "cuda:0", …
        Where documents are scored. Tokens are copied to a device when first searched, and stay
        there if they fit; else those that a search scores are copied by it. Scores of codes are
        equal to the CPU's, of floats in all but the last bits; a call waits for them. What
        ``prefilter`` compares stays on the CPU.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.
    RuntimeError, ModuleNotFoundError
        What the device needs is missing.

    Notes
    -----
    Any number of threads may search while others add, update and remove: a
    search sees the documents as they were at one moment. Writers wait for each other.

    Beside its tokens a document has their mean, bfloat16 [D], for ``prefilter``.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> rng = np.random.default_rng(0)
    >>> documents = [rng.standard_normal((length, 16)).astype(np.float32) for length in (5, 9, 7)]
    >>> index = simtile.MultiVectorIndex(16, "bfloat16")
    >>> index.add(documents, ids=[10, 20, 30])
    array([10, 20, 30])
    >>> scores, ids = index.search(documents[1][None, :4], 2)  # four tokens of the second document
    >>> int(ids[0, 0])
    20
    >>> index.save("tokens.simtile")
    >>> loaded = simtile.MultiVectorIndex.load("tokens.simtile")
    >>> loaded.score(documents[1][None, :4], ids=[[20]]).shape  # candidates of each query
    (1, 1)
    """

    FILE_KIND = "MultiVectorIndex"

    def __init__(
        self,
        dim: int,
        dtype: Dtype = "float32",
        *,
        normalize: bool = False,
        centroids: int | npt.ArrayLike | None = None,
        codec: ResidualCodec | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(TokenEncoding.of(dim, dtype, normalize, centroids, codec))
        self._device = _device_of(device)

    def __repr__(self) -> str:
        return (
            f"MultiVectorIndex({self.dim}, {self.dtype!r}, normalize={self.normalize}; {len(self)} "
            f"documents, {self.nbytes} bytes)"
        )

    def search(
        self,
        queries: Matrices,
        k: int,
        *,
        query_mask: Any = None,
        allow: Any = None,
        prefilter: int | None = None,
        empty_score: float = 0.0,
        threads: int | None = None,
    ) -> tuple[Any, Any]:
        """The best k documents for every query.

        Parameters
        ----------
        queries : array or Tensor [Q, L, D], list of [L, D], or one query [L, D]
            Floats; float64 is rounded to float32.
        k : int
            At least 1.
        query_mask : bool [Q, L], list of [L], or [L] of one query, optional
            False for what is no token.
        allow : bool [N] or [Q, N], or int [A], optional
            Which documents may be found: a mask in the order of `ids`, or ids. An unknown id is an
            error, an empty list allows nothing. Pass ids where another thread may remove documents
            meanwhile.
        prefilter : int, optional
            Score only as many documents for each query, at least k: those whose mean token has the
            largest cosine with the mean of the query's tokens. Without it all are scored.
        empty_score : float
            The score of a document without a token. A query without one has the score 0 with all
            others.
        threads : int, optional

        Returns
        -------
        scores : float32 [Q, k]
            Best first; equal ones lowest id first.
        ids : int64 [Q, k]
            Where fewer than k are found the rest are id -1 and score -inf. Both are tensors where
            queries are, on the device of the queries.

        Raises
        ------
        ValueError, TypeError
            An argument has another type, shape or value; a query has NaN.
        """
        count = _search_call.check_k(k)
        state = self._state
        search = self._begin(state, queries, query_mask, empty_score, threads)
        snapshot, asked = state.snapshot, len(search.queries)
        mask = _allow.resolve(allow, asked, len(snapshot), snapshot.places)
        masks: list[Mask | None]
        if mask is None:
            masks = [segment.alive for segment in snapshot.segments]
        else:
            masks = [snapshot.row_mask(segment, mask) for segment in snapshot.segments]
        if prefilter is None:
            allowed = snapshot.alive
            if mask is not None:
                allowed = np.concatenate([np.empty((*mask.shape[:-1], 0), bool), *masks], axis=-1)
            found = search.topk(count, allowed)
        else:
            kept = _multi_vector_inputs.check_prefilter(prefilter, count)
            candidates = search.pooled_topk(self._pooled, masks, min(kept, max(len(snapshot), 1)))
            found = search.rescored(candidates, count)
        return _like(search.queries, found[0]), _like(search.queries, found[1])

    def score(
        self,
        queries: Matrices,
        ids: Any = None,
        *,
        query_mask: Any = None,
        empty_score: float = 0.0,
        threads: int | None = None,
    ) -> Any:
        """The scores of documents that were found elsewhere, or of all.

        Parameters
        ----------
        queries, query_mask, empty_score, threads
            As in `search`.
        ids : int [Q, C], optional
            The documents to score for each query; -1 for none, which gets -inf. An id that is not
            in the index is an error.

        Returns
        -------
        float32 [Q, C], or [Q, N] in the order of `ids` without them
            The bits that `search` gives for the same documents. Those of ``ids`` in float32 may
            differ in the last ones on processors with AMX, as of two calls of `simtile.maxsim`.
        """
        state = self._state
        search = self._begin(state, queries, query_mask, empty_score, threads)
        if ids is None:
            rows = state.snapshot.ordered_rows
            return _like(
                search.queries,
                search.score(np.arange(state.snapshot.rows) if rows is None else rows),
            )
        wanted = _index_search.candidate_rows(state.snapshot, ids, len(search.queries))
        rows, place = np.unique(wanted, return_inverse=True)
        candidates = place.reshape(wanted.shape).astype(np.int64)
        if len(rows) and rows[0] < 0:
            rows, candidates = rows[1:], candidates - 1
        return _like(search.queries, search.score(rows, candidates))

    def save(self, path: _files.PathLike) -> None:
        """Write the index to a file, which is replaced at once or, with an error, left as it was.

        See `docs/file-format.md`. The documents saved are those of one moment. A file that this or
        another index has mapped may be overwritten.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        _multi_vector_file.write(path, self.FILE_KIND, self._state, self._pooled)

    @classmethod
    def load(
        cls,
        path: _files.PathLike,
        mmap: bool = True,
        *,
        verify: Literal["header", "full"] | None = None,
        device: str = "cpu",
    ) -> MultiVectorIndex:
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : str or path
        mmap : bool
            Map the file: of a document 8 bytes are read, its tokens when searches first touch them.
            What is added later is in memory. The file may be replaced or removed, but must not be
            changed in place.
        verify : "header" or "full", optional
            As for `FlatIndex.load`: "full" compares everything with checksums, and is the default
            without mmap; "header" does not find a changed byte within a document.

        Raises
        ------
        ValueError
            The file is not one of a MultiVectorIndex that can be read here, or it is damaged.
        OSError
            It cannot be opened.
        """
        contents = _files.read(path, cls.FILE_KIND, map_file=bool(mmap), verify=verify)
        arrays = dict(contents.arrays)
        make: Any = cls
        try:
            index: MultiVectorIndex = make(
                **_multi_vector_file.constructor(contents.attributes, arrays)
            )
        except (TypeError, ValueError) as error:
            raise damaged(path, str(error)) from None
        index._device = _device_of(device)
        whole = verify == "full" or not mmap
        index._storage, index._state = _multi_vector_file.restored(
            path, contents.attributes, arrays, index._state.encoding, index._pooled, whole
        )
        return index

    def _begin(
        self, state: State, queries: Any, query_mask: Any, empty_score: float, threads: int | None
    ) -> MultiVectorSearch:
        score = _multi_vector_inputs.check_empty_score(empty_score)
        thread_count = _inputs.check_threads(threads)
        checked = Queries(queries, query_mask, state.encoding)
        return MultiVectorSearch(state, self._device, checked, score, thread_count)


def _device_of(device: object) -> TokenDevice | None:
    return None if str(device) == "cpu" else TokenDevice(device)


def _like(queries: Queries, found: Array) -> Any:
    return _vectors.result(queries.device, found)
