"""How an index stores its documents: from floats to columns, and from columns to a kernel's rows.

A `FlatIndex` has one encoding, a cascade one for each stage. Immutable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _tensors, _vectors
from simtile._search_operands import METRICS, Documents
from simtile.quantize import FEW_ROWS, quantize
from simtile.quantized import (
    CODE_KINDS,
    KINDS,
    PER_DIMENSION,
    PER_VECTOR,
    Quantized,
    code_dtype,
    code_width,
)

Array = npt.NDArray[Any]

FLOATS = ("float32", "bfloat16", "float16")
DTYPES = (*FLOATS, *KINDS)
MOST_DIMENSIONS = 1 << 24
BLOCK_ELEMENTS = 1 << 20  # checked or converted at a time


@dataclass(frozen=True)
class Encoding:
    """Documents of `dim` dimensions as `dtype`, to be searched by `metric`.

    Columns, all with one row for each document:

    =========  ==================================  ==========================================
    codes      the floats, or a `Quantized`'s      all
    scales     float32                             int8_vector, int4_vector
    norms      float32, `Quantized.inverse_norms`  codes but bits, metric cosine
               or `Quantized.squared_norms`        codes but bits, metric l2
    =========  ==================================  ==========================================
    """

    dim: int
    dtype: str
    metric: str
    # float32 [2, D] of a kind in PER_DIMENSION; None before they are known.
    ranges: Array | None = None
    scale: Array | None = None  # float32 [D], and of the offset, by the ranges
    offset: Array | None = None
    prefix: str = ""  # of the columns' names

    @classmethod
    def of(cls, dim: object, dtype: str, metric: str, ranges: Any = None) -> Encoding:
        """Check the arguments of an index."""
        if isinstance(dim, bool) or not hasattr(dim, "__index__"):
            raise TypeError(f"dim: found {dim!r}, expected an int")
        size = dim.__index__()
        if not 1 <= size <= MOST_DIMENSIONS:
            raise ValueError(f"dim: found {size}, expected 1 to {MOST_DIMENSIONS}")
        _inputs.check_choice("dtype", dtype, DTYPES)
        _inputs.check_choice("metric", metric, METRICS)
        if metric == "hamming" and dtype != "binary":
            raise ValueError(
                f"metric: found 'hamming' for dtype {dtype!r}, expected 'cosine', 'dot' or 'l2'; "
                "Hamming distances are those of dtype 'binary'"
            )
        encoding = cls(size, dtype, metric)
        if ranges is None:
            return encoding
        if dtype not in PER_DIMENSION:
            raise ValueError(f"ranges: found some for dtype {dtype!r}, expected None: it has none")
        return encoding.with_ranges(ranges)

    @property
    def needs_ranges(self) -> bool:
        """Whether nothing can be encoded before the ranges are known."""
        return self.dtype in PER_DIMENSION and self.ranges is None

    def with_ranges(self, ranges: Any) -> Encoding:
        zeros = np.zeros((1, self.dim), np.float32)
        one = quantize(zeros, self._kind, ranges=ranges)
        return replace(self, ranges=one.ranges, scale=one.scale, offset=one.offset)

    def calibrated(self, x: _vectors.Rows | Quantized) -> Encoding:
        """With the ranges of x, the first documents, unless they are known or not needed."""
        if not self.needs_ranges:
            return self
        if isinstance(x, Quantized):
            first = x
        elif len(x.array) < FEW_ROWS:
            raise ValueError(
                f"x: found {len(x.array)} rows in the first add, expected at least {FEW_ROWS}: the "
                f"ranges of {self.dtype!r} are taken from them and kept; add more at once, or give "
                "ranges= when the index is made"
            )
        else:
            first = quantize(as_given(x), self._kind)
        return replace(self, ranges=first.ranges, scale=first.scale, offset=first.offset)

    @property
    def _kind(self) -> Any:
        return self.dtype

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each column the element type in a file and the shape of a row."""
        p = self.prefix
        if self.dtype in FLOATS:
            return {f"{p}codes": (self.dtype, (self.dim,))}
        width = code_width(self.dtype, self.dim)
        columns: dict[str, tuple[str, tuple[int, ...]]] = {
            f"{p}codes": (code_dtype(self.dtype), (width,))
        }
        if self.dtype in PER_VECTOR:
            columns[f"{p}scales"] = ("float32", ())
        if self.dtype != "binary" and self.metric in ("cosine", "l2"):
            columns[f"{p}norms"] = ("float32", ())
        return columns

    def empty(self) -> dict[str, Array]:
        """The columns of no documents."""
        return {
            name: np.empty((0, *shape), np.uint16 if dtype == "bfloat16" else dtype)
            for name, (dtype, shape) in self.columns().items()
        }

    def encode(self, x: _vectors.Rows | Quantized) -> dict[str, Array]:
        """The columns of documents that `check_documents` returned."""
        if isinstance(x, Quantized):
            quantized = x
        elif self.dtype in FLOATS:
            return {f"{self.prefix}codes": as_floats(x, self.dtype)}
        elif x.kind == "uint8":
            return {f"{self.prefix}codes": x.array}
        else:
            quantized = quantize(as_given(x), self._kind, ranges=self.ranges)
        parts = {"codes": quantized.codes, "scales": quantized.scale}
        if self.metric in ("cosine", "l2") and self.dtype != "binary":
            cosine = self.metric == "cosine"
            parts["norms"] = quantized.inverse_norms if cosine else quantized.squared_norms
        return {name: parts[name.removeprefix(self.prefix)] for name in self.columns()}

    def documents(self, columns: Mapping[str, Any]) -> Documents:
        """Columns as what kernels search."""
        codes = columns[f"{self.prefix}codes"]
        if self.dtype in FLOATS:
            return Documents(self.dtype, self.metric, codes, self.dim)
        if self.dtype == "binary":
            kind = "packed" if self.metric == "hamming" else "bits"
            return Documents(kind, self.metric, codes, self.dim)
        norms = columns.get(f"{self.prefix}norms")
        factor = norms if self.metric == "cosine" else columns.get(f"{self.prefix}scales")
        return Documents(
            CODE_KINDS[self.dtype],
            self.metric,
            codes,
            self.dim,
            self.scale,
            self.offset,
            factor,
            norms if self.metric == "l2" else None,
            1.0 if self.dtype in PER_VECTOR else None,
        )

    def check_documents(self, x: Any, name: str = "x") -> _vectors.Rows | Quantized:
        """Documents [N, D] as they are given to `add`, on the CPU.

        Raises
        ------
        ValueError, TypeError
            They have another shape or element type, or a row with NaN or an infinity.
        """
        if isinstance(x, Quantized):
            return self._check_quantized(x.numpy(), name)
        if _vectors.gpu_of(x) is not None:
            x = x.cpu()
        rows = _vectors.read(name, x)
        if rows.kind == "uint8" and self.dtype == "binary":
            check_packed(name, rows.array, self.dim)
            return rows
        if rows.kind in ("int8", "uint8"):
            raise ValueError(
                f"{name}: found {rows}, expected floats [N, {self.dim}]: the index makes its "
                f"{self.dtype!r} codes itself, or takes the Quantized that simtile.quantize "
                "returned"
            )
        if rows.array.shape[1] != self.dim:
            raise ValueError(f"{name}: found {rows}, expected [N, {self.dim}]")
        check_finite(name, rows)
        return rows

    def _check_quantized(self, x: Quantized, name: str) -> Quantized:
        if x.kind != self.dtype or x.dim != self.dim:
            raise ValueError(
                f"{name}: found {x!r}, expected kind {self.dtype!r} and {self.dim} dimensions"
            )
        if x.kind == "binary":
            check_packed(name, x.codes, self.dim)
        if self.scale is not None and self.offset is not None:
            same = np.array_equal(x.scale, self.scale) and np.array_equal(x.offset, self.offset)
            if not same:
                raise ValueError(
                    f"{name}: found {x!r} with another scale or offset than the index has; make "
                    "the codes with simtile.quantize(..., ranges=index.ranges), or add floats"
                )
        if x.kind in PER_DIMENSION and self.needs_ranges and x.ranges is None:
            raise ValueError(
                f"{name}: found {x!r} without ranges, expected those that simtile.quantize "
                "gives, or ranges= when the index is made"
            )
        if x.kind in PER_VECTOR and not np.isfinite(x.scale).all():
            row = int((~np.isfinite(x.scale)).argmax())
            raise ValueError(f"{name}: found the scale {x.scale[row]} in row {row}")
        return x


