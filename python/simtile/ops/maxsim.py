"""MaxSim as torch operators, and the shorter way that plain eager calls take.

`simtile::maxsim` computes scores and, where gradients will be wanted, what every row of a query
matched; `simtile::maxsim_backward` needs no more than that and the inputs. As in `ops/info_nce.py`,
compilers, fake tensors and dispatch modes see these operators, and an eager call on plain tensors
reaches the same functions through an `autograd.Function`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simtile import _maxsim_run, _tensors
from simtile._maxsim_inputs import Given, Parts, check_offsets
from simtile._maxsim_run import Found, Options
from simtile.ops._backends import choose
from simtile.ops._maxsim_tensors import backward, forward
from simtile.ops._tensors import accumulator, are_plain, check_floats

# A batch [B, L, D] has no offsets, tokens [T, D] have [B + 1], int64 on the CPU. Masks are bool
# [B, L] or [T], candidates int64 [Q, C].
TENSORS = (
    "Tensor queries, Tensor documents, Tensor? query_offsets, Tensor? document_offsets, "
    "Tensor? query_mask, Tensor? document_mask, Tensor? candidates"
)
# lower: what both sides are converted to first, under autocast.
_OPTIONS = (
    "bool normalize, bool pad_zero_rows, bool length_normalize, float empty_score, "
    "float temperature, ScalarType? lower, str backend, int threads"
)
_library = torch.library.Library("simtile", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    # argmax and token_scores have no elements where they are not wanted.
    f"maxsim({TENSORS}, {_OPTIONS}, bool want_argmax, bool want_token_scores) -> "
    "(Tensor scores, Tensor argmax, Tensor token_scores)",
    f"maxsim_backward(Tensor grad_scores, Tensor argmax, Tensor token_scores, {TENSORS}, "
    f"{_OPTIONS}, bool[] need_grad) -> (Tensor grad_queries, Tensor grad_documents)",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]

_HAS_CUDA = importlib.util.find_spec("simtile._cuda") is not None
_INPUTS = 7  # arguments of TENSORS
_PARTS = 15  # and of _OPTIONS


def maxsim_tensors(
    queries: Given,
    documents: Given,
    candidates: Any,
    options: Options,
    return_argmax: bool,
    return_token_scores: bool,
    backend: str,
    threads: int,
    *,
    grad: bool = True,
) -> Found:
    """Check the tensors of `simtile.maxsim` and run it.

    Of queries and documents one may be an array. `grad`: False where the scores are not
    differentiated, whatever the inputs require.
    """
    if isinstance(documents.x, Parts):
        if backend in ("auto", "cpu") and are_read_in_place(queries.x, *documents.x.items):
            arrays = _maxsim_run.forward(
                queries,
                documents,
                None if candidates is None else _tensors.as_array(candidates),
                options,
                argmax=return_argmax,
                token_scores=return_token_scores,
                threads=threads,
            )
            return Found(*(None if x is None else torch.from_numpy(x) for x in arrays))
        documents = documents.together()
    given = operands(queries, documents, candidates)
    inputs = given.inputs
    x = inputs[:2]
    need_grad = grad and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in x)
    backend = _choose(backend, given.sides, inputs[-1], options, need_grad, given.element)
    parts: tuple[Any, ...] = (*options, given.lower, backend, threads)
    wants: tuple[Any, ...] = (
        return_argmax or need_grad,
        return_token_scores or (need_grad and options.temperature > 0),
    )
    refuse_transforms()
    if not torch.compiler.is_compiling() and not x[0].is_meta and are_plain(*inputs):
        if need_grad:
            found = Found(*_EagerMaxSim.apply(*x, inputs[2:], parts, wants))  # type: ignore[no-untyped-call]
        else:
            found = forward(*inputs, *parts, *wants)
    elif grad:
        found = Found(*torch.ops.simtile.maxsim.default(*inputs, *parts, *wants))
    else:
        with torch.no_grad():
            found = Found(*torch.ops.simtile.maxsim.default(*inputs, *parts, *wants))
    return Found(
        found.scores,
        found.argmax if return_argmax else None,
        found.token_scores if return_token_scores else None,
    )


def refuse_transforms() -> None:
    """Raise where torch.func looks on."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "simtile.maxsim: torch.func transforms (vmap, grad, jacrev, ...) are not supported; "
            "call it outside of them and use backward or torch.autograd.grad"
        )


