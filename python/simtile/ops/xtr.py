"""`simtile.xtr_scores` of tensors, on the CPU and on GPUs, with gradients.

The arithmetic is that of `simtile.xtr`, in torch's operations. What each token of a query matched
is saved, and the gradient is that of a maximum: `simtile.ops.maxsim` computes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simtile import _inputs, _maxsim_run, search
from simtile._maxsim_inputs import Given
from simtile.ops._maxsim_tensors import backward as maxsim_backward
from simtile.ops._tensors import check_floats
from simtile.ops.maxsim import _choose, _on_device
from simtile.xtr import SMALLEST_NORM, Layout, Options, layout, smallest

_MAXSIM = _maxsim_run.Options()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def xtr_tensors(queries: Given, documents: Given, options: Options) -> Tensor:
    """Scores [Q, N]; of queries and documents one may be an array."""
    device = (queries.x if isinstance(queries.x, Tensor) else documents.x).device
    left, right = (_on_device(side, device) for side in (queries, documents))
    for side in (left, right):
        check_floats(side.name, side.x)
    return _Xtr.apply(left.x, right.x, left, right, options)  # type: ignore[no-any-return, no-untyped-call]


class _Xtr(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        left: Given,
        right: Given,
        options: Options,
    ) -> Tensor:
        left, right = replace(left, x=queries.detach()), replace(right, x=documents.detach())
        scores, argmax, z = score(left, right, options)
        ctx.save_for_backward(queries, documents, left.mask, right.mask, argmax, z)
        ctx.offsets, ctx.options = (left.offsets, right.offsets), options
        ctx.set_materialize_grads(False)
        return scores

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_scores is None:
            return (None,) * 5
        if torch.is_grad_enabled():  # during a backward: create_graph=True
            raise RuntimeError(
                "simtile.xtr_scores: its gradient cannot be differentiated again; "
                "call backward or torch.autograd.grad without create_graph=True"
            )
        queries, documents, query_mask, document_mask, argmax, z = ctx.saved_tensors
        options: Options = ctx.options
        query_offsets, document_offsets = (
            None if x is None else torch.from_numpy(x) for x in ctx.offsets
        )
        left = Given("queries", queries, ctx.offsets[0], query_mask)
        right = Given("documents", documents, ctx.offsets[1], document_mask)
        compute = _compute(queries, documents)
        backend = _choose("auto", (left, right), None, _MAXSIM, True, compute)
        grads = maxsim_backward(
            (grad_scores / z).to(compute),
            argmax,
            None,
            queries,
            documents,
            query_offsets,
            document_offsets,
            query_mask,
            document_mask,
            None,
            options.normalize,
            options.pad_zero_rows,
            False,  # scores were divided
            0.0,
            0.0,
            None,
            backend,
            _inputs.check_threads(options.threads),
            ctx.needs_input_grad[:2],
        )
        return *grads, None, None, None


def score(queries: Given, documents: Given, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [Q, N]; what each row of a query matched, as `simtile.maxsim` has it; Z [Q, N]."""
    compute = _compute(queries.x, documents.x)
    of_queries, of_documents = layout(queries), layout(documents)
    tokens = queries.x.reshape(-1, queries.dim).to(compute)
    others = documents.x.reshape(-1, documents.dim)
    if compute == torch.float64 or options.normalize:
        others = others.to(compute)
    own_there, there = (
        _there(side, rows, options.pad_zero_rows)
        for side, rows in ((queries, tokens), (documents, others))
    )
    own_finite, finite = tokens.isfinite().all(1), others.isfinite().all(1)
    if options.normalize:
        tokens, others = _unit(tokens), _unit(others)
    count, device = documents.batch, tokens.device
    similarities, ids = _search(tokens, others, there & finite, options)

    # Best first, so the first one of a document is its maximum.
    lengths = torch.from_numpy(of_documents.lengths).to(device)
    document_of = torch.arange(count, device=device).repeat_interleave(lengths)
    none = torch.full((1,), count, device=device)
    found_in = torch.cat([document_of, none])[ids.where(ids >= 0, len(document_of))]
    k = ids.shape[1]
    places = torch.arange(k, device=device).expand_as(ids)
    first = torch.full((len(tokens), count + 1), k, device=device)
    first = first.scatter_reduce(1, found_in, places, "amin")[:, :count]
    taken = (first < k) & own_there[:, None]
    first = first.clip(max=k - 1)
    rows = ids.gather(1, first)
    values = similarities.gather(1, first).to(compute).masked_fill(~taken, 0)
    if compute == torch.float64:
        values[taken] = torch.cat(
            [
                values.new_zeros(0),
                *(others[rows[i, taken[i]]] @ tokens[i] for i in range(len(tokens))),
            ]
        )
    matched = taken
    if options.divisor == "positive" and options.top_k < len(others):
        numbers = torch.zeros((len(tokens), count + 1), dtype=torch.int64, device=device)
        numbers.scatter_add_(1, found_in, torch.ones_like(ids))
        negative = (numbers[:, :count] < lengths) & (values < 0)
        values = values.masked_fill(negative, 0)
        matched = taken & ~negative

    own_any, any_ = _some(own_there, of_queries), _some(there, of_documents)
    broken = _some(own_there & ~own_finite, of_queries)[:, None]
    broken = broken | _some(there & ~finite, of_documents)
    broken = broken & own_any[:, None] & any_
    sources = values > 0 if options.divisor == "positive" else taken
    z = _sums(sources.double(), of_queries).clip(min=smallest(options.divisor))
    scores = _sums(values.double(), of_queries) / z
    scores = scores.masked_fill(broken, float("nan")).masked_fill(~own_any[:, None], 0)
    scores = scores.masked_fill(~any_, options.empty_score).to(compute)

    starts = torch.from_numpy(of_documents.starts).to(device)
    argmax = torch.where(matched, rows - starts, -1).int()
    of_query = torch.split(argmax, of_queries.lengths.tolist())
    parts = [
        part.masked_fill(own, -1).T.reshape(-1) for part, own in zip(of_query, broken, strict=True)
    ]
    flat = torch.cat([argmax.new_empty(0), *parts])
    if queries.width is not None:
        flat = flat.reshape(queries.batch, count, queries.width)
    return scores, flat, z


