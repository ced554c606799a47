"""MaxSim on a GPU by Triton: what forward and backward share, prepared inputs and their sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile.kernels.info_nce import triton as row_kernels
from simtile.kernels.maxsim import triton as kernels
from simtile.kernels.maxsim import triton_configs as configs
from simtile.kernels.maxsim.triton_configs import Config
from simtile.ops._triton_device import family


class Batch(NamedTuple):
    """Queries or documents as the kernels take them."""

    x: Tensor  # [B, L, dim], each row without gaps
    factor: Tensor  # float32 [B * L]: a scored row = row * factor; read if normalized
    inverse: Tensor  # what `finish` needs besides
    there: Tensor  # uint8 [B * L]; read if masked
    masked: bool

    @property
    def rows(self) -> int:
        return self.x.shape[0] * self.x.shape[1]

    @property
    def operands(self) -> tuple[Any, ...]:
        return self.x, self.x.stride(0), self.x.stride(1), self.factor


class Call(NamedTuple):
    """One call: prepared inputs, and what every launch is told."""

    queries: Batch
    documents: Batch
    candidates: Tensor  # int64 [Q, C], read if has_candidates
    chosen: int  # C
    options: Options
    name: str  # of the element type
    tiles: Config
    counts: Tensor  # int32 [Q]: tokens of each query
    ends: Tensor  # int32 [N]: one more than the last token of each document
    has_candidates: int

    @property
    def dim(self) -> int:
        return self.queries.x.shape[2]

    @property
    def group_rows(self) -> int:
        """Rows of queries that have the same documents."""
        return self.queries.x.shape[1] if self.has_candidates else self.queries.rows

    @property
    def groups(self) -> int:
        return self.queries.x.shape[0] if self.has_candidates else 1


def prepared(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    options: Options,
    tiles: Config | None,
) -> Call:
    """Shapes, devices and element types have been checked; without `tiles` the pinned ones."""
    device = queries.x.device
    dtype = queries.x.dtype
    if documents.x.dtype != dtype:  # two of 16 bits have float32 in common, too
        dtype = torch.float32
    name = str(dtype).removeprefix("torch.")
    left, right = (_batch(side, dtype, options) for side in (queries, documents))
    count = documents.batch
    if candidates is None:
        chosen = torch.empty(1, dtype=torch.int64, device=device)
    else:
        chosen = candidates.to(device=device, dtype=torch.int64).contiguous()
        count = chosen.shape[1]
    return Call(
        left,
        right,
        chosen,
        count,
        options,
        name,
        configs.config(family(device), name) if tiles is None else tiles,
        _token_counts(queries, left),
        _ends(documents, right),
        int(candidates is not None),
    )


def _batch(side: Given, dtype: torch.dtype, options: Options) -> Batch:
    x: Tensor = side.x.detach().to(dtype)
    if x.shape[2] > 1 and x.stride(2) != 1:
        x = x.contiguous()
    count, length, dim = x.shape
    rows = count * length
    device = x.device
    masked = side.mask is not None or options.pad_zero_rows
    there = torch.empty(1, dtype=torch.uint8, device=device)
    if side.mask is not None:
        there = side.mask.contiguous().view(torch.uint8).reshape(-1)
    if options.pad_zero_rows:
        given, there = there, torch.empty(rows, dtype=torch.uint8, device=device)
        if rows:
            kernels.tokens[(triton.cdiv(rows, configs.TOKEN_ROWS),)](
                x,
                x.stride(0),
                x.stride(1),
                length,
                rows,
                dim,
                given,
                int(side.mask is not None),
                there,
                ROWS=configs.TOKEN_ROWS,
                BLOCK=configs.TOKEN_BLOCK,
                num_warps=4,
            )
    factor = inverse = torch.empty(
        rows if options.normalize else 1, dtype=torch.float32, device=device
    )
    if options.normalize:
        inverse = torch.empty_like(factor)
        stride = configs.operand_stride(dim)
        operand = torch.empty((count, length, stride), dtype=dtype, device=device)
        block = configs.row_block(dim)
        if rows:
            row_kernels.prepare[(rows,)](
                x,
                *x.stride()[:2],
                1,
                length,
                rows,
                dim,
                1,
                operand,
                stride,
                factor,
                inverse,
                BLOCK=block.elements,
                num_warps=block.warps,
            )
        x = operand
    return Batch(x, factor, inverse, there, masked)


def _token_counts(side: Given, batch: Batch) -> Tensor:
    count, length = side.x.shape[:2]
    if batch.masked:
        return batch.there.view(count, length).sum(1, dtype=torch.int32)
    return torch.full((count,), length, dtype=torch.int32, device=side.x.device)


def _ends(side: Given, batch: Batch) -> Tensor:
    count, length = side.x.shape[:2]
    device = side.x.device
    if not batch.masked or length == 0:
        return torch.full((count,), length, dtype=torch.int32, device=device)
    places = torch.arange(1, length + 1, dtype=torch.int32, device=device)
    return (batch.there.view(count, length) * places).amax(1)
