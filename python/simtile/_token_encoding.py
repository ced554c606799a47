"""How an index stores tokens: from floats to columns, and from columns to what MaxSim reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _inputs, _maxsim_inputs, _vectors
from simtile._encoding import FLOATS

Array = npt.NDArray[Any]
DTYPES = FLOATS
SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class TokenEncoding:
    """Tokens of `dim` dimensions as `dtype`. Immutable.

    Columns, all with one row for each token:

    ==============  ===================================  ==========
    codes           the floats                           floats
    ==============  ===================================  ==========
    """

    dim: int
    dtype: str
    normalize: bool

    @classmethod
    def of(cls, dim: object, dtype: str, normalize: bool) -> TokenEncoding:
        """Check the arguments of an index."""
        _inputs.check_choice("dtype", dtype, DTYPES)
        size = _encoding.Encoding.of(dim, "float32", "dot").dim
        return cls(size, dtype, bool(normalize))

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each column the element type in a file and the shape of a row."""
        return {"codes": (self.dtype, (self.dim,))}

    def empty(self) -> dict[str, Array]:
        """The columns of no tokens."""
        return {
            name: np.empty((0, *shape), np.uint16 if dtype == "bfloat16" else dtype)
            for name, (dtype, shape) in self.columns().items()
        }

    @property
    def token_bytes(self) -> int:
        """Bytes of a token."""
        return sum(
            int(np.prod(array.shape[1:])) * array.itemsize for array in self.empty().values()
        )

    def encode(self, rows: _vectors.Rows) -> dict[str, Array]:
        """The columns of finite tokens, of length 1 where that is wanted."""
        return {"codes": _encoding.as_floats(rows, self.dtype)}

    def tokens(self, columns: Mapping[str, Array]) -> _vectors.Rows:
        """Columns as what MaxSim scores."""
        return _vectors.Rows(columns["codes"], self.dtype, None)


def normalized(rows: _vectors.Rows) -> _vectors.Rows:
    """float32 rows divided by their lengths, or by 1e-12 where they are shorter."""
    x = _maxsim_inputs.widen(rows.array, rows.kind, "float32")
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    unit = (x / np.maximum(norms, SMALLEST_NORM)).astype(np.float32)
    return _vectors.Rows(unit, "float32", None)


def pooled(rows: _vectors.Rows, starts: Array, ends: Array) -> Array:
    """The means of runs of tokens, float32 [N, D]; zeros of an empty one."""
    x = _maxsim_inputs.widen(rows.array, rows.kind, "float32")
    means = np.zeros((len(starts), x.shape[1]), np.float32)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < end:
            means[i] = x[start:end].mean(0, dtype=np.float64)
    return means
