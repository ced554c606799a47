"""What all indexes do alike: documents that come and go, ids, `allow`, and files.

An index is a `Storage` of rows and an `Encoding` for each of their representations. Every public
call of a search takes one snapshot of the rows and works on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from simtile import (
    _allow,
    _documents,
    _files,
    _index_device,
    _index_search,
    _inputs,
    _search_call,
    _vectors,
)
from simtile._documents import NumberedDocuments, damaged
from simtile._encoding import Encoding, check_ids
from simtile._index_device import DeviceSearch
from simtile._index_search import Search
from simtile._snapshot import Snapshot
from simtile._storage import Storage
from simtile.quantized import Quantized

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class DocumentIndex(NumberedDocuments):
    """Adding, removing and storing documents; searching them is what a derived class adds.

    `_encodings` may change once, when the first documents are added to an index whose ranges come
    from them: before that there is nothing to search.
    """

    FILE_KIND: ClassVar[str]  # what its files say they hold

    def __init__(self, encodings: tuple[Encoding, ...], device: object) -> None:
        self._encodings = encodings
        self._storage = Storage()
        self._devices = _devices(encodings, device)

    @property
    def dim(self) -> int:
        """Dimensions of a document; bits of a binary one."""
        return self._encodings[0].dim

    @property
    def metric(self) -> str:
        """What documents are searched by."""
        return self._encodings[-1].metric

    @property
    def nbytes(self) -> int:
        """Bytes of the stored documents, removed ones that still take memory among them."""
        shared = [e.ranges.nbytes for e in self._encodings if e.ranges is not None]
        return sum(shared) + sum(
            sum(column.nbytes for column in segment.columns.values())
            + (0 if isinstance(segment.ids, range) else segment.ids.nbytes)
            for segment in self._storage.snapshot.segments
        )

    def add(self, x: Any, ids: Any = None) -> Int64s:
        """Add documents, all of them or, with an error, none.

        Parameters
        ----------
        x : array or torch.Tensor [N, D], or Quantized
            Floats, or a `Quantized` of the index's kind and ranges; for dtype "binary" also packed
            bits, uint8 [N, ⌈D/8⌉]. The index keeps a copy.
        ids : int [N], optional
            From 0 to 2^63 - 1, in any order, none of them in the index. Without it the index
            numbers its documents 0, 1, 2, …, and never gives a number twice. Once chosen, the way
            stays.

        Returns
        -------
        int64 [N]
            The ids.

        Raises
        ------
        ValueError, TypeError
            ``x`` has another shape or type, or NaN or an infinity in a row; an id is there
            already, or given twice; the ranges are not known and these are fewer than 100 rows.
        """
        documents = self._check_documents(x)
        return self._add(
            documents, None if ids is None else check_ids("ids", ids, _count(documents))
        )

    def update(self, x: Any, ids: Any) -> None:
        """Replace documents, all of them or, with an error, none.

        Parameters
        ----------
        x : as in `add`, [N, D]
        ids : int [N]
            Each in the index, and once.
        """
        documents = self._check_documents(x)
        known = check_ids("ids", ids, _count(documents))
        if len(known):
            self._storage.check_known(known)
            self._storage.update(self._columns(documents), known)

    def remove(self, ids: Any) -> None:
        """Remove documents: all that ids [n] name, or, if one is unknown or given twice, none."""
        self._storage.remove(check_ids("ids", ids))

    def range_search(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        threshold: float,
        *,
        allow: Any = None,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
    ) -> tuple[Any, Any, Any]:
        """All documents whose score is at least, for "l2" and "hamming" at most, the threshold.

        Of a `CascadeIndex` the last stage's scores: it reads all documents.

        Parameters
        ----------
        threshold : float
            Not NaN. For "l2" of squared distances.
        queries, allow, nan, threads
            As in `search`.

        Returns
        -------
        offsets : int64 [Q + 1]
            What belongs to query i is at offsets[i] to offsets[i + 1] - 1.
        scores : float32 or int32 [offsets[Q]]
            Best first.
        ids : int64 [offsets[Q]]

        Raises
        ------
        RuntimeError
            The index searches on a device.
        """
        limit = _search_call.check_threshold(threshold)
        search = self._begin(queries, nan, allow, threads)
        return _index_search.like_queries(queries, *search.range(search.last, limit))

    def score(
        self,
        queries: npt.ArrayLike | torch.Tensor,
        ids: npt.ArrayLike | torch.Tensor,
        *,
        nan: Literal["raise", "ignore"] = "raise",
        threads: int | None = None,
    ) -> Any:
        """The scores of documents that were found elsewhere; of a `CascadeIndex` the last stage's.

        Parameters
        ----------
        queries : as in `search`, [Q, D]
        ids : int [Q, C]
            The documents to score for each query; -1 for none, which gets the worst score. An id
            that is not in the index is an error.

        Returns
        -------
        float32 [Q, C], int32 for "hamming"
            The bits that `search` gives for the same documents.
        """
        search = self._begin(queries, nan, None, threads)
        rows = _index_search.candidate_rows(search.snapshot, ids, search.queries)
        return _index_search.like_queries(queries, search.score(search.last, rows))[0]

    def _begin(self, queries: Any, nan: str, allow: Any, threads: int | None) -> Search:
        """A search of the documents as they are now."""
        thread_count = _inputs.check_threads(threads)
        snapshot = self._storage.snapshot  # before the encodings, whose ranges come first
        search = Search(snapshot, self._encodings, self._devices, queries, nan, thread_count)
        search.masks = self._masks(snapshot, allow, search.queries)
        return search

    def _check_documents(self, x: Any) -> _vectors.Rows | Quantized:
        return self._encodings[0].check_documents(x)

    def _add(self, documents: _vectors.Rows | Quantized, ids: Int64s | None) -> Int64s:
        count = _count(documents)
        with self._storage.lock:
            before, snapshot = self._encodings, self._storage.snapshot

            def undo() -> None:
                # Ctrl-C may come when the documents are there already, which need their ranges.
                if self._storage.snapshot is snapshot:
                    self._encodings = before

            with self._storage.writing(undo):
                if count:
                    self._encodings = tuple(e.calibrated(documents) for e in before)
                # Of no documents there may be no ranges yet.
                columns = self._columns(documents) if count else self._no_columns()
                return self._storage.add(columns, ids)

    def _columns(self, documents: _vectors.Rows | Quantized) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        for encoding in self._encodings:
            columns |= encoding.encode(documents)
        return columns

    def _no_columns(self) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        for encoding in self._encodings:
            columns |= encoding.empty()
        return columns

    def _masks(self, snapshot: Snapshot, allow: Any, queries: int) -> list[Mask | None]:
        """For each segment which of its rows may be found; None for all."""
        mask = _allow.resolve(allow, queries, len(snapshot), snapshot.places)
        if mask is None:
            return [segment.alive for segment in snapshot.segments]
        return [snapshot.row_mask(segment, mask) for segment in snapshot.segments]

    def _save(self, path: _files.PathLike, attributes: Mapping[str, Any]) -> None:
        snapshot = self._storage.snapshot
        encodings = self._encodings
        sections = [
            _files.section(f"{encoding.prefix}ranges", encoding.ranges)
            for encoding in encodings
            if encoding.ranges is not None
        ]
        for encoding in encodings:
            sections += [
                _files.Section(name, dtype, (len(snapshot), *shape), _column(snapshot, name))
                for name, (dtype, shape) in encoding.columns().items()
            ]
        sections += _documents.id_sections(snapshot)
        described = {
            **attributes,
            "dim": self.dim,
            "metric": self.metric,
            **_documents.counters(snapshot),
        }
        _files.write(path, self.FILE_KIND, described, sections)

    @classmethod
    def _load(
        cls,
        path: _files.PathLike,
        mmap: bool,
        verify: Literal["header", "full"] | None,
        device: str,
        names: tuple[str, ...],
    ) -> Self:
        """Open a file; `names`: of the constructor's arguments that it holds."""
        contents = _files.read(path, cls.FILE_KIND, map_file=bool(mmap), verify=verify)
        make: Any = cls
        try:
            index: Self = make(**{name: contents.attributes.get(name) for name in names})
        except (TypeError, ValueError) as error:
            raise damaged(path, str(error)) from None
        index._devices = _devices(index._encodings, device)
        index._restore(path, contents, whole=verify == "full" or not mmap)
        return index

    def _restore(self, path: _files.PathLike, contents: _files.Contents, whole: bool) -> None:
        """Take the documents of a file, whose encodings, without ranges, are those of this index.

        `whole`: whether to check also what must be read in full for it.
        """
        arrays = dict(contents.arrays)
        count = _documents.count_of(path, contents.attributes)
        restored = []
        for encoding in self._encodings:
            ranges = arrays.pop(f"{encoding.prefix}ranges", None)
            if ranges is not None:
                shape = (2, encoding.dim)
                fits = ranges.dtype == np.float32 and ranges.shape == shape
                if not encoding.needs_ranges or not fits:
                    raise damaged(path, f"ranges of {encoding.dtype!r}")
                try:
                    encoding = encoding.with_ranges(ranges)
                except ValueError as error:
                    raise damaged(path, str(error)) from None
            elif encoding.needs_ranges and count:
                raise damaged(path, f"no ranges of {encoding.dtype!r}")
            restored.append(encoding)
        self._encodings = tuple(restored)
        expected = {
            name: (array.dtype, (count, *array.shape[1:]))
            for name, array in self._no_columns().items()
        }
        if "ids" in arrays:
            expected["ids"] = (np.dtype(np.int64), (count,))
        _documents.check_sections(path, arrays, expected)
        ids = arrays.pop("ids", None)
        self._storage = _documents.stored(path, arrays, ids, contents.attributes, whole)


def _devices(encodings: tuple[Encoding, ...], device: object) -> tuple[DeviceSearch, ...] | None:
    """The device's side of each encoding; None for the CPU."""
    if str(device) == "cpu":
        return None
    return tuple(_index_device.DeviceSearch(device) for _ in encodings)


def _column(snapshot: Snapshot, name: str) -> Iterator[Array]:
    for part in snapshot.parts([name]):
        yield part.columns[name]


def _count(documents: _vectors.Rows | Quantized) -> int:
    return len(documents if isinstance(documents, Quantized) else documents.array)
