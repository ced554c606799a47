"""MaxSim on a GPU by Triton: workspaces and launches of the kernels in `kernels/maxsim/triton.py`.

Queries and documents are batches [B, L, D]. Nothing here waits for the device or reads from it, so
a call can be captured in a CUDA graph. A candidate that is no document is none, as one below 0 is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options
from simtile.kernels.maxsim import triton as kernels
from simtile.kernels.maxsim import triton_configs as configs
from simtile.kernels.maxsim.triton_configs import Config
from simtile.ops._triton_device import INTERPRETED, family, on

_EMULATE = {"EMULATE": INTERPRETED}


class _Batch(NamedTuple):
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


class _Call(NamedTuple):
    """One call: prepared inputs, and what every launch is told."""

    queries: _Batch
    documents: _Batch
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


def forward(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    options: Options,
    *,
    argmax: bool = False,
    token_scores: bool = False,
    tiles: Config | None = None,
) -> Found:
    """Scores float32 [Q, C], and what each row of a query matched [Q, C, L].

    Shapes, devices and element types have been checked. `tiles` replaces the pinned configuration.
    """
    with on(queries.x.device):
        call = _call(queries, documents, candidates, options, tiles)
        device = queries.x.device
        count, length = queries.batch, queries.x.shape[1]
        shape = (count, call.chosen, length)
        matched = torch.empty(shape, dtype=torch.int32, device=device)
        values = torch.empty(shape, dtype=torch.float32, device=device)
        scores = torch.empty(shape[:2], dtype=torch.float32, device=device)
        if matched.numel():
            _scan(call, matched, values)
        if scores.numel():
            kernels.sum_tokens[(triton.cdiv(scores.numel(), configs.PAIRS),)](
                values,
                call.counts,
                call.ends,
                call.candidates,
                scores,
                scores.numel(),
                length,
                documents.batch,
                call.chosen,
                call.has_candidates,
                int(options.length_normalize),
                options.empty_score,
                PAIRS=configs.PAIRS,
                BLOCK=configs.PAIR_BLOCK,
                num_warps=4,
            )
    return Found(scores, matched if argmax else None, values if token_scores else None)


def backward(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    options: Options,
    grad_scores: Tensor,
    argmax: Tensor,
    token_scores: Tensor | None,
    need_grad: Sequence[bool],
    *,
    tiles: Config | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of Σ grad_scores · scores, float32 of the inputs' shapes, those that are needed.

    `argmax` is what `forward` found, and so are `token_scores`, which a smooth maximum needs.
    """
    with on(queries.x.device):
        call = _call(queries, documents, candidates, options, tiles)
        weights = grad_scores.to(torch.float32).contiguous()
        argmax = argmax.contiguous()
        values = weights if token_scores is None else token_scores.contiguous()
        grad_queries = grad_documents = None
        if need_grad[0]:
            grad = _room(call, call.queries)
            if grad.numel():
                _query_gradients(call, weights, argmax, values, grad)
            grad_queries = _finished(call, call.queries, grad, queries)
        if need_grad[1]:
            grad = _room(call, call.documents)
            if grad.numel():
                _document_gradients(call, weights, argmax, values, grad)
            grad_documents = _finished(call, call.documents, grad, documents)
    return grad_queries, grad_documents


