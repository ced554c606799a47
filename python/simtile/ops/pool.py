"""Pooling as torch operators, and the shorter way that plain eager calls take.

`simtile::pool` gives the vectors and, where gradients will be wanted, what they need of the
forward. The backward is arithmetic on [N, dim] and [N, L] in torch around two operators of the size
of the tokens: `simtile::pool_spread` writes their gradient, `simtile::pool_dots` multiplies them
for the gradient of weights. As in `ops/maxsim.py`, compilers, fake tensors and dispatch modes see
these operators, and an eager call on plain tensors reaches the same functions through an
`autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simtile import _pool, _tensors
from simtile._maxsim_inputs import Given, check_offsets
from simtile._pool import Pooled
from simtile.ops._backends import check_available, choose
from simtile.ops._pool_gradients import (
    Call,
    array_of,
    as_dtype,
    gradients,
    spread_tokens,
    token_dots,
)
from simtile.ops._tensors import DTYPE_NAMES, accumulator, are_plain, check_floats

# Tokens [N, L, D] have no offsets, [T, D] have [N + 1], int64 on the CPU. The mask is bool and
# weights are of the accumulator's type, [N, L] or [T]. keep: what gradients need is wanted; what is
# not has no elements.
_library = torch.library.Library("simtile", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "pool(Tensor tokens, Tensor? weights, Tensor? offsets, Tensor? mask, str how, SymInt dim, "
    "bool normalize, bool keep, str backend, int threads) -> "
    "(Tensor vectors, Tensor raw, Tensor totals, Tensor positions)",
    "pool_spread(Tensor grad, Tensor? offsets, Tensor? coefficients, Tensor? positions, "
    "SymInt[] shape, ScalarType dtype, str backend, int threads) -> Tensor",
    "pool_dots(Tensor tokens, Tensor? offsets, Tensor? mask, Tensor vectors, str backend, "
    "int threads) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]

_ARGUMENTS = 10


def pool_tensors(
    given: Given,
    weights: Any,
    how: str,
    dim: int,
    normalize: bool,
    differentiable: bool,
    backend: str,
    threads: int,
) -> Tensor:
    """Check the tensors of `simtile.pool` and run it."""
    tokens = given.x
    dtype = check_floats("token_embeddings", tokens)
    backend = choose(backend, "token_embeddings", tokens, dtype)
    device = tokens.device
    mask = _beside("mask", given.mask, device)
    if weights is not None:
        weights = _beside("weights", weights, device).to(accumulator(dtype))
    offsets = None if given.offsets is None else torch.as_tensor(given.offsets)
    inputs = (tokens, weights, offsets, mask)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "simtile.pool: torch.func transforms (vmap, grad, jacrev, ...) are not supported; "
            "call it outside of them and use backward or torch.autograd.grad"
        )
    differentiable = differentiable and torch.is_grad_enabled()
    need_grad = differentiable and any(x is not None and x.requires_grad for x in inputs[:2])
    options: tuple[Any, ...] = (how, dim, normalize, need_grad, backend, threads)
    if not torch.compiler.is_compiling() and not tokens.is_meta and are_plain(*inputs):
        if need_grad:
            return _EagerPool.apply(*inputs, options)  # type: ignore[no-any-return,no-untyped-call]
        vectors: Tensor = forward(*inputs, *options).vectors
        return vectors
    with torch.set_grad_enabled(differentiable):
        vectors, *_ = torch.ops.simtile.pool.default(*inputs, *options)
    return vectors


def _beside(name: str, x: Any, device: torch.device) -> Any:
    """An array or a tensor where the tokens are; only what is on the CPU is moved."""
    if x is None:
        return None
    if _tensors.is_tensor(x):
        if x.device != device and x.device.type != "cpu":
            raise ValueError(
                f"{name}: found a tensor on {x.device}, expected {device} because token_embeddings "
                "are there"
            )
        return x.to(device)
    if x.dtype.name == "bfloat16":  # which torch does not read
        x = x.astype("float32")
    return _tensors.as_tensor(x, device)


def forward(
    tokens: Tensor,
    weights: Tensor | None,
    offsets: Tensor | None,
    mask: Tensor | None,
    how: str,
    dim: int,
    normalize: bool,
    keep: bool,
    backend: str,
    threads: int,
) -> Pooled:
    """simtile::pool, with None for what is not wanted."""
    if backend == "triton":
        check_available(backend)  # of a compiled call nobody has asked
        from simtile.ops import pool_triton

        return pool_triton.forward(tokens, weights, offsets, mask, how, dim, normalize, keep)
    found = _pool.forward(
        _tensors.as_array(tokens),
        DTYPE_NAMES[tokens.dtype],
        array_of(offsets),
        array_of(mask),
        array_of(weights),
        how,
        dim,
        normalize,
        keep,
        backend,
        threads,
    )
    rest = (None if x is None else torch.from_numpy(x) for x in found[1:])
    return Pooled(as_dtype(found.vectors, tokens.dtype), *rest)


def _save(ctx: Any, inputs: Sequence[Any], options: Sequence[Any], found: Sequence[Any]) -> None:
    tokens, weights, offsets, mask = inputs
    how, _, normalize, _, backend, threads = options
    ctx.save_for_backward(
        tokens if ctx.needs_input_grad[1] else None, weights, offsets, mask, *found[1:]
    )
    need_grad = tuple(ctx.needs_input_grad[:2])
    ctx.call = Call(how, normalize, backend, threads, tokens.shape, tokens.dtype, need_grad)
    ctx.set_materialize_grads(False)


class _EagerPool(torch.autograd.Function):
    """simtile::pool without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weights: Tensor | None,
        offsets: Tensor | None,
        mask: Tensor | None,
        options: tuple[Any, ...],
    ) -> Tensor:
        inputs = (tokens, weights, offsets, mask)
        found = forward(*inputs, *options)
        _save(ctx, inputs, options, found)
        vectors: Tensor = found.vectors
        return vectors

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        grads = gradients(grad, ctx.saved_tensors, ctx.call, spread_tokens, token_dots)
        return *grads, None, None, None


