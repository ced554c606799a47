"""Documents of token vectors under ids: adding, updating and removing them.

Searching and storing them is what `MultiVectorIndex` adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _multi_vector_inputs, _token_encoding, _token_storage, _vectors
from simtile._documents import NumberedDocuments
from simtile._encoding import Encoding
from simtile._storage import Storage
from simtile._token_encoding import TokenEncoding
from simtile._token_storage import State, Tokens
from simtile.residual import ResidualCodec

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
# [N, L, D], [L, D] of each length, or (tokens [T, D], offsets [N + 1])
Matrices: TypeAlias = "npt.ArrayLike | torch.Tensor | Sequence[npt.ArrayLike | torch.Tensor]"


class TokenDocuments(NumberedDocuments):
    """The newest `State`, and the only one who makes the next."""

    def __init__(self, encoding: TokenEncoding) -> None:
        # Of a document's mean, by which a prefilter compares.
        pooled = Encoding.of(encoding.dim, "bfloat16", "cosine")
        self._pooled = replace(pooled, prefix="pooled_")
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
        rows, lengths = _multi_vector_inputs.check_documents(self._state.encoding, x, mask)
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
        rows, lengths = _multi_vector_inputs.check_documents(self._state.encoding, x, mask)
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

            def undo() -> None:
                self._storage.snapshot, self._state = before

            with self._storage.writing(undo):
                yield

    def _publish(self, tokens: tuple[Tokens, ...]) -> None:
        """Make what the storage and the tokens now are the state that searches see."""
        state = replace(self._state, snapshot=self._storage.snapshot, tokens=tokens)
        state = _token_storage.compacted(state)
        self._storage.snapshot = state.snapshot
        self._state = state
