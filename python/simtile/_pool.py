"""Pooling of arrays: checks, and calls of the kernels in `kernels/pool/`.

Tokens are a batch [N, L, D], or [T, D] that offsets int64 [N + 1] divide. What there is for each
token (a mask, weights) is [N, L] or [T].
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs, _maxsim_inputs, _tensors
from simtile._maxsim_inputs import Given

Array = npt.NDArray[Any]

HOW = ("mean", "cls", "max", "last")


class Pooled(NamedTuple):
    """What one run gives; the last three are None where no gradient will be wanted."""

    vectors: Any  # [N, dim], of the tokens' element type
    raw: Any  # float64 or float32 [N, dim]: before they are normalised
    totals: Any  # likewise [N]: the sum of weights
    positions: Any  # int32 [N, dim] of "max", [N] of "cls" and "last", [0] of "mean"


def given(tokens: Any, offsets: Any, mask: Any) -> Given:
    """Tokens and their mask in one of the three forms, checked."""
    if offsets is None:
        found = _maxsim_inputs.given("token_embeddings", tokens, mask, "mask")
        if found.dim == 0:  # of a list: a batch has been refused
            raise ValueError(
                "token_embeddings: found an empty list, expected at least one [L, D]: the number "
                "of dimensions is not known"
            )
        return found
    if isinstance(tokens, (list, tuple)):
        raise TypeError(
            "offsets: found some beside a list of token_embeddings, expected None: matrices in a "
            "list need none"
        )
    return _maxsim_inputs.given_packed("token_embeddings", tokens, offsets, mask, "mask")


def check_dim(dim: Any, width: int) -> int:
    """How many dimensions the result has."""
    if dim is None:
        return width
    if isinstance(dim, bool):
        raise TypeError(f"dim: found {dim!r}, expected an int or None")
    try:
        number = operator.index(dim)
    except TypeError:
        raise TypeError(f"dim: found {dim!r}, expected an int or None") from None
    if not 1 <= number <= width:
        raise ValueError(
            f"dim: found {number}, expected 1 to {width} because token_embeddings have {width} "
            "dimensions"
        )
    return number


def check_weights(weights: Any, how: str, tokens: Given) -> Any:
    """Weights as one array or tensor [N, L] or [T] of floats."""
    if how != "mean":
        raise ValueError(f"weights: found some for {how!r}, expected None: only 'mean' has weights")
    shape = list(tokens.x.shape[:-1])
    if isinstance(weights, (list, tuple)) and tokens.offsets is not None:
        lengths = np.diff(tokens.offsets).tolist()
        parts = _tensors.each("weights", weights)
        parts = [own if own.ndim else own.reshape(1) for own in parts]
        found = [own.shape[0] for own in parts]
        if found != lengths:
            raise ValueError(
                f"weights: found {len(found)} vectors, expected {len(lengths)}, one weight for "
                "each row of each of token_embeddings"
            )
        weights = _joined(parts)
    array = weights if _tensors.is_tensor(weights) else _tensors.to_array("weights", weights)
    kind = _tensors.dtype_name(array)
    if not kind.startswith(("float", "bfloat")):
        raise ValueError(
            f"weights: found {kind} {list(array.shape)}, expected floats {shape}; integers become "
            "some by x.float() or x.astype(np.float32)"
        )
    if list(array.shape) != shape:
        raise ValueError(
            f"weights: found {kind} {list(array.shape)}, expected {shape} because token_embeddings "
            f"are {list(tokens.x.shape)}"
        )
    return array


def check_signs(weights: Array, mask: Array | None) -> None:
    """Raise where a token's weight is below 0: a mean may then point anywhere."""
    wrong = weights < 0
    if mask is not None:
        wrong &= mask.astype(bool)
    if wrong.any():
        place = [int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)]
        raise ValueError(
            f"weights: found {weights[tuple(place)]} at {place}, expected none below 0"
        )


def _joined(parts: list[Any]) -> Any:
    if any(map(_tensors.is_tensor, parts)):
        import torch

        return torch.cat([torch.as_tensor(own) for own in parts])
    return np.concatenate(parts or [np.zeros(0, np.float32)])


def wide(dtype: str) -> Any:
    """What sums of an element type are kept in."""
    return np.float64 if dtype == "float64" else np.float32


def _bytes_of(mask: Array | None) -> Array | None:
    return None if mask is None else np.ascontiguousarray(mask, dtype=bool).view(np.uint8)


def _kernel_tokens(tokens: Array) -> Array:
    """With unit stride in the last axis and whole elements between others; else a copy."""
    item = tokens.itemsize
    beside = tokens.shape[-1] <= 1 or tokens.strides[-1] == item
    if beside and tokens.flags.aligned and not any(step % item for step in tokens.strides):
        return tokens
    return np.require(tokens, requirements=["C", "ALIGNED"])


