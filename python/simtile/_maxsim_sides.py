"""Queries and documents of MaxSim as kernels on the CPU read them.

A padded batch, a list and packed tokens are all runs of the rows of one matrix: what pads a batch
lies between them, or is masked. Rows are copied only where they have to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _tensors
from simtile._maxsim_inputs import Given, Parts
from simtile._vectors import FLOATS, Rows

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Queries or documents as `_core` takes them."""

    name: str
    rows: Rows  # [T, D]; or a list of matrices, of which each is a run
    starts: Int64s  # [B]
    ends: Int64s  # [B]
    mask: npt.NDArray[np.bool_] | None  # [T]: which rows are tokens
    width: int | None  # L of a padded batch, of which runs may be shorter

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def arguments(self) -> Any:
        """As they follow each other in `_core`'s functions."""
        return self.rows.array, self.starts, self.ends, self.mask


def pair_of_sides(queries: Given, documents: Given, *, dense: bool = False) -> tuple[Side, Side]:
    """Both as kernels read them: queries in the type in which scores are computed.

    `dense`: every row of the matrices is one of the inputs' tokens, in their order, as it is for
    gradients that have the shapes of the inputs.
    """
    own, own_kind = elements(queries)
    if isinstance(documents.x, Parts):
        side = None if own_kind == "float64" else _side_of_parts(documents)
        if side is not None:
            compute = "float64" if side.rows.kind == "float64" else "float32"
            own = widen(own, own_kind, compute)
            return _side(queries, own, compute, dense, trim=False), side
        documents = documents.together()
    x, kind = elements(documents)
    compute = "float64" if "float64" in (kind, own_kind) else "float32"
    if compute == "float64" and kind != compute:
        x, kind = widen(x, kind, compute), compute
    return (
        _side(queries, widen(own, own_kind, compute), compute, dense, trim=False),
        _side(documents, x, kind, dense, trim=True),
    )


def side_of(side: Given, *, dense: bool = False) -> Side:
    """One of them, in its own type and with all its rows in the runs; `dense` as above."""
    side = side.together()
    x, kind = elements(side)
    return _side(side, x, kind, dense=dense, trim=False)


def elements(side: Given) -> tuple[Array, str]:
    """The elements as an array, of bfloat16 their bits, and the name of the type."""
    if _tensors.is_tensor(side.x):
        kind = _tensors.dtype_name(side.x)
        if kind not in FLOATS:
            raise ValueError(
                f"{side.name}: found {side.x.dtype} {list(side.x.shape)}, expected float32, "
                "float64, float16 or bfloat16; convert with x.float()"
            )
        return _tensors.as_array(side.x), kind
    array, kind = _inputs.float_array(side.name, side.x)
    return (array.view(np.uint16) if kind == "bfloat16" else array), kind


def widen(x: Array, kind: str, compute: str) -> Array:
    if kind == "bfloat16":
        x = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is rounded to infinity
        return x.astype(compute, copy=False)


def _side(side: Given, x: Array, kind: str, dense: bool, trim: bool) -> Side:
    mask = None if side.mask is None else _tensors.as_array(side.mask)
    if mask is not None and mask.all():
        mask = None
    if side.offsets is not None:
        bounds = side.offsets
        rows = Rows(_inputs.kernel_rows(x), kind, None)
        flat = None if mask is None else np.ascontiguousarray(mask)
        return Side(side.name, rows, bounds[:-1].copy(), bounds[1:].copy(), flat, None)
    count, width, _ = x.shape
    lengths = np.full(count, width, np.int64)
    if trim and mask is not None:
        lengths = _prefixes(mask)
        if (mask.sum(1) == lengths).all():
            mask = None
    found = None if dense and not _is_dense(x) else _as_one_matrix(x)
    if found is None or (mask is not None and found[1] < width):
        found = _as_one_matrix(np.require(x, requirements=["C", "ALIGNED"]))
        assert found is not None
    matrix, step = found
    starts = np.arange(count, dtype=np.int64) * step
    if mask is not None:
        mask = _mask_of_rows(mask, len(matrix), step)
    return Side(side.name, Rows(matrix, kind, None), starts, starts + lengths, mask, width)


def _side_of_parts(side: Given) -> Side | None:
    """None where masks have holes."""
    offsets = side.offsets
    lengths = np.diff(offsets)
    if side.mask is not None:
        total = np.concatenate([[0], np.cumsum(_tensors.as_array(side.mask))])
        before, lengths = total[offsets[:-1]], np.diff(total[offsets])
        if (total[offsets[:-1] + lengths] - before != lengths).any():
            return None
    pairs = [elements(Given(side.name, x, None, None)) for x in side.x.items]
    rows = Rows([np.require(x, requirements=["C", "ALIGNED"]) for x, _ in pairs], pairs[0][1], None)
    starts = np.zeros(len(lengths), np.int64)
    return Side(side.name, rows, starts, lengths.astype(np.int64), None, None)


def _prefixes(mask: Array) -> Int64s:
    """Up to where each has a token, [B]."""
    width = mask.shape[1]
    if width == 0:
        return np.zeros(len(mask), np.int64)
    last = width - mask[:, ::-1].argmax(1)
    return np.where(mask.any(1), last, 0).astype(np.int64)


def _is_dense(x: Array) -> bool:
    return x.flags.c_contiguous


def _as_one_matrix(x: Array) -> tuple[Array, int] | None:
    """A batch [B, L, D] as one matrix, and how many of its rows one entry is after the other.

    What lies between the entries, as in a slice of a wider batch, becomes rows that are in no run;
    entries that are all the same memory, as in an expanded one, are the same rows. None where rows
    are not at one distance.
    """
    count, width, dim = x.shape
    if count == 0 or width == 0:
        return np.empty((0, dim), x.dtype), 0
    item = x.itemsize
    outer, inner, beside = x.strides
    if width == 1:
        inner = outer if count > 1 and outer > 0 else dim * item
    if count == 1:
        outer = width * inner
    if not x.flags.aligned or (dim > 1 and beside != item) or inner <= 0 or inner % item:
        return None
    if outer < 0 or outer % inner:
        return None
    step = outer // inner
    shape = ((count - 1) * step + width, dim)
    return np.lib.stride_tricks.as_strided(x, shape, (inner, item), writeable=False), step


def _mask_of_rows(mask: Array, rows: int, step: int) -> Array:
    count, width = mask.shape
    if step == width:
        return np.ascontiguousarray(mask).reshape(-1)
    flat = np.zeros(rows, bool)
    if rows:
        flat[np.arange(count)[:, None] * step + np.arange(width)] = mask
    return flat
