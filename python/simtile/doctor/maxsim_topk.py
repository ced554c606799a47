"""MaxSim's best documents on a GPU: those that sorting all scores of the same kernels gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import simtile
from simtile import _maxsim_select
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import Comparison

Array = npt.NDArray[Any]

KINDS = ("float32", "bfloat16", "int8", "binary")
CODES = ("int8", "binary")


@dataclass(frozen=True)
class Case:
    """The sizes of one call; documents have 0 to `longest` tokens, many of them the same."""

    queries: int
    query_length: int
    documents: int
    longest: int
    dim: int
    k: int
    candidates: int | None = None
    allow: bool = False
    seed: int = 0

    def __str__(self) -> str:
        sizes = f"{self.queries} x {self.query_length}, {self.documents} x <= {self.longest}"
        options = [] if self.candidates is None else [f"{self.candidates} candidates"]
        options += ["allow"] if self.allow else []
        return ", ".join([f"{sizes}, D = {self.dim}, k = {self.k}", *options])


CASES = (
    Case(1, 1, 1, 1, 1, 3),
    Case(3, 32, 6500, 5, 96, 10, allow=True, seed=1),
    Case(9, 17, 989, 60, 128, 1024, seed=2),
    Case(2, 32, 6500, 3, 64, 1500, seed=3),
    Case(5, 32, 400, 60, 128, 33, candidates=5000, allow=True, seed=4),
)


def make_inputs(case: Case) -> dict[str, Array]:
    """Few different tokens, so that there are equal scores; some documents are not numbers."""
    rng = np.random.default_rng(case.seed)
    lengths = rng.integers(0, case.longest + 1, case.documents)
    lengths[0] = case.longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    few = rng.standard_normal((7, case.dim)).astype(np.float32)
    inputs: dict[str, Array] = {
        "queries": rng.standard_normal((case.queries, case.query_length, case.dim), np.float32),
        "tokens": few[rng.integers(0, 7, offsets[-1])],
        "offsets": offsets,
    }
    if case.candidates is not None:
        shape = (case.queries, case.candidates)
        inputs["candidates"] = rng.integers(-1, case.documents, shape)
    if case.allow:
        inputs["allow"] = rng.random((case.queries, case.documents)) < 0.5
    return inputs


def values(device: TorchDevice, kind: str, case: Case) -> Iterator[Comparison]:
    """Ids and scores, which are compared exactly: both calls score a pair with the same bits."""
    inputs = make_inputs(case)
    tokens = _tokens(device, kind, inputs["tokens"])
    queries = device.upload(inputs["queries"])
    given: dict[str, Any] = {"backend": "cuda"}
    if "candidates" in inputs:
        given["ids"] = device.upload(inputs["candidates"])
    device.poison()
    scores = simtile.maxsim_packed(queries, tokens, inputs["offsets"], **given)
    allow = device.upload(inputs["allow"]) if "allow" in inputs else None
    device.poison()
    found = simtile.maxsim_packed(
        queries, tokens, inputs["offsets"], k=case.k, allow=allow, **given
    )
    expected = _maxsim_select.best(
        device.download(scores), inputs.get("candidates"), inputs.get("allow"), case.k
    )
    for name, x, y in zip(("scores", "ids"), found, expected, strict=True):
        yield Comparison(f"{name}, differing", int((device.download(x) != y).sum()), 0)


def _tokens(device: TorchDevice, kind: str, tokens: Array) -> Any:
    if kind in CODES:
        codes: Any = simtile.quantize(tokens, kind)  # type: ignore[arg-type]
        return codes.to(device.device)
    if kind == "bfloat16":
        return device.upload((tokens.view(np.uint32) >> 16).astype(np.uint16))
    return device.upload(tokens)
