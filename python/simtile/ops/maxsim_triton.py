"""MaxSim on a GPU by Triton: workspaces and launches of the kernels in `kernels/maxsim/triton.py`.

Queries and documents are batches [B, L, D]. Nothing here waits for the device or reads from it, so
a call can be captured in a CUDA graph. A candidate that is no document is none, as one below 0 is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options
from simtile.kernels.maxsim import triton as kernels
from simtile.kernels.maxsim import triton_configs as configs
from simtile.kernels.maxsim.triton_configs import Config
from simtile.ops._triton_device import INTERPRETED, on
from simtile.ops.maxsim_triton_call import Call, prepared
from simtile.ops.maxsim_triton_gradients import document_gradients, finished, query_gradients, room


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
        call = prepared(queries, documents, candidates, options, tiles)
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
        call = prepared(queries, documents, candidates, options, tiles)
        weights = grad_scores.to(torch.float32).contiguous()
        argmax = argmax.contiguous()
        values = weights if token_scores is None else token_scores.contiguous()
        grad_queries = grad_documents = None
        if need_grad[0]:
            grad = room(call, call.queries)
            if grad.numel():
                query_gradients(call, weights, argmax, values, grad)
            grad_queries = finished(call, call.queries, grad, queries)
        if need_grad[1]:
            grad = room(call, call.documents)
            if grad.numel():
                document_gradients(call, weights, argmax, values, grad)
            grad_documents = finished(call, call.documents, grad, documents)
    return grad_queries, grad_documents


def _scan(call: Call, argmax: Tensor, token_scores: Tensor) -> None:
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
        EMULATE=INTERPRETED,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
