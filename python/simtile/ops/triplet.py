"""Losses of given pairs and triplets: plain torch, because nothing here is N × N."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu

from simtile import _pairwise
from simtile.ops._tensors import check_floats

SMALLEST_NORM = 1e-12


def wide_tensors(tensors: dict[str, Tensor], fewest: int = 1) -> list[Tensor]:
    """Matrices of one shape, in float64 if one is and else in float32."""
    dtypes = [check_floats(name, x) for name, x in tensors.items()]
    (first, x), *others = tensors.items()
    _pairwise.check_matrix(first, x.shape, fewest)
    for name, other in others:
        _pairwise.check_same_shape(name, other.shape, first, x.shape)
        if other.device != x.device:
            raise ValueError(
                f"{name}: found a tensor on {other.device}, expected {x.device} because {first} is "
                "there"
            )
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [x.to(dtype) for x in tensors.values()]


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1, eps=SMALLEST_NORM)


def distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """[N]; the rows of "cosine" are normalised already."""
    if metric == "cosine":
        return 1.0 - (x * y).sum(1)
    if metric == "squared_euclidean":
        return (x - y).square().sum(1)
    length: Tensor = torch.linalg.vector_norm(x - y, ord=1 if metric == "manhattan" else 2, dim=1)
    return length


def triplet_tensors(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    metric: str,
    normalize: bool,
    reduction: str,
) -> Tensor:
    """Check the tensors of `simtile.triplet_loss` and run it."""
    given = {"anchor": anchor, "positive": positive, "negative": negative}
    a, p, n = wide_tensors(given)
    if normalize:
        a, p, n = unit(a), unit(p), unit(n)
    losses = relu(distance(a, p, metric) - distance(a, n, metric) + margin)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def alignment_tensors(x: Tensor, y: Tensor, alpha: float, normalize: bool) -> Tensor:
    """Check the tensors of `simtile.alignment` and run it."""
    a, b = wide_tensors({"x": x, "y": y})
    if normalize:
        a, b = unit(a), unit(b)
    if alpha == 2:
        return distance(a, b, "squared_euclidean").mean()
    return distance(a, b, "euclidean").pow(alpha).mean()


def anisotropy_tensors(x: Tensor) -> Tensor:
    """Check the tensor of `simtile.anisotropy` and run it."""
    (u,) = wide_tensors({"x": x}, 2)
    u = unit(u)
    n = len(u)
    # float32 would lose what is left of N terms.
    total = u.sum(0, dtype=torch.float64).square().sum()
    own = u.square().sum(dtype=torch.float64)
    return ((total - own) / (n * (n - 1))).to(u.dtype)
