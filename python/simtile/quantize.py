"""Floats to codes of 8, 4 or 1 bits.

The definition is `reference/quantize.py`; the kernels and their story are in `kernels/quantize/`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _tensors
from simtile.quantized import (
    KINDS,
    PER_DIMENSION,
    PER_VECTOR,
    Kind,
    Quantized,
    code_dtype,
    code_width,
)

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

FEW_ROWS = 100
LEVELS = {"int8": 256, "uint8": 256, "int4": 16}
# The level whose code is 0.
ZERO_LEVEL = {"int8": 128, "uint8": 0, "int4": 8}

# Columns that are sorted at a time: 8 of a million rows are 64 MB.
_COLUMNS = 8


def quantize(
    x: npt.ArrayLike | torch.Tensor,
    kind: Kind = "int8",
    *,
    ranges: npt.ArrayLike | torch.Tensor | None = None,
    calibration: npt.ArrayLike | torch.Tensor | None = None,
    quantiles: Sequence[float] | None = None,
    threads: int | None = None,
) -> Quantized:
    """Codes of 8, 4 or 1 bits for vectors of floats.

    Parameters
    ----------
    x : array or torch.Tensor [N, D]
        float32, float64, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); rows may have any
        stride. Nothing is normalised.
    kind : str
        "int8", "uint8" : 256 levels for each dimension between the ends of its range; the bytes of
        sentence_transformers' ``quantize_embeddings``.
        "int4" : 16 levels by the same rules.
        "int8_vector", "int4_vector" : symmetric, one scale for each vector.
        "binary" : one bit, x > 0; sentence_transformers' "ubinary", and
        :meth:`Quantized.signed_bits` is its "binary".
    ranges : float [2, D], optional
        The smallest and the largest value of each dimension; ``Quantized.ranges`` of an earlier
        call. Values beyond them get the first or the last level.
    calibration : array or torch.Tensor [M, D], optional
        Vectors to take the ranges from, in place of x.
    quantiles : (float, float), optional
        Ranges between these quantiles of each dimension, (0.005, 0.995) for example, in place of
        its smallest and largest value: ``numpy.quantile`` with its default method, in double
        precision, then rounded to float32. Computed on the CPU.
    threads : int, optional
        Of the CPU kernels; see :func:`simtile.set_num_threads`.

    Returns
    -------
    Quantized
        Its arrays are NumPy's or torch's as x is, on x's device. ``.ranges`` are those used.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; ranges would have to come from
        fewer than two vectors; with one scale for each vector, a row has a NaN or an infinity.

    Warns
    -----
    UserWarning
        Ranges are taken from x and x has fewer than 100 rows.
    RuntimeWarning
        With one scale for each dimension, x has a NaN (or an infinity that leads to one): its code
        is 0, as in sentence-transformers.

    Notes
    -----
    With one scale for each dimension, in the element type of x but at least float32::

        step = (largest - smallest) / 255        float32; 15 for int4; 0 becomes 1
        u    = min(max(floor((x - smallest) / step), 0), 255)
        code = u for uint8, u - 128 for int8, u - 8 for int4
        x̂    = smallest + (u + 1/2) step         the middle of the level; `smallest` itself where
                                                 the range is a point

    With one scale for each vector::

        scale = max |x_i| / 127                  7 for int4; then rounded to float32
        code  = round(x_i / scale)               half to even, within ±127 or ±7; 0 if scale is 0

    The same input gives the same bits at every ISA level, with any number of threads and on a GPU,
    where the call waits for the device, to see whether there was a NaN.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> x = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    >>> documents = simtile.quantize(x, "int8")
    >>> documents, documents.nbytes  # with a step and an offset for each dimension
    (Quantized('int8' [200, 16]), 3328)
    >>> later = simtile.quantize(x[:5], "int8", ranges=documents.ranges)
    >>> bool((later.codes == documents.codes[:5]).all())
    True
    """
    _inputs.check_choice("kind", kind, KINDS)
    thread_count = _inputs.check_threads(threads)
    return quantize_named("x", x, kind, ranges, calibration, quantiles, thread_count, stacklevel=3)


def quantize_named(
    name: str,
    x: Any,
    kind: Kind,
    ranges: Any,
    calibration: Any,
    quantiles: Any,
    threads: int,
    stacklevel: int,
) -> Quantized:
    """`quantize` of an argument of this name; warnings are told of the caller so far up."""
    rows = _rows(name, x)
    ends = starts = steps = offset = None
    if kind in PER_DIMENSION:
        ends = _ranges(name, rows, kind, ranges, calibration, quantiles, threads, stacklevel + 1)
        starts, steps, offset = _grid(ends, kind, rows)
    else:
        given = (("ranges", ranges), ("calibration", calibration), ("quantiles", quantiles))
        for given_name, value in given:
            if value is not None:
                raise ValueError(
                    f"{given_name}: found one for {kind!r}, expected None: it has no ranges"
                )
    codes, scale, without = _codes(rows, kind, starts, steps, threads)
    if without >= 0 and kind in PER_VECTOR:
        raise ValueError(
            f"{name}: found a NaN, an infinity or a value too large for float32 in row {without}, "
            f"expected finite numbers: {kind!r} divides a row by its largest magnitude"
        )
    if without >= 0:
        warnings.warn(
            f"{name}: found a NaN or an infinity in row {without} or in the ranges; codes that are "
            "not a number have become 0",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    scale = steps if kind in PER_DIMENSION else scale
    result = Quantized(codes, scale, offset, rows.dim, kind, ranges=ends)
    return result.to(rows.device) if rows.device is not None else result


class _Rows(NamedTuple):
    """A matrix of floats as the kernels take it: unit stride in the last axis."""

    data: Any  # an array, bfloat16 as uint16, or a tensor on a GPU
    dtype: str  # the name of the element type
    on_gpu: bool
    device: Any  # of the tensor that was given, if it was one

    @property
    def dim(self) -> int:
        return int(self.data.shape[1])


def _is_gpu(device: Any) -> bool:
    return bool(device.type == "cuda")


def _rows(name: str, x: Any) -> _Rows:
    on_gpu, device = False, None
    data: Any
    if _tensors.is_tensor(x):
        dtype = _tensors.dtype_name(x)
        if dtype not in ("float32", "float64", "float16", "bfloat16"):
            raise ValueError(
                f"{name}: found {dtype} {list(x.shape)}, expected float32, float64, float16 or "
                "bfloat16; convert with x.float()"
            )
        device = x.device
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"{name}: found a tensor on {device}, expected the CPU or CUDA")
        on_gpu = _is_gpu(device)
        data = x.detach() if on_gpu else _tensors.as_array(x)
    else:
        data, dtype = _inputs.float_array(name, x)
        if dtype == "bfloat16":
            data = data.view(np.uint16)
    if data.ndim != 2:
        hint = "; a single vector is x[None, :]" if data.ndim == 1 else ""
        raise ValueError(f"{name}: found shape {list(data.shape)}, expected [N, D]{hint}")
    if data.shape[1] == 0:
        raise ValueError(f"{name}: found shape {list(data.shape)}, expected at least one column")
    if not on_gpu:
        data = _inputs.kernel_rows(data)
    elif data.shape[1] > 1 and data.stride(1) != 1:
        data = data.contiguous()
    return _Rows(data, dtype, on_gpu, device)


def _codes(rows: _Rows, kind: str, starts: Any, steps: Any, threads: int) -> tuple[Any, Any, int]:
    """Codes, the scale of each vector if there is one, and the first row without codes or -1."""
    if rows.on_gpu:
        found = _gpu_kernels().codes(rows.data, kind, starts, steps)
        without = -1
        if found.flags is not None and bool(found.flags.any()):
            without = int(found.flags.int().argmax())
        return found.codes, found.scale, without
    n = len(rows.data)
    codes = np.empty((n, code_width(kind, rows.dim)), code_dtype(kind))
    scale = np.empty(n, np.float32) if kind in PER_VECTOR else None
    without = _core.quantize(
        rows.data, rows.dtype, kind, starts, steps, codes.view(np.uint8), scale, threads
    )
    return codes, scale, without


def _grid(ends: Any, kind: str, rows: _Rows) -> tuple[Any, Any, Any]:
    if not rows.on_gpu:
        return grid(_tensors.as_array(ends), kind)
    ends = _tensors.as_tensor(ends, rows.data.device)
    found: tuple[Any, Any, Any] = _gpu_kernels().grid(ends, LEVELS[kind], ZERO_LEVEL[kind])
    return found


def _gpu_kernels() -> Any:
    try:
        from simtile.ops import quantize_triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ModuleNotFoundError(
            "x: found a tensor on a GPU, whose kernels need triton, which is not installed: pip "
            "install 'simtile[gpu]', or pass x.cpu()",
            name="triton",
        ) from None
    return quantize_triton


def grid(ends: Array, kind: str) -> tuple[Array, Array, Array]:
    """Starts and steps of the levels, and the offset that makes code · step + offset their middle.

    All float32 [D]. `ends` are float32 [2, D].
    """
    starts = ends[0]
    with np.errstate(all="ignore"):
        width = (ends[1] - starts) / np.float32(LEVELS[kind] - 1)
        steps = np.where(width == 0, np.float32(1), width)
        # Where the range is a point, the point: its level is the first one, and half of 0 is added.
        zero = starts.astype(np.float64) + ZERO_LEVEL[kind] * steps.astype(np.float64)
        offset = (zero + 0.5 * width.astype(np.float64)).astype(np.float32)
    return np.ascontiguousarray(starts), steps, offset


def _ranges(
    name: str,
    rows: _Rows,
    kind: str,
    ranges: Any,
    calibration: Any,
    quantiles: Any,
    threads: int,
    stacklevel: int,
) -> Any:
    """The ends of every dimension's range, float32 [2, D]."""
    dim = rows.dim
    if ranges is not None:
        for other, value in (("calibration", calibration), ("quantiles", quantiles)):
            if value is not None:
                raise ValueError(f"{other}: found one beside ranges, expected one of the two")
        return _given_ranges(ranges, dim)
    given = name
    if calibration is not None:
        name = "calibration"
        rows = _rows(name, calibration)
        if rows.dim != dim:
            raise ValueError(
                f"calibration: found shape {list(rows.data.shape)}, expected [M, {dim}] because "
                f"{given} has {dim} columns"
            )
    count = len(rows.data)
    if count < 2:
        raise ValueError(
            f"{name}: found {count} rows, expected at least 2 to take the ranges of {kind!r} from; "
            "give ranges=[2, D], or more vectors as calibration"
        )
    if count < FEW_ROWS and calibration is None:
        warnings.warn(
            f"{name}: the ranges of {kind!r} are taken from {count} rows; those of at least "
            f"{FEW_ROWS} are steadier, and can be given as ranges",
            stacklevel=stacklevel,
        )
    if quantiles is not None:
        return _quantile_ranges(_tensors.as_array(rows.data), rows.dtype, quantiles)
    if rows.on_gpu:
        return _gpu_kernels().ranges(rows.data)
    ends = np.empty((2, dim), np.float64 if rows.dtype == "float64" else np.float32)
    _core.value_ranges(rows.data, rows.dtype, ends, threads)
    with np.errstate(over="ignore"):
        return ends.astype(np.float32, copy=False)


