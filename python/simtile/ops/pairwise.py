"""Losses over all pairs as torch operators. The gradient is computed with the loss where it will be
wanted; the backward only scales it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simtile import _pairwise
from simtile._tensors import as_array
from simtile.ops._backends import check_available, choose
from simtile.ops._tensors import DTYPE_NAMES, accumulator, as_integers, check_floats

# need_grad: the implementation cannot read it off the tensor, which requires a gradient under
# no_grad as well. A gradient that is not needed has no elements.
_library = torch.library.Library("simtile", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "batch_hard_triplet(Tensor embeddings, Tensor labels, float margin, str metric, "
    "bool normalize, bool skip_missing, bool need_grad, str backend, int threads) "
    "-> (Tensor loss, Tensor grad)",
    "uniformity(Tensor embeddings, float t, bool normalize, bool need_grad, str backend, "
    "int threads) -> (Tensor value, Tensor grad)",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def batch_hard_triplet_tensors(
    embeddings: Tensor,
    labels: Any,
    margin: float,
    metric: str,
    normalize: bool,
    skip_missing: bool,
    backend: str,
    threads: int,
) -> Tensor:
    """Check the tensors of `simtile.batch_hard_triplet_loss` and run it."""
    dtype = check_floats("embeddings", embeddings)
    _pairwise.check_matrix("embeddings", embeddings.shape, 1)
    labels = as_integers("labels", labels)
    _pairwise.check_labels(labels.shape, embeddings.shape[0])
    backend = choose(backend, "embeddings", embeddings, dtype)
    if embeddings.device.type == "cuda" and labels.device != embeddings.device:
        labels = labels.to(embeddings.device)
    elif embeddings.device.type == "cpu" and labels.device.type == "cuda":
        raise ValueError(
            f"labels: found a tensor on {labels.device}, expected the CPU because embeddings are "
            "there"
        )
    loss, _ = torch.ops.simtile.batch_hard_triplet.default(
        embeddings,
        labels,
        margin,
        metric,
        normalize,
        skip_missing,
        torch.is_grad_enabled() and embeddings.requires_grad,
        backend,
        threads,
    )
    return loss  # type: ignore[no-any-return]


def uniformity_tensors(x: Tensor, t: float, normalize: bool, backend: str, threads: int) -> Tensor:
    """Check the tensor of `simtile.uniformity` and run it."""
    dtype = check_floats("x", x)
    _pairwise.check_matrix("x", x.shape, 2)
    backend = choose(backend, "x", x, dtype)
    value, _ = torch.ops.simtile.uniformity.default(
        x, t, normalize, torch.is_grad_enabled() and x.requires_grad, backend, threads
    )
    return value  # type: ignore[no-any-return]


def _results(x: Tensor, value: float, grad: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator(x.dtype)
    gradient = x.new_empty(0, dtype=dtype) if grad is None else torch.from_numpy(grad)
    return torch.tensor(value, dtype=dtype), gradient


def _batch_hard_triplet(
    embeddings: Tensor,
    labels: Tensor,
    margin: float,
    metric: str,
    normalize: bool,
    skip_missing: bool,
    need_grad: bool,
    backend: str,
    threads: int,
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        check_available(backend)  # of a compiled call nobody has asked
        from simtile.ops import pairwise_triton

        return pairwise_triton.batch_hard_triplet(
            embeddings, labels, margin, metric, normalize, skip_missing, need_grad
        )
    loss, grad = _pairwise.batch_hard(
        as_array(embeddings),
        DTYPE_NAMES[embeddings.dtype],
        as_array(labels),
        margin,
        metric,
        normalize,
        skip_missing,
        need_grad,
        backend,
        threads,
    )
    return _results(embeddings, loss, grad)


def _uniformity(
    x: Tensor, t: float, normalize: bool, need_grad: bool, backend: str, threads: int
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        check_available(backend)
        from simtile.ops import pairwise_triton

        return pairwise_triton.uniformity(x, t, normalize, need_grad)
    value, grad = _pairwise.uniformity(
        as_array(x), DTYPE_NAMES[x.dtype], t, normalize, need_grad, backend, threads
    )
    return _results(x, value, grad)


def _fake(x: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    dtype = accumulator(x.dtype)
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape if need_grad else (0,), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.others = len(inputs) - 1


def _backward(ctx: Any, grad_value: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile: the gradient of a loss over all pairs cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )
    (grad,) = ctx.saved_tensors
    return grad * grad_value, *[None] * ctx.others


for _name, _implementation, _fake_of in (
    ("batch_hard_triplet", _batch_hard_triplet, lambda *x: _fake(x[0], x[6])),
    ("uniformity", _uniformity, lambda *x: _fake(x[0], x[3])),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"simtile::{_name}", _fake_of, lib=_library)
    torch.library.register_autograd(
        f"simtile::{_name}", _backward, setup_context=_save, lib=_library
    )
