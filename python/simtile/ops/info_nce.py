"""InfoNCE as torch operators, and the shorter way that plain eager calls take.

`simtile::info_nce` computes the loss and, for "mean" and "sum", the gradients with it; its backward
only scales them. For "none" the weights of the rows are not known before the backward, which then
calls `simtile::info_nce_backward`. Compilers, fake tensors and dispatch modes see these operators.
An eager call on plain tensors reaches the same functions through an `autograd.Function` instead:
the dispatcher's way through Python costs about 90 µs more, twice the kernel at N=64, D=384.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simtile import _inputs, _pairwise
from simtile._contrast import Contrast, check_guide_shapes, check_widths
from simtile._info_nce_run import reduce_losses
from simtile._statistics import ContrastiveStatistics, Tally
from simtile.ops._backends import choose
from simtile.ops._tensors import (
    accumulator,
    are_plain,
    as_integers,
    check_devices,
    check_floats,
    check_one_number,
)
from simtile.ops.info_nce_run import Gradients, run_tensors

_TENSORS = (
    "Tensor queries, Tensor documents, Tensor? negatives, Tensor temperature, "
    "Tensor? targets, Tensor? query_ids, Tensor? document_ids, "
    "Tensor? guide_queries, Tensor? guide_documents, Tensor? guide_negatives"
)
# contrast: simtile._contrast.Contrast as numbers. dtype: what the inputs are converted to.
# need_grad: of queries, documents, negatives and temperature; the implementation cannot read it off
# them, under no_grad they require it as well.
_OPTIONS = (
    "bool normalize, float[] contrast, ScalarType dtype, bool[] need_grad, "
    "str backend, str precision, int threads"
)
# Of the inputs' shapes, in float32 or float64; one that is not needed has no elements.
_GRADIENTS = (
    "Tensor grad_queries, Tensor grad_documents, Tensor grad_negatives, Tensor grad_temperature"
)
_library = torch.library.Library("simtile", "DEF")  # type: ignore[no-untyped-call]
for _schema in (
    f"info_nce({_TENSORS}, {_OPTIONS}, str reduction, bool statistics)"
    f" -> (Tensor loss, {_GRADIENTS}, Tensor tally)",
    f"info_nce_backward(Tensor grad_losses, {_TENSORS}, {_OPTIONS}) -> ({_GRADIENTS})",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]

_NO_GRAD = (False, False, False, False)

ARRAYS = "simtile.info_nce_grad"  # which takes them


def info_nce_tensors(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | Sequence[int] | None,
    query_ids: Tensor | Sequence[int] | None,
    document_ids: Tensor | Sequence[int] | None,
    guide: Sequence[Tensor],
    normalize: bool,
    contrast: Contrast,
    reduction: str,
    statistics: ContrastiveStatistics | None,
    backend: str,
    precision: str,
    threads: int,
) -> Tensor:
    """Check the tensors of `simtile.info_nce` and run it."""
    dtype = check_floats("queries", queries, ARRAYS)
    dtypes = [dtype, check_floats("documents", documents, ARRAYS)]
    if negatives is not None:
        dtypes.append(check_floats("negatives", negatives, ARRAYS))
    dtypes += [check_floats("guide", x, ARRAYS) for x in guide]
    if targets is not None:
        targets = as_integers("targets", targets)
    if query_ids is not None:
        query_ids = as_integers("query_ids", query_ids)
    if document_ids is not None:
        document_ids = as_integers("document_ids", document_ids)
    _inputs.check_shapes(
        queries.shape,
        documents.shape,
        None if negatives is None else negatives.shape,
        None if targets is None else targets.shape,
        None if query_ids is None else query_ids.shape,
        None if document_ids is None else document_ids.shape,
    )
    check_guide_shapes(
        guide, queries.shape, documents.shape, None if negatives is None else negatives.shape
    )
    check_widths(contrast, queries.shape[1])
    if isinstance(temperature, Tensor):
        check_one_number("temperature", temperature)
    else:
        temperature = _inputs.check_temperature(temperature)
    check_devices(
        queries,
        {"documents": documents, "negatives": negatives},
        {
            "temperature": temperature,
            "targets": targets,
            "query_ids": query_ids,
            "document_ids": document_ids,
        },
    )
    for x in guide:
        check_devices(queries, {"guide": x}, {})
    device_type = queries.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        lower = torch.get_autocast_dtype(device_type)
        dtypes = [dtype if dtype == torch.float64 else lower for dtype in dtypes]
        dtype = dtypes[0]
    for other in dtypes:
        if other != dtype:
            dtype = torch.promote_types(dtype, other)
    if backend == "cuda" and not (contrast.is_plain() and not guide and statistics is None):
        raise ValueError(
            "backend: found 'cuda' with options that its kernel does not have (directions other "
            "than query_to_doc, hardness, guide, false_negative_margin, negatives_scope 'queries' "
            "or statistics), expected 'triton' (or 'auto')"
        )
    backend = choose(backend, "queries", queries, dtype)
    need_grad = _NO_GRAD
    if torch.is_grad_enabled():
        need_grad = (
            queries.requires_grad,
            documents.requires_grad,
            negatives is not None and negatives.requires_grad,
            isinstance(temperature, Tensor) and temperature.requires_grad,
        )
    # in the order of the operator's arguments, of which the first four are differentiable
    others: tuple[Any, ...] = (
        targets,
        query_ids,
        document_ids,
        *guide,
        *[None] * (3 - len(guide)),
        normalize,
        contrast.numbers(),
        dtype,
        need_grad,
        backend,
        precision,
        threads,
        reduction,
        statistics is not None,
    )
    if not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "simtile.info_nce: torch.func transforms (vmap, grad, jacrev, ...) are not "
                "supported; call it outside of them and use backward or torch.autograd.grad"
            )
        plain = are_plain(
            queries, documents, negatives, temperature, targets, query_ids, document_ids, *guide
        )
        if plain and not queries.is_meta:
            if True in need_grad:
                return _EagerInfoNCE.apply(  # type: ignore[no-any-return,no-untyped-call]
                    queries, documents, negatives, temperature, others, statistics
                )
            loss, _, tally = _forward(queries, documents, negatives, temperature, *others)
            if statistics is not None:
                statistics.add(tally)
            return loss
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.float64, device="cpu")
    loss, *_, tally = torch.ops.simtile.info_nce.default(
        queries, documents, negatives, temperature, *others
    )
    if statistics is not None:
        statistics.add(tally)
    return loss  # type: ignore[no-any-return]


def check_bias(bias: object) -> None:
    """Raise unless `bias` is a finite number, or a tensor of one, whose value is not read."""
    if isinstance(bias, Tensor):
        check_one_number("bias", bias)
    else:
        _pairwise.check_number("bias", bias)


def with_bias(loss: Tensor, bias: float | Tensor) -> Tensor:
    """The loss, of which the bias has a gradient of exactly 0: softmax does not notice it."""
    if not (isinstance(bias, Tensor) and bias.requires_grad and torch.is_grad_enabled()):
        return loss
    nowhere = torch.zeros_like(bias, dtype=torch.bool)
    return loss + torch.where(nowhere, bias, 0.0).reshape(()).to(loss)


def _forward(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide_queries: Tensor | None,
    guide_documents: Tensor | None,
    guide_negatives: Tensor | None,
    normalize: bool,
    contrast: Sequence[float],
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    threads: int,
    reduction: str,
    statistics: bool,
) -> tuple[Tensor, Gradients, Tensor | None]:
    """simtile::info_nce, with None for what is not needed."""
    losses, grads, tally = run_tensors(
        queries,
        documents,
        negatives,
        temperature,
        targets,
        query_ids,
        document_ids,
        guide_queries,
        guide_documents,
        guide_negatives,
        normalize,
        contrast,
        dtype,
        _NO_GRAD if reduction == "none" else need_grad,
        backend,
        precision,
        threads,
        1.0 / queries.shape[0] if reduction == "mean" else 1.0,
        None,
        statistics,
    )
    if isinstance(losses, Tensor):
        if reduction == "none":
            return losses, grads, tally
        total = losses.sum(dtype=torch.float64)
        return (total / losses.shape[0] if reduction == "mean" else total).float(), grads, tally
    if reduction != "none":
        losses = np.asarray(reduce_losses(losses, reduction))
    loss = losses.astype(np.float64 if dtype == torch.float64 else np.float32, copy=False)
    return torch.from_numpy(loss), grads, tally


def _backward(grad_losses: Tensor, *arguments: Any) -> Gradients:
    """simtile::info_nce_backward, with None for gradients that are not needed."""
    return run_tensors(*arguments, 1.0, grad_losses, False).grads  # type: ignore[call-arg]


def _save(
    ctx: Any, inputs: Sequence[Any], others: Sequence[Any], grads: Sequence[Tensor | None]
) -> None:
    """Keep what the backward needs: the gradients, or for "none" the inputs."""
    if others[13] != "none":
        ctx.options = None
        ctx.save_for_backward(*grads)
    else:
        *tensors, temperature = inputs
        is_tensor = isinstance(temperature, Tensor)
        ctx.save_for_backward(*tensors, temperature if is_tensor else None, *others[:6])
        ctx.temperature = None if is_tensor else temperature
        ctx.options = others[6:13]


def _check_differentiated_once() -> None:
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile.info_nce: its gradient cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )


class _EagerInfoNCE(torch.autograd.Function):
    """simtile::info_nce without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        negatives: Tensor | None,
        temperature: float | Tensor,
        others: tuple[Any, ...],
        statistics: ContrastiveStatistics | None,
    ) -> Tensor:
        loss, grads, tally = _forward(queries, documents, negatives, temperature, *others)
        if statistics is not None:
            statistics.add(tally)
        inputs = (queries, documents, negatives, temperature)
        _save(ctx, inputs, others, grads)
        ctx.dtypes = [x.dtype if isinstance(x, Tensor) else None for x in inputs]
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # autograd itself converts what is returned to the element types of the inputs
        _check_differentiated_once()
        grads = ctx.saved_tensors
        if ctx.options is not None:
            inputs = list(grads)
            inputs[3] = ctx.temperature if inputs[3] is None else inputs[3]
            grads = _backward(grad_loss, *inputs, *ctx.options)
        # The saved tensors themselves are handed out where nobody can need them again: it saves a
        # pass over memory, and its allocation.
        # On a GPU nobody waits to read what they are multiplied by.
        elif (
            grad_loss.is_cuda
            or _graph_is_kept()
            or torch.compiler.is_compiling()
            or grad_loss.item() != 1.0
        ):
            # At once in the inputs' types: products in float32, of all gradients before autograd
            # converts the first, are the most memory that a step would need.
            grads = [
                None if grad is None else _scaled(grad, grad_loss, dtype)
                for grad, dtype in zip(grads, ctx.dtypes, strict=True)
            ]
        return *grads, None, None


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor, rounded once to `dtype`."""
    factor = factor.to(grad.device)  # a temperature may be on the CPU beside a GPU
    if torch.compiler.is_compiling():
        return (grad * factor).to(dtype)
    return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))


# Whether the running backward leaves the graph usable for another one (retain_graph=True).
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _info_nce_op(*arguments: Any) -> tuple[Tensor, ...]:
    loss, grads, tally = _forward(*arguments)
    return loss, *_without_none((*grads, tally), loss)


def _info_nce_backward_op(*arguments: Any) -> tuple[Tensor, ...]:
    grad_losses, *rest = arguments
    return _without_none(_backward(grad_losses, *rest), grad_losses)


def _info_nce_fake(*arguments: Any) -> tuple[Tensor, ...]:
    queries, dtype, need_grad, reduction, statistics = (arguments[i] for i in (0, 12, 13, 17, 18))
    shape = queries.shape[:1] if reduction == "none" else ()
    loss = queries.new_empty(shape, dtype=accumulator(dtype))
    tally = queries.new_empty(len(Tally._fields), dtype=torch.float64)
    grads = _empty_gradients(arguments[:4], dtype, _NO_GRAD if reduction == "none" else need_grad)
    return loss, *grads, tally if statistics else queries.new_empty(0, dtype=torch.float32)


def _info_nce_backward_fake(grad_losses: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _empty_gradients(arguments[:4], arguments[12], arguments[13])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *grads, tally = output
    _save(ctx, inputs[:4], inputs[4:], grads)
    ctx.need_grad = inputs[13]
    ctx.mark_non_differentiable(*grads, tally)


def _dispatched_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    _check_differentiated_once()
    if ctx.options is None:
        grads = [grad * grad_loss.to(grad.device) for grad in ctx.saved_tensors]
    else:
        grads = torch.ops.simtile.info_nce_backward.default(
            grad_loss, *ctx.saved_tensors, *ctx.options
        )
    needed = (grad if need else None for grad, need in zip(grads, ctx.need_grad, strict=True))
    return *needed, *[None] * 15


def _without_none(grads: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0, dtype=torch.float32) if grad is None else grad for grad in grads)


def _empty_gradients(
    inputs: Sequence[Tensor | None], dtype: torch.dtype, need_grad: Sequence[bool]
) -> tuple[Tensor, ...]:
    queries = inputs[0]
    assert queries is not None
    dtypes = (*[accumulator(dtype)] * 3, torch.float64)
    return tuple(
        x.new_empty(x.shape, dtype=grad_dtype)
        if needed and x is not None
        else queries.new_empty(0, dtype=torch.float32)
        for x, grad_dtype, needed in zip(inputs, dtypes, need_grad, strict=True)
    )


for _name, _implementation in (
    ("info_nce", _info_nce_op),
    ("info_nce_backward", _info_nce_backward_op),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::info_nce", _info_nce_fake, lib=_library)
torch.library.register_fake("simtile::info_nce_backward", _info_nce_backward_fake, lib=_library)
torch.library.register_autograd(
    "simtile::info_nce", _dispatched_backward, setup_context=_setup_context, lib=_library
)
