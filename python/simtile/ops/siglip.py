"""The sigmoid loss as a torch operator. The gradients are computed with the loss where they will be
wanted; the backward only scales them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simtile import _inputs, _pairwise
from simtile._info_nce_run import reduce_losses
from simtile._tensors import as_array
from simtile.ops._backends import check_available, choose
from simtile.ops._tensors import (
    DTYPE_NAMES,
    accumulator,
    check_devices,
    check_floats,
    check_one_number,
)
from simtile.siglip import check_shapes, run

# need_grad: of queries, documents, temperature and bias; the implementation cannot read it off the
# tensors, which require gradients under no_grad as well. A gradient that is not needed has no
# elements.
_library = torch.library.Library("simtile", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "siglip(Tensor queries, Tensor documents, Tensor temperature, Tensor bias, bool normalize, "
    "bool[] need_grad, str reduction, str backend, int threads) -> (Tensor loss, "
    "Tensor grad_queries, Tensor grad_documents, Tensor grad_temperature, Tensor grad_bias)"
)


def siglip_tensors(
    queries: Tensor,
    documents: Tensor,
    temperature: float | Tensor,
    bias: float | Tensor,
    normalize: bool,
    reduction: str,
    backend: str,
    threads: int,
) -> Tensor:
    """Check the tensors of `simtile.siglip_loss` and run it."""
    dtypes = [check_floats("queries", queries), check_floats("documents", documents)]
    check_shapes(queries.shape, documents.shape)
    check_devices(queries, {"documents": documents}, {"temperature": temperature, "bias": bias})
    temperature = _number("temperature", temperature, queries.device)
    bias = _number("bias", bias, queries.device)
    device_type = queries.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        lower = torch.get_autocast_dtype(device_type)
        dtypes = [dtype if dtype == torch.float64 else lower for dtype in dtypes]
    dtype = torch.promote_types(*dtypes)
    backend = choose(backend, "queries", queries, dtype)
    inputs = (queries.to(dtype), documents.to(dtype), temperature, bias)
    need_grad = [torch.is_grad_enabled() and x.requires_grad for x in inputs]
    loss, *_ = torch.ops.simtile.siglip.default(
        *inputs, normalize, need_grad, reduction, backend, threads
    )
    return loss  # type: ignore[no-any-return]


def _number(name: str, value: float | Tensor, device: torch.device) -> Tensor:
    """A temperature or bias as a tensor; what is on a GPU is not read."""
    if isinstance(value, Tensor):
        check_one_number(name, value)
        return value
    check = _inputs.check_temperature if name == "temperature" else _finite_bias
    # Filled where it is needed: a copy from the CPU could not be captured in a CUDA graph.
    return torch.full((), check(value), dtype=torch.float64, device=device)


def _finite_bias(value: object) -> float:
    return _pairwise.check_number("bias", value)


def _siglip(
    queries: Tensor,
    documents: Tensor,
    temperature: Tensor,
    bias: Tensor,
    normalize: bool,
    need_grad: Sequence[bool],
    reduction: str,
    backend: str,
    threads: int,
) -> tuple[Tensor, ...]:
    weight = 1.0 / queries.shape[0] if reduction == "mean" else 1.0
    if backend == "triton":
        check_available(backend)  # of a compiled call nobody has asked
        from simtile.ops import siglip_triton

        found = siglip_triton.run(
            queries, documents, temperature, bias, normalize, weight, need_grad[:2]
        )
        total = found.losses.sum()
        loss = (total / queries.shape[0] if reduction == "mean" else total).float()
        grads = [found.grad_queries, found.grad_documents]
        scalars = [found.grad_temperature, found.grad_bias]
    else:
        result = run(
            as_array(queries),
            as_array(documents),
            DTYPE_NAMES[queries.dtype],
            _inputs.check_temperature(temperature.item()),
            _finite_bias(bias.item()),
            normalize,
            weight,
            need_grad[:2],
            backend,
            threads,
        )
        loss = torch.tensor(
            reduce_losses(result.losses, reduction), dtype=accumulator(queries.dtype)
        )
        grads = [
            None if x is None else torch.from_numpy(x)
            for x in (result.grad_queries, result.grad_documents)
        ]
        scalars = [
            torch.tensor(x, dtype=torch.float64)
            for x in (result.grad_temperature, result.grad_bias)
        ]
    empty = torch.float32
    return (
        loss,
        *(queries.new_empty(0, dtype=empty) if grad is None else grad for grad in grads),
        *(
            grad.reshape(x.shape).to(x.device) if needed else queries.new_empty(0, dtype=empty)
            for x, grad, needed in zip((temperature, bias), scalars, need_grad[2:], strict=True)
        ),
    )


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, need_grad = arguments[:4], arguments[5]
    queries = inputs[0]
    dtypes = (*[accumulator(queries.dtype)] * 2, *[torch.float64] * 2)
    return queries.new_empty((), dtype=accumulator(queries.dtype)), *(
        x.new_empty(x.shape, dtype=dtype) if needed else queries.new_empty(0, dtype=torch.float32)
        for x, dtype, needed in zip(inputs, dtypes, need_grad, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grads = output[1:]
    ctx.save_for_backward(*grads)
    ctx.mark_non_differentiable(*grads)
    ctx.need_grad = inputs[5]


def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile.siglip_loss: its gradient cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )
    grads = (
        grad * grad_loss.to(grad.device) if needed else None  # a bias may be beside a GPU
        for grad, needed in zip(ctx.saved_tensors, ctx.need_grad, strict=True)
    )
    return *grads, *[None] * 5


for _key in ("CPU", "CUDA"):
    _library.impl("siglip", _siglip, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::siglip", _fake, lib=_library)
torch.library.register_autograd("simtile::siglip", _backward, setup_context=_save, lib=_library)