def _pool_op(*arguments: Any) -> tuple[Tensor, ...]:
    tokens, offsets = arguments[0], arguments[2]
    if offsets is not None:  # of a compiled call nobody has looked at them
        check_offsets("offsets", offsets, tokens.shape[0], "token_embeddings")
    found = forward(*arguments)
    wide = accumulator(tokens.dtype)
    nothing = (wide, wide, torch.int32)
    return found.vectors, *(
        tokens.new_empty(0, dtype=dtype) if x is None else x
        for x, dtype in zip(found[1:], nothing, strict=True)
    )


def _pool_fake(*arguments: Any) -> tuple[Tensor, ...]:
    tokens, _, offsets, _, how, dim, _, keep = arguments[:8]
    count = tokens.shape[0] if offsets is None else offsets.shape[0] - 1
    wide = accumulator(tokens.dtype)
    positions: tuple[Any, ...] = {"mean": (0,), "max": (count, dim)}.get(how, (count,))
    return (
        tokens.new_empty((count, dim)),
        tokens.new_empty((count, dim) if keep else 0, dtype=wide),
        tokens.new_empty(count if keep else 0, dtype=wide),
        tokens.new_empty(positions if keep else 0, dtype=torch.int32),
    )


def _spread_fake(grad: Tensor, *arguments: Any) -> Tensor:
    shape, dtype = arguments[3:5]
    return grad.new_empty(shape, dtype=dtype)


def _dots_fake(tokens: Tensor, *_: Any) -> Tensor:
    return tokens.new_empty(tokens.shape[:-1], dtype=accumulator(tokens.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save(ctx, inputs[:4], inputs[4:], output)


def _dispatched_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * _ARGUMENTS
    grads = gradients(
        grad,
        ctx.saved_tensors,
        ctx.call,
        torch.ops.simtile.pool_spread.default,
        torch.ops.simtile.pool_dots.default,
    )
    return *grads, *[None] * (_ARGUMENTS - 2)


for _name, _implementation in (
    ("pool", _pool_op),
    ("pool_spread", spread_tokens),
    ("pool_dots", token_dots),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _implementation, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("simtile::pool", _pool_fake, lib=_library)
torch.library.register_fake("simtile::pool_spread", _spread_fake, lib=_library)
torch.library.register_fake("simtile::pool_dots", _dots_fake, lib=_library)
torch.library.register_autograd(
    "simtile::pool", _dispatched_backward, setup_context=_setup_context, lib=_library
)
