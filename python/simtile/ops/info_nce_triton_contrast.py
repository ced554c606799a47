"""The contrastive family on a GPU: launches of `kernels/info_nce/triton_contrast.py`.

A direction is one or two blocks of the similarity matrix, those of one log-sum-exp lie side by side
in the matrix of a chunk. Each has its scores, then its coefficients and products, by the kernels
of the plain loss, added in the order of the launches to what the gradients hold. As there, nothing
waits for the device or reads from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile._contrast import DIRECTIONS, SCOPES, Contrast
from simtile.kernels.info_nce import triton as plain_kernels
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_contrast as kernels
from simtile.kernels.info_nce.triton_configs import Config
from simtile.ops import info_nce_triton as plain
from simtile.ops._tensors import as_index, complete_ids
from simtile.ops.info_nce_triton import Result

_WITH_POSITIVE = DIRECTIONS["query_to_doc"] | DIRECTIONS["doc_to_query"]


class _Vectors(NamedTuple):
    """Vectors that are rows, or columns, of blocks."""

    rows: plain._Rows
    guide: plain._Rows  # as the guide has them; without one `rows` again, which nothing reads
    ids: Tensor | None
    grad: Tensor | None  # float32 [., stride], which is added to; None where it is not wanted


class _Block(NamedTuple):
    """Rows times columns, and what the columns of a row's own pair are."""

    rows: _Vectors
    columns: _Vectors
    count: int  # columns
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


def run(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    *,
    dtype: torch.dtype,
    contrast: Contrast,
    temperature: float | Tensor,
    guide: Sequence[Tensor] = (),
    normalize: bool = True,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
    weight: float = 1.0,
    row_weights: Tensor | None = None,
    need_grad: Sequence[bool] = (False, False, False, False),
    precision: str = "ieee",
    tiles: Config | None = None,
) -> Result:
    """`info_nce_triton.run` with the options of `contrast`; `guide`: [N, G], [M, G], [N, K, G]."""
    call = plain._call_for(queries, dtype, normalize, precision, tiles)
    device = queries.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        family = _Family(
            call,
            contrast,
            [queries.detach(), documents.detach()],
            None if negatives is None else negatives.detach(),
            [x.detach() for x in guide],
            as_index(targets, device),
            complete_ids(query_ids, document_ids, targets, queries.shape[0], device),
            plain._on_device(temperature, device),
            need_grad,
        )
        return family.run(weight, row_weights)


