"""The sigmoid loss on a GPU: launches of the kernels in `kernels/siglip/triton.py`, and in torch
what is one number or one row for each row. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.siglip import triton as kernels
from simtile.kernels.siglip import triton_configs as configs
from simtile.kernels.siglip.triton_configs import Tile
from simtile.ops._tensors import temperature_on
from simtile.ops._triton_device import INTERPRETED, family, on
from simtile.ops.info_nce_triton_call import CHUNK_BYTES
from simtile.ops.pairwise_triton import SMALLEST_NORM, Operand, operand

ROW_PADDING = 16  # numbers: rows of coefficients begin where vectors of any width can
UNIT_ROWS = 8192  # whose gradients go through the normalisation at a time, in float64


class Result(NamedTuple):
    """Tensors on the inputs' device; gradients that were not asked for are None."""

    losses: Tensor  # float64 [N]
    grad_queries: Tensor | None  # float32
    grad_documents: Tensor | None
    grad_temperature: Tensor  # float64 scalars
    grad_bias: Tensor


def run(
    queries: Tensor,
    documents: Tensor,
    temperature: Tensor,
    bias: Tensor,
    normalize: bool,
    weight: float,
    need_grad: Sequence[bool],
    tiles: Tile | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Result:
    """The losses, and the gradients of weight · Σ losses; `need_grad` of queries and documents."""
    device, (n, dim), m = queries.device, queries.shape, documents.shape[0]
    dtype = str(queries.dtype).removeprefix("torch.")
    temperature = temperature_on(temperature, device)
    scalars = torch.cat((1.0 / temperature, bias.detach().to(device, torch.float32).reshape(1)))
    sides = [operand(x, normalize, False) for x in (queries, documents)]
    factors = [side.factor.float() for side in sides]
    keep = any(need_grad)
    stride = triton.cdiv(m, ROW_PADDING) * ROW_PADDING
    tile = tiles or configs.tile("coefficients", dtype, family(device))
    chunk = max(1, chunk_bytes // (4 * stride * tile.m)) * tile.m
    chunk = min(chunk, triton.cdiv(n, tile.m) * tile.m)
    columns = triton.cdiv(m, tile.n)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    kept = empty(chunk, stride) if keep else empty(1)
    grads = [
        empty(*x.shape) if needed else None
        for x, needed in zip((queries, documents), need_grad, strict=True)
    ]
    losses = torch.empty(n, dtype=torch.float64, device=device)
    totals = []
    for first in range(0, n, chunk):
        rows = min(chunk, n - first)
        mine = sides[0].rows[first : first + rows]
        factor = factors[0][first : first + rows]
        # Each on its own, so that all are aligned.
        of_tiles = [empty(columns, rows) for _ in range(3)]
        with on(device):
            kernels.coefficients[(triton.cdiv(rows, tile.m) * columns,)](
                mine,
                mine.stride(0),
                sides[1].rows,
                sides[1].rows.stride(0),
                factor,
                factors[1],
                scalars,
                *of_tiles,
                kept,
                stride,
                first,
                rows,
                m,
                dim,
                KEEP=keep,
                GROUP=configs.GROUP,
                **_options(tile),
            )
        losses[first : first + rows] = of_tiles[0].sum(0, dtype=torch.float64)
        totals.append(torch.stack([x.sum(dtype=torch.float64) for x in of_tiles[1:]]))
        if grads[0] is not None:
            part = grads[0][first : first + rows]
            _products(kept, stride, sides[1].rows, factors[1], part, False, False, tiles)
        if grads[1] is not None:
            _products(kept, stride, mine, factor, grads[1], True, first > 0, tiles)
    step = weight / temperature.double()
    for x, side, grad in zip((queries, documents), sides, grads, strict=True):
        if grad is not None:
            _finish(x, side, grad, step, normalize)
    of_bias, of_similarities = torch.stack(totals).sum(0)
    return Result(
        losses,
        grads[0],
        grads[1],
        -(of_similarities * step / temperature.double()).reshape(()),
        of_bias * weight,
    )


def _options(tile: Tile) -> dict[str, Any]:
    return {
        "BM": tile.m,
        "BN": tile.n,
        "BK": tile.k,
        "PRECISION": "ieee",
        "EMULATE": INTERPRETED,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _products(
    kept: Tensor,
    stride: int,
    x: Tensor,  # what is summed over
    factor: Tensor,
    out: Tensor,
    turned: bool,
    accumulate: bool,
    tiles: Tile | None,
) -> None:
    dtype = str(x.dtype).removeprefix("torch.")
    tile = tiles or configs.tile("products", dtype, family(x.device))
    rows, dim = out.shape
    with on(x.device):
        kernels.products[(triton.cdiv(rows, tile.m), triton.cdiv(dim, tile.n))](
            kept,
            stride,
            x,
            x.stride(0),
            factor,
            out,
            int(accumulate),
            rows,
            x.shape[0],
            dim,
            TURNED=turned,
            SCALE=configs.scale(dtype),
            **_options(tile),
        )


def _finish(x: Tensor, side: Operand, grad: Tensor, step: Tensor, normalize: bool) -> None:
    """From Σ coefficient · (normalised other row), in place, to the gradient of x."""
    for first in range(0, len(x), UNIT_ROWS):
        part = slice(first, first + UNIT_ROWS)
        g = grad[part].double() * step
        if normalize:
            unit = side.unit[part, None]
            u = x[part].double() * unit
            along = (u * g).sum(1, keepdim=True)
            # Rows at or below the floor are divided by a constant.
            along = torch.where(unit >= 1.0 / SMALLEST_NORM, 0.0, along)
            g = (g - u * along) * unit
        grad[part] = g
