"""The contrastive family on a GPU: launches of `kernels/info_nce/triton_contrast.py`.

A direction is one or two blocks of the similarity matrix, those of one log-sum-exp lie side by side
in the matrix of a chunk. Each has its scores, then its coefficients and products, by the kernels
of the plain loss, added in the order of the launches to what the gradients hold. As there, nothing
waits for the device or reads from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from simtile._contrast import DIRECTIONS, SCOPES, Contrast
from simtile._statistics import Tally
from simtile.kernels.info_nce import triton as plain_kernels
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce import triton_contrast as kernels
from simtile.kernels.info_nce.triton_configs import Config
from simtile.ops._tensors import as_index, complete_ids
from simtile.ops._triton_device import INTERPRETED, on
from simtile.ops.info_nce_triton import call_for
from simtile.ops.info_nce_triton_blocks import Block, Setting, Vectors, differentiate, score
from simtile.ops.info_nce_triton_call import (
    Call,
    Result,
    as_temperature,
    chunk_rows,
    split_weights,
)
from simtile.ops.info_nce_triton_gradients import add_own

_WITH_POSITIVE = DIRECTIONS["query_to_doc"] | DIRECTIONS["doc_to_query"]


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
    statistics: bool = False,
    tiles: Config | None = None,
) -> Result:
    """`info_nce_triton.run` with the options of `contrast`; `guide`: [N, G], [M, G], [N, K, G]."""
    call = call_for(queries, dtype, normalize, precision, tiles)
    device = queries.device
    with on(device):
        guide_call = None
        if guide:
            width = guide[0].shape[1]
            guide_call = Call(call.dtype, width, True, device, precision, call.tiles)
        ids = complete_ids(query_ids, document_ids, targets, queries.shape[0], device)
        setting = Setting(
            call,
            guide_call,
            configs.block_tile(call.tiles.scores, bool(guide), call.name, call.precision),
            contrast,
            as_temperature(temperature, device),
            queries.shape[0],
            ids[0] is not None,
            torch.empty(1, dtype=torch.int64, device=device),
        )
        family = _Family(
            setting,
            [queries.detach(), documents.detach()],
            None if negatives is None else negatives.detach(),
            [x.detach() for x in guide],
            as_index(targets, device),
            ids,
            need_grad,
            statistics,
        )
        return family.run(weight, row_weights)


class _Family:
    """One call: its operands, blocks and gradients, and what is launched in which order."""

    def __init__(
        self,
        setting: Setting,
        pairs: Sequence[Tensor],  # queries, documents
        negatives: Tensor | None,
        guide: Sequence[Tensor],
        targets: Tensor | None,
        ids: Sequence[Tensor | None],  # of queries, of documents
        need_grad: Sequence[bool],
        statistics: bool,
    ) -> None:
        self.setting, self.call, self.contrast = setting, setting.call, setting.contrast
        self.targets, self.need_grad = targets, need_grad
        self.n, self.m = n, m = pairs[0].shape[0], pairs[1].shape[0]
        self.k = k = 0 if negatives is None else negatives.shape[1]
        self.negatives_shape = None if negatives is None else negatives.shape

        # Hard negatives are columns beside the documents, or each row's own, or take no part.
        scope = self.contrast.scope
        meet = self.has("query_to_doc") and scope != SCOPES["own"]
        meet |= self.has("doc_to_doc") and scope == SCOPES["all"]
        self.in_columns = k if meet else 0
        self.own = k if self.has("query_to_doc") and scope == SCOPES["own"] else 0

        need_negatives = need_grad[2] and self.in_columns > 0
        columns = [pairs[1]]
        if negatives is not None and self.in_columns:
            columns.append(negatives)
        self.documents = Vectors(
            *setting.prepared(columns, guide[1 : 1 + len(columns)]),
            ids[1],
            setting.zeros(m + n * k if need_negatives else m if need_grad[1] else 0),
        )
        as_rows = self.documents
        from_documents = self.has("doc_to_query") or self.has("doc_to_doc")
        # What follows the pairs' documents is no padding, which rows end with.
        if from_documents and (m > n or self.in_columns) and n != configs.padded_rows(n):
            prepared = setting.prepared([pairs[1][:n]], [x[:n] for x in guide[1:2]])
            as_rows = Vectors(*prepared, ids[1], self.documents.grad)
        self.own_documents = as_rows if need_grad[1] else as_rows._replace(grad=None)
        self.queries = Vectors(
            *setting.prepared(pairs[:1], guide[:1]), ids[0], setting.zeros(n if need_grad[0] else 0)
        )
        self.negatives = self.queries
        if negatives is not None and self.own:
            self.negatives = Vectors(*setting.prepared([negatives], guide[2:]), None, None)
        self.tally: Tensor | None = None
        if statistics:
            self.tally = torch.zeros(
                len(Tally._fields), dtype=torch.float64, device=self.call.device
            )
        self.find_pairs()

    def has(self, direction: str, among: int | None = None) -> bool:
        chosen = self.contrast.directions if among is None else among
        return bool(chosen & DIRECTIONS[direction])

    def find_pairs(self) -> None:
        """Logits of the pairs, thresholds, and logits of a query's own hard negatives."""
        call, setting, contrast, n = self.call, self.setting, self.contrast, self.n
        tile, guided = setting.tile, setting.guide is not None
        self.positive, self.thresholds = call.floats(n), (call.floats(n), call.floats(n))
        margin = 0.0 if contrast.margin is None else contrast.margin
        flags = (
            int(self.targets is not None),
            int(contrast.margin is not None),
            int(contrast.guide_relative),
        )
        options = configs.pair_options(tile, call.name, call.precision)
        sides = [(call, self.queries.rows, self.documents.rows, margin)]
        if setting.guide is not None:
            by_guide = self.queries.guide, self.documents.guide
            sides.append((setting.guide, *by_guide, contrast.guide_margin))
        for is_guide, (of, rows, columns, of_margin) in enumerate(sides):
            kernels.pair_scores[(triton.cdiv(n, tile.rows),)](
                rows.operand,
                rows.factor,
                columns.operand,
                columns.factor,
                setting.temperature,
                setting.integers(self.targets),
                self.positive,
                self.thresholds[is_guide],
                of_margin,
                n,
                self.m,
                of.dim,
                of.stride,
                *flags,
                GUIDE=bool(is_guide),
                **options,
                EMULATE=INTERPRETED,
                num_warps=tile.warps,
                num_stages=configs.PAIR_STAGES,
            )
        self.own_logits = call.floats(n, self.own)
        own_blocks = triton.cdiv(self.own, configs.OWN_BLOCK)
        self.own_tallies = [call.floats(n, own_blocks) for _ in range(3 * self.counts)]
        if not self.own:
            return
        vectors = (self.queries, self.negatives, self.documents)
        operands = [*(x.rows for x in vectors), *(x.guide for x in vectors)]
        kernels.own_block_scores[(n, own_blocks)](
            *(x for rows in operands for x in (rows.operand, rows.factor)),
            setting.temperature,
            setting.integers(self.targets),
            self.own_logits,
            *(self.own_tallies or [self.own_logits] * 3),
            margin,
            contrast.guide_margin,
            contrast.harden_own,
            self.m,
            self.own,
            call.stride,
            setting.guide_sizes[1],
            *flags,
            int(self.counts or contrast.margin is not None),
            GUIDE=guided,
            STATISTICS=self.counts,
            BLOCK_K=configs.OWN_BLOCK,
            BLOCK_D=configs.OWN_DIMS,
            num_warps=4,
        )

    def blocks(self, group: int) -> Iterator[Block]:
        """Those of one log-sum-exp; the first has the pairs' coefficients."""
        q, p, d = self.queries, self.own_documents, self.documents
        n, m, contrast = self.n, self.m, self.contrast
        if self.has("query_to_doc", group):
            own = self.in_columns
            hard = contrast.harden_others != 0.0 or contrast.harden_own != 0.0
            yield Block(q, d, m + n * own, m, own, self.targets, hardened=hard)
        if self.has("doc_to_query", group):
            yield Block(p, q, n, n, 0, None)
        if self.has("query_to_query", group):
            yield Block(q, q, n, n, 0, None)
        if self.has("doc_to_doc", group):
            own = self.in_columns if contrast.scope == SCOPES["all"] else 0
            yield Block(p, d, m + n * own, m, own, None, own_out=True)

    def run(self, weight: float, row_weights: Tensor | None) -> Result:
        call, contrast, n = self.call, self.contrast, self.n
        groups = [contrast.directions]
        if contrast.per_direction:
            groups = [bit for bit in DIRECTIONS.values() if contrast.directions & bit]
        gradients = any(self.need_grad)
        total, weights = split_weights(call, n if gradients else 0, weight, row_weights)
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
        grads = (grad_queries, grad_documents, grad_negatives, grad_temperature)
        return Result(mean, *grads, self.finished_tally())

    def run_group(
        self, group: int, total: Tensor, weights: Tensor, losses: Tensor, row_temperature: Tensor
    ) -> None:
        """Losses of one log-sum-exp, and what it adds to the gradients."""
        call, setting, n = self.call, self.setting, self.n
        blocks = list(self.blocks(group))
        products = any(x.grad is not None for b in blocks for x in (b.rows, b.columns))
        columns = [configs.padded_rows(b.size) for b in blocks]
        tiles = [triton.cdiv(b.size, setting.tile.columns) for b in blocks]
        width, tile_count = sum(columns), sum(tiles)
        bytes_of = 4 if call.dtype == torch.float32 else 2
        chunk = chunk_rows(n, width * bytes_of, tile_count, products)
        sums = [call.floats(chunk, tile_count) for _ in range(3)]
        tallies = [call.floats(chunk, tile_count) for _ in range(3 * self.counts)]
        kept = torch.float32 if call.dtype == torch.float32 else torch.float16
        shape = (chunk, width) if products else (0, width)
        exponentials = torch.empty(shape, dtype=kept, device=call.device)
        places = [
            (block, exponentials[:, sum(columns[:b]) :], sum(tiles[:b]), tiles[b])
            for b, block in enumerate(blocks)
        ]
        gradients = any(self.need_grad)
        own = self.own if self.has("query_to_doc", group) else 0
        positive_coefficient = call.floats(n if gradients else 0)
        ones = torch.ones(n, dtype=torch.float32, device=call.device)
        zeros = torch.zeros(n, dtype=torch.float32, device=call.device)

        for row0 in range(0, n, chunk):
            for block, place, first, count in places:
                stats, seen = ([x[:, first:] for x in of] for of in (sums, tallies))
                score(
                    setting,
                    block,
                    self.thresholds,
                    place,
                    stats,
                    seen,
                    row0,
                    chunk,
                    count,
                    products,
                )
            self.count(tallies, own, row0, min(chunk, n - row0))
            # The factors of rows, which differ by block, come afterwards.
            plain_kernels.row_losses[(min(chunk, n - row0),)](
                *sums,
                self.positive,
                self.own_logits,
                ones,
                setting.temperature,
                setting.integers(self.targets),
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
                **configs.loss_options(call.name, gradients),
                COPIES=(group & _WITH_POSITIVE).bit_count(),
                FAMILY=True,
                num_warps=1,
            )
            if not products:
                continue
            for block, place, first, count in places:
                row_factor = block.rows.rows.factor
                factors = sums[0][:, first : first + count]
                factors = factors * row_factor[row0 : row0 + chunk, None]
                # However often the pair is a candidate, its coefficient is at one place.
                of_pairs = zeros if first else positive_coefficient * row_factor[:n]
                differentiate(setting, block, place, factors, of_pairs, total, row0, chunk)

    @property
    def counts(self) -> bool:
        return self.tally is not None

    def count(self, tallies: Sequence[Tensor], own: int, row0: int, rows: int) -> None:
        """Add what rows of one log-sum-exp saw; `own`: of their own hard negatives."""
        if self.tally is None:
            return
        part = slice(row0, row0 + rows)
        similarity, kept = (x[:rows].sum(1, dtype=torch.float64) for x in tallies[:2])
        ahead = self.positive[part] > tallies[2][:rows].amax(1)
        if own:
            by_row = [x[part].sum(1, dtype=torch.float64) for x in self.own_tallies]
            similarity, kept = similarity + by_row[0], kept + by_row[1]
            ahead &= by_row[2] == 0
        ahead &= ~similarity.isnan()  # which no maximum tells
        seen: dict[str, Tensor | int] = {
            "negative_similarity": similarity.sum(),
            "negatives_kept": kept.sum(),
            "pairs_ahead": ahead.sum(dtype=torch.float64),
            "pairs_compared": rows,
        }
        for name, value in seen.items():
            self.tally[Tally._fields.index(name)] += value

    def finished_tally(self) -> Tensor | None:
        if self.tally is None:
            return None
        n, m, k, scope = self.n, self.m, self.k, self.contrast.scope
        there = 0
        if self.has("query_to_doc"):
            there += n * (m - 1 + (k if scope == SCOPES["own"] else n * k))
        there += n * (n - 1) * (self.has("query_to_query") + self.has("doc_to_query"))
        if self.has("doc_to_doc"):
            there += n * (m - 1 + ((n - 1) * k if scope == SCOPES["all"] else 0))
        known: dict[str, Tensor | int] = {
            "pairs": n,
            "negatives_there": there,
            "positive_similarity": self.positive.sum(dtype=torch.float64),
        }
        for name, value in known.items():
            self.tally[Tally._fields.index(name)] = value
        # logits so far
        for name in ("positive_similarity", "negative_similarity"):
            self.tally[Tally._fields.index(name)] *= self.setting.temperature.double().reshape(())
        return self.tally

    def own_gradients(self, total: Tensor) -> Tensor | None:
        """What a query's own hard negatives add to its gradient, and their own if wanted."""
        call, q, x = self.call, self.queries, self.negatives
        grad = call.floats(self.n * self.own, call.stride) if self.need_grad[2] else None
        temperature = self.setting.temperature
        add_own(call, q.rows, x.rows, self.own_logits, temperature, total, q.grad, grad)
        if grad is None:
            return None
        return call.finished(grad, x.rows).view(self.n, self.k, call.dim)
