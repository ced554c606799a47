"""pool in Triton (kernels/pool/triton.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. Vectors and gradients are held to the NumPy oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pool_cases
import tolerances
import triton_launches
import triton_worker
from _ptx import SECTOR, Run
from _ptx_triton import Counts, Launch, Launches, options_of, row, up
from ahead_of_time import triton_cache

from simtile.ops import pool_triton

Case = pool_cases.Case


class Call(NamedTuple):
    name: str
    case: Case
    backward: bool = False
    packed: bool = False
    widest: int | None = None  # as if no program had more columns
    requirements: bool = True  # False where rows begin between sectors, or are few


CALLS = (
    Call("mean fp32", Case(4, 40, 384, 384, "float32", mask="right")),
    Call("mean bf16", Case(4, 40, 768, 768, "bfloat16", weighted=True)),
    Call("mean fp16, dim 128 of 384", Case(6, 33, 384, 128, "float16", mask="holes")),
    Call("max fp32", Case(4, 40, 384, 384, "float32", "max", "left")),
    Call("max bf16", Case(4, 24, 768, 768, "bfloat16", "max")),
    Call("cls bf16", Case(9, 128, 768, 768, "bfloat16", "cls", "left")),
    Call("last fp32", Case(9, 128, 384, 384, "float32", "last", "right")),
    Call("mean fp32, packed", Case(5, 20, 256, 256, "float32", mask="holes"), packed=True),
    Call("mean bf16, three blocks", Case(3, 20, 384, 384, "bfloat16"), widest=128),
    Call("mean fp32", Case(4, 40, 384, 384, "float32", weighted=True, seed=1), backward=True),
    Call("mean bf16", Case(4, 40, 768, 768, "bfloat16"), backward=True),
    Call("max bf16", Case(4, 24, 768, 768, "bfloat16", "max", "holes"), backward=True),
    Call("last fp32", Case(4, 24, 384, 384, "float32", "last", "right"), backward=True),
    Call("mean fp16 odd", Case(3, 7, 115, 67, "float16", mask="holes"), requirements=False),
    Call(
        "mean fp32 odd",
        Case(3, 7, 45, 31, "float32", "mean", "left", True, layout="tokens apart"),
        backward=True,
        requirements=False,
    ),
    Call("max fp16, NaN", Case(2, 5, 33, 33, "float16", "max", values="nan"), requirements=False),
    Call("mean fp32 1 x 1 x 1", Case(1, 1, 1, 1, "float32"), requirements=False),
)


def expected(launch: Launch, case: Case, size: int) -> Counts:
    """By the README's formulas; `size` bytes of an element. No kernel multiplies matrices."""
    a = options_of(launch)
    programs, warps = int(np.prod(launch.grid)), launch.options["num_warps"]
    mask = case.mask_array()
    kept = case.rows * case.length if mask is None else int(mask.sum())
    dim, spans = case.dim, case.rows * case.length
    one = SECTOR * warps  # of a number that all of a program's threads read
    offsets = 2 * one * programs * a["packed"]
    if launch.name == "pooled":
        blocks = launch.grid[1]
        written = case.rows * dim * (size * a["WHOLE"] + 4)
        if case.how in ("mean", "max"):
            beside = spans * blocks * one * (a["masked"] + a["weighted"])
            places = case.rows * (4 * dim * (case.how == "max") + SECTOR)
            return Counts(kept * row(dim * size) + beside + written + places + offsets, 0)
        found = case.rows if mask is None else int(mask.any(1).sum())
        scanned = case.rows * blocks * up(case.length, a["SCAN"]) * a["masked"]
        places = case.rows * 2 * SECTOR
        return Counts(found * row(dim * size) + scanned + written + places + offsets, 0)
    if launch.name == "spread":
        pieces = launch.grid[1]
        grads = pieces * case.rows * dim * 4 * (1 + a["CHOSEN"])
        beside = 0 if a["CHOSEN"] else spans * launch.grid[2] * one
        return Counts(grads + beside + spans * row(case.width * size) + offsets, 0)
    assert launch.name == "dots"
    pieces = launch.grid[1]
    vectors = pieces * case.rows * dim * 4
    return Counts(kept * row(dim * size) + vectors + spans * (a["masked"] + 4) + offsets, 0)


def errors(call: Call, found: Any) -> float:
    """The largest distance from the oracle; AssertionError beyond what rounding explains."""
    case, arithmetic = call.case, tolerances.TRITON
    if not call.backward:
        truth = pool_cases.oracle(case)
        pairs = [("pool.vectors", found[0], truth.vectors, truth.size, case.dtype)]
        if truth.positions is not None:
            np.testing.assert_array_equal(found[3], truth.positions)
    else:
        grads = pool_cases.oracle_grad(case)
        pairs = [("pool.grad_tokens", found[0], grads.tokens, grads.token_size, case.dtype)]
        if found[1] is not None:
            weights = ("pool.grad_weights", found[1], grads.weights, grads.weight_size, "float32")
            pairs.append(weights)
    largest = 0.0
    for name, ours, exact, scale, dtype in pairs:
        ours = ours.reshape(exact.shape)
        pool_cases.check(name, ours, exact, scale, dtype, arithmetic)
        difference = np.abs(ours.astype(np.float64) - exact)
        largest = max(largest, float(np.nanmax(difference, initial=0.0)))
    return largest


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    case = call.case
    launches = Launches(interp, arch, order)
    with triton_cache(), triton_launches.intercepted(pool_triton, launches):
        grad = case.grad() if call.backward else None
        found = triton_worker.pool(case, grad, "cpu", call.widest, call.packed)
    try:
        ok, error = True, errors(call, found)
    except AssertionError:
        ok, error = False, float("nan")
    size = 4 if case.dtype == "float32" else 2
    for kernel, counters, counts in launches.by_kernel(lambda x: expected(x, case, size)):
        if call.backward and kernel == "pooled":
            continue  # the forward's own calls have it
        yield Run(
            name=f"{call.name}, backward" if call.backward else call.name,
            kernel=kernel,
            arch=arch,
            sizes={"N": case.rows, "L": case.length, "D": case.width},
            order=order,
            ok=ok,
            error=error,
            counters=counters,
            expected_global_bytes=counts.bytes,
            expected_flops=0,
            requirements=call.requirements,
        )


def runs(interp: ModuleType) -> Iterator[Run]:
    for call in CALLS:
        for arch in (80, 120):
            for order in (0, 1, 7):
                yield from run(interp, call, arch, order)
