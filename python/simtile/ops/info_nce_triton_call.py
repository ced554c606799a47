"""info_nce on a GPU: what all calls share, the plain loss's and those of the contrastive family."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.info_nce import triton as kernels
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_gradients as gradient_kernels
from simtile.kernels.info_nce.triton_configs import Config
from simtile.ops._tensors import temperature_on

# The one matrix of coefficients that there is: a chunk of rows by all candidates. Larger chunks
# pass less often over the documents' gradient, which is read and written once a chunk; this one
# keeps training with 65,536 pairs of 768 bfloat16 numbers, inputs and gradients included, below
# 1 GB.
CHUNK_BYTES = 168 * 2**20


class Result(NamedTuple):
    """Tensors on the inputs' device; gradients that were not asked for are None."""

    losses: Tensor  # float32 [N]
    grad_queries: Tensor | None  # float32, of the inputs' shapes
    grad_documents: Tensor | None
    grad_negatives: Tensor | None
    grad_temperature: Tensor | None  # float64 scalar
    tally: Tensor | None = None  # float64 [7]: simtile._statistics.Tally


class Rows(NamedTuple):
    """Vectors as the products take them."""

    operand: Tensor  # [padded rows, stride]
    factor: Tensor  # float32 [padded rows]
    inverse: Tensor

    def from_row(self, row: int) -> Rows:
        return Rows(*(x[row:] for x in self))


class Call:
    """One call: element type, sizes and tiles, and the launches before and after all others."""

    def __init__(
        self,
        dtype: torch.dtype,
        dim: int,
        normalize: bool,
        device: torch.device,
        precision: str,
        tiles: Config,
    ) -> None:
        self.dtype, self.dim, self.normalize, self.device = dtype, dim, normalize, device
        self.name = str(dtype).removeprefix("torch.")
        self.precision, self.tiles = precision, tiles
        self.stride = configs.operand_stride(dim)
        self.block = configs.row_block(dim)

    def floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def room(self, rows: int) -> Rows:
        operand = torch.empty((rows, self.stride), dtype=self.dtype, device=self.device)
        return Rows(operand, self.floats(rows), self.floats(rows))

    def prepare(self, x: Tensor, into: Rows, programs: int) -> None:
        """Fill `programs` rows: those of x [rows, D] or [N, K, D], then zeros."""
        inner = x.shape[1] if x.ndim == 3 else 1
        strides = x.stride() if x.ndim == 3 else (x.stride(0), 0, x.stride(1))
        aligned = (
            x.data_ptr() % 16 == 0
            and strides[2] == 1
            and not any(size % 16 for size in (*strides[:2], self.dim))
        )
        block = configs.row_block(self.dim, aligned)
        kernels.prepare[(programs,)](
            x,
            *strides,
            inner,
            x.shape[0] * inner,
            self.dim,
            int(self.normalize),
            into.operand,
            self.stride,
            into.factor,
            into.inverse,
            BLOCK=block.elements,
            num_warps=block.warps,
        )

    def prepared(self, *parts: Tensor) -> Rows:
        """Several inputs, one after the other, padded to whole tiles."""
        counts = [x.shape[0] * (x.shape[1] if x.ndim == 3 else 1) for x in parts]
        rows = self.room(configs.padded_rows(sum(counts)))
        first = 0
        for x, count in zip(parts, counts, strict=True):
            is_last = first + count == sum(counts)
            programs = rows.operand.shape[0] - first if is_last else count
            if programs:
                self.prepare(x, rows.from_row(first), programs)
            first += count
        return rows

    def finished(self, grad: Tensor, rows: Rows) -> Tensor:
        """Gradients of unit vectors [n, stride] to those of the inputs [n, D]."""
        if self.normalize and grad.shape[0]:
            gradient_kernels.finish[(grad.shape[0],)](
                grad,
                rows.operand,
                self.stride,
                rows.factor,
                rows.inverse,
                triton.cdiv(self.dim, 16) * 16,
                BLOCK=self.block.elements,
                num_warps=self.block.warps,
            )
        return grad if self.stride == self.dim else grad[:, : self.dim].contiguous()


def split_weights(
    call: Call, rows: int, weight: float, row_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One number [1] and, for each of `rows`, one of at most 1: their product weighs the row.

    Weights of any size, as a loss scaler makes them, become at most 1 in the coefficients.
    """
    total = torch.full((1,), weight, dtype=torch.float32, device=call.device)
    if row_weights is None:
        return total, torch.ones(rows, dtype=torch.float32, device=call.device)
    largest = row_weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    weights = (row_weights / largest).to(torch.float32).contiguous()
    return (total * largest).to(torch.float32), weights


def chunk_rows(n: int, row_bytes: int, tile_count: int, products: bool) -> int:
    """Rows whose coefficients, or whose tile sums without gradients, fit in CHUNK_BYTES."""
    row_bytes = row_bytes * products + 12 * tile_count
    rows = CHUNK_BYTES // row_bytes // configs.ROW_PADDING * configs.ROW_PADDING
    return int(min(configs.padded_rows(n), max(rows, configs.ROW_PADDING)))


def as_temperature(temperature: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(temperature, Tensor):
        return temperature_on(temperature, device)
    return torch.full((1,), temperature, dtype=torch.float32, device=device)
