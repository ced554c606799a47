"""info_nce with more directions, hardness, a guide and a margin on a GPU, beside the CPU's float64.

A candidate whose similarity is a rounding away from a threshold may be left out by one and not by
the other. The inputs, the same in every run, have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import simtile
from simtile.doctor import limits
from simtile.doctor.cpu import differing_bits
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import Comparison

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """The sizes and options of one call."""

    name: str
    queries: int
    dim: int
    options: dict[str, Any]
    guided: bool = False
    negatives: int = 0
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.queries} x {self.dim}"


EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
CASES = (
    Case("both directions", 111, 65, {"directions": EVERY[::2], "partition": "per_direction"}),
    Case("joint, margin", 300, 384, {"directions": EVERY, "false_negative_margin": 0.1}, seed=1),
    Case("guide", 333, 768, {"directions": EVERY, "guide_margin": 0.1}, True, 1, seed=2),
    Case(
        "own negatives, hardness",
        129,
        64,
        {"negatives_scope": "own", "hardness": "all_negatives", "hardness_strength": 4.0},
        True,
        5,
        seed=3,
    ),
)
REPEATED = Case("guide", 1001, 333, {"directions": EVERY}, True, 1, seed=4)


def make_inputs(case: Case, dtype: str) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Queries, documents and negatives in the element type, and the guide's; on the CPU.

    Every third pair is about the same as the one before, so that there is something for the
    thresholds to leave out.
    """
    rng = np.random.default_rng(case.seed)
    n, k = case.queries, case.negatives

    def made(dim: int) -> list[torch.Tensor]:
        of = np.arange(n) - (np.arange(n) % 3 == 2)
        centre = rng.standard_normal((n, dim))[of]
        found = [centre + 0.02 * rng.standard_normal((n, dim))]
        found.append(centre + 0.5 * rng.standard_normal((n, dim)))
        found.append(rng.standard_normal((n, k, dim)))
        return [torch.from_numpy(x).to(getattr(torch, dtype)) for x in found[: 2 + bool(k)]]

    return made(case.dim), tuple(made(2 * case.dim)) if case.guided else ()


def run(case: Case, inputs: Any, guide: Any, backend: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Losses and gradients of their mean as float64 arrays of the CPU."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    options = {**case.options, "guide": guide or None}
    losses = simtile.info_nce(*leaves, backend=backend, reduction="none", **options)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    names = ("grad_queries", "grad_documents", "grad_negatives")
    found = {"losses": losses.detach()}
    for name, leaf in zip(names, leaves, strict=False):
        assert leaf.grad is not None
        found[name] = leaf.grad
    return {name: x.double().cpu().numpy() for name, x in found.items()}


def values(device: TorchDevice, dtype: str, case: Case) -> Iterator[Comparison]:
    inputs, guide = make_inputs(case, dtype)
    wide = [x.double() for x in inputs], tuple(x.double() for x in guide)
    expected = run(case, *wide, "cpu")
    device.poison()
    there = [x.to(device.device) for x in inputs], tuple(x.to(device.device) for x in guide)
    found = run(case, *there, "triton")
    # A logit of size 1 / temperature is rounded by what matrix units cut off, with every product.
    roundoff = limits.ROUNDOFF["float32"] * (16 + case.dim / 16)
    roundoff *= 1.0 / 0.05 + case.options.get("hardness_strength", 0.0)
    for name, value in expected.items():
        size = 1.0 if name == "losses" else float(np.sqrt(np.square(value).mean())) or 1e-30
        difference = np.abs(found[name] - value)
        if dtype == "float16" and name != "losses":  # half of its least step
            difference = np.maximum(difference - 2.0**-25, 0.0)
        error = np.sqrt(np.square(difference).mean()) / size
        # Coefficients are rounded to the element type, and so are its gradients.
        narrow = 0.0 if name == "losses" or dtype == "float32" else 4.0 * limits.ROUNDOFF[dtype]
        yield Comparison(name, float(error), roundoff + narrow)


def same_bits(device: TorchDevice, dtype: str) -> Iterator[Comparison]:
    inputs, guide = make_inputs(REPEATED, dtype)
    there = [x.to(device.device) for x in inputs], tuple(x.to(device.device) for x in guide)

    def call() -> dict[str, np.ndarray[Any, Any]]:
        device.poison()
        return run(REPEATED, *there, "triton")

    yield from differing_bits(call, 5)
