"""Inputs of info_nce for the doctor, what it should give on them, and how the two are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._contrast import SCOPES, Contrast
from simtile._info_nce_run import run
from simtile.doctor import limits
from simtile.doctor.results import Comparison
from simtile.reference import info_nce_numpy

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """The sizes and options of one call; the data comes from the seed."""

    queries: int  # N
    documents: int  # M
    dimensions: int  # D
    negatives: int = 0  # K
    own: bool = False
    targets: bool = False
    ids: bool = False
    normalize: bool = True
    temperature: float = 0.05
    seed: int = 0

    def __str__(self) -> str:
        sizes = f"{self.queries} x {self.documents} x {self.dimensions}"
        negatives = f"{self.negatives} {'own ' if self.own else ''}negatives"
        options = [negatives] if self.negatives else []
        options += [name for name in ("targets", "ids") if getattr(self, name)]
        options += [] if self.normalize else ["not normalized"]
        return ", ".join([sizes, *options])


# Sizes that are no multiple of any tile, 1 among them, with every option somewhere.
SMALL = (
    Case(1, 1, 1),
    Case(7, 9, 3, 2, ids=True),
    Case(33, 40, 111, 1, own=True, targets=True, seed=1),
    Case(111, 111, 515, seed=2),
    Case(64, 64, 384, normalize=False, temperature=1.0, seed=3),
    Case(989, 1001, 65, ids=True, temperature=0.02, seed=4),
)


@dataclass(frozen=True)
class Inputs:
    """Arrays of one call, as stored (bfloat16 as uint16 bits) and as the float64 values of that."""

    stored: dict[str, Array]
    values: dict[str, Array]
    targets: npt.NDArray[np.int64] | None
    query_ids: npt.NDArray[np.int64] | None
    document_ids: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class Exact:
    """What is right, with the size of the terms of each element (or of all)."""

    values: dict[str, Array]
    scales: dict[str, Array]
    largest: dict[str, Array]  # what a row of a gradient could be at most, for the same outputs
    condition: float
    dimensions: int
    root_mean_square: bool  # errors over the whole output, not of the worst element


def make_inputs(case: Case, dtype: str) -> Inputs:
    """Random queries, documents near theirs, negatives; integers as the case asks."""
    rng = np.random.default_rng(case.seed)
    n, m, d, k = case.queries, case.documents, case.dimensions, case.negatives
    targets = rng.integers(m, size=n) if case.targets else None
    documents = rng.standard_normal((m, d), np.float32)
    queries = rng.standard_normal((n, d), np.float32)
    queries += documents[np.arange(n) if targets is None else targets]
    drawn = {"queries": queries, "documents": documents}
    if k:
        drawn["negatives"] = rng.standard_normal((n, k, d), np.float32)
    if not case.normalize:  # logits of the size of cosines over a temperature
        drawn = {name: x / np.float32(np.sqrt(d)) for name, x in drawn.items()}
    stored = {name: _store(x, dtype) for name, x in drawn.items()}
    return Inputs(
        stored,
        {name: widen(x) for name, x in stored.items()},
        targets,
        rng.integers(5, size=n) if case.ids else None,
        rng.integers(5, size=m) if case.ids else None,
    )


def _store(x: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> 16) & 1)  # ties to even
    rounded: Array = (bits + half) >> 16
    return rounded.astype(np.uint16)


def widen(x: Array) -> Array:
    """In float64; uint16 are the bits of bfloat16."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def run_cpu(case: Case, inputs: Inputs, dtype: str, threads: int = 0) -> dict[str, Array]:
    """Losses, and gradients of their mean, by the CPU kernel; `inputs` as stored."""
    arrays = inputs.values if dtype == "float64" else inputs.stored
    result = run(
        arrays["queries"],
        arrays["documents"],
        arrays.get("negatives"),
        dtype,
        case.temperature,
        case.normalize,
        inputs.targets,
        inputs.query_ids,
        inputs.document_ids,
        (),
        Contrast(scope=SCOPES["own" if case.own else "all"]),
        1.0 / case.queries,
        None,
        (True, True, bool(case.negatives)),
        False,
        "cpu",
        threads,
    )
    outputs = {
        "losses": result.losses,
        "grad_queries": result.grad_queries,
        "grad_documents": result.grad_documents,
        "grad_negatives": result.grad_negatives,
        "grad_temperature": np.float64(result.grad_temperature),
    }
    return {name: np.asarray(value) for name, value in outputs.items() if value is not None}