def forward(
    tokens: Array,
    dtype: str,
    offsets: Array | None,
    mask: Array | None,
    weights: Array | None,
    how: str,
    dim: int,
    normalize: bool,
    keep: bool,
    backend: str,
    threads: int,
) -> Pooled:
    """Of tokens that have been checked, bfloat16 as uint16; `keep` what a gradient needs."""
    count = len(tokens) if offsets is None else len(offsets) - 1
    number = wide(dtype)
    tokens = tokens[..., :dim]
    if weights is not None:
        weights = np.ascontiguousarray(weights, number)
        check_signs(weights, mask)
    if backend == "reference":
        return _by_lists(tokens, dtype, offsets, mask, weights, how, normalize, keep)
    vectors = np.empty((count, dim), tokens.dtype)
    raw = totals = positions = None
    if keep:
        raw, totals = np.empty((count, dim), number), np.empty(count, number)
        shape = {"mean": (0,), "max": (count, dim)}.get(how, (count,))
        positions = np.empty(shape, np.int32)
    _core.pool(
        _kernel_tokens(tokens),
        dtype,
        how,
        offsets,
        _bytes_of(mask),
        weights,
        normalize,
        vectors,
        raw,
        totals,
        None if how == "mean" else positions,
        threads,
    )
    return Pooled(vectors, raw, totals, positions)


def spread(
    grad: Array,
    dtype: str,
    offsets: Array | None,
    coefficients: Array | None,
    positions: Array | None,
    shape: tuple[int, ...],
    threads: int,
) -> Array:
    """The gradient of tokens of this shape, of their element type (bfloat16 as uint16).

    `grad` is that of raw vectors; every token has its share of it: its coefficient, or the
    dimensions in which it is at a position.
    """
    out = np.empty(shape, np.uint16 if dtype == "bfloat16" else dtype)
    if coefficients is not None:
        coefficients = np.ascontiguousarray(coefficients)
    grad = np.ascontiguousarray(grad)
    _core.pool_spread(grad, dtype, offsets, coefficients, positions, out, threads)
    return out


def dots(
    tokens: Array,
    dtype: str,
    offsets: Array | None,
    mask: Array | None,
    vectors: Array,
    threads: int,
) -> Array:
    """The product of every token with its row's vector [N, dim]; 0 where the mask is."""
    out = np.empty(tokens.shape[:-1], wide(dtype))
    vectors = np.ascontiguousarray(vectors)
    tokens = _kernel_tokens(tokens[..., : vectors.shape[1]])
    _core.pool_dots(tokens, dtype, offsets, _bytes_of(mask), vectors, out, threads)
    return out


def _by_lists(
    tokens: Array,
    dtype: str,
    offsets: Array | None,
    mask: Array | None,
    weights: Array | None,
    how: str,
    normalize: bool,
    keep: bool,
) -> Pooled:
    from simtile.reference import pool

    number, dim = wide(dtype), tokens.shape[-1]
    numbers = tokens
    if dtype == "bfloat16":
        numbers = (tokens.astype(np.uint32) << np.uint32(16)).view(np.float32)
    rows: list[Any] = []
    for array in (numbers.astype(np.float64), mask, weights):
        if array is not None and offsets is not None:
            rows.append([part.tolist() for part in np.split(array, offsets[1:-1])])
            rows[-1] = rows[-1][: len(offsets) - 1]
        else:
            rows.append(None if array is None else array.tolist())
    found = pool.pool(rows[0], rows[1], how, weights=rows[2], dim=dim, normalize=normalize)
    count = len(found.raw)

    def matrix(x: list[list[float]]) -> Array:
        with np.errstate(over="ignore"):
            return np.array(x, number).reshape(count, dim)

    vectors = matrix(found.vectors)
    if dtype == "bfloat16":
        bits = vectors.view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
        vectors = np.where(np.isnan(vectors), bits >> 16 | 0x40, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        vectors = vectors.astype(tokens.dtype)
    if not keep:
        return Pooled(vectors, None, None, None)
    positions = np.array(found.positions, np.int32)
    shape = {"mean": (0,), "max": (count, dim)}.get(how, (count,))
    return Pooled(
        vectors, matrix(found.raw), np.array(found.totals, number), positions.reshape(shape)
    )


def of_arrays(
    tokens: Given,
    weights: Any,
    how: str,
    dim: int,
    normalize: bool,
    backend: str,
    threads: int,
) -> Array:
    """Pooled vectors [N, dim] of arrays, of their element type."""
    x, dtype = _inputs.float_array("token_embeddings", tokens.x)
    bits = x.view(np.uint16) if dtype == "bfloat16" else x
    if weights is not None:
        if _tensors.is_tensor(weights):
            weights = weights.detach().double().numpy(force=True)
        weights = weights.astype(wide(dtype))
    mask = None if tokens.mask is None else _tensors.as_array(tokens.mask)
    found = forward(
        bits, dtype, tokens.offsets, mask, weights, how, dim, normalize, False, backend, threads
    )
    vectors: Array = found.vectors.view(x.dtype)
    return vectors
