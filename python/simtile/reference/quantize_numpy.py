"""`reference/quantize.py` in NumPy, for sizes where lists are too slow; equal to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.reference.quantize import TOP_CODE, TOP_LEVEL, ZERO_LEVEL

Array = npt.NDArray[Any]


def quantize(
    x: Array, kind: str, *, ranges: Array | None = None
) -> tuple[Array, Array | None, Array | None]:
    """Codes [N, D], not packed, scale [D] or [N], offset [D]."""
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32)
    with np.errstate(all="ignore"):
        if kind == "binary":
            return (x > 0).astype(np.uint8), None, None
        if kind in TOP_CODE:
            top = TOP_CODE[kind]
            scale = (np.abs(x).max(axis=1, initial=0) / x.dtype.type(top)).astype(np.float32)
            if not np.isfinite(scale).all():
                raise ValueError("a vector's scale is not finite")
            quotients = x / np.where(scale == 0, np.float32(np.inf), scale)[:, None]
            return np.rint(np.clip(quotients, -top, top)).astype(np.int8), scale, None

        smallest, largest = ranges_of(x) if ranges is None else ranges
        width = (largest - smallest) / np.float32(TOP_LEVEL[kind])
        step = np.where(width == 0, np.float32(1), width)
        level = np.clip(np.floor((x - smallest) / step), 0, TOP_LEVEL[kind])
        zero = ZERO_LEVEL[kind]
        codes = np.where(np.isnan(level), 0, level - zero)
        wide = smallest.astype(np.float64) + zero * step.astype(np.float64)
        offset = (wide + 0.5 * width.astype(np.float64)).astype(np.float32)
        return codes.astype(np.uint8 if kind == "uint8" else np.int8), step, offset


def ranges_of(x: Array) -> Array:
    """Smallest and largest value of every column, float32 [2, D]."""
    with np.errstate(all="ignore"):
        ends: Array = np.stack([x.min(axis=0), x.max(axis=0)]).astype(np.float32)
        ends += 0.0  # not -0, of which the minimum of 0 and -0 may be either
        return ends


def pack(codes: Array, kind: str) -> Array:
    """Codes as `Quantized` stores them."""
    if kind == "binary":
        return np.packbits(codes, axis=1)
    if kind not in ("int4", "int4_vector"):
        return codes
    even = codes[:, ::2].astype(np.uint8) & 15
    odd = np.zeros_like(even)
    odd[:, : codes.shape[1] // 2] = codes[:, 1::2].astype(np.uint8) << 4
    return even | odd