class _Family:
    """One call: its operands, blocks, gradients and launches."""

    def __init__(
        self,
        call: plain._Call,
        contrast: Contrast,
        pairs: Sequence[Tensor],  # queries, documents
        negatives: Tensor | None,
        guide: Sequence[Tensor],
        targets: Tensor | None,
        ids: Sequence[Tensor | None],  # of queries, of documents
        temperature: Tensor,
        need_grad: Sequence[bool],
    ) -> None:
        self.call, self.contrast, self.temperature = call, contrast, temperature
        self.targets, self.has_ids, self.need_grad = targets, ids[0] is not None, need_grad
        self.n, self.m = n, m = pairs[0].shape[0], pairs[1].shape[0]
        self.k = k = 0 if negatives is None else negatives.shape[1]
        self.negatives_shape = None if negatives is None else negatives.shape
        self.guide_call = call
        if guide:
            self.guide_call = plain._Call(
                call.dtype, guide[0].shape[1], True, call.device, call.precision, call.tiles
            )
        self.guided = bool(guide)
        self.absent = torch.empty(1, dtype=torch.int64, device=call.device)

        # Hard negatives are columns beside the documents, or each row's own, or take no part.
        meet = self.has("query_to_doc") and contrast.scope != SCOPES["own"]
        meet |= self.has("doc_to_doc") and contrast.scope == SCOPES["all"]
        self.in_columns = k if meet else 0
        self.own = k if self.has("query_to_doc") and contrast.scope == SCOPES["own"] else 0

        # Gradients grow in place, and of what takes part in nothing they are zero.
        need_negatives = need_grad[2] and self.in_columns > 0
        out_rows = m + n * k if need_negatives else m if need_grad[1] else 0
        columns = [pairs[1]] + [x for x in (negatives,) if x is not None and self.in_columns]
        guide_columns = guide[1 : 1 + len(columns)]
        as_columns = self.vectors(columns, guide_columns, ids[1], out_rows)
        as_rows = as_columns._replace(grad=as_columns.grad if need_grad[1] else None)
        from_documents = self.has("doc_to_query") or self.has("doc_to_doc")
        # What follows the pairs' documents is no padding, which rows end with.
        if from_documents and sum(len(x) for x in columns) > n != configs.padded_rows(n):
            own = self.vectors([pairs[1][:n]], [x[:n] for x in guide[1:2]], ids[1], 0)
            as_rows = own._replace(grad=as_rows.grad)
        self.documents, self.own_documents = as_columns, as_rows
        self.queries = self.vectors([pairs[0]], guide[:1], ids[0], n if need_grad[0] else 0)
        self.negatives = self.queries
        if self.own and negatives is not None:
            self.negatives = self.vectors([negatives], guide[2:], None, 0)
        self.find_pairs()

    def has(self, direction: str, among: int | None = None) -> bool:
        chosen = self.contrast.directions if among is None else among
        return bool(chosen & DIRECTIONS[direction])

    def vectors(
        self, x: Sequence[Tensor], guide: Sequence[Tensor], ids: Tensor | None, grad_rows: int
    ) -> _Vectors:
        call = self.call
        rows = call.prepared(*(part.to(call.dtype) for part in x))
        by_guide = rows
        if self.guided:
            by_guide = self.guide_call.prepared(*(part.to(call.dtype) for part in guide))
        grad = None
        if grad_rows:
            grad = torch.zeros((grad_rows, call.stride), dtype=torch.float32, device=call.device)
        return _Vectors(rows, by_guide, ids, grad)

    def index(self, x: Tensor | None) -> Tensor:
        return self.absent if x is None else x

    def find_pairs(self) -> None:
        """Logits of the pairs, thresholds, and logits of a query's own hard negatives."""
        call, contrast, n = self.call, self.contrast, self.n
        tile = call.tiles.scores
        self.positive, self.threshold = call.floats(n), call.floats(n)
        self.guide_threshold = call.floats(n if self.guided else 1)
        margin = 0.0 if contrast.margin is None else contrast.margin
        has_margin = int(contrast.margin is not None)
        guide_options = (int(contrast.guide_relative),)
        pair = _Block(self.queries, self.documents, self.m, self.m, 0, self.targets)
        options = configs.score_options(tile, call.name, call.precision, False)
        kernels.pair_scores[(triton.cdiv(n, tile.rows),)](
            *pair.tensors,
            self.temperature,
            self.index(self.targets),
            self.positive,
            self.threshold,
            self.guide_threshold,
            margin,
            contrast.guide_margin,
            n,
            self.m,
            call.dim,
            call.stride,
            self.guide_call.dim,
            self.guide_call.stride,
            int(self.targets is not None),
            has_margin,
            *guide_options,
            GUIDE=self.guided,
            **{name: options[name] for name in ("BM", "BN", "BK", "PRECISION")},
            EMULATE=plain.INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        self.own_logits = call.floats(n, self.own)
        if not self.own:
            return
        q, x, c = self.queries, self.negatives, self.documents
        kernels.own_block_scores[(n, triton.cdiv(self.own, configs.OWN_BLOCK))](
            q.rows.operand,
            q.rows.factor,
            x.rows.operand,
            x.rows.factor,
            c.rows.operand,
            c.rows.factor,
            q.guide.operand,
            q.guide.factor,
            x.guide.operand,
            x.guide.factor,
            c.guide.operand,
            c.guide.factor,
            self.temperature,
            self.index(self.targets),
            self.own_logits,
            margin,
            contrast.guide_margin,
            contrast.harden_own,
            self.m,
            self.own,
            call.stride,
            self.guide_call.stride,
            int(self.targets is not None),
            has_margin,
            *guide_options,
            GUIDE=self.guided,
            BLOCK_K=configs.OWN_BLOCK,
            BLOCK_D=configs.OWN_DIMS,
            num_warps=4,
        )

    def blocks(self, group: int) -> Iterator[_Block]:
        """Those of one log-sum-exp; the first has the pairs' coefficients."""
        q, p, d = self.queries, self.own_documents, self.documents
        n, m, contrast = self.n, self.m, self.contrast
        if self.has("query_to_doc", group):
            own = self.in_columns
            hard = contrast.harden_others != 0.0 or contrast.harden_own != 0.0
            yield _Block(q, d, m + n * own, m, own, self.targets, hardened=hard)
        if self.has("doc_to_query", group):
            yield _Block(p, q, n, n, 0, None)
        if self.has("query_to_query", group):
            yield _Block(q, q, n, n, 0, None)
        if self.has("doc_to_doc", group):
            own = self.in_columns if contrast.scope == SCOPES["all"] else 0
            yield _Block(p, d, m + n * own, m, own, None, own_out=True)

    def run(self, weight: float, row_weights: Tensor | None) -> Result:
        call, contrast, n = self.call, self.contrast, self.n
        groups = [contrast.directions]
        if contrast.per_direction:
            groups = [bit for bit in DIRECTIONS.values() if contrast.directions & bit]
        gradients = any(self.need_grad)
        total, weights = plain._weights(call, n if gradients else 0, weight, row_weights)
        total /= len(groups)
        losses = [call.floats(n) for _ in groups]
        temperatures = [call.floats(n if gradients else 0) for _ in groups]
        for group, loss, temperature in zip(groups, losses, temperatures, strict=True):
            self.run_group(group, total, weights, loss, temperature)

        grad_negatives = None
        if self.own and (self.need_grad[2] or self.queries.grad is not None):
            grad_negatives = self.own_gradients(total)
        grad_documents = None
        if self.documents.grad is not None:
            finished = call.finished(self.documents.grad, self.documents.rows)
            grad_documents = finished[: self.m] if self.need_grad[1] else None
            if grad_negatives is None and self.need_grad[2] and self.in_columns:
                grad_negatives = finished[self.m :].view(n, self.k, call.dim)
        if grad_negatives is None and self.need_grad[2] and self.negatives_shape is not None:
            grad_negatives = torch.zeros(
                self.negatives_shape, dtype=torch.float32, device=call.device
            )
        grad_queries = None
        if self.queries.grad is not None:
            grad_queries = call.finished(self.queries.grad, self.queries.rows)
        grad_temperature = None
        if self.need_grad[3]:
            grad_temperature = torch.stack(temperatures).sum(dtype=torch.float64) * total[0]
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean(0)
        return Result(mean, grad_queries, grad_documents, grad_negatives, grad_temperature)

    def run_group(
        self, group: int, total: Tensor, weights: Tensor, losses: Tensor, row_temperature: Tensor
    ) -> None:
        """Losses of one log-sum-exp, and what it adds to the gradients."""
        call, n = self.call, self.n
        blocks = list(self.blocks(group))
        products = any(x.grad is not None for b in blocks for x in (b.rows, b.columns))
        columns = [configs.padded_rows(b.count) for b in blocks]
        tiles = [triton.cdiv(b.count, call.tiles.scores.columns) for b in blocks]
        width, tile_count = sum(columns), sum(tiles)
        bytes_of = 4 if call.dtype == torch.float32 else 2
        chunk = plain._chunk_rows(n, width * bytes_of, tile_count, products)
        sums = [call.floats(chunk, tile_count) for _ in range(3)]
        kept = torch.float32 if call.dtype == torch.float32 else torch.float16
        shape = (chunk, width) if products else (0, width)
        exponentials = torch.empty(shape, dtype=kept, device=call.device)
        gradients = any(self.need_grad)
        own = self.own if self.has("query_to_doc", group) else 0
        copies = (group & _WITH_POSITIVE).bit_count()
        positive_coefficient = call.floats(n if gradients else 0)
        ones = torch.ones(n, dtype=torch.float32, device=call.device)
        zeros = torch.zeros(n, dtype=torch.float32, device=call.device)
        first_columns = [sum(columns[:b]) for b in range(len(blocks))]
        first_tiles = [sum(tiles[:b]) for b in range(len(blocks))]

        for row0 in range(0, n, chunk):
            for block, column, first, count in zip(
                blocks, first_columns, first_tiles, tiles, strict=True
            ):
                stats = [x[:, first:] for x in sums]
                self.score(block, exponentials[:, column:], stats, row0, chunk, count, products)
            # The factors of rows, which differ by block, come afterwards.
            plain_kernels.row_losses[(min(chunk, n - row0),)](
                *sums,
                self.positive,
                self.own_logits,
                ones,
                self.temperature,
                self.index(self.targets),
                weights,
                losses,
                positive_coefficient,
                row_temperature,
                row0,
                n,
                self.m,
                tile_count,
                own,
                int(self.targets is not None),
                self.contrast.harden_own,
                GRAD=gradients,
                BLOCK=configs.TILE_BLOCK,
                E_SCALE=configs.exponential_scale(call.name),
                COPIES=copies,
                FAMILY=True,
                num_warps=1,
            )
            if not products:
                continue
            for b, (block, column, first, count) in enumerate(
                zip(blocks, first_columns, first_tiles, tiles, strict=True)
            ):
                row_factor = block.rows.rows.factor
                factors = sums[0][:, first : first + count]
                factors = factors * row_factor[row0 : row0 + chunk, None]
                # However often the pair is a candidate, its coefficient is at one place.
                of_pairs = zeros if b else positive_coefficient * row_factor[:n]
                self.differentiate(
                    block, exponentials[:, column:], factors, of_pairs, total, row0, chunk
                )

    def score(
        self,
        block: _Block,
        exponentials: Tensor,
        stats: Sequence[Tensor],
        row0: int,
        chunk: int,
        tile_count: int,
        products: bool,
    ) -> None:
        call, tile, contrast = self.call, self.call.tiles.scores, self.contrast
        tiles_down = triton.cdiv(min(chunk, self.n - row0), tile.rows)
        kernels.block_scores[(tiles_down * tile_count,)](
            *block.tensors,
            self.temperature,
            self.index(block.targets),
            self.index(block.rows.ids),
            self.index(block.columns.ids),
            self.threshold,
            self.guide_threshold,
            exponentials,
            exponentials.stride(0),
            *stats,
            stats[0].stride(0),
            contrast.harden_others,
            contrast.harden_own,
            row0,
            self.n,
            block.count,
            block.documents,
            block.own,
            call.dim,
            call.stride,
            self.guide_call.dim,
            self.guide_call.stride,
            tile_count,
            int(block.targets is not None),
            int(self.has_ids),
            int(block.hardened),
            int(block.own_out),
            GUIDE=self.guided,
            **configs.score_options(tile, call.name, call.precision, products),
            EMULATE=plain.INTERPRETED,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    def differentiate(
        self,
        block: _Block,
        exponentials: Tensor,
        factors: Tensor,
        of_pairs: Tensor,
        total: Tensor,
        row0: int,
        chunk: int,
    ) -> None:
        """Coefficients of a chunk of a block, and their products with both sides' vectors."""
        call, n = self.call, self.n
        scores, product = call.tiles
        rows = min(chunk, n - row0)
        coefficients = exponentials.view(call.dtype)
        parts = triton.cdiv(rows, scores.rows) * scores.rows // configs.COEFFICIENT_ROWS
        columns = block.columns.rows
        plain_kernels.coefficients[(parts * factors.shape[1],)](
            exponentials,
            coefficients,
            exponentials.stride(0),
            factors,
            of_pairs,
            columns.factor,
            self.index(block.targets),
            row0,
            n,
            factors.shape[1],
            int(block.targets is not None),
            BM=configs.COEFFICIENT_ROWS,
            BN=scores.columns,
            EMULATE=plain.INTERPRETED,
            num_warps=4,
        )
        to_rows, to_columns = block.rows.grad, block.columns.grad
        out_rows = 0 if to_columns is None else min(block.count, to_columns.shape[0])
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
            plain_kernels.products[(row_tiles + column_tiles,)](
                coefficients,
                coefficients.stride(0),
                block.rows.rows.operand[row0:],
                block.rows.rows.factor[row0:],
                columns.operand,
                columns.factor,
                call.stride,
                self.temperature,
                total,
                total if to_rows is None else to_rows[row0:],
                total if to_columns is None else to_columns,
                row_tiles,
                rows,
                block.count,
                out_rows,
                call.dim,
                1,
                **options,
                EMULATE=plain.INTERPRETED,
                ADD_QUERIES=1,
                num_warps=product.warps,
                num_stages=product.stages,
            )

    def own_gradients(self, total: Tensor) -> Tensor | None:
        """What a query's own hard negatives add to its gradient, and their own if wanted."""
        call, q, x = self.call, self.queries, self.negatives
        grad = call.floats(self.n * self.own, call.stride) if self.need_grad[2] else None
        plain_kernels.own_gradients[(self.n, triton.cdiv(call.stride, call.block.elements))](
            q.rows.operand,
            q.rows.factor,
            x.rows.operand,
            x.rows.factor,
            call.stride,
            self.own_logits,
            self.temperature,
            total,
            total if q.grad is None else q.grad,
            total if grad is None else grad,
            self.own,
            QUERIES=q.grad is not None,
            NEGATIVES=grad is not None,
            BLOCK=call.block.elements,
            num_warps=call.block.warps,
        )
        if grad is None:
            return None
        return call.finished(grad, x.rows).view(self.n, self.k, call.dim)
