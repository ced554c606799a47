"""Every element type of an operation in turn: `python bench/dtypes.py [--quick] [--only NAME]`.

The same numbers, rounded to each type, at sizes off the round numbers; losses, MaxSim and pooling
forward and backward, beside torch's formula in the same type. Errors are from the formula in
float64 on the rounded numbers, so they are of the arithmetic and of the result's own rounding. A
type whose error is too large fails the entry. Results of a complete run go to
bench/results/<machine>/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import _common
import dtypes_tables
import numpy as np
import tables
import torch
import torch.nn.functional as F
from _common import GateFailed, Json, Run, Target, interleave
from dtypes_tables import TORCH
from losses import Loss, normal, sigmoid_formula, step, worst
from topk_compare import gate
from topk_contenders import OfKind

import simtile
from simtile.reference import quantize_numpy

Result = tuple[Json, list[Target]]
Calls = dict[str, Callable[[], Any]]

FLOATS = ("float32", "float64", "bfloat16", "float16")
# Of a result that is rounded to the type once, relative to its largest number: some of its steps.
ALLOWED = {"float32": 2e-5, "float64": 1e-10, "bfloat16": 8e-3, "float16": 1e-3}
KINDS = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int4", "bits", "packed")
ROUNDS = 5
TEMPERATURE = 0.05


def measure(run: Run, ours: Calls, theirs: Calls, errors: dict[str, Json], **facts: Any) -> Result:
    """All types of both take turns."""
    calls = {
        **{f"simtile, {name}": call for name, call in ours.items()},
        **{f"{TORCH}, {name}": call for name, call in theirs.items()},
    }
    times, _ = interleave(calls, rounds=run.rounds(ROUNDS), threads=run.threads)
    return {
        **facts,
        "threads": run.threads,
        "errors": {f"{who}, {name}": e for who, own in errors.items() for name, e in own.items()},
        "times": {who: samples.json() for who, samples in times.items()},
    }, []


def differentiable(
    run: Run, loss: Loss, formula: Loss, inputs: list[torch.Tensor], **facts: Any
) -> Result:
    """Forward and backward in all floats."""
    ours: Calls = {}
    theirs: Calls = {}
    errors: dict[str, Json] = {"simtile": {}, TORCH: {}}
    for name in FLOATS:
        rounded = [x.to(getattr(torch, name)) for x in inputs]
        exact = step(formula, [x.double() for x in rounded])()
        for who, calls, function in (("simtile", ours, loss), (TORCH, theirs, formula)):
            calls[name] = step(function, rounded)
            errors[who][name] = worst(calls[name](), exact)
        if not errors["simtile"][name] <= ALLOWED[name]:
            found = errors["simtile"][name]
            raise GateFailed(f"{name}: error {found:.2g}, allowed {ALLOWED[name]:.2g}")
    return measure(run, ours, theirs, errors, what="forward and backward", **facts)


def pairs(run: Run) -> list[torch.Tensor]:
    n, dim = run.size(2051, 131), 389
    queries = normal(n, dim)
    return [queries, 0.5 * queries + normal(n, dim, seed=1)]


def info_nce(run: Run) -> Result:
    def formula(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        logits = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T / TEMPERATURE
        return F.cross_entropy(logits, torch.arange(len(queries)))

    def loss(*sides: torch.Tensor) -> torch.Tensor:
        return simtile.info_nce(*sides, temperature=TEMPERATURE, threads=run.threads)

    inputs = pairs(run)
    return differentiable(run, loss, formula, inputs, n=len(inputs[0]), dim=inputs[0].shape[1])


def siglip(run: Run) -> Result:
    def loss(*sides: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = simtile.siglip_loss(*sides, threads=run.threads)
        return found

    inputs = pairs(run)
    n, dim = inputs[0].shape
    return differentiable(run, loss, sigmoid_formula, inputs, n=n, dim=dim)


def uniformity(run: Run) -> Result:
    """Times N, as a scaled loss would be: a row's gradient is so small that float16 has few bits
    left for it."""
    x = pairs(run)[0] + 1.0  # a common direction: not all distances are alike
    n, dim = x.shape

    def formula(x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(x, dim=1)
        potential = (-2.0 * (2.0 - 2.0 * (unit @ unit.T))).exp()
        return n * ((potential.sum() - potential.diagonal().sum()) / (n * (n - 1))).log()

    def loss(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = n * simtile.uniformity(x, threads=run.threads)
        return found

    return differentiable(run, loss, formula, [x], n=n, dim=dim)


def maxsim(run: Run) -> Result:
    count, dim = run.size(33, 7), 129
    queries, documents = (
        F.normalize(normal(count, length, dim, seed=seed), dim=-1)
        for seed, length in enumerate((31, 173))
    )

    def formula(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return torch.einsum("qid,njd->qnij", q, d).amax(-1).sum(-1).square().mean()

    def loss(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return simtile.maxsim(q, d, threads=run.threads).square().mean()  # type: ignore[no-any-return]

    sizes = {"queries": count, "documents": count, "dim": dim}
    return differentiable(run, loss, formula, [queries, documents], **sizes)


def pool(run: Run) -> Result:
    """The mean of all tokens, as a unit vector."""
    rows, length, dim = run.size(129, 9), 131, 389
    tokens = normal(rows, length, dim)
    weights = normal(rows, dim, seed=1).double()

    def formula(x: torch.Tensor) -> torch.Tensor:
        return (F.normalize(x.mean(dim=1), dim=1) * weights).sum()

    def loss(x: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = simtile.pool(x, None, threads=run.threads)
        return (vectors * weights).sum()

    return differentiable(run, loss, formula, [tokens], rows=rows, length=length, dim=dim)


def quantize(run: Run) -> Result:
    """From each type to int8 with a scale for each vector."""
    n, dim = run.size(50_021, 1_009), 389
    calls: Calls = {}
    for name in FLOATS:
        x = normal(n, dim).to(getattr(torch, name))

        def call(x: torch.Tensor = x) -> Any:
            return simtile.quantize(x, "int8_vector", threads=run.threads)

        found = call()
        # bfloat16 as float32, which holds the same numbers
        exact = (x.float() if name == "bfloat16" else x).numpy()
        codes, scale, _ = quantize_numpy.quantize(exact, "int8_vector")
        if not (np.array_equal(found.codes, codes) and np.array_equal(found.scale, scale)):
            raise GateFailed(f"{name}: other codes than the definition's")
        calls[name] = call
    return measure(run, calls, {}, {}, n=n, dim=dim)


def topk(run: Run) -> Result:
    """Documents of each kind; what is found is the definition's to the last bit."""
    n, dim, queries, k = run.size(50_021, 1_009), 389, 11, 10
    calls: Calls = {}
    for kind in KINDS:
        corpus = OfKind(kind, n, dim, queries, run.threads)
        gate(corpus, queries, k)

        def call(corpus: OfKind = corpus) -> Any:
            return corpus.simtile(queries, k)

        calls[kind] = call
    return measure(run, calls, {}, {}, n=n, dim=dim, queries=queries, k=k)


ENTRIES = {
    "info_nce": info_nce,
    "siglip": siglip,
    "uniformity": uniformity,
    "maxsim": maxsim,
    "pool": pool,
    "quantize": quantize,
    "topk": topk,
}


def main() -> int:
    arguments = _common.parser("Benchmark every element type.", ENTRIES).parse_args()
    torch.set_num_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "dtypes", ENTRIES, arguments, _common.machine(), dtypes_tables.entry, tables.targets
    )


if __name__ == "__main__":
    sys.exit(main())