def exact(case: Case, inputs: Inputs) -> Exact:
    """By the float64 reference, which keeps the whole matrix: for small sizes."""
    oracle = info_nce_numpy.info_nce_grad(
        inputs.values["queries"],
        inputs.values["documents"],
        inputs.values.get("negatives"),
        temperature=case.temperature,
        normalize=case.normalize,
        targets=inputs.targets,
        negatives_scope="own" if case.own else "all",
        query_ids=inputs.query_ids,
        document_ids=inputs.document_ids,
        row_weights=np.full(case.queries, 1 / case.queries),
    )
    rows = (
        ("losses", oracle.losses, 1.0),
        ("grad_queries", oracle.queries, oracle.query_scale[..., None]),
        ("grad_documents", oracle.documents, oracle.document_scale[..., None]),
        ("grad_temperature", oracle.temperature, oracle.temperature_scale),
    )
    values = {name: np.asarray(value) for name, value, _ in rows}
    scales = {name: np.asarray(scale) for name, _, scale in rows}
    if oracle.negatives is not None and oracle.negative_scale is not None:
        values["grad_negatives"] = oracle.negatives
        scales["grad_negatives"] = oracle.negative_scale[..., None]
    # A logit is rounded by a share of its terms; equal candidates are rounded alike, so that the
    # roundings of a long sum may add up.
    terms = max(case.queries, case.documents + case.negatives * case.queries)
    condition = (1.0 + oracle.logit_scale) * (1.0 + terms / 200)
    largest = _largest_terms(case, inputs)
    return Exact(values, scales, largest, condition, case.dimensions, root_mean_square=False)


def _largest_terms(case: Case, inputs: Inputs) -> dict[str, Array]:
    """Of each row of a gradient: the term if one candidate had all of the probability."""
    norms = {name: np.linalg.norm(x, axis=-1) for name, x in inputs.values.items()}
    if case.normalize:
        terms = {name: 1.0 / np.maximum(x, 1e-12) for name, x in norms.items()}
    else:
        most = {name: x.max() for name, x in norms.items()}
        query = most.pop("queries")
        terms = {name: np.full(norms[name].shape, query) for name in most}
        terms["queries"] = np.full(norms["queries"].shape, max(most.values()))
    weight = 1.0 / (case.queries * case.temperature)
    return {f"grad_{name}": (weight * x)[..., None] for name, x in terms.items()}


def exact_by_cpu(case: Case, inputs: Inputs) -> Exact:
    """By the CPU kernel in float64: for sizes whose matrix should not be stored.

    There the terms' sizes are not known, and errors are taken over a whole output.
    """
    values = run_cpu(case, inputs, "float64")
    scales = {name: np.asarray(np.sqrt(np.square(x).mean())) for name, x in values.items()}
    scales["losses"] = np.asarray(1.0)
    largest = 1.0 if case.normalize else _largest_product(inputs)
    condition = 1.0 + largest / case.temperature
    return Exact(values, scales, {}, condition, case.dimensions, root_mean_square=True)


def _largest_product(inputs: Inputs) -> float:
    largest = [np.linalg.norm(x, axis=-1).max() for x in inputs.values.values()]
    return float(largest[0] * max(largest[1:]))


def compare(
    outputs: Mapping[str, Array],
    expected: Exact,
    arithmetic: limits.Arithmetic,
    smallest: float = 1e-37,
) -> Iterator[Comparison]:
    """Each output with its error, relative to the size of its terms, and what is allowed.

    Up to `smallest`, a difference is what the result's type cannot hold.
    """
    for name, found in outputs.items():
        output = name.rpartition(".")[2]  # "none.grad_queries" is compared as "grad_queries"
        value, scale = expected.values[output], expected.scales[output]
        scale = np.maximum(scale, arithmetic.smallest * expected.largest.get(output, 0.0))
        if np.shape(found) != value.shape:
            raise RuntimeError(f"{name}: shape {np.shape(found)}, expected {value.shape}")
        difference = np.abs(np.asarray(found, np.float64) - value) - smallest
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.where(difference <= 0.0, 0.0, difference / scale)
        error = np.sqrt(np.square(errors).mean()) if expected.root_mean_square else errors.max()
        allowed = limits.allowed(output, arithmetic, expected.condition, expected.dimensions)
        yield Comparison(name, float(error), allowed)
