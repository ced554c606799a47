"""How an index stores tokens: from floats to columns, and from columns to what MaxSim reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _encoding, _inputs, _maxsim_sides, _tensors, _vectors
from simtile._encoding import FLOATS
from simtile.quantize import quantize
from simtile.quantized import Quantized
from simtile.residual import ResidualCodec, ResidualTokens, unit_rows

Array = npt.NDArray[Any]
Operand = _vectors.Rows | Quantized | ResidualTokens

RESIDUALS = {"residual1": 1, "residual2": 2, "residual4": 4}
DTYPES = (*FLOATS, "int8", "binary", *RESIDUALS)
KINDS: dict[str, Any] = {"int8": "int8_vector", "binary": "binary"}  # of Quantized
FEW_TOKENS = 100  # that a codec is not learnt from
LARGEST_BFLOAT16 = np.float32(255 / 128 * 2.0**127)
CODEC = ("centroids", "bucket_weights", "bucket_cutoffs")  # a codec's arrays


@dataclass(frozen=True)
class TokenEncoding:
    """Tokens of `dim` dimensions as `dtype`. Immutable.

    Columns, all with one row for each token:

    =============  =====================================  =======================
    codes          the floats, or a `Quantized`'s codes   floats, int8, binary
    scales         float32                                int8
    centroid_ids   int32                                  residual1, 2, 4
    residuals      uint8 [⌈D · bits / 8⌉]                 residual1, 2, 4
    inverse_norms  float32                                residual1, 2, 4
    =============  =====================================  =======================
    """

    dim: int
    dtype: str
    normalize: bool
    centroids: Any = None  # what a codec is learnt with: how many, or float32 [K, D]
    codec: ResidualCodec | None = None  # None before the first tokens are added

    @classmethod
    def of(
        cls, dim: object, dtype: str, normalize: bool, centroids: Any = None, codec: Any = None
    ) -> TokenEncoding:
        """Check the arguments of an index."""
        _inputs.check_choice("dtype", dtype, DTYPES)
        size = _encoding.Encoding.of(dim, "float32", "dot").dim
        for name, given in (("centroids", centroids), ("codec", codec)):
            if given is not None and dtype not in RESIDUALS:
                raise ValueError(
                    f"{name}: found some for dtype {dtype!r}, expected None: they are for "
                    "'residual1', 'residual2' and 'residual4'"
                )
        if codec is not None:
            if not isinstance(codec, ResidualCodec):
                raise TypeError(f"codec: found {type(codec).__name__}, expected a ResidualCodec")
            if centroids is not None:
                raise ValueError("centroids: found some beside a codec, which has its own")
            if (codec.dim, codec.bits) != (size, RESIDUALS[dtype]):
                raise ValueError(
                    f"codec: found {codec!r}, expected dim={size} and bits={RESIDUALS[dtype]}"
                )
        return cls(
            size,
            dtype,
            _inputs.check_flag("normalize", normalize),
            _check_centroids(centroids, size),
            codec,
        )

    def trained(self, rows: _vectors.Rows, threads: int | None = None) -> TokenEncoding:
        """With a codec learnt from the first tokens, unless it is there or not needed."""
        if self.dtype not in RESIDUALS or self.codec is not None:
            return self
        if len(rows.array) < FEW_TOKENS:
            raise ValueError(
                f"x: found {len(rows.array)} tokens in the first add, expected at least "
                f"{FEW_TOKENS}: the codec of {self.dtype!r} is learnt from them and kept; add more "
                "at once, or give codec= when the index is made"
            )
        codec = ResidualCodec.train(
            _widened(rows), RESIDUALS[self.dtype], centroids=self.centroids, threads=threads
        )
        return replace(self, codec=codec, centroids=None)

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each column the element type in a file and the shape of a row."""
        if self.dtype in FLOATS:
            return {"codes": (self.dtype, (self.dim,))}
        if self.dtype == "int8":
            return {"codes": ("int8", (self.dim,)), "scales": ("float32", ())}
        if self.dtype == "binary":
            return {"codes": ("uint8", ((self.dim + 7) // 8,))}
        width = (self.dim * RESIDUALS[self.dtype] + 7) // 8
        return {
            "centroid_ids": ("int32", ()),
            "residuals": ("uint8", (width,)),
            "inverse_norms": ("float32", ()),
        }

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

    @property
    def shared(self) -> dict[str, Array]:
        """The arrays that all tokens have in common."""
        if self.codec is not None:
            return {name: getattr(self.codec, name) for name in CODEC}
        return {"centroids": self.centroids} if isinstance(self.centroids, np.ndarray) else {}

    def encode(self, rows: _vectors.Rows) -> dict[str, Array]:
        """The columns of finite tokens, which are of length 1 where that is wanted."""
        if self.dtype in FLOATS:
            return {"codes": _encoding.as_floats(rows, self.dtype)}
        if self.codec is not None:
            stored = self.codec.encode(_widened(rows))
            return {name: getattr(stored, name) for name in self.columns()}
        codes = quantize(_widened(rows), KINDS[self.dtype])
        return {name: codes.codes if name == "codes" else codes.scale for name in self.columns()}

    def operand(self, columns: Mapping[str, Array]) -> Operand:
        """Columns as what MaxSim reads; raises where codes, of a damaged file, cannot be."""
        if self.dtype in FLOATS:
            return _vectors.Rows(columns["codes"], self.dtype, None)
        if self.dtype in KINDS:
            scales = columns.get("scales")
            return Quantized(columns["codes"], scales, None, self.dim, KINDS[self.dtype])
        assert self.codec is not None  # there are tokens
        return ResidualTokens(self.codec, *(columns[name] for name in self.columns()))


def _widened(rows: _vectors.Rows) -> Array:
    """float32."""
    return _maxsim_sides.widen(rows.array, rows.kind, "float32")


def _check_centroids(centroids: Any, dim: int) -> Any:
    """None, an int, or a copy in float32 [K, D]."""
    if centroids is None:
        return None
    if hasattr(centroids, "__index__") and np.ndim(centroids) == 0:
        if isinstance(centroids, bool) or centroids.__index__() < 1:
            raise ValueError(f"centroids: found {centroids!r}, expected at least 1")
        return int(centroids.__index__())
    array = _tensors.as_array(centroids.float() if _tensors.is_tensor(centroids) else centroids)
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != dim or not len(array):
        raise ValueError(
            f"centroids: found {array.dtype} {list(array.shape)}, expected how many, or floats "
            f"[K, {dim}]"
        )
    chosen = array.astype(np.float32)
    if not np.isfinite(chosen).all():
        raise ValueError("centroids: found NaN or an infinity, expected finite numbers")
    return chosen


def normalized(rows: _vectors.Rows) -> _vectors.Rows:
    """float32 rows divided by their lengths, or by 1e-12 where they are shorter."""
    return _vectors.Rows(unit_rows(_widened(rows)), "float32", None)


def pooled(rows: _vectors.Rows, starts: Array, ends: Array) -> Array:
    """The means of runs of tokens, float32 [N, D] that bfloat16 can hold; zeros of an empty one."""
    x = _widened(rows)
    means = np.zeros((len(starts), x.shape[1]), np.float32)
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < end:
            means[i] = x[start:end].mean(0, dtype=np.float64)
    return np.clip(means, -LARGEST_BFLOAT16, LARGEST_BFLOAT16)