def are_read_in_place(*inputs: Any) -> bool:
    """Whether the CPU's kernel may have the inputs: nobody else looks at them."""
    tensors = [x for x in inputs if _tensors.is_tensor(x)]
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and are_plain(*tensors)
        and all(x.device.type == "cpu" and x.layout == torch.strided for x in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )


class Operands(NamedTuple):
    """The tensors of a call, on one device."""

    sides: list[Given]
    inputs: tuple[Any, ...]  # those of TENSORS
    lower: torch.dtype | None
    element: torch.dtype  # of documents, or float64 where an input is


def operands(queries: Given, documents: Given, candidates: Any) -> Operands:
    """Check the tensors of a call. Of queries and documents one may be an array."""
    device = queries.x.device if _tensors.is_tensor(queries.x) else documents.x.device
    sides = [_on_device(side, device) for side in (queries, documents)]
    dtypes = [check_floats(side.name, side.x) for side in sides]
    lower = None
    autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
    if autocast and torch.float64 not in dtypes:
        lower = torch.get_autocast_dtype(device.type)
        dtypes = [lower, lower]
    element = torch.float64 if torch.float64 in dtypes else dtypes[1]
    if candidates is not None:
        candidates = _tensors.as_tensor(candidates, device)
    x = [side.x for side in sides]
    inputs: tuple[Any, ...] = (
        *x,
        *(None if side.offsets is None else torch.as_tensor(side.offsets) for side in sides),
        *(side.mask for side in sides),
        candidates,
    )
    return Operands(sides, inputs, lower, element)


def _on_device(side: Given, device: torch.device) -> Given:
    """The tensors of one side; an array beside tensors goes where they are."""
    x, mask = side.x, side.mask
    if not _tensors.is_tensor(x):
        bits = x.dtype.name == "bfloat16"  # which torch does not read
        x = _tensors.as_tensor(x.view(np.uint16) if bits else x, device)
        x = x.view(torch.bfloat16) if bits else x
    elif x.device != device:
        raise ValueError(
            f"{side.name}: found a tensor on {x.device}, expected {device} because queries are "
            "there"
        )
    if mask is not None:
        mask = _tensors.as_tensor(mask, device)
    return Given(side.name, x, side.offsets, mask)


def _choose(
    backend: str,
    sides: Sequence[Given],
    candidates: Any,
    options: Options,
    need_grad: bool,
    element: torch.dtype,
) -> str:
    """On a GPU Triton's kernels for batches and gradients, CUDA's for the rest."""
    x = sides[0].x
    if backend == "auto" and x.is_cuda and not need_grad and not options.temperature:
        packed = candidates is not None or any(side.offsets is not None for side in sides)
        if packed and _HAS_CUDA and element != torch.float64:
            backend = "cuda"
    backend = choose(backend, "queries", x, element)
    if backend == "cuda" and need_grad:
        raise RuntimeError(
            "backend: 'cuda' computes scores without gradients; use 'triton' (or 'auto'), or call "
            "it under torch.no_grad()"
        )
    return backend


def _check_differentiated_once() -> None:
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile.maxsim: its gradient cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )


