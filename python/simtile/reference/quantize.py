"""Floats to codes in plain Python: the definition that every kernel is held to, to the last bit.

    kind                   level or code                            x̂ = code · scale + offset
    int8, uint8, int4      u = ⌊(x - smallest) / step⌋, 0 to top    the middle of the level
    int8_vector,           round(x / scale), half to even           scale = max |x_i| / top
    int4_vector
    binary                 1 if x > 0, else 0                       ±1

The codes of int8 and uint8 are those of sentence_transformers.util.quantization
(`quantize_embeddings`), NaN and infinities included: arithmetic is float32, or float64 if x is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simtile.reference.topk import float32

Row = Sequence[float]
Rounding = Callable[[float], float]

TOP_LEVEL = {"int8": 255, "uint8": 255, "int4": 15}
TOP_CODE = {"int8_vector": 127, "int4_vector": 7}
# The level whose code is 0.
ZERO_LEVEL = {"int8": 128, "uint8": 0, "int4": 8}


class Codes(NamedTuple):
    codes: list[list[int]]  # [N][D], not packed
    scale: list[float] | None  # [D], or [N] where each vector has one
    offset: list[float] | None  # [D]


def quantize(
    x: Sequence[Row],
    kind: str,
    *,
    ranges: Sequence[Row] | None = None,
    dtype: str = "float32",
) -> Codes:
    """The codes of vectors.

    Parameters
    ----------
    x : [N][D]
    kind : str
    ranges : [2][D], optional
        Of float32; by default from x.
    dtype : str
        The element type of x: in float64 nothing is rounded to float32 on the way to a code.
    """
    to_type: Rounding = float if dtype == "float64" else float32
    if kind == "binary":
        return Codes([[int(value > 0) for value in row] for row in x], None, None)
    if kind in TOP_CODE:
        rows = [vector_codes(row, TOP_CODE[kind], to_type) for row in x]
        return Codes([codes for codes, _ in rows], [scale for _, scale in rows], None)

    smallest, largest = ranges_of(x) if ranges is None else ranges
    top, zero = TOP_LEVEL[kind], ZERO_LEVEL[kind]
    widths = [
        float32(float32(high - low) / top) for low, high in zip(smallest, largest, strict=True)
    ]
    steps = [width or 1.0 for width in widths]
    codes = [
        [
            code_of(value, low, step, top, zero, to_type)
            for value, low, step in zip(row, smallest, steps, strict=True)
        ]
        for row in x
    ]
    # A range that is a point has the first level for it, and that level stands for the point.
    offset = [
        float32(low + zero * step + 0.5 * width)
        for low, step, width in zip(smallest, steps, widths, strict=True)
    ]
    return Codes(codes, steps, offset)


def ranges_of(x: Sequence[Row]) -> tuple[list[float], list[float]]:
    """The smallest and the largest value of every dimension, in float32; NaN if there is one."""
    columns = [list(column) for column in zip(*x, strict=True)]
    undefined = [any(map(math.isnan, column)) for column in columns]
    return tuple(  # type: ignore[return-value]
        [
            math.nan if nan else float32(end(column)) + 0.0
            for column, nan in zip(columns, undefined, strict=True)
        ]
        for end in (min, max)
    )


def code_of(value: float, low: float, step: float, top: int, zero: int, to_type: Rounding) -> int:
    difference = to_type(value - low)
    # An infinite step: of an infinite difference NaN, else 0. Python divides by no zero here.
    quotient = to_type(difference / step)
    if math.isnan(quotient):
        return 0
    return math.floor(min(max(quotient, 0.0), float(top))) - zero


def vector_codes(row: Row, top: int, to_type: Rounding) -> tuple[list[int], float]:
    """Codes from -top to top, and their scale. Raises ValueError if that is not finite."""
    largest = math.nan if any(map(math.isnan, row)) else max(map(abs, row))
    scale = float32(to_type(largest / top))
    if not math.isfinite(scale):
        raise ValueError("a vector's scale is not finite")
    if scale == 0.0:
        return [0] * len(row), 0.0
    quotients = [to_type(value / scale) for value in row]
    return [round(min(max(q, -top), top)) for q in quotients], scale  # half to even
