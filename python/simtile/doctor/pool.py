"""Pooling on a GPU, beside the CPU's kernels in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import simtile
from simtile.doctor import limits
from simtile.doctor.cpu import differing_bits
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import Comparison

Array = npt.NDArray[Any]

DTYPES = ("float32", "bfloat16", "float16")
OUTPUTS = ("vectors", "grad_tokens", "grad_weights")


@dataclass(frozen=True)
class Case:
    """The sizes of one call."""

    rows: int
    length: int
    width: int
    dim: int
    how: str = "mean"
    packed: bool = False
    seed: int = 0

    def __str__(self) -> str:
        form = "packed " if self.packed else ""
        return f"{self.how} of {form}{self.rows} x {self.length} x {self.width}, dim {self.dim}"


CASES = (
    Case(1, 1, 1, 1),
    Case(33, 111, 65, 40, "max", seed=1),
    Case(7, 40, 130, 130, "last", packed=True, seed=2),
    Case(256, 128, 384, 384, seed=3),
    Case(101, 500, 5000, 4999, packed=True, seed=4),
    Case(256, 512, 768, 256, "cls", seed=5),
)
REPEATED = Case(101, 77, 333, 300, seed=6)


@dataclass(frozen=True)
class Inputs:
    """Tensors of the CPU: tokens in the element type, of which the mask leaves out some."""

    tokens: torch.Tensor
    weights: torch.Tensor | None
    mask: torch.Tensor
    grad: torch.Tensor  # of the vectors
    offsets: torch.Tensor | None

    def on(self, device: Any, dtype: torch.dtype | None = None) -> Inputs:
        def moved(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, dtype) if x.is_floating_point() else x.to(device)

        weights = None if self.weights is None else moved(self.weights)
        tokens, mask, grad = map(moved, (self.tokens, self.mask, self.grad))
        return Inputs(tokens, weights, mask, grad, self.offsets)


def make_inputs(case: Case, dtype: str) -> Inputs:
    rng = np.random.default_rng(case.seed)
    shape = (case.rows, case.length)
    x, weights = rng.standard_normal((*shape, case.width)), rng.random(shape) + 0.5
    mask = rng.random(shape) < 0.8
    x[~mask] = np.nan
    offsets = None
    if case.packed:
        x, weights, mask = x.reshape(-1, case.width), weights.reshape(-1), mask.reshape(-1)
        offsets = torch.arange(case.rows + 1) * case.length
    element = getattr(torch, dtype)
    return Inputs(
        torch.from_numpy(x).to(element),
        torch.from_numpy(weights).float() if case.how == "mean" else None,
        torch.from_numpy(mask),
        torch.from_numpy(rng.standard_normal((case.rows, case.dim))).to(element),
        offsets,
    )


def outputs_of(case: Case, inputs: Inputs, backend: str) -> dict[str, Array]:
    """Vectors and gradients as float64 arrays of the CPU."""
    tokens = inputs.tokens.detach().requires_grad_()
    weights = None if inputs.weights is None else inputs.weights.detach().requires_grad_()
    vectors = simtile.pool(
        tokens,
        inputs.mask,
        case.how,  # type: ignore[arg-type]
        offsets=inputs.offsets,
        weights=weights,
        dim=case.dim,
        backend=backend,  # type: ignore[arg-type]
    )
    vectors.backward(inputs.grad)
    found = [vectors, tokens.grad, None if weights is None else weights.grad]
    return {
        name: x.detach().double().cpu().numpy()
        for name, x in zip(OUTPUTS, found, strict=True)
        if x is not None
    }


def values(device: TorchDevice, dtype: str, case: Case) -> Iterator[Comparison]:
    """Vectors and gradients of both."""
    inputs = make_inputs(case, dtype)
    expected = outputs_of(case, inputs.on("cpu", torch.float64), "cpu")
    device.poison()
    found = outputs_of(case, inputs.on(device.device), "triton")
    # Sums of a few numbers and one more, rounded in float32; norms are sums of dim squares.
    rounding = limits.ROUNDOFF["float32"] * (16 + case.dim / 64)
    for name, value in expected.items():
        # Of 16-bit tokens vectors and gradients come in that type.
        half = limits.ROUNDOFF[dtype] * (dtype != "float32" and name != "grad_weights")
        largest = float(np.abs(value).max(initial=0.0)) or 1e-30
        error = float(np.abs(found[name] - value).max(initial=0.0))
        yield Comparison(name, error / largest, rounding + half)


def same_bits(device: TorchDevice, dtype: str) -> Iterator[Comparison]:
    inputs = make_inputs(REPEATED, dtype).on(device.device)

    def call() -> dict[str, Array]:
        device.poison()
        return outputs_of(REPEATED, inputs, "triton")

    yield from differing_bits(call, 5)
