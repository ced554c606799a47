"""MaxSim on a GPU beside NumPy in float64: scores, what was matched, gradients by Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import simtile
from simtile.doctor.cpu import differing_bits
from simtile.doctor.device import TorchDevice
from simtile.doctor.info_nce import widen
from simtile.doctor.limits import ROUNDOFF, TRUNCATED_16
from simtile.doctor.results import Comparison
from simtile.reference import maxsim_numpy

Array = npt.NDArray[Any]

DTYPES = ("float32", "bfloat16", "float16")
# Roundoffs of float32 for a score's terms, as in the project's tests.
SCORES = 32.0
# Of a gradient's largest element: its shares of 16 bits are two numbers each.
GRADIENTS = 2.0**-17
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """The sizes of one call and what it has besides; both sides have masks with holes."""

    queries: int
    query_length: int
    documents: int
    document_length: int
    dim: int
    normalize: bool = False
    temperature: float | None = None
    seed: int = 0

    def __str__(self) -> str:
        sides = (self.queries, self.query_length), (self.documents, self.document_length)
        sizes = ", ".join(f"{count} x {length}" for count, length in sides)
        options = ["normalized"] if self.normalize else []
        options += [f"temperature {self.temperature}"] if self.temperature else []
        return ", ".join([f"{sizes}, D = {self.dim}", *options])


SMALL = (
    Case(1, 1, 1, 1, 1),
    Case(3, 32, 9, 180, 128, seed=1),
    Case(2, 33, 7, 111, 145, normalize=True, seed=2),
)
SMOOTH = Case(5, 31, 4, 989, 96, temperature=0.5, seed=3)  # which Triton alone has
REPEATED = Case(4, 32, 33, 180, 128, normalize=True, seed=4)


def cases(backend: str) -> tuple[Case, ...]:
    return (*SMALL, SMOOTH) if backend == "triton" else SMALL


def make_inputs(case: Case, dtype: str) -> dict[str, Array]:
    """Queries, documents, their masks and the scores' gradient; bfloat16 as uint16 bits."""
    rng = np.random.default_rng(case.seed)
    shapes = {
        "queries": (case.queries, case.query_length, case.dim),
        "documents": (case.documents, case.document_length, case.dim),
    }
    inputs: dict[str, Array] = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape, np.float32)
        if dtype == "bfloat16":
            inputs[name] = (x.view(np.uint32) >> 16).astype(np.uint16)
        else:
            inputs[name] = x.astype(dtype)
        inputs[f"{name}_mask"] = rng.random(shape[:2]) < 0.8
    inputs["documents_mask"][:, 0] = True
    inputs["grad_scores"] = rng.standard_normal((case.queries, case.documents), np.float32)
    return inputs


def values(device: TorchDevice, backend: str, dtype: str, case: Case) -> Iterator[Comparison]:
    """Scores and token scores, and gradients by Triton, relative to the size of their terms."""
    inputs = make_inputs(case, dtype)
    device.poison()
    outputs = run(device, backend, case, inputs)
    wide = [widen(inputs[name]) for name in ("queries", "documents")]
    masks = [inputs["queries_mask"], inputs["documents_mask"]]
    options: dict[str, Any] = {"normalize": case.normalize, "temperature": case.temperature}
    exact = maxsim_numpy.maxsim(wide[0], wide[1], *masks, **options)
    scale = exact.scale + case.query_length * (case.temperature or 0.0)
    # CUDA's float32 is up to six products of 16 bits for one.
    products = 1 if dtype != "float32" else 6 if backend == "cuda" else 0
    truncated = products * TRUNCATED_16 * case.dim / 16
    allowed = (SCORES + truncated) * ROUNDOFF["float32"]
    terms = np.array(exact.token_scores)
    matched = np.array(exact.argmax)
    error = np.abs(outputs["scores"] - exact.scores) / np.maximum(scale, 1e-30)
    yield Comparison("scores", float(error.max()), allowed)
    error = np.abs(outputs["token_scores"] - terms) / np.maximum(scale, 1e-30)[..., None]
    yield Comparison("token_scores", float(error.max()), allowed)
    # Where it is another row, its product is as large but for rounding.
    absent = int(((outputs["argmax"] < 0) != (matched < 0)).sum())
    yield Comparison("argmax, tokens without one", absent, 0)
    if backend != "triton":
        return
    right = maxsim_numpy.maxsim_grad(wide[0], wide[1], inputs["grad_scores"], *masks, **options)
    rounding = 0.0 if dtype == "float32" else ROUNDOFF[dtype]
    for name, theirs in (("queries", right.queries), ("documents", right.documents)):
        expected = np.array(theirs)
        largest = max(float(np.abs(expected).max()), 1e-30)
        error = np.abs(outputs[f"grad_{name}"] - expected) / largest
        yield Comparison(f"grad_{name}", float(error.max()), GRADIENTS + rounding)


def same_bits(device: TorchDevice, backend: str, dtype: str) -> Iterator[Comparison]:
    inputs = make_inputs(REPEATED, dtype)

    def call() -> dict[str, Array]:
        device.poison()
        return run(device, backend, REPEATED, inputs)

    yield from differing_bits(call, REPEATS)


def run(
    device: TorchDevice, backend: str, case: Case, inputs: dict[str, Array]
) -> dict[str, Array]:
    """Outputs by name; gradients by Triton only."""
    given = {name: device.upload(x) for name, x in inputs.items()}
    queries, documents = given["queries"], given["documents"]
    if backend == "triton":
        queries.requires_grad_()
        documents.requires_grad_()
    named: Any = backend
    found = simtile.maxsim(
        queries,
        documents,
        given["queries_mask"],
        given["documents_mask"],
        normalize=case.normalize,
        temperature=case.temperature,
        return_argmax=True,
        return_token_scores=True,
        backend=named,
    )
    outputs = dict(zip(("scores", "argmax", "token_scores"), found, strict=True))
    if backend == "triton":
        found[0].backward(given["grad_scores"])
        outputs |= {"grad_queries": queries.grad, "grad_documents": documents.grad}
    return {name: device.download(x) for name, x in outputs.items()}
