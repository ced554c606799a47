"""What an index of token vectors is given: documents, queries and numbers, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import (
    _encoding,
    _inputs,
    _maxsim_inputs,
    _maxsim_sides,
    _tensors,
    _token_encoding,
    _vectors,
)
from simtile._maxsim_inputs import Given
from simtile._token_encoding import TokenEncoding

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


class Queries:
    """Queries in float32, of length 1 where the index normalizes, and without NaN."""

    def __init__(self, queries: Any, query_mask: Any, encoding: TokenEncoding) -> None:
        if not isinstance(queries, (list, tuple)):
            queries = (
                queries if _tensors.is_tensor(queries) else _tensors.to_array("queries", queries)
            )
            if len(queries.shape) == 2:
                queries = queries[None]
                query_mask = None if query_mask is None else [query_mask]
        given = _maxsim_inputs.given("queries", queries, query_mask, "query_mask")
        self.device = given.x.device if _tensors.is_tensor(given.x) else None
        if given.dim == 0:  # a list of none
            given = replace(given, x=np.zeros((0, encoding.dim), np.float32))
        if given.dim != encoding.dim:
            found = f"{_tensors.dtype_name(given.x)} {list(given.x.shape)}"
            raise ValueError(
                f"queries: found {found}, expected {encoding.dim} dimensions as the index has"
            )
        x = _maxsim_sides.widen(*_maxsim_sides.elements(given), "float32")
        mask = None if given.mask is None else _tensors.as_array(given.mask)
        wrong = np.isnan(x).any(-1)
        if mask is not None:
            wrong &= mask
        if wrong.any():
            raise ValueError(
                f"queries: found NaN at {np.argwhere(wrong)[0].tolist()}, expected numbers: "
                "nothing could be compared with it"
            )
        if encoding.normalize:
            rows = _vectors.Rows(x.reshape(-1, encoding.dim), "float32", None)
            with np.errstate(invalid="ignore"):
                x = _token_encoding.normalized(rows).array.reshape(x.shape)
        self.given = replace(given, x=x, mask=mask)
        none = Given("tokens", np.empty((0, encoding.dim), np.float32), np.zeros(1, np.int64), None)
        self.side = _maxsim_sides.pair_of_sides(self.given, none)[0]

    def __len__(self) -> int:
        return len(self.side)

    def pooled(self) -> Floats:
        """The mean of each query's tokens, [Q, D]."""
        rows, starts, ends, mask = self.side.arguments
        if mask is not None:
            rows = np.where(mask[:, None], rows, np.float32(0))
        return _token_encoding.pooled(_vectors.Rows(rows, "float32", None), starts, ends)


def check_documents(encoding: TokenEncoding, x: Any, mask: Any) -> tuple[_vectors.Rows, Int64s]:
    """Tokens [T, D] of all documents, and how many each has."""
    if isinstance(x, tuple) and len(x) == 2:
        given = _maxsim_inputs.given_packed("x[0]", x[0], x[1], mask, "mask", "x[1]")
    else:
        given = _maxsim_inputs.given("x", x, mask, "mask")
    if given.dim == 0:  # a list of none
        given = replace(given, x=np.empty((0, encoding.dim), np.float32))
    if given.dim != encoding.dim:
        found = f"{_tensors.dtype_name(given.x)} {list(given.x.shape)}"
        raise ValueError(
            f"{given.name}: found {found}, expected {encoding.dim} dimensions as the index has"
        )
    array, kind = _maxsim_sides.elements(given)
    if given.width is None:
        offsets = np.asarray(given.offsets)
    else:
        offsets = np.arange(given.batch + 1, dtype=np.int64) * given.width
    rows = array.reshape(-1, encoding.dim)
    lengths: Int64s = np.diff(offsets)
    if given.mask is not None:
        there = _tensors.as_array(given.mask).reshape(-1)
        before = np.concatenate([[0], np.cumsum(there)])
        lengths, rows = np.diff(before[offsets]).astype(np.int64), rows[there]
    tokens = _vectors.Rows(_vectors.side_by_side(rows), kind, None)
    _encoding.check_finite(f"{given.name}, its tokens", tokens)
    if kind == "float64":
        beyond = np.argwhere(np.isinf(_maxsim_sides.widen(tokens.array, kind, "float32")))
        if len(beyond):
            row, column = beyond[0]
            raise ValueError(
                f"{given.name}, its tokens: found {tokens.array[row, column]} in row {row}, beyond "
                "the range of float32"
            )
    return (_token_encoding.normalized(tokens) if encoding.normalize else tokens), lengths


def check_prefilter(prefilter: Any, k: int) -> int:
    count = _inputs.to_int("prefilter", prefilter, "a number of documents")
    if count < k:
        raise ValueError(f"prefilter: found {count}, expected at least k, which is {k}")
    return count


def check_empty_score(empty_score: Any) -> float:
    return _inputs.to_float("empty_score", empty_score)
