"""Tensors of tokens, padded or in lists, for the look-alikes of late-interaction libraries."""

import numpy as np
import torch
from hypothesis import settings

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASKS = ("absent", "bools", "integers", "floats", "nothing")
# Sums of a look-alike and of its original differ in their order and, of small types, in rounding.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
# A share of the profile's, because torch's graphs of every example cost most of its time.
examples = settings(max_examples=max(15, settings.default.max_examples // 4))


def tokens(rng, *shape, dtype=torch.float32, values="random"):
    """[..., D]: "random", "few" with ties, or "apart", of one sign."""
    x = rng.normal(size=shape)
    if values == "few":
        x = np.rint(x)
    if values == "apart":
        x = np.abs(x) + 0.1
    return torch.tensor(x).to(dtype)


def batch(rng, count, length, dim, dtype=torch.float32, values="random", zeros=True):
    """[count, length, dim] with rows of zeros."""
    x = tokens(rng, count, length, dim, dtype=dtype, values=values)
    if zeros:
        x[torch.tensor(rng.random((count, length)) < 0.3)] = 0
    return x


def mask(rng, kind, *shape):
    """With holes; None if absent."""
    if kind == "absent":
        return None
    if kind == "nothing":
        return torch.zeros(shape, dtype=torch.bool)
    drawn = torch.tensor(rng.random(shape) < 0.7)
    return {"bools": drawn, "integers": drawn.long(), "floats": drawn.float()}[kind]


def leaves(x):
    """Copies that gradients can be asked of."""
    if isinstance(x, list):
        return [item.clone().requires_grad_() for item in x]
    return x.clone().requires_grad_()


def gradients(scores, *sides):
    """Of a weighted sum of the scores, one tensor for each side or each matrix of it."""
    weights = torch.linspace(-1, 2, scores.numel(), dtype=scores.dtype).view(scores.shape)
    flat = [x for side in sides for x in (side if isinstance(side, list) else [side])]
    found = torch.autograd.grad((scores * weights).sum(), flat, allow_unused=True)
    return [
        torch.zeros_like(x) if grad is None else grad for x, grad in zip(flat, found, strict=True)
    ]


def close(own, theirs, dtype=torch.float32, size=1.0):
    """Values that differ by rounding only; type, shape and device are the same."""
    assert own.dtype == theirs.dtype
    assert own.shape == theirs.shape
    assert own.device == theirs.device
    tolerance = TOLERANCE[dtype]
    # Of sums that cancel, relative to the largest; -1e9 is no sum.
    sizes = theirs.abs()[theirs.abs() < 1e8]
    largest = max(size, float(sizes.max())) if len(sizes) else size
    torch.testing.assert_close(
        own, theirs, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )


def same_scores_and_gradients(own, theirs, sides, dtype=torch.float32, size=1.0):
    """`own` and `theirs` are called with copies of both sides; `size` is that of the terms."""
    results = []
    for function in (own, theirs):
        inputs = [leaves(side) for side in sides]
        scores = function(*inputs)
        results.append((scores, gradients(scores, *inputs)))
    close(results[0][0].detach(), results[1][0].detach(), dtype, size)
    for ours, original in zip(results[0][1], results[1][1], strict=True):
        close(ours, original, dtype, size)
