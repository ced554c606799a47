"""Queries of MaxSim as whole numbers, for tokens that are stored as codes: products are exact.

A query's token q, times the codes' steps, is rounded to z = rint(w · L / max|w|), with L = 32639 or
what keeps sums of D products within 32 bits. A similarity is then

    unit · ((dot + addend) · factor)                   dot = Σ z_i code_i
    unit · ((weight · dot + q · centroid) · factor)    of residuals, unit = 1

with dot exact and every other operation in float32: the same numbers at every ISA level.
`simtile.reference.maxsim_codes` says so in plain Python; `kernels/maxsim/README.md` has more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _tensors
from simtile.quantized import PER_VECTOR, Quantized
from simtile.residual import ResidualTokens

Array = npt.NDArray[Any]
Codes = Quantized | ResidualTokens

LARGEST_WHOLE = 32639  # 127 · 256 + 127: both bytes are int8
LARGEST_CODE = {"int8": 128, "int8_vector": 128, "uint8": 255, "binary": 1, "residual": 128}
SMALLEST_NORM = 1e-12


class Folded(NamedTuple):
    """Queries as `_core.maxsim_codes` takes them."""

    whole: npt.NDArray[np.int16]  # [R, D]
    units: npt.NDArray[np.float32]  # [R]
    terms: npt.NDArray[np.float32] | None  # [R]


def fold(
    queries: Array, steps: Array | None, tokens: Codes, kind: str, normalize: bool = False
) -> Folded:
    """Queries as whole numbers, for codes of this kind."""
    dim = tokens.dim
    if steps is not None and kind in ("int8_vector", "binary"):
        whole = queries.astype(np.int16)
        return _of_bits(whole, steps.astype(np.float64), whole.sum(1), dim, kind, normalize)
    values = queries.astype(np.float64)
    if steps is not None:
        values = values * steps[:, None].astype(np.float64)
    weights, constant = values, None
    with np.errstate(all="ignore"):
        if isinstance(tokens, Quantized) and kind in ("int8", "uint8"):
            weights = values * _tensors.as_array(tokens.scale).astype(np.float64)
            constant = _sums(values * _tensors.as_array(tokens.offset).astype(np.float64))
        most = min(LARGEST_WHOLE, (2**31 - 1) // (LARGEST_CODE[kind] * dim))
        size = np.abs(weights).max(axis=1, initial=0)
        usable = np.isfinite(size) & (size > 0)
        scaled = weights * (most / np.where(usable, size, 1))[:, None]
        whole = np.where(usable[:, None], np.rint(scaled), 0).astype(np.int16)
        unit = np.where(usable, size / most, np.where(size == 0, 1.0, np.nan))
        if kind == "binary":
            return _of_bits(whole, unit, _sums(values) / unit, dim, kind, normalize)
        terms = None if constant is None else (constant / unit).astype(np.float32)
        return Folded(whole, unit.astype(np.float32), terms)


def residual_kind(tokens: ResidualTokens) -> str:
    """What kernels call its codes."""
    return f"residual{tokens.codec.bits}"


def with_centroids(
    folded: Folded, values: Array, steps: Array | None, tokens: ResidualTokens
) -> tuple[Folded, npt.NDArray[np.float32]]:
    """Of residuals terms are weights, and the queries in float32 are multiplied with centroids."""
    weights = (folded.units.astype(np.float64) * tokens.codec.weight_unit).astype(np.float32)
    floats = values if steps is None else values * steps[:, None]
    return (
        Folded(folded.whole, np.ones_like(folded.units), weights),
        np.ascontiguousarray(floats, np.float32),
    )


def _of_bits(
    whole: npt.NDArray[np.int16], unit: Array, total: Array, dim: int, kind: str, normalize: bool
) -> Folded:
    """Bits are 0 and 1 and stand for -1 and 1: q · (2b - 1) = 2 (q · b - Σq / 2)."""
    if kind != "binary":
        return Folded(whole, unit.astype(np.float32), None)
    unit = 2 * unit / (np.sqrt(dim) if normalize else 1)
    return Folded(whole, unit.astype(np.float32), (-total / 2).astype(np.float32))


def _sums(rows: Array) -> Array:
    """Of each row in order, so that they are the same on every computer."""
    sums: Array = np.cumsum(rows, axis=1)[:, -1]
    return sums


def normalized(values: Array, steps: Array | None) -> tuple[Array, Array | None]:
    with np.errstate(all="ignore"):
        norms = np.sqrt(_sums(values.astype(np.float64) ** 2))
        if steps is None:
            return values / np.maximum(norms, SMALLEST_NORM)[:, None], None
        # The step cancels, but for rows that are next to nothing.
        return values, (steps / np.maximum(norms * steps, SMALLEST_NORM)).astype(np.float32)


def factors(tokens: Codes, normalize: bool) -> Array | None:
    """What each document token's similarities are multiplied with."""
    if isinstance(tokens, ResidualTokens):
        return np.asarray(tokens.inverse_norms)
    if tokens.kind == "binary":
        return None
    own = _tensors.as_array(tokens.scale) if tokens.kind in PER_VECTOR else None
    if not normalize:
        return None if own is None else np.ascontiguousarray(own, np.float32)
    # Of next to nothing: 1e-12 instead of the norm. The norms of int8_vector are those of codes.
    longest = np.float32(1 / SMALLEST_NORM) * (1 if own is None else own)
    return np.ascontiguousarray(
        np.minimum(_tensors.as_array(tokens.inverse_norms), longest), np.float32
    )


def without_zeros(tokens: Codes, mask: Array | None) -> Array | None:
    """Tokens that are zeros left out; bits and residuals are never zeros."""
    if isinstance(tokens, ResidualTokens) or tokens.kind == "binary":
        return mask
    there: Array = _tensors.as_array(tokens.inverse_norms) != 0
    if tokens.kind in PER_VECTOR:
        there &= _tensors.as_array(tokens.scale) != 0
    return there if mask is None else mask & there
