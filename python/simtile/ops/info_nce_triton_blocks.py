"""The contrastive family on a GPU: what is launched for one block of the similarity matrix.

A block is rows times columns; those of one log-sum-exp lie side by side in the matrix of a chunk
of rows. `info_nce_triton_contrast.py` says which there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile._contrast import Contrast
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_contrast as kernels
from simtile.kernels.info_nce import triton_gradients as gradient_kernels
from simtile.kernels.info_nce.triton_configs import Tile
from simtile.ops._triton_device import INTERPRETED
from simtile.ops.info_nce_triton_call import Call, Rows


class Setting(NamedTuple):
    """What is the same for all blocks of a call."""

    call: Call
    guide: Call | None
    tile: Tile  # of scores
    contrast: Contrast
    temperature: Tensor
    n: int
    has_ids: bool
    absent: Tensor  # in the place of integers that are not there

    @property
    def guide_sizes(self) -> tuple[int, int]:
        """Dimensions and stride of the guide's vectors."""
        of = self.guide or self.call
        return of.dim, of.stride

    def prepared(self, x: Sequence[Tensor], guide: Sequence[Tensor]) -> tuple[Rows, Rows]:
        """Operands of inputs one after the other, and of the guide's; without one the same."""
        rows = self.call.prepared(*(part.to(self.call.dtype) for part in x))
        if self.guide is None:
            return rows, rows
        return rows, self.guide.prepared(*(part.to(self.call.dtype) for part in guide))

    def zeros(self, rows: int) -> Tensor | None:
        """For gradients [rows, stride], which grow in place; None without rows."""
        if not rows:
            return None
        shape = (rows, self.call.stride)
        return torch.zeros(shape, dtype=torch.float32, device=self.call.device)

    def integers(self, x: Tensor | None) -> Tensor:
        return self.absent if x is None else x


class Vectors(NamedTuple):
    """Vectors that are rows, or columns, of blocks."""

    rows: Rows
    guide: Rows  # as the guide has them; without one `rows` again, which nothing reads
    ids: Tensor | None
    grad: Tensor | None  # float32 [., stride], which is added to; None where it is not wanted


class Block(NamedTuple):
    """Rows times columns, and what the columns of a row's own pair are."""

    rows: Vectors
    columns: Vectors
    size: int  # columns
    documents: int  # of these in front of the hard negatives
    own: int  # hard negatives of each row
    targets: Tensor | None  # the column of a row's pair, where it is not the row's number
    hardened: bool = False
    own_out: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Operands and factors of the products, and of the guide's."""
        sides = (self.rows.rows, self.columns.rows, self.rows.guide, self.columns.guide)
        return tuple(x for side in sides for x in (side.operand, side.factor))


def score(
    setting: Setting,
    block: Block,
    thresholds: Sequence[Tensor],  # of logits, and of the guide's cosines
    exponentials: Tensor,
    stats: Sequence[Tensor],
    tallies: Sequence[Tensor],  # of negatives: sums of logits, how many, the largest; or none
    row0: int,
    chunk: int,
    tile_count: int,
    products: bool,
) -> None:
    """Exponentials of a chunk of a block, and their maxima and sums by tile."""
    call, tile, contrast = setting.call, setting.tile, setting.contrast
    tiles_down = triton.cdiv(min(chunk, setting.n - row0), tile.rows)
    kernels.block_scores[(tiles_down * tile_count,)](
        *block.tensors,
        setting.temperature,
        setting.integers(block.targets),
        setting.integers(block.rows.ids),
        setting.integers(block.columns.ids),
        *thresholds,
        exponentials,
        exponentials.stride(0),
        *stats,
        *(tallies or stats),
        stats[0].stride(0),
        contrast.harden_others,
        contrast.harden_own,
        row0,
        setting.n,
        block.size,
        block.documents,
        block.own,
        call.dim,
        call.stride,
        *setting.guide_sizes,
        tile_count,
        int(block.targets is not None),
        int(setting.has_ids),
        int(block.hardened),
        int(block.own_out),
        GUIDE=setting.guide is not None,
        STATISTICS=bool(tallies),
        **configs.score_options(tile, call.name, call.precision, products),
        EMULATE=INTERPRETED,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def differentiate(
    setting: Setting,
    block: Block,
    exponentials: Tensor,
    factors: Tensor,
    of_pairs: Tensor,
    total: Tensor,
    row0: int,
    chunk: int,
) -> None:
    """Coefficients of a chunk of a block, and their products with both sides' vectors."""
    call, n, scores = setting.call, setting.n, setting.tile
    product = call.tiles.product
    rows = min(chunk, n - row0)
    coefficients = exponentials.view(call.dtype)
    parts = triton.cdiv(rows, scores.rows) * scores.rows // configs.COEFFICIENT_ROWS
    columns = block.columns.rows
    gradient_kernels.coefficients[(parts * factors.shape[1],)](
        exponentials,
        coefficients,
        exponentials.stride(0),
        factors,
        of_pairs,
        columns.factor,
        setting.integers(block.targets),
        row0,
        n,
        factors.shape[1],
        int(block.targets is not None),
        BM=configs.COEFFICIENT_ROWS,
        BN=scores.columns,
        EMULATE=INTERPRETED,
        num_warps=4,
    )
    to_rows, to_columns = block.rows.grad, block.columns.grad
    out_rows = 0 if to_columns is None else min(block.size, to_columns.shape[0])
    options = configs.product_options(product, call.name, call.precision, call.dim)
    across = triton.cdiv(call.dim, options["BD"])
    for_rows = 0 if to_rows is None else triton.cdiv(rows, product.rows) * across
    for_columns = triton.cdiv(out_rows, product.rows) * across
    launches = [(for_rows, for_columns)]
    # Two programs would add to the same rows.
    if to_rows is not None and to_rows is to_columns:
        launches = [(for_rows, 0), (0, for_columns)]
    for row_tiles, column_tiles in launches:
        if row_tiles + column_tiles == 0:
            continue
        gradient_kernels.products[(row_tiles + column_tiles,)](
            coefficients,
            coefficients.stride(0),
            block.rows.rows.operand[row0:],
            block.rows.rows.factor[row0:],
            columns.operand,
            columns.factor,
            call.stride,
            setting.temperature,
            total,
            total if to_rows is None else to_rows[row0:],
            total if to_columns is None else to_columns,
            row_tiles,
            rows,
            block.size,
            out_rows,
            call.dim,
            1,
            **options,
            EMULATE=INTERPRETED,
            ADD_QUERIES=1,
            num_warps=product.warps,
            num_stages=product.stages,
        )
