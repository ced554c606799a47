"""MaxSim on a GPU by Triton: launches of the kernels in `kernels/maxsim/triton_gradients.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from simtile._maxsim_inputs import Given
from simtile.kernels.info_nce import triton_gradients as row_kernels
from simtile.kernels.maxsim import triton_configs as configs
from simtile.kernels.maxsim import triton_gradients as kernels
from simtile.ops._triton_device import INTERPRETED
from simtile.ops.maxsim_triton_call import Batch, Call

_EMULATE = {"EMULATE": INTERPRETED}


def room(call: Call, batch: Batch) -> Tensor:
    return torch.empty((batch.rows, call.dim), dtype=torch.float32, device=batch.x.device)


def query_gradients(
    call: Call, weights: Tensor, argmax: Tensor, token_scores: Tensor, grad: Tensor
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


def document_gradients(
    call: Call, weights: Tensor, argmax: Tensor, token_scores: Tensor, grad: Tensor
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


def finished(call: Call, batch: Batch, grad: Tensor, side: Given) -> Tensor:
    """The gradients of scored rows to those of the inputs."""
    if call.options.normalize and batch.rows:
        block = configs.row_block(side.dim)
        row_kernels.finish[(batch.rows,)](
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
