"""The best documents by MaxSim as a torch operator, `simtile::maxsim_topk`: by the CUDA kernels.

As in `ops/maxsim.py`, compilers, fake tensors and dispatch modes see the operator, and an eager
call on plain tensors reaches the same function directly. It has no gradient: who wants one scores
what was found again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simtile import _tensors
from simtile._maxsim_inputs import Given, check_offsets
from simtile._maxsim_run import Options
from simtile.ops._backends import check_available
from simtile.ops._maxsim_tensors import sides
from simtile.ops._tensors import are_plain
from simtile.ops.maxsim import TENSORS, _choose, operands, refuse_transforms

_library = torch.library.Library("simtile", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"maxsim_topk({TENSORS}, Tensor? allowed, bool normalize, bool pad_zero_rows, "
    "bool length_normalize, float empty_score, ScalarType? lower, int k) -> "
    "(Tensor scores, Tensor ids)"
)


def search_tensors(
    queries: Given,
    documents: Given,
    candidates: Any,
    options: Options,
    allowed: Any,
    k: int,
    backend: str,
) -> tuple[Tensor, Tensor] | None:
    """The k best, [Q, k]; None where another backend than CUDA's scores these tensors."""
    x = queries.x if _tensors.is_tensor(queries.x) else documents.x
    if not x.is_cuda:
        return None
    given = operands(queries, documents, candidates)
    candidates = given.inputs[-1]
    if _choose(backend, given.sides, candidates, options, False, given.element) != "cuda":
        return None
    if options.temperature:
        raise ValueError(
            f"temperature: found {options.temperature} with backend 'cuda', expected None: its "
            "kernels have the maximum only; use 'triton' (or 'auto')"
        )
    refuse_transforms()
    if allowed is not None:
        allowed = _tensors.as_tensor(allowed, given.inputs[0].device)
    arguments = (*given.inputs, allowed, *options[:4], given.lower, k)
    plain = not torch.compiler.is_compiling() and are_plain(*given.inputs, allowed)
    with torch.no_grad():
        if plain:
            return _search(*arguments)
        scores, ids = torch.ops.simtile.maxsim_topk.default(*arguments)
    return scores, ids


def _search(
    queries: Tensor,
    documents: Tensor,
    query_offsets: Tensor | None,
    document_offsets: Tensor | None,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    candidates: Tensor | None,
    allowed: Tensor | None,
    normalize: bool,
    pad_zero_rows: bool,
    length_normalize: bool,
    empty_score: float,
    lower: torch.dtype | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    check_available("cuda")
    from simtile.ops import maxsim_cuda_topk

    options = Options(normalize, pad_zero_rows, length_normalize, empty_score)
    left, right = sides(
        queries, documents, query_offsets, document_offsets, query_mask, document_mask, lower
    )
    return maxsim_cuda_topk.search(left, right, candidates, allowed, options, k)


def _op(*arguments: Any) -> tuple[Tensor, Tensor]:
    for name, x, offsets in zip(("queries", "tokens"), arguments[:2], arguments[2:4], strict=True):
        if offsets is not None:  # of a compiled call nobody has looked at them
            check_offsets("offsets", offsets, x.shape[0], name)
    return _search(*arguments)


def _fake(queries: Tensor, _: Tensor, query_offsets: Tensor | None, *more: Any) -> Any:
    count = queries.shape[0] if query_offsets is None else query_offsets.shape[0] - 1
    shape = (count, more[-1])
    return (
        queries.new_empty(shape, dtype=torch.float32),
        queries.new_empty(shape, dtype=torch.int64),
    )


_library.impl("maxsim_topk", _op, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::maxsim_topk", _fake, lib=_library)
