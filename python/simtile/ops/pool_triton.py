"""Pooling on a GPU: memory and launches of the kernels in `kernels/pool/triton.py`.

Nothing here waits for the device. Offsets are on the CPU, and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simtile._pool import Pooled
from simtile.kernels.pool import triton as kernels
from simtile.kernels.pool import triton_configs as configs
from simtile.ops._triton_device import INTERPRETED, on

SMALLEST_NORM = 1e-12


class _Rows(NamedTuple):
    """Whose tokens are whose, as the kernels take it."""

    rows: int  # N
    length: int  # L; 0 if packed
    longest: int
    offsets: Tensor
    packed: int


def _rows(shape: Sequence[int], offsets: Tensor | None, device: torch.device) -> _Rows:
    if offsets is None:
        nothing = torch.empty(1, dtype=torch.int64, device=device)
        return _Rows(shape[0], shape[1], shape[1], nothing, 0)
    rows = offsets.shape[0] - 1
    longest = int(offsets.diff().max()) if rows else 0
    return _Rows(rows, 0, longest, offsets.to(device), 1)


def _bytes(mask: Tensor | None, device: torch.device) -> Tensor:
    if mask is None:
        return torch.empty(1, dtype=torch.uint8, device=device)
    return mask.to(torch.bool).contiguous().view(torch.uint8)


def _beside(tokens: Tensor) -> Tensor:
    """With unit stride in the last axis; else a copy."""
    if tokens.shape[-1] > 1 and tokens.stride(-1) != 1:
        return tokens.contiguous()
    return tokens


def _strides(tokens: Tensor, of: _Rows) -> tuple[int, int]:
    return 0 if of.packed else tokens.stride(0), tokens.stride(-2)


def forward(
    tokens: Tensor,
    weights: Tensor | None,
    offsets: Tensor | None,
    mask: Tensor | None,
    how: str,
    dim: int,
    normalize: bool,
    keep: bool,
) -> Pooled:
    """As `simtile._pool.forward`, in float32."""
    device = tokens.device
    of = _rows(tokens.shape, offsets, device)
    tokens = _beside(tokens[..., :dim])
    options = configs.pooled_options(how, dim)
    whole = options["WHOLE"]
    kept = keep or not whole

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    vectors = empty(of.rows, dim, dtype=tokens.dtype)
    raw = empty(of.rows, dim) if kept else empty(1)
    totals = empty(of.rows) if kept else empty(1)
    shape = {"mean": (0,), "max": (of.rows, dim)}.get(how, (of.rows,))
    positions = empty(*(shape if kept else (0,)), dtype=torch.int32)
    if of.rows:
        given = empty(1) if weights is None else weights.float().contiguous()
        with on(device):
            kernels.pooled[(of.rows, triton.cdiv(dim, options["BLOCK"]))](
                tokens,
                *_strides(tokens, of),
                of.offsets,
                _bytes(mask, device),
                given,
                vectors,
                raw,
                totals,
                positions,
                of.length,
                dim,
                of.packed,
                int(mask is not None),
                int(weights is not None),
                int(normalize),
                int(kept),
                **options,
                EMULATE=INTERPRETED,
                num_warps=configs.warps(options["BLOCK"]),
            )
    if not whole:
        vectors.copy_(_unit(raw) if normalize else raw)
    if not keep:
        return Pooled(vectors, None, None, None)
    return Pooled(vectors, raw, totals, positions)


def _unit(raw: Tensor) -> Tensor:
    """Of more columns than a program has."""
    norm = torch.linalg.vector_norm(raw, dim=1, keepdim=True, dtype=torch.float64)
    return raw / torch.where(norm.isinf(), torch.nan, norm.clamp(min=SMALLEST_NORM))


def spread(
    grad: Tensor,
    offsets: Tensor | None,
    coefficients: Tensor | None,
    positions: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """As `simtile._pool.spread`."""
    device = grad.device
    of = _rows(shape, offsets, device)
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    chosen = positions is not None
    options = configs.spread_options(chosen, shape[-1])
    blocks = triton.cdiv(shape[-1], options["BLOCK"])
    pieces = triton.cdiv(of.longest, options["TOKENS"])
    if of.rows and pieces:
        unread = torch.empty(1, dtype=torch.float32 if chosen else torch.int32, device=device)
        with on(device):
            kernels.spread[(of.rows, pieces, blocks)](
                grad.contiguous(),
                of.offsets,
                unread if coefficients is None else coefficients.contiguous(),
                unread if positions is None else positions.contiguous(),
                out,
                of.length,
                grad.shape[1],
                shape[-1],
                of.packed,
                **options,
                EMULATE=INTERPRETED,
                num_warps=configs.warps(options["BLOCK"]),
            )
    return out


def dots(tokens: Tensor, offsets: Tensor | None, mask: Tensor | None, vectors: Tensor) -> Tensor:
    """As `simtile._pool.dots`."""
    device = tokens.device
    of = _rows(tokens.shape, offsets, device)
    out = torch.empty(tokens.shape[:-1], dtype=torch.float32, device=device)
    dim = vectors.shape[1]
    tokens = _beside(tokens[..., :dim])
    pieces = triton.cdiv(of.longest, configs.DOT_ROWS)
    if of.rows and pieces:
        options: dict[str, Any] = {"ROWS": configs.DOT_ROWS, "BLOCK": configs.DOT_BLOCK}
        with on(device):
            kernels.dots[(of.rows, pieces)](
                tokens,
                *_strides(tokens, of),
                of.offsets,
                _bytes(mask, device),
                vectors.contiguous(),
                out,
                of.length,
                dim,
                of.packed,
                int(mask is not None),
                **options,
                num_warps=4,
            )
    return out
