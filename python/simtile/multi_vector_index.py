"""An index of documents that are matrices of token vectors, searched by MaxSim.

What a search returns is defined by `reference/maxsim.py` on the tokens that are stored.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from simtile import (
    _allow,
    _encoding,
    _files,
    _index_search,
    _inputs,
    _maxsim_inputs,
    _multi_vector_file,
    _multi_vector_search,
    _search_call,
    _tensors,
    _token_encoding,
    _token_storage,
    _vectors,
)
from simtile._documents import NumberedDocuments, damaged
from simtile._multi_vector_search import MultiVectorSearch, Queries
from simtile._storage import Storage
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import State, Tokens
from simtile.residual import ResidualCodec

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Dtype = Literal[
    "float32", "bfloat16", "float16", "int8", "binary", "residual1", "residual2", "residual4"
]
# [N, L, D], [L, D] of each length, or (tokens [T, D], offsets [N + 1])
Matrices: TypeAlias = "npt.ArrayLike | torch.Tensor | Sequence[npt.ArrayLike | torch.Tensor]"


class MultiVectorIndex(NumberedDocuments):
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

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value.

    Notes
    -----
    Searches run on the CPU. Any number of threads may search while others add, update and remove: a
    search sees the documents as they were at one moment. Writers wait for each other.

    Beside its tokens a document has their mean, bfloat16 [D], for ``prefilter``.

    Examples
    --------
    >>> index = simtile.MultiVectorIndex(128, "bfloat16")
    >>> index.add(list_of_token_matrices)
    >>> scores, ids = index.search(query_tokens, 10)
    >>> index.save("documents.simtile")
    >>> index = simtile.MultiVectorIndex.load("documents.simtile")
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
    ) -> None:
        encoding = TokenEncoding.of(dim, dtype, normalize, centroids, codec)
        self._pooled = _multi_vector_search.pooled_encoding(encoding.dim)
        self._storage = Storage()
        self._state = State(self._storage.snapshot, (), encoding)

    @property
    def dim(self) -> int:
        """Dimensions of a token."""
        return self._state.encoding.dim

    @property
    def dtype(self) -> str:
        """What is stored."""
        return self._state.encoding.dtype

    @property
    def normalize(self) -> bool:
        """Whether tokens are divided by their lengths."""
        return self._state.encoding.normalize

    @property
    def codec(self) -> ResidualCodec | None:
        """That of "residual1", "residual2" and "residual4" once it is known, else None."""
        return self._state.encoding.codec

    @property
    def token_bytes(self) -> int:
        """Bytes that are stored of a token."""
        return self._state.encoding.token_bytes

    @property
    def lengths(self) -> Int64s:
        """How many tokens each document has, int64 [N], in the order of `ids`."""
        state = self._state
        lengths = state.ends - state.starts
        rows = state.snapshot.ordered_rows
        return lengths if rows is None else lengths[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored documents, removed ones that still take memory among them."""
        state = self._state
        shared = sum(array.nbytes for array in state.encoding.shared.values())
        return (
            shared
            + sum(tokens.nbytes for tokens in state.tokens)
            + sum(
                sum(column.nbytes for column in segment.columns.values())
                + (0 if isinstance(segment.ids, range) else segment.ids.nbytes)
                for segment in state.snapshot.segments
            )
        )

    def __repr__(self) -> str:
        return (
            f"MultiVectorIndex({self.dim}, {self.dtype!r}, normalize={self.normalize}; {len(self)} "
            f"documents, {self.nbytes} bytes)"
        )

    def add(self, x: Matrices, ids: Any = None, *, mask: Any = None) -> Int64s:
        """Add documents, all of them or, with an error, none.

        Parameters
        ----------
        x : list of [L, D], array or Tensor [N, L, D], or tuple (tokens [T, D], offsets [N + 1])
            Floats. Of a tuple document n is ``tokens[offsets[n] : offsets[n + 1]]``. The index
            keeps a copy. A document may have no token.
        ids : int [N], optional
            From 0 to 2^63 - 1, in any order, none of them in the index. Without it the index
            numbers its documents 0, 1, 2, …, and never gives a number twice. Once chosen, the way
            stays.
        mask : bool [N, L] or [T], or list of [L], optional
            False for what is no token; it is not stored.

        Returns
        -------
        int64 [N]
            The ids.

        Raises
        ------
        ValueError, TypeError
            ``x`` has another shape or type, or NaN or an infinity in a token; an id is there
            already, or given twice; there is no codec and these are fewer than 100 tokens.
        """
        rows, lengths = self._check_documents(x, mask)
        known = None if ids is None else _encoding.check_ids("ids", ids, len(lengths))
        with self._changing():
            tokens, columns = self._appended(rows, lengths)
            added = self._storage.add(columns, known)
            self._publish(tokens)
            return added

    def update(self, x: Matrices, ids: Any, *, mask: Any = None) -> None:
        """Replace documents, all of them or, with an error, none.

        Parameters
        ----------
        x, mask : as in `add`
        ids : int [N]
            Each in the index, and once.
        """
        rows, lengths = self._check_documents(x, mask)
        known = _encoding.check_ids("ids", ids, len(lengths))
        with self._changing():
            self._storage.check_known(known)
            tokens, columns = self._appended(rows, lengths)
            self._storage.update(columns, known)
            self._publish(tokens)

    def remove(self, ids: Any) -> None:
        """Remove documents: all that ids [n] name, or, if one is unknown or given twice, none."""
        known = _encoding.check_ids("ids", ids)
        with self._changing():
            self._storage.remove(known)
            self._publish(self._state.tokens)

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
            kept = _check_prefilter(prefilter, count)
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
            The bits that `search` gives for the same documents.
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
        whole = verify == "full" or not mmap
        index._storage, index._state = _multi_vector_file.restored(
            path, contents.attributes, arrays, index._state.encoding, index._pooled, whole
        )
        return index

    def _begin(
        self, state: State, queries: Any, query_mask: Any, empty_score: float, threads: int | None
    ) -> MultiVectorSearch:
        if isinstance(empty_score, bool) or not isinstance(empty_score, (int, float, np.number)):
            raise TypeError(f"empty_score: found {empty_score!r}, expected a number")
        thread_count = _inputs.check_threads(threads)
        checked = Queries(queries, query_mask, state.encoding)
        return MultiVectorSearch(state, checked, float(empty_score), thread_count)

    def _check_documents(self, x: Any, mask: Any) -> tuple[_vectors.Rows, Int64s]:
        """Tokens [T, D] of all documents, and how many each has."""
        if isinstance(x, tuple) and len(x) == 2:
            given = _maxsim_inputs.given_packed("x[0]", x[0], x[1], mask, "mask", "x[1]")
        else:
            given = _maxsim_inputs.given("x", x, mask, "mask")
        if given.dim == 0:  # a list of none
            given = given._replace(x=np.empty((0, self.dim), np.float32))
        if given.dim != self.dim:
            found = f"{_tensors.dtype_name(given.x)} {list(given.x.shape)}"
            raise ValueError(
                f"{given.name}: found {found}, expected {self.dim} dimensions as the index has"
            )
        array, kind = _maxsim_inputs.elements(given)
        if given.width is None:
            offsets = np.asarray(given.offsets)
        else:
            offsets = np.arange(given.batch + 1, dtype=np.int64) * given.width
        rows = array.reshape(-1, self.dim)
        lengths: Int64s = np.diff(offsets)
        if given.mask is not None:
            there = _tensors.as_array(given.mask).reshape(-1)
            before = np.concatenate([[0], np.cumsum(there)])
            lengths, rows = np.diff(before[offsets]).astype(np.int64), rows[there]
        tokens = _vectors.Rows(_vectors.side_by_side(rows), kind, None)
        _encoding.check_finite(f"{given.name}, its tokens", tokens)
        return (_token_encoding.normalized(tokens) if self.normalize else tokens), lengths

    def _appended(
        self, rows: _vectors.Rows, lengths: Int64s
    ) -> tuple[tuple[Tokens, ...], dict[str, Array]]:
        """The tokens with those of more documents, and the columns of these."""
        state = self._state
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        means = _vectors.Rows(_token_encoding.pooled(rows, starts, ends), "float32", None)
        columns = self._pooled.encode(means)
        tokens, first = state.tokens, 0
        if len(rows.array):
            encoding = state.encoding.trained(rows)
            tokens, first = _token_storage.append(tokens, encoding.encode(rows))
            self._state = replace(state, encoding=encoding)  # nothing is searched by it yet
        return tokens, {"starts": starts + first, "ends": ends + first, **columns}

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """As the only writer; with an error the documents are what they were."""
        with self._storage.lock:
            before = self._storage.snapshot, self._state
            try:
                yield
            except BaseException:
                self._storage.snapshot, self._state = before
                raise

    def _publish(self, tokens: tuple[Tokens, ...]) -> None:
        """Make what the storage and the tokens now are the state that searches see."""
        state = replace(self._state, snapshot=self._storage.snapshot, tokens=tokens)
        state = _token_storage.compacted(state)
        self._storage.snapshot = state.snapshot
        self._state = state


def _check_prefilter(prefilter: Any, k: int) -> int:
    if isinstance(prefilter, bool) or not hasattr(prefilter, "__index__"):
        raise TypeError(f"prefilter: found {prefilter!r}, expected a number of documents")
    count = operator.index(prefilter)
    if count < k:
        raise ValueError(f"prefilter: found {count}, expected at least k, which is {k}")
    return count


def _like(queries: Queries, found: Array) -> Any:
    return _vectors.result(queries.device, found)
