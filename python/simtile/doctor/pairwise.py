"""Losses over all pairs on a GPU, beside the CPU's kernels in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import simtile
from simtile import _core, _pairwise
from simtile.doctor import limits
from simtile.doctor.cpu import differing_bits
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import Comparison

Array = npt.NDArray[Any]

DTYPES = ("float32", "bfloat16", "float16")
LOSSES = ("batch_hard_triplet", "uniformity")


@dataclass(frozen=True)
class Case:
    """The sizes of one call."""

    rows: int
    dim: int
    classes: int
    metric: str = "cosine"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.rows} x {self.dim}, {self.classes} labels, {self.metric}"


CASES = (
    Case(2, 1, 1),
    Case(111, 65, 7, "euclidean", seed=1),
    Case(989, 384, 50, "squared_euclidean", seed=2),
    Case(2048, 768, 100, seed=3),
)
REPEATED = Case(1001, 333, 20, "euclidean", seed=4)


def make_inputs(case: Case, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of about unit length, in the element type, and labels; on the CPU."""
    rng = np.random.default_rng(case.seed)
    rows = rng.standard_normal((case.rows, case.dim)) / np.sqrt(case.dim)
    x = torch.from_numpy(rows).to(getattr(torch, dtype))
    return x, torch.from_numpy(rng.integers(0, case.classes, case.rows))


def loss_of(name: str, case: Case, x: torch.Tensor, labels: torch.Tensor, backend: str) -> Any:
    """Loss and gradient as float64 arrays of the CPU."""
    leaf = x.detach().requires_grad_()
    if name == "uniformity":
        loss = simtile.uniformity(leaf, backend=backend)  # type: ignore[arg-type]
    else:
        loss = simtile.batch_hard_triplet_loss(
            leaf,
            labels,
            margin=1.0,
            metric=case.metric,  # type: ignore[arg-type]
            backend=backend,  # type: ignore[arg-type]
        )
    loss.backward()
    assert leaf.grad is not None
    return [t.detach().double().cpu().numpy() for t in (loss, leaf.grad)]


def chosen(
    device: TorchDevice, case: Case, x: torch.Tensor, labels: torch.Tensor
) -> tuple[Array, Array]:
    """Positives and negatives that the device finds."""
    from simtile.ops import pairwise_triton

    found = pairwise_triton.hardest(
        x.to(device.device), labels.to(device.device), case.metric, False
    )
    return device.download(found[0]), device.download(found[1])


def values(device: TorchDevice, name: str, dtype: str, case: Case) -> Iterator[Comparison]:
    """Loss and gradient; of a batch-hard loss those of the pairs that the device chose, which have
    to be as hard as the CPU's up to the rounding of a product."""
    x, labels = make_inputs(case, dtype)
    wide = x.double()
    # Matrix units cut off what their float32 sums cannot hold: a share of a roundoff a product.
    rounding = limits.ROUNDOFF["float32"] * (16 + case.dim / 16)
    if name == "uniformity":
        expected, grad = loss_of(name, case, wide, labels, "cpu")
        # An exponential is rounded by a share of t times squares up to 4.
        loss_bound, grad_bound = 16 * rounding, 16 * rounding
        grad_bound += 2 * limits.ROUNDOFF[dtype] * (dtype != "float32")
    else:
        device.poison()
        found_pairs = _of_pairs(case, wide, labels, chosen(device, case, x, labels))
        hardest = _pairwise.hardest_pairs(
            wide.numpy(), "float64", labels.numpy(), case.metric, False, 0
        )
        largest = 1.0 if case.metric == "cosine" else float(wide.square().sum(1).max())
        for side, sign in (("positive", 1.0), ("negative", -1.0)):
            ours, best = (getattr(h, f"{side}_distance") for h in (found_pairs, hardest))
            if not np.array_equal(np.isnan(ours), np.isnan(best)):
                raise RuntimeError(f"{side}: found where there is none, or not found")
            easier = np.nan_to_num(sign * (best - ours)).max()
            yield Comparison(side, float(easier), 4 * rounding * largest)
        expected, grad = _loss_of_pairs(case, wide, found_pairs)
        loss_bound = grad_bound = 8 * limits.ROUNDOFF["float32"]
    device.poison()
    inputs = x.to(device.device), labels.to(device.device)
    found, found_grad = loss_of(name, case, *inputs, "triton")
    yield Comparison("loss", float(abs(found - expected)), loss_bound * (1 + abs(expected)))
    # Gradients of 16-bit inputs come in that type, one rounding more.
    grad_bound += limits.ROUNDOFF[dtype] * (dtype != "float32")
    size = float(np.abs(grad).max(initial=0.0)) or 1e-30
    yield Comparison("gradient", float(np.abs(found_grad - grad).max()) / size, grad_bound)


def _of_pairs(
    case: Case, wide: torch.Tensor, labels: torch.Tensor, pairs: tuple[Array, Array]
) -> _pairwise.Hardest:
    """Chosen pairs with their distances, in float64."""
    u = wide.numpy()
    if case.metric == "cosine":
        u = u / np.linalg.norm(u, axis=1, keepdims=True)
    distances = []
    for other in pairs:
        v = u[np.maximum(other, 0)]
        d = 1 - (u * v).sum(1) if case.metric == "cosine" else np.square(u - v).sum(1)
        distances.append(np.where(other < 0, np.nan, d))
    return _pairwise.Hardest(*pairs, *distances)


def _loss_of_pairs(case: Case, wide: torch.Tensor, pairs: _pairwise.Hardest) -> tuple[float, Array]:
    weights = _pairwise.batch_hard_weights(pairs, 1.0, case.metric, True)
    grad = np.empty(tuple(wide.shape))
    distance = "cosine" if case.metric == "cosine" else "euclidean"
    given = (pairs.positive, pairs.negative, weights.positive, weights.negative)
    _core.pair_gradients(wide.numpy(), "float64", distance, False, *given, grad, 0)
    return weights.loss, grad


def same_bits(device: TorchDevice, name: str, dtype: str) -> Iterator[Comparison]:
    x, labels = (t.to(device.device) for t in make_inputs(REPEATED, dtype))

    def call() -> dict[str, Array]:
        device.poison()
        loss, grad = loss_of(name, REPEATED, x, labels, "triton")
        return {"loss": loss, "gradient": grad}

    yield from differing_bits(call, 5)