def _given_ranges(ranges: Any, dim: int) -> Array:
    array = _tensors.as_array(ranges, "ranges")
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"ranges: found {array.dtype} {list(array.shape)}, expected floats [2, {dim}]"
        )
    if array.shape != (2, dim):
        raise ValueError(
            f"ranges: found shape {list(array.shape)}, expected [2, {dim}]: the smallest and the "
            "largest value of every column of x"
        )
    with np.errstate(over="ignore"):
        array = np.array(array, np.float32, order="C")
    wrong = ~(np.isfinite(array).all(axis=0) & (array[0] <= array[1]))
    if wrong.any():
        column = int(wrong.argmax())
        raise ValueError(
            f"ranges: found {array[0, column]} to {array[1, column]} in column {column}, expected "
            "finite ends, the smaller one first"
        )
    return array


def _quantile_ranges(data: Array, dtype: str, quantiles: Any) -> Array:
    pair = _tensors.to_array("quantiles", quantiles)
    if pair.shape != (2,) or pair.dtype.kind not in "iuf":
        raise ValueError(f"quantiles: found {quantiles!r}, expected a pair such as (0.005, 0.995)")
    if not 0 <= pair[0] < pair[1] <= 1:
        raise ValueError(f"quantiles: found {quantiles!r}, expected 0 <= lower < upper <= 1")
    ends = np.empty((2, data.shape[1]), np.float32)
    for first in range(0, data.shape[1], _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        block = data[:, columns].T
        if dtype == "bfloat16":
            block = (block.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.quantile(block.astype(np.float64), pair.astype(np.float64), axis=1)
            ends[:, columns] = found
    return ends
