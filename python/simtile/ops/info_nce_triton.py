"""info_nce on a GPU: workspaces and launches of the kernels in `kernels/info_nce/triton.py`.

Nothing here waits for the device or reads from it, so a call can be captured in a CUDA graph. What
could only be checked by reading (the values of targets and of a temperature tensor) makes the
result NaN where it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from simtile.kernels.info_nce import triton as kernels
from simtile.kernels.info_nce import triton_configs as configs
from simtile.kernels.info_nce.triton_configs import Config
from simtile.ops import info_nce_autotune as autotune
from simtile.ops._tensors import as_index, complete_ids
from simtile.ops._triton_device import INTERPRETED, family, on
from simtile.ops.info_nce_triton_call import (
    Call,
    Result,
    as_temperature,
    chunk_rows,
    split_weights,
)
from simtile.ops.info_nce_triton_gradients import Gradients, Inputs


def run(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    *,
    dtype: torch.dtype,
    temperature: float | Tensor,
    normalize: bool = True,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
    own_negatives: bool = False,
    weight: float = 1.0,
    row_weights: Tensor | None = None,
    need_grad: Sequence[bool] = (False, False, False, False),
    precision: str = "ieee",
    tiles: Config | None = None,
) -> Result:
    """The losses [N], and the gradients of Σ_i weight · row_weights[i] · losses[i].

    Shapes and element types have been checked; `need_grad` is of queries, documents, negatives and
    temperature. `tiles` replaces the pinned configuration.
    """
    call = call_for(queries, dtype, normalize, precision, tiles)
    device = queries.device
    with on(device):
        return _run(
            call,
            queries.detach(),
            documents.detach(),
            None if negatives is None else negatives.detach(),
            as_temperature(temperature, device),
            as_index(targets, device),
            *complete_ids(query_ids, document_ids, targets, queries.shape[0], device),
            own_negatives,
            weight,
            row_weights,
            need_grad,
        )


def call_for(
    queries: Tensor, dtype: torch.dtype, normalize: bool, precision: str, tiles: Config | None
) -> Call:
    device, dim = queries.device, queries.shape[1]
    if tiles is None:
        tiles = _pinned(device, str(dtype).removeprefix("torch."), precision)
        if autotune.wanted():
            training = _training(dtype, precision)
            tiles = autotune.tiles(device, dtype, precision, dim, tiles, training)
    return Call(dtype, dim, normalize, device, precision, tiles)


class _Work(NamedTuple):
    """What launches fill: for one chunk of rows after the other, or for all."""

    exponentials: Tensor  # [chunk, padded candidates]; none without products
    sums: list[Tensor]  # [chunk, tiles]: maxima, later factors; sums, weighted sums
    own_logits: Tensor  # [n, own]; with gradients coefficients later
    positive: Tensor  # [n]
    losses: Tensor  # [n]
    positive_coefficient: Tensor  # [n], as the next with gradients only
    row_temperature: Tensor  # a row's share of the temperature's gradient


def _run(
    call: Call,
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    own_negatives: bool,
    weight: float,
    row_weights: Tensor | None,
    need_grad: Sequence[bool],
) -> Result:
    absent = torch.empty(1, dtype=torch.int64, device=call.device)
    inputs = _inputs(
        call, queries, documents, negatives, temperature, own_negatives, targets, absent
    )
    ids = [absent if x is None else x for x in (query_ids, document_ids)]
    has_ids = int(query_ids is not None)
    n = inputs.n
    gradients = any(need_grad)
    total, weights = split_weights(call, n if gradients else 0, weight, row_weights)
    grads = Gradients(call, inputs, total, (*need_grad[:2], need_grad[2] and negatives is not None))
    work = _work(call, inputs, gradients, grads.products)
    chunk = work.sums[0].shape[0]

    _own_scores(call, inputs, work)
    for row0 in range(0, n, chunk):
        rows = min(chunk, n - row0)
        _scores(call, inputs, work, ids, has_ids, row0, rows, grads.products)
        _row_losses(call, inputs, work, weights, row0, rows, gradients)
        if grads.products:
            grads.add(work.exponentials, work.sums[0], work.positive_coefficient, row0, rows)
    grads.add_own(work.own_logits)
    grad_temperature = None
    if need_grad[3]:
        grad_temperature = work.row_temperature.sum(dtype=torch.float64) * total[0]
    return Result(work.losses, *grads.finished(), grad_temperature)


def _inputs(
    call: Call,
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: Tensor,
    own_negatives: bool,
    targets: Tensor | None,
    absent: Tensor,
) -> Inputs:
    """The prepared operands, and the sizes."""
    n, m = queries.shape[0], documents.shape[0]
    k = 0 if negatives is None else negatives.shape[1]
    own = k if own_negatives else 0
    in_candidates = [documents] if negatives is None or own_negatives else [documents, negatives]
    q = call.prepared(queries.to(call.dtype))
    c = call.prepared(*(x.to(call.dtype) for x in in_candidates))
    own_rows = call.room(0)
    if own and negatives is not None:
        own_rows = call.prepared(negatives.to(call.dtype))
    return Inputs(
        q,
        c,
        own_rows,
        n=n,
        m=m,
        candidate_count=m + (0 if own_negatives else n * k),
        k=k,
        own=own,
        has_own=own_negatives,
        temperature=temperature,
        targets=absent if targets is None else targets,
        has_targets=int(targets is not None),
    )


def _work(call: Call, inputs: Inputs, gradients: bool, products: bool) -> _Work:
    n, columns = inputs.n, configs.padded_rows(inputs.candidate_count)
    tile_count = triton.cdiv(inputs.candidate_count, call.tiles.scores.columns)
    row_bytes = columns * (4 if call.dtype == torch.float32 else 2)
    chunk = chunk_rows(n, row_bytes, tile_count, products)
    kept = torch.float32 if call.dtype == torch.float32 else torch.float16
    shape = (chunk, columns) if products else (0, columns)
    return _Work(
        torch.empty(shape, dtype=kept, device=call.device),
        [call.floats(chunk, tile_count) for _ in range(3)],
        call.floats(n, inputs.own),
        call.floats(n),
        call.floats(n),
        call.floats(n if gradients else 0),
        call.floats(n if gradients else 0),
    )


def _own_scores(call: Call, inputs: Inputs, work: _Work) -> None:
    if not inputs.own:
        return
    kernels.own_scores[(inputs.n, triton.cdiv(inputs.own, configs.OWN_BLOCK))](
        inputs.queries.operand,
        inputs.queries.factor,
        inputs.own_negatives.operand,
        inputs.own_negatives.factor,
        inputs.temperature,
        work.own_logits,
        inputs.own,
        call.stride,
        BLOCK_K=configs.OWN_BLOCK,
        BLOCK_D=configs.OWN_DIMS,
        num_warps=4,
    )


def _scores(
    call: Call,
    inputs: Inputs,
    work: _Work,
    ids: Sequence[Tensor],
    has_ids: int,
    row0: int,
    rows: int,
    store: bool,
) -> None:
    tile, tile_count = call.tiles.scores, work.sums[0].shape[1]
    kernels.scores[(triton.cdiv(rows, tile.rows) * tile_count,)](
        inputs.queries.operand,
        inputs.queries.factor,
        inputs.candidates.operand,
        inputs.candidates.factor,
        inputs.temperature,
        inputs.targets,
        *ids,
        work.exponentials,
        work.exponentials.shape[1],
        *work.sums,
        work.positive,
        row0,
        inputs.n,
        inputs.candidate_count,
        inputs.m,
        call.dim,
        call.stride,
        tile_count,
        inputs.has_targets,
        has_ids,
        **configs.score_options(tile, call.name, call.precision, store),
        EMULATE=INTERPRETED,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _row_losses(
    call: Call,
    inputs: Inputs,
    work: _Work,
    weights: Tensor,
    row0: int,
    rows: int,
    gradients: bool,
) -> None:
    kernels.row_losses[(rows,)](
        *work.sums,
        work.positive,
        work.own_logits,
        inputs.queries.factor,
        inputs.temperature,
        inputs.targets,
        weights,
        work.losses,
        work.positive_coefficient,
        work.row_temperature,
        row0,
        inputs.n,
        inputs.m,
        work.sums[0].shape[1],
        inputs.own,
        inputs.has_targets,
        0.0,
        **configs.loss_options(call.name, gradients),
        num_warps=1,
    )


def _training(dtype: torch.dtype, precision: str) -> Callable[[Tensor, Config], None]:
    """What the tiles are measured by: forward and backward of a batch."""

    def call(rows: Tensor, tiles: Config) -> None:
        run(
            rows,
            rows,
            None,
            dtype=dtype,
            temperature=0.05,
            precision=precision,
            need_grad=(True, True, False, False),
            tiles=tiles,
        )

    return call


def _pinned(device: torch.device, name: str, precision: str) -> Config:
    row = family(device)
    try:
        return configs.config(row, name, precision)
    except KeyError:
        raise ValueError(
            f"precision: found {precision!r} on {row}, expected one of "
            + ", ".join(repr(p) for p in configs.PRECISIONS if p in configs.CONFIGS[row])
        ) from None