def as_given(rows: _vectors.Rows) -> Any:
    """The array of rows of floats as `quantize` takes it."""
    if rows.kind != "bfloat16":
        return rows.array
    return widened(rows.array)


def check_packed(name: str, packed: Array, dim: int) -> None:
    """Raise unless these are rows of `dim` bits and what is left over in the last byte is 0."""
    width = (dim + 7) // 8
    if packed.shape[1] != width:
        raise ValueError(
            f"{name}: found uint8 {list(packed.shape)}, expected [N, {width}]: {dim} bits a row"
        )
    wrong = packed[:, -1] & ((1 << (-dim % 8)) - 1) != 0
    if wrong.any():
        raise ValueError(
            f"{name}: found bits beyond the {dim} of row {int(wrong.argmax())}, expected zeros "
            "there, as numpy.packbits leaves them"
        )


def check_finite(name: str, rows: _vectors.Rows) -> None:
    """Raise if a row has NaN or an infinity."""
    step = max(1, BLOCK_ELEMENTS // rows.array.shape[1])
    for begin in range(0, len(rows.array), step):
        block = rows.array[begin : begin + step]
        if rows.kind == "bfloat16":
            good = (block & 0x7F80 != 0x7F80).all(axis=1)
        else:
            good = np.isfinite(block).all(axis=1)
        if not good.all():
            row = int((~good).argmax())
            values = widened(block[row]) if rows.kind == "bfloat16" else block[row]
            what = "NaN" if np.isnan(values).any() else "an infinity"
            raise ValueError(
                f"{name}: found {what} in row {begin + row}, expected finite numbers: it could "
                "not be compared with anything"
            )


def widened(bits: Array) -> Array:
    """bfloat16 as float32."""
    wide: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def as_floats(rows: _vectors.Rows, dtype: str) -> Array:
    """Finite rows in an element type of FLOATS, rounded to the nearest."""
    if rows.kind == dtype:
        same: Array = rows.array
        return same
    out = np.empty(rows.array.shape, np.uint16 if dtype == "bfloat16" else dtype)
    step = max(1, BLOCK_ELEMENTS // rows.array.shape[1])
    for begin in range(0, len(out), step):
        block = rows.array[begin : begin + step]
        if rows.kind == "bfloat16":
            block = widened(block)
        with np.errstate(over="ignore"):
            if dtype == "bfloat16":
                narrow = _to_bfloat16(block)
                good = narrow & 0x7F80 != 0x7F80
            else:
                narrow = block.astype(dtype)
                good = np.isfinite(narrow)
        if not good.all():
            row, column = np.argwhere(~good)[0]
            raise ValueError(
                f"x: found {block[row, column]} in row {begin + row}, beyond the range of {dtype}"
            )
        out[begin : begin + step] = narrow
    return out


def _to_bfloat16(x: Array) -> Array:
    """The bits of finite floats rounded to bfloat16, half to even."""
    wide = x.astype(np.float32, copy=False)
    bits = np.ascontiguousarray(wide).view(np.uint32)
    rounded: Array = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def check_ids(name: str, ids: Any, rows: int | None = None) -> npt.NDArray[np.int64]:
    """Ids of documents, int64 [n], none below 0; of `rows` rows, one for each."""
    array = _tensors.as_array(ids, name)
    if array.size == 0 and array.dtype == np.float64:  # what NumPy makes of []
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: found {array.dtype} {list(array.shape)}, expected integers")
    if array.ndim != 1 or (rows is not None and len(array) != rows):
        expected = "[n]" if rows is None else f"[{rows}], one for each row of x"
        raise ValueError(f"{name}: found {array.dtype} {list(array.shape)}, expected {expected}")
    wrong = (array < 0) | (array > np.iinfo(np.int64).max)
    if wrong.any():
        raise ValueError(
            f"{name}: found {array[wrong.argmax()]} at [{wrong.argmax()}], expected 0 to 2^63 - 1: "
            "-1 stands for no document"
        )
    return np.require(array, np.int64, ["C", "ALIGNED"])
