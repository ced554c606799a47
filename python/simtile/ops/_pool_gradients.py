"""Gradients of pooling, from what the forward kept: arithmetic on [N, dim] and [N, L] around two
functions of the size of the tokens, which `ops/pool.py` makes operators of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simtile import _pool, _tensors
from simtile.ops._tensors import DTYPE_NAMES, accumulator
from simtile.reference.info_nce import SMALLEST_NORM
from simtile.reference.pool import SMALLEST_WEIGHT


class Call(NamedTuple):
    """What a backward is told besides tensors."""

    how: str
    normalize: bool
    backend: str
    threads: int
    shape: Sequence[int]  # of the tokens
    dtype: torch.dtype
    need_grad: Sequence[bool]  # of tokens and weights


def array_of(x: Tensor | None) -> Any:
    return None if x is None else _tensors.as_array(x)


def as_dtype(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def spread_tokens(
    grad: Tensor,
    offsets: Tensor | None,
    coefficients: Tensor | None,
    positions: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    backend: str,
    threads: int,
) -> Tensor:
    if backend == "triton":
        from simtile.ops import pool_triton

        return pool_triton.spread(grad, offsets, coefficients, positions, shape, dtype)
    if backend == "reference":
        return _plain_spread(grad, offsets, coefficients, positions, shape, dtype)
    found = _pool.spread(
        _tensors.as_array(grad),
        DTYPE_NAMES[dtype],
        array_of(offsets),
        array_of(coefficients),
        array_of(positions),
        tuple(shape),
        threads,
    )
    return as_dtype(found, dtype)


def token_dots(
    tokens: Tensor,
    offsets: Tensor | None,
    mask: Tensor | None,
    vectors: Tensor,
    backend: str,
    threads: int,
) -> Tensor:
    if backend == "triton":
        from simtile.ops import pool_triton

        return pool_triton.dots(tokens, offsets, mask, vectors)
    if backend == "reference":
        x = tokens[..., : vectors.shape[1]].to(vectors.dtype)
        products = (x * _of_each_token(vectors, offsets)).sum(-1)
        return products if mask is None else torch.where(mask, products, 0.0)
    found = _pool.dots(
        _tensors.as_array(tokens),
        DTYPE_NAMES[tokens.dtype],
        array_of(offsets),
        array_of(mask),
        _tensors.as_array(vectors),
        threads,
    )
    return torch.from_numpy(found)


def _of_each_token(x: Tensor, offsets: Tensor | None) -> Tensor:
    """[N, dim] for each token, [N, 1, dim] or [T, dim]."""
    return x[:, None] if offsets is None else x.repeat_interleave(offsets.diff(), 0)


def _plain_spread(
    grad: Tensor,
    offsets: Tensor | None,
    coefficients: Tensor | None,
    positions: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """simtile::pool_spread by the formula."""
    g = _of_each_token(grad, offsets)
    if coefficients is not None:
        own = coefficients[..., None] * g
    else:
        assert positions is not None
        at = torch.arange(shape[0] if offsets is not None else shape[1])
        if offsets is not None:
            at = at - offsets[:-1].repeat_interleave(offsets.diff())
        own = torch.where(_of_each_token(positions, offsets) == at[:, None], g, 0.0)
    out = torch.zeros(tuple(shape), dtype=dtype)
    out[..., : grad.shape[1]] = own
    return out


def gradients(
    grad: Tensor,
    saved: Sequence[Tensor | None],
    call: Call,
    spread: Callable[..., Tensor],
    dots: Callable[..., Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of tokens and weights; `saved` as `_save` has it."""
    if torch.is_grad_enabled():  # during a backward: create_graph=True
        raise RuntimeError(
            "simtile.pool: its gradient cannot be differentiated again; "
            "call backward or torch.autograd.grad without create_graph=True"
        )
    tokens, weights, offsets, mask, raw, totals, positions = saved
    assert raw is not None
    assert totals is not None
    how, wide = call.how, accumulator(call.dtype)
    g = _through_unit(raw, grad) if call.normalize else grad
    g = g.to(wide).contiguous()
    on_device = None if offsets is None else offsets.to(grad.device)
    count = call.shape[0] if offsets is None else totals.shape[0]

    def of_tokens(x: Tensor) -> Tensor:
        """[N] for each token, [N, L] or [T]."""
        if on_device is None:
            return x[:, None]
        return torch.repeat_interleave(x, on_device.diff(), output_size=call.shape[0])

    divisor = totals.clamp(min=SMALLEST_WEIGHT)
    grad_tokens = grad_weights = None
    if call.need_grad[0]:
        coefficients = None
        if how == "mean":
            share = of_tokens(1.0 / divisor)
            if weights is not None:
                share = share * weights
            if offsets is None:
                share = share.expand(count, call.shape[1])
            coefficients = share if mask is None else torch.where(mask, share, 0.0)
        elif how != "max":
            assert positions is not None
            if on_device is None:
                own = torch.arange(call.shape[1], device=grad.device)
            else:
                starts = of_tokens(on_device[:-1])
                own = torch.arange(call.shape[0], device=grad.device) - starts
            coefficients = (own == of_tokens(positions)).to(wide)
        if coefficients is not None:
            coefficients, positions = coefficients.contiguous(), None
        grad_tokens = spread(
            g,
            offsets,
            coefficients,
            positions,
            list(call.shape),
            call.dtype,
            call.backend,
            call.threads,
        )
    if call.need_grad[1]:
        products = dots(tokens, offsets, mask, g, call.backend, call.threads)
        along = torch.where(totals >= SMALLEST_WEIGHT, (raw * g).sum(1), 0.0)
        grad_weights = (products - of_tokens(along)) / of_tokens(divisor)
        if mask is not None:
            grad_weights = torch.where(mask, grad_weights, 0.0)
    return grad_tokens, grad_weights


def _through_unit(raw: Tensor, grad: Tensor) -> Tensor:
    """The gradient of raw vectors where `grad` is that of normalised ones, in float64."""
    x, g = raw.double(), grad.double()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    divisor = norm.clamp(min=SMALLEST_NORM)
    u = x / divisor
    along = torch.where(norm >= SMALLEST_NORM, (u * g).sum(1, keepdim=True), 0.0)
    return torch.where(norm.isinf(), torch.nan, (g - u * along) / divisor)
