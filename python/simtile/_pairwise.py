"""Losses over all pairs on arrays: checks, kernels, and the arithmetic of one number a row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

BATCH_HARD_METRICS = ("euclidean", "squared_euclidean", "cosine")


def check_matrix(name: str, shape: _inputs.Shape, fewest: int) -> None:
    """Raise unless a shape is [N, D] with N >= fewest and D >= 1."""
    axes = f"[{', '.join(str(size) for size in shape)}]"
    if len(shape) != 2:
        hint = "; a single vector is x[None, :]" if len(shape) == 1 else ""
        raise ValueError(f"{name}: found shape {axes}, expected [N, D]{hint}")
    if shape[0] < fewest or shape[1] == 0:
        rows = "one row" if fewest == 1 else f"{fewest} rows"
        raise ValueError(f"{name}: found shape {axes}, expected at least {rows} and one dimension")


def check_same_shape(name: str, shape: _inputs.Shape, other: str, expected: _inputs.Shape) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name}: found shape {list(shape)}, expected {list(expected)} as {other}")


def check_labels(shape: _inputs.Shape, rows: int) -> None:
    if len(shape) != 1 or shape[0] != rows:
        raise ValueError(
            f"labels: found shape {list(shape)}, expected [{rows}], one per row of embeddings"
        )


def check_number(name: str, value: object, *, positive: bool = False) -> float:
    """A finite number, above 0 if `positive`."""
    number = _inputs.to_float(name, value)
    if not math.isfinite(number) or (positive and number <= 0):
        expected = "a finite number above 0" if positive else "a finite number"
        raise ValueError(f"{name}: found {number}, expected {expected}")
    return number


class Hardest(NamedTuple):
    """What was chosen for every row, -1 if nothing."""

    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64]
    positive_distance: Doubles  # squared if Euclidean, NaN where there is none
    negative_distance: Doubles


def hardest_pairs(
    x: Array, dtype: str, labels: Array, metric: str, normalize: bool, threads: int
) -> Hardest:
    """The furthest row with a row's label and the nearest with another; ties to the lowest row."""
    n = x.shape[0]
    numbers = np.unique(labels, return_inverse=True)[1].reshape(n)
    found = Hardest(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n), np.empty(n))
    _core.hardest_pairs(
        _inputs.kernel_rows(x),
        dtype,
        np.ascontiguousarray(numbers, np.int64),
        "cosine" if metric == "cosine" else "euclidean",
        normalize,
        *found,
        threads,
    )
    return found


class Weights(NamedTuple):
    """A batch-hard loss, and what multiplies the difference (or with cosine the other row) of every
    chosen pair in its gradient."""

    loss: float
    positive: Doubles
    negative: Doubles


def as_number(value: float, dtype: str) -> Any:
    """A result for arrays of `dtype`: float64 for float64, else float32, where what only fits
    float64 is infinite."""
    with np.errstate(over="ignore"):
        return np.float64(value) if dtype == "float64" else np.float32(value)


def batch_hard_weights(found: Hardest, margin: float, metric: str, skip_missing: bool) -> Weights:
    has_positive, has_negative = found.positive >= 0, found.negative >= 0
    distances = np.stack([found.positive_distance, found.negative_distance])
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric == "euclidean":
            distances = np.sqrt(distances)
            factors = np.where(distances == 0, 0.0, 1.0 / distances)
        else:
            factors = np.full_like(distances, 2.0 if metric == "squared_euclidean" else 1.0)
            factors[np.isnan(distances)] = np.nan
        raw = np.where(has_positive, distances[0], 0.0) - distances[1] + margin
        raw = np.where(has_negative, raw, margin)
        counted = has_positive & has_negative if skip_missing else np.ones(len(raw), bool)
        active = counted & ~(raw < 0)  # NaN counts
    weight = 1.0 / max(int(counted.sum()), 1)
    pulls = np.where(active & has_negative, weight, 0.0)
    loss = float(np.add.reduce(np.where(active, raw, 0.0))) * weight
    with np.errstate(invalid="ignore"):
        return Weights(
            loss,
            np.where((pulls > 0) & has_positive, pulls * factors[0], 0.0),
            np.where(pulls > 0, -pulls * factors[1], 0.0),
        )


def batch_hard(
    x: Array,
    dtype: str,
    labels: Array,
    margin: float,
    metric: str,
    normalize: bool,
    skip_missing: bool,
    need_grad: bool,
    backend: str,
    threads: int,
) -> tuple[float, Array | None]:
    """The loss and its gradient on arrays whose shapes have been checked."""
    number = np.float64 if dtype == "float64" else np.float32
    if backend == "reference":
        from simtile.reference import triplet

        result = triplet.batch_hard_triplet_loss(
            _lists(x, dtype),
            labels.tolist(),
            margin=margin,
            metric=metric,
            normalize=normalize,
            skip_missing=skip_missing,
        )
        return result.loss, np.asarray(result.grad, number) if need_grad else None
    found = hardest_pairs(x, dtype, labels, metric, normalize, threads)
    weights = batch_hard_weights(found, margin, metric, skip_missing)
    if not need_grad:
        return weights.loss, None
    grad = np.empty(x.shape, number)
    _core.pair_gradients(
        _inputs.kernel_rows(x),
        dtype,
        "cosine" if metric == "cosine" else "euclidean",
        normalize,
        found.positive,
        found.negative,
        weights.positive,
        weights.negative,
        grad,
        threads,
    )
    return weights.loss, grad


def uniformity(
    x: Array,
    dtype: str,
    t: float,
    normalize: bool,
    need_grad: bool,
    backend: str,
    threads: int,
) -> tuple[float, Array | None]:
    """The value and its gradient on an array whose shape has been checked."""
    number = np.float64 if dtype == "float64" else np.float32
    if backend == "reference":
        from simtile.reference import uniformity as reference

        value, rows = reference.uniformity(_lists(x, dtype), t, normalize)
        return value, np.asarray(rows, number) if need_grad else None
    grad = np.empty(x.shape, number) if need_grad else None
    return _core.uniformity(_inputs.kernel_rows(x), dtype, t, normalize, grad, threads), grad


def wide(x: Array, dtype: str) -> Doubles:
    """The elements in float64; bfloat16 may come as its bits."""
    if dtype == "bfloat16" and x.dtype == np.uint16:  # the upper half of a float32's bits
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def as_kernel(x: Array, dtype: str) -> Array:
    """As the kernels take an array: bfloat16 as its bits."""
    return x.view(np.uint16) if dtype == "bfloat16" else x


def wide_arrays(arrays: dict[str, object], fewest: int = 1) -> tuple[list[Doubles], Any]:
    """Matrices of one shape in float64, and the type of the result."""
    found = {name: _inputs.float_array(name, x) for name, x in arrays.items()}
    (first, (x, _)), *others = found.items()
    check_matrix(first, x.shape, fewest)
    for name, (other, _) in others:
        check_same_shape(name, other.shape, first, x.shape)
    is_double = any(dtype == "float64" for _, dtype in found.values())
    number = np.float64 if is_double else np.float32
    return [x.astype(np.float64) for x, _ in found.values()], number


def _lists(x: Array, dtype: str) -> Any:
    return wide(x, dtype).tolist()
