"""MaxSim of tensors of one device: on the CPU as arrays, on a GPU by its kernels.

The arguments are those of the operators in `ops/maxsim.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simtile import _maxsim_run
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options
from simtile.ops._backends import check_available
from simtile.ops._maxsim_padded import padded

Gradients = tuple[Tensor | None, Tensor | None]


def forward(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor | None,
    document_offsets: Tensor | None,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    candidates: Tensor | None,
    normalize: bool,
    pad_zero_rows: bool,
    length_normalize: bool,
    empty_score: float,
    temperature: float,
    lower: torch.dtype | None,
    backend: str,
    threads: int,
    want_argmax: bool,
    want_token_scores: bool,
) -> Found:
    """simtile::maxsim, with None for what is not wanted."""
    options = Options(normalize, pad_zero_rows, length_normalize, empty_score, temperature)
    left, right = sides(
        queries, documents, query_offsets, document_offsets, query_mask, document_mask, lower
    )
    wants = {"argmax": want_argmax, "token_scores": want_token_scores}
    if backend == "cuda":
        return _kernels(backend).forward(left, right, candidates, options, **wants)  # type: ignore[no-any-return]
    if backend == "triton":
        rows, others = padded(left), padded(right)
        found = _kernels(backend).forward(rows.side, others.side, candidates, options, **wants)
        count = found.scores.shape[1]
        return Found(found.scores, *(rows.to_rows(x, count) for x in found[1:]))
    found = _maxsim_run.forward(
        left,
        right,
        None if candidates is None else candidates.numpy(),
        options,
        **wants,
        backend=backend,
        threads=threads,
    )
    return Found(*(None if x is None else torch.from_numpy(x) for x in found))


def backward(
    grad_scores: Tensor,
    argmax: Tensor,
    token_scores: Tensor | None,
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor | None,
    document_offsets: Tensor | None,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    candidates: Tensor | None,
    normalize: bool,
    pad_zero_rows: bool,
    length_normalize: bool,
    empty_score: float,
    temperature: float,
    lower: torch.dtype | None,
    backend: str,
    threads: int,
    need_grad: Sequence[bool],
) -> Gradients:
    """simtile::maxsim_backward, with None for gradients that are not needed."""
    options = Options(normalize, pad_zero_rows, length_normalize, empty_score, temperature)
    left, right = sides(
        queries, documents, query_offsets, document_offsets, query_mask, document_mask, lower
    )
    if backend == "triton":
        rows, others = padded(left), padded(right)
        count = grad_scores.shape[1]
        grads = _kernels(backend).backward(
            rows.side,
            others.side,
            candidates,
            options,
            grad_scores.contiguous(),
            rows.from_rows(argmax, count, -1),
            None if token_scores is None else rows.from_rows(token_scores, count, 0.0),
            need_grad,
        )
        return rows.grad_rows(grads[0]), others.grad_rows(grads[1])
    grads = _maxsim_run.backward(
        left,
        right,
        None if candidates is None else candidates.numpy(),
        options,
        grad_scores.detach().numpy(),
        argmax.numpy(),
        None if token_scores is None else token_scores.numpy(),
        need_grad,
        backend=backend,
        threads=threads,
    )
    return tuple(None if x is None else torch.from_numpy(x) for x in grads)  # type: ignore[return-value]


def _kernels(backend: str) -> Any:
    """`ops/maxsim_triton.py` or `ops/maxsim_cuda.py`.

    Their functions are those of `_maxsim_run`, of tensors on a GPU: `forward` of both, and
    `backward` of Triton's, whose queries and documents are batches.
    """
    check_available(backend)  # of a compiled call nobody has asked
    return importlib.import_module(f"simtile.ops.maxsim_{backend}")


def sides(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor | None,
    document_offsets: Tensor | None,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    lower: torch.dtype | None,
) -> tuple[Given, Given]:
    """Both sides of an operator's arguments."""
    if lower is not None:
        queries, documents = queries.detach().to(lower), documents.detach().to(lower)
    left, right = (
        Given(name, x, None if offsets is None else offsets.numpy(), mask)
        for name, x, offsets, mask in (
            ("queries", queries, query_offsets, query_mask),
            ("documents", documents, document_offsets, document_mask),
        )
    )
    return left, right
