"""Arguments of faiss's calls as arrays and numbers, or an error that says what was expected."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def float_rows(name: str, x: Any, dim: int | None) -> Array:
    array = np.asarray(x)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or (dim and array.shape[1] != dim):
        raise ValueError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected float32 [n, {dim or 'd'}]"
            + _one_row(array)
        )
    return np.ascontiguousarray(array, np.float32)


def byte_rows(name: str, x: Any, width: int | None) -> Array:
    array = np.asarray(x)
    if array.dtype != np.uint8:
        raise TypeError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected uint8 "
            f"[n, {width or 'd / 8'}]; np.packbits(vectors > 0, axis=1) packs floats"
        )
    if array.ndim != 2 or (width and array.shape[1] != width):
        raise ValueError(
            f"{name}: found uint8 {list(array.shape)}, expected [n, {width or 'd / 8'}]"
            + _one_row(array)
        )
    return np.ascontiguousarray(array)


def _one_row(array: Array) -> str:
    return "; a single vector is x[None, :]" if array.ndim == 1 else ""


def integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected an int") from None


def positive(name: str, value: Any) -> int:
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: found {number}, expected at least 1")
    return number


def into(name: str, given: Any, result: Array) -> Array:
    if given is None:
        return result
    if given.shape != result.shape or given.dtype != result.dtype:
        raise ValueError(
            f"{name}: found {given.dtype} {list(given.shape)}, expected {result.dtype} "
            f"{list(result.shape)}"
        )
    given[...] = result
    array: Array = given
    return array