class _EagerMaxSim(torch.autograd.Function):
    """simtile::maxsim without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        others: tuple[Any, ...],
        parts: tuple[Any, ...],
        wants: tuple[Any, ...],
    ) -> tuple[Tensor | None, ...]:
        found = forward(queries, documents, *others, *parts, *wants)
        _save(ctx, (queries, documents, *others), parts, found)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_scores is None:  # only what has no gradient was used
            return (None,) * 5
        _check_differentiated_once()
        argmax, token_scores, *inputs = ctx.saved_tensors
        arguments: list[Any] = [argmax, token_scores, *inputs, *ctx.parts]
        grads = backward(grad_scores, *arguments, ctx.needs_input_grad[:2])  # type: ignore[call-arg]
        return *grads, None, None, None


def _save(ctx: Any, inputs: Sequence[Any], parts: Sequence[Any], found: Sequence[Any]) -> None:
    _, argmax, token_scores = found
    smooth = parts[4] > 0
    ctx.save_for_backward(argmax, token_scores if smooth else None, *inputs)
    ctx.parts = tuple(parts)
    ctx.mark_non_differentiable(*(x for x in (argmax, token_scores) if x is not None))
    ctx.set_materialize_grads(False)


def _maxsim_op(*arguments: Any) -> tuple[Tensor, ...]:
    for name, x, offsets in zip(("queries", "tokens"), arguments[:2], arguments[2:4], strict=True):
        if offsets is not None:  # of a compiled call nobody has looked at them
            check_offsets("offsets", offsets, x.shape[0], name)
    found = forward(*arguments)
    scores = found.scores
    return (
        scores,
        scores.new_empty(0, dtype=torch.int32) if found.argmax is None else found.argmax,
        scores.new_empty(0) if found.token_scores is None else found.token_scores,
    )


def _maxsim_backward_op(*arguments: Any) -> tuple[Tensor, ...]:
    grad_scores = arguments[0]
    grads = backward(*arguments)
    return tuple(grad_scores.new_empty(0) if grad is None else grad for grad in grads)


def _maxsim_fake(*arguments: Any) -> tuple[Tensor, ...]:
    queries, documents, query_offsets, document_offsets = arguments[:4]
    candidates, want_argmax, want_token_scores = arguments[6], *arguments[-2:]
    compute = accumulator(queries.dtype, documents.dtype)
    count = queries.shape[0] if query_offsets is None else query_offsets.shape[0] - 1
    if candidates is not None:
        others = candidates.shape[1]
    else:
        others = documents.shape[0] if document_offsets is None else document_offsets.shape[0] - 1
    rows = (
        (count, others, queries.shape[1]) if query_offsets is None else (queries.shape[0] * others,)
    )
    return (
        queries.new_empty((count, others), dtype=compute),
        queries.new_empty(rows if want_argmax else 0, dtype=torch.int32),
        queries.new_empty(rows if want_token_scores else 0, dtype=compute),
    )


def _maxsim_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    grad_scores, _, _, queries, documents = arguments[:5]
    need_grad = arguments[-1]
    return tuple(
        grad_scores.new_empty(x.shape if need else 0)
        for x, need in zip((queries, documents), need_grad, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs[:_INPUTS], inputs[_INPUTS:_PARTS], output)


def _dispatched_backward(
    ctx: Any, grad_scores: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if grad_scores is None:
        return (None,) * (_PARTS + 2)
    _check_differentiated_once()
    argmax, token_scores, *inputs = ctx.saved_tensors
    if token_scores is None:
        token_scores = grad_scores.new_empty(0)
    need_grad = list(ctx.needs_input_grad[:2])
    grads = torch.ops.simtile.maxsim_backward.default(
        grad_scores, argmax, token_scores, *inputs, *ctx.parts, need_grad
    )
    needed = (grad if need else None for grad, need in zip(grads, need_grad, strict=True))
    return *needed, *[None] * _PARTS


for _name, _implementation in (
    ("maxsim", _maxsim_op),
    ("maxsim_backward", _maxsim_backward_op),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::maxsim", _maxsim_fake, lib=_library)
torch.library.register_fake("simtile::maxsim_backward", _maxsim_backward_fake, lib=_library)
torch.library.register_autograd(
    "simtile::maxsim", _dispatched_backward, setup_context=_setup_context, lib=_library
)
