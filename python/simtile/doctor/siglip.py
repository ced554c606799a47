"""The sigmoid loss on a GPU, beside the CPU's kernel in float64."""

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
OUTPUTS = ("loss", "grad_queries", "grad_documents", "grad_temperature", "grad_bias")


@dataclass(frozen=True)
class Case:
    """The sizes of one call."""

    queries: int
    documents: int
    dim: int
    bias: float = -10.0
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.queries} x {self.documents} x {self.dim}, bias {self.bias:g}"


CASES = (
    Case(1, 1, 1),
    Case(111, 130, 65, bias=0.0, seed=1),
    Case(989, 989, 384, seed=2),
    Case(4096, 4096, 768, seed=3),
)
REPEATED = Case(1001, 1002, 333, seed=4)


def make_inputs(case: Case, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and documents near them, in the element type; on the CPU."""
    rng = np.random.default_rng(case.seed)
    documents = rng.standard_normal((case.documents, case.dim))
    queries = documents[: case.queries] + rng.standard_normal((case.queries, case.dim))
    return tuple(torch.from_numpy(x).to(getattr(torch, dtype)) for x in (queries, documents))  # type: ignore[return-value]


def outputs_of(case: Case, inputs: tuple[torch.Tensor, ...], backend: str) -> dict[str, Array]:
    """Loss and gradients as float64 arrays of the CPU."""
    device = inputs[0].device
    numbers = (torch.tensor(x, dtype=torch.float64, device=device) for x in (0.1, case.bias))
    leaves = [x.detach().requires_grad_() for x in (*inputs, *numbers)]
    loss = simtile.siglip_loss(
        *leaves[:2],
        temperature=leaves[2],
        bias=leaves[3],
        reduction="sum",
        backend=backend,  # type: ignore[arg-type]
    )
    loss.backward()
    found = [loss, *(x.grad for x in leaves)]
    return {name: x.detach().double().cpu().numpy() for name, x in zip(OUTPUTS, found, strict=True)}


def values(device: TorchDevice, dtype: str, case: Case) -> Iterator[Comparison]:
    """Loss and all gradients."""
    inputs = make_inputs(case, dtype)
    q, d = (x.double() for x in inputs)
    expected = outputs_of(case, (q, d), "cpu")
    device.poison()
    found = outputs_of(case, tuple(x.to(device.device) for x in inputs), "triton")
    # Logits of up to 20 are rounded in float32, and matrix units cut off what their sums cannot
    # hold: a share of a roundoff a product.
    rounding = limits.ROUNDOFF["float32"] * (16 + case.dim / 16) * (11 + abs(case.bias))
    # Coefficients and gradients of 16-bit inputs come in that type.
    half = 3 * limits.ROUNDOFF[dtype] * (dtype != "float32")
    terms = _sizes(case, q, d)
    for name in OUTPUTS:
        error = np.abs(found[name] - expected[name])
        bound = rounding + half * (name in ("grad_queries", "grad_documents"))
        yield Comparison(name, float((error / terms[name]).max()), bound)


def _sizes(case: Case, q: torch.Tensor, d: torch.Tensor) -> dict[str, Any]:
    """What errors are relative to: the sums with every term made positive."""
    units = [torch.nn.functional.normalize(x, dim=1) for x in (q, d)]
    logits = units[0] @ units[1].T / 0.1 + case.bias
    signs = 2 * torch.eye(*logits.shape, dtype=torch.float64) - 1
    steps = torch.sigmoid(-signs * logits)
    norms = [x.norm(dim=1, keepdim=True) for x in (q, d)]
    largest = [x.abs().amax(1) for x in units]
    return {
        "loss": float(-torch.nn.functional.logsigmoid(signs * logits).sum()),
        "grad_queries": ((steps @ largest[1])[:, None] / norms[0] / 0.1).numpy() + 1e-30,
        "grad_documents": ((steps.T @ largest[0])[:, None] / norms[1] / 0.1).numpy() + 1e-30,
        "grad_temperature": float(steps.sum()) / 0.01,
        "grad_bias": float(steps.sum()),
    }


def same_bits(device: TorchDevice, dtype: str) -> Iterator[Comparison]:
    inputs = tuple(x.to(device.device) for x in make_inputs(REPEATED, dtype))

    def call() -> dict[str, Array]:
        device.poison()
        return outputs_of(REPEATED, inputs, "triton")

    yield from differing_bits(call, 5)
