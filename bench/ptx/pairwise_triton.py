"""pairwise in Triton (kernels/pairwise/triton.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. Chosen pairs must be as hard as any, up to the rounding of a
product; the loss and gradients of those pairs, and uniformity, are held to the NumPy oracle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pairwise_cases
import tolerances
import triton_launches
import triton_worker
from _ptx import SECTOR, Run
from _ptx_triton import Counts, Launch, Launches, on_sectors, options_of, up
from ahead_of_time import triton_cache

from simtile._pairwise import Hardest
from simtile.ops import pairwise_triton
from simtile.reference import pairwise_numpy as oracle

Case = pairwise_cases.Case


class Call(NamedTuple):
    name: str
    case: Case
    requirements: bool = True  # False where rows begin between sectors, or are few


CALLS = (
    Call("bf16", Case(200, 384, "bfloat16", normalize=True, labels=9)),
    Call("fp16, cosine", Case(128, 256, "float16", metric="cosine", labels=9)),
    Call("fp32", Case(96, 128, "float32", labels=9)),
    Call("bf16, equal rows", Case(128, 384, "bfloat16", special="equal", labels=2)),
    Call("bf16 odd", Case(111, 115, "bfloat16", special="mixed", labels=5), False),
    Call("fp16 odd", Case(33, 65, "float16", True, "squared_euclidean", special="zeros"), False),
    Call("fp32 huge", Case(33, 40, "float32", True, special="huge", layout="padded"), False),
    Call("fp32, labels of one", Case(7, 9, "float32", labels=1000, t=10.0), False),
    Call("fp32 2 x 1", Case(2, 1, "float32", labels=1), False),
)


def expected(launch: Launch, size: int) -> Counts:
    """By the README's formulas; `size` bytes of an element."""
    a = options_of(launch)
    rows, dim, programs = a["rows"], a["dim"], launch.grid[0]
    if launch.name == "gather_chosen":
        warps, across = launch.options["num_warps"], launch.grid[1]
        pairs = int(a["starts"][rows])
        # Rows: its own, the two that it chose, those that chose it. Numbers, by each warp: of the
        # row its factor, both chosen twice, their coefficients and factors, where its list begins
        # and ends; of a pair in the list its row, coefficient and factor.
        numbers = across * warps * SECTOR * (rows * 11 + pairs * 3)
        return Counts((3 * rows + pairs) * dim * size + rows * dim * 8 + numbers, 0)
    m, n = a["BM"], a["BN"]
    steps, units = up(rows, n) // n, int(size == 2)
    # A tile of rows is read again for each tile of columns, as is what belongs to a column.
    of_column = {"hardest": 16, "exponent_sums": 8, "potential_gradients": 8}[launch.name]
    operands = (steps * rows + programs * rows) * dim * size + programs * rows * of_column
    operations = programs * steps * 2 * m * n * up(dim, a["BK"])
    if launch.name != "potential_gradients":
        return Counts(operands + 20 * rows, operations * units)
    across = launch.grid[1]
    values = programs * rows * dim * size
    moved = across * (operands + 12 * rows) + values + rows * dim * 4
    return Counts(moved, across * (operations + programs * steps * 2 * m * n * a["BD"]) * units)


def results(call: Call, x: Any) -> Iterator[tuple[float, float]]:
    """The losses' errors and what is allowed, while their launches are executed."""
    case, labels = call.case, call.case.label_array

    def by_kernels(name: str, options: dict[str, Any], labels: Any = None) -> Any:
        return triton_worker.pairwise(name, x, options, labels, small_tiles=False)

    shared = {"metric": case.metric, "normalize": case.normalize}
    positive, negative, distances = by_kernels("hardest", shared, labels)
    try:
        pairwise_cases.check_hardest(case, Hardest(positive, negative, *distances))
        yield 0.0, 0.0
    except AssertionError:
        yield math.inf, 0.0
    options = {**shared, "margin": case.margin, "skip_missing": True}
    loss, grad = by_kernels("batch_hard_triplet", {**options, "need_grad": True}, labels)
    exact = oracle.batch_hard_triplet_loss(
        pairwise_cases.wide(case.x), labels, **options, chosen=(positive, negative)
    )
    yield abs(float(loss) - exact.loss) / max(abs(exact.loss), 1e-24), 1e-6
    name, scale = "pairwise.grad_chosen", exact.grad_scale
    chosen = [(name, grad, exact.grad, scale, case.dtype, 1.0)]
    yield from tolerances.errors(chosen, tolerances.TRITON, case.dimensions)
    options = {"t": case.t, "normalize": case.normalize, "need_grad": True}
    found = by_kernels("uniformity", options)
    comparisons = pairwise_cases.uniformity_compared(case, *found)
    yield from tolerances.errors(comparisons, tolerances.TRITON, case.dimensions)


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    case = call.case
    launches = Launches(interp, arch, order)
    x = on_sectors(interp, case.x) if case.layout == "contiguous" else case.x
    with (
        triton_cache(),
        mock.patch.object(pairwise_triton, "family", return_value=f"sm{arch}"),
        triton_launches.intercepted(pairwise_triton, launches),
    ):
        compared = list(results(call, x))
    ok = all(error <= allowed for error, allowed in compared)
    size = 4 if case.dtype == "float32" else 2
    for kernel, counters, counts in launches.by_kernel(lambda x: expected(x, size)):
        yield Run(
            name=call.name,
            kernel=kernel,
            arch=arch,
            sizes={"N": case.rows, "D": case.dimensions},
            order=order,
            ok=ok,
            error=float(max(error for error, _ in compared)),
            counters=counters,
            expected_global_bytes=counts.bytes,
            expected_flops=counts.operations,
            requirements=call.requirements,
        )


def runs(interp: ModuleType) -> Iterator[Run]:
    for call in CALLS:
        for arch in (80, 120):
            for order in (0, 1, 7):
                yield from run(interp, call, arch, order)