def _call(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    options: Options,
    tiles: Config | None,
) -> _Call:
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
    return _Call(
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


def _batch(side: Given, dtype: torch.dtype, options: Options) -> _Batch:
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
            kernels.prepare[(rows,)](
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
    return _Batch(x, factor, inverse, there, masked)


def _token_counts(side: Given, batch: _Batch) -> Tensor:
    count, length = side.x.shape[:2]
    if batch.masked:
        return batch.there.view(count, length).sum(1, dtype=torch.int32)
    return torch.full((count,), length, dtype=torch.int32, device=side.x.device)


def _ends(side: Given, batch: _Batch) -> Tensor:
    count, length = side.x.shape[:2]
    device = side.x.device
    if not batch.masked or length == 0:
        return torch.full((count,), length, dtype=torch.int32, device=device)
    places = torch.arange(1, length + 1, dtype=torch.int32, device=device)
    return (batch.there.view(count, length) * places).amax(1)


def _scan(call: _Call, argmax: Tensor, token_scores: Tensor) -> None:
    queries, documents, options = call.queries, call.documents, call.options
    tile = call.tiles.scan(call.group_rows, options.temperature > 0)
    tiles = triton.cdiv(call.group_rows, tile.queries)
    kernels.scan[(tiles * call.chosen * call.groups,)](
        *queries.operands,
        queries.there,
        *documents.operands,
        documents.there,
        call.ends,
        call.candidates,
        argmax,
        token_scores,
        call.group_rows,
        queries.x.shape[1],
        documents.x.shape[1],
        documents.x.shape[0],
        call.chosen,
        call.dim,
        tiles,
        int(queries.masked),
        int(documents.masked),
        call.has_candidates,
        int(options.normalize),
        float(options.temperature),
        **configs.scan_options(tile, call.dim, options.temperature > 0),
        **_EMULATE,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _room(call: _Call, batch: _Batch) -> Tensor:
    return torch.empty((batch.rows, call.dim), dtype=torch.float32, device=batch.x.device)


def _query_gradients(
    call: _Call, weights: Tensor, argmax: Tensor, token_scores: Tensor, grad: Tensor
) -> None:
    queries, documents, options = call.queries, call.documents, call.options
    length_normalize, normalize = int(options.length_normalize), int(options.normalize)
    if not options.temperature:
        across = triton.cdiv(call.dim, configs.gradient_dims(call.dim))
        kernels.query_gradients[(triton.cdiv(queries.rows, configs.GATHER), across)](
            *documents.operands,
            call.candidates,
            call.counts,
            weights,
            argmax,
            grad,
            grad.stride(0),
            queries.rows,
            queries.x.shape[1],
            documents.x.shape[1],
            call.chosen,
            call.dim,
            call.has_candidates,
            normalize,
            length_normalize,
            ROWS=configs.GATHER,
            BLOCK=configs.gradient_dims(call.dim),
            num_warps=4,
        )
        return
    tile = call.tiles.smooth_query
    tiles = triton.cdiv(call.group_rows, tile.queries)
    choices = configs.smooth_options(tile, call.name, call.dim)
    across = triton.cdiv(call.dim, choices["BO"])
    kernels.smooth_query_gradients[(tiles * call.groups, across)](
        *queries.operands,
        *documents.operands,
        documents.there,
        call.ends,
        call.candidates,
        call.counts,
        weights,
        argmax,
        token_scores,
        grad,
        grad.stride(0),
        call.group_rows,
        queries.x.shape[1],
        documents.x.shape[1],
        documents.x.shape[0],
        call.chosen,
        call.dim,
        tiles,
        int(documents.masked),
        call.has_candidates,
        normalize,
        length_normalize,
        float(options.temperature),
        **choices,
        **_EMULATE,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _document_gradients(
    call: _Call, weights: Tensor, argmax: Tensor, token_scores: Tensor, grad: Tensor
) -> None:
    queries, documents, options = call.queries, call.documents, call.options
    tile = call.tiles.gradient
    tiles = triton.cdiv(documents.x.shape[1], tile.documents)
    choices = configs.gradient_options(
        tile, call.name, call.dim, options.normalize, options.temperature > 0
    )
    order = bounds = call.candidates
    if call.has_candidates:
        # Pairs by their documents, in order within one.
        by_document, order = call.candidates.view(-1).sort(stable=True)
        ids = torch.arange(documents.x.shape[0] + 1, device=order.device)
        bounds = torch.searchsorted(by_document, ids)
    kernels.document_gradients[
        (tiles * documents.x.shape[0], triton.cdiv(call.dim, choices["BO"]))
    ](
        *queries.operands,
        *documents.operands,
        documents.there,
        order,
        bounds,
        call.counts,
        weights,
        argmax,
        token_scores,
        grad,
        grad.stride(0),
        queries.x.shape[0],
        queries.x.shape[1],
        documents.x.shape[1],
        call.chosen,
        call.dim,
        tiles,
        int(documents.masked),
        call.has_candidates,
        int(options.normalize),
        int(options.length_normalize),
        float(options.temperature),
        **choices,
        **_EMULATE,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _finished(call: _Call, batch: _Batch, grad: Tensor, side: Given) -> Tensor:
    """The gradients of scored rows to those of the inputs."""
    if call.options.normalize and batch.rows:
        block = configs.row_block(side.dim)
        kernels.finish[(batch.rows,)](
            grad,
            batch.x,
            batch.x.stride(1),
            batch.factor,
            batch.inverse,
            triton.cdiv(side.dim, 16) * 16,
            BLOCK=block.elements,
            num_warps=block.warps,
        )
        if batch.masked:  # what is no token may hold anything
            grad = torch.where(batch.there.bool()[:, None], grad, 0.0)
    return grad[:, : side.dim].reshape(side.x.shape)
