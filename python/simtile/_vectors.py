"""Vectors and codes of NumPy and torch as the rows that kernels read.

What lies on a GPU stays there as a tensor; everything else becomes a NumPy array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _tensors

Array = npt.NDArray[Any]

FLOATS = ("float32", "float64", "float16", "bfloat16")


class Rows(NamedTuple):
    """A matrix, the elements of a row side by side."""

    array: Any  # bfloat16 on the CPU: uint16 of its bits
    kind: str  # the element type: one of FLOATS, int8 or uint8
    device: Any  # of a tensor; None for an array

    def __str__(self) -> str:
        return f"{self.kind} {list(self.array.shape)}"


def gpu_of(x: object) -> Any:
    """The device of a tensor on a GPU, None for everything else."""
    if not _tensors.is_tensor(x):
        return None
    device = x.device  # type: ignore[attr-defined]
    return None if device.type == "cpu" else device


def read(name: str, x: object, rows: str = "N", width: str = "D") -> Rows:
    """A matrix of floats, int8 or uint8: itself where rows can be read as they are, else a copy.

    Raises
    ------
    ValueError
        It is no matrix, has no columns, or elements of another type.
    """
    device = None
    if _tensors.is_tensor(x):
        array, kind = _of_tensor(name, x)
        device = x.device  # type: ignore[attr-defined]
    else:
        array = _tensors.to_array(name, x)
        if array.dtype in (np.int8, np.uint8):
            kind = array.dtype.name
        else:
            array, kind = _inputs.float_array(name, array)
            if kind == "bfloat16":
                array = array.view(np.uint16)
    shape = list(array.shape)
    if len(shape) != 2:
        hint = "; a single vector is x[None, :]" if len(shape) == 1 else ""
        raise ValueError(f"{name}: found {kind} {shape}, expected [{rows}, {width}]{hint}")
    if shape[1] == 0:
        raise ValueError(f"{name}: found {kind} {shape}, expected at least one dimension")
    return Rows(side_by_side(array), kind, device)


def _of_tensor(name: str, x: Any) -> tuple[Any, str]:
    kind = _tensors.dtype_name(x)
    if kind not in (*FLOATS, "int8", "uint8"):
        raise ValueError(
            f"{name}: found {x.dtype} {list(x.shape)}, expected float32, float64, float16 or "
            "bfloat16; convert with x.float()"
        )
    if x.is_sparse or x.layout != _torch().strided:
        raise ValueError(f"{name}: found layout {x.layout}, expected a dense (strided) tensor")
    if gpu_of(x) is not None:
        return x.detach(), kind
    return _tensors.as_array(x), kind


def side_by_side(rows: Any) -> Any:
    """Rows as kernels read them, or a copy that they can read."""
    if not _tensors.is_tensor(rows):
        return _inputs.kernel_rows(rows)
    readable = rows.stride(1) == 1 or rows.shape[1] <= 1
    return rows if readable else rows.contiguous()


def cast(name: str, rows: Rows, kind: str) -> Any:
    """The rows in float64 for documents of float64, else in float32."""
    dtype = "float64" if kind == "float64" else "float32"
    x = rows.array
    if _tensors.is_tensor(x):
        narrow = x.to(getattr(_torch(), dtype))
        check: Any = _torch()
    else:
        if rows.kind == "bfloat16":
            x = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):
            narrow = side_by_side(x.astype(dtype, copy=False))  # NumPy keeps the order of strides
        check = np
    if rows.kind == "float64" and dtype == "float32":
        beyond = check.isinf(narrow) & check.isfinite(x)
        if bool(beyond.any()):
            raise ValueError(
                f"{name}: found {float(x[beyond][0])}, beyond the range of float32, in which "
                f"{kind} documents are searched; scale queries and documents down"
            )
    return narrow


def rows_with_nan(x: Any) -> Any:
    """bool [N]"""
    if _tensors.is_tensor(x):
        return _torch().isnan(x).any(1)
    return np.isnan(x).any(1)


def full(size: int, value: float, like: Any) -> Any:
    """float32 [size] where `like` is."""
    if _tensors.is_tensor(like):
        return _torch().full((size,), value, dtype=_torch().float32, device=like.device)
    return np.full(size, value, np.float32)


def result(device: Any, found: Any) -> Any:
    """As the caller has its queries: the array, or a tensor on this device."""
    return found if device is None else _tensors.as_tensor(found, device)


def _torch() -> Any:
    import torch

    return torch