def _search(
    tokens: Tensor, others: Tensor, allow: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    """The best rows for each token: similarities and ids [R, k], -1 for none."""
    if not len(tokens) or not len(others):
        none = torch.full((len(tokens), 1), -1, device=tokens.device)
        return torch.zeros_like(none, dtype=torch.float32), none
    return search.topk(
        tokens,
        others,
        min(options.top_k, len(others)),
        metric="dot",
        allow=None if allow.all() else allow,
        nan="ignore",
        backend=options.backend,  # type: ignore[arg-type]
        threads=options.threads,
    )


def _compute(queries: Tensor, documents: Tensor) -> torch.dtype:
    wide = torch.float64 in (queries.dtype, documents.dtype)
    return torch.float64 if wide else torch.float32


def _there(side: Given, rows: Tensor, pad_zero_rows: bool) -> Tensor:
    there = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    if side.mask is not None:
        there = side.mask.reshape(-1)
    return there & (rows != 0).any(1) if pad_zero_rows else there


def _unit(rows: Tensor) -> Tensor:
    wide = rows.double()
    norms = wide.square().sum(1, keepdim=True).sqrt()
    return (wide / norms.clip(min=SMALLEST_NORM)).to(rows.dtype)


def _sums(rows: Tensor, matrices: Layout) -> Tensor:
    """Of the rows of each matrix: [T, ..] to [B, ..]."""
    count = len(matrices.lengths)
    if matrices.batch and count:
        return rows.reshape(count, int(matrices.lengths[0]), *rows.shape[1:]).sum(1)
    parts = [part.sum(0) for part in torch.split(rows, matrices.lengths.tolist())]
    return torch.stack(parts) if parts else rows.new_zeros((0, *rows.shape[1:]))


def _some(rows: Tensor, matrices: Layout) -> Tensor:
    """Whether a row of each matrix is true."""
    return _sums(rows.long(), matrices) > 0
