"""maxsim in Triton (kernels/maxsim/triton*.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. Scores and gradients are held to the NumPy oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import triton_hosts
from _ptx import SECTOR, Run
from _ptx_triton import Counts, Launch, Launches, options_of, up
from ahead_of_time import triton_cache
from info_nce_cases import as_tensor
from maxsim_calls import Form
from maxsim_cases import Case
from simtile.kernels.maxsim import triton_configs as configs
from tolerances import ROUNDOFF, ROUNDOFFS

from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Options
from simtile.ops import maxsim_triton
from simtile.reference import maxsim_numpy as oracle


class Call(NamedTuple):
    name: str
    case: Case
    dtype: str
    requirements: bool = True  # False where rows begin between sectors, or are few


def case(
    queries: Any, documents: Any, dim: int, masks: Any = ("absent",) * 2, **options: Any
) -> Any:
    return Case(queries, documents, dim, "random", masks, options)


CALLS = (
    Call("bf16, 1 query", case((32,), (180, 180, 180), 128), "bfloat16"),
    Call("bf16, 4 queries", case((32,) * 4, (180, 180), 128), "bfloat16"),
    Call("fp16, normalize", case((32,) * 2, (64, 64), 128, normalize=True), "float16"),
    Call("bf16, smooth", case((32,) * 2, (64, 64), 128, temperature=0.5), "bfloat16"),
    Call("fp32", case((32,), (64, 64), 128), "float32"),
    Call("fp32, 4 queries", case((32,) * 4, (64,), 128), "float32"),
    Call("bf16, masks", case((32, 31), (100, 7), 128, ("holes", "holes")), "bfloat16", False),
    Call("fp16, odd", case((7, 3), (33, 9), 111, zero_rows="pad"), "float16", False),
    Call("fp32, 1 x 1", case((1,), (1,), 1), "float32", False),
)


def expected(launch: Launch, size: int, ends: list[int]) -> Counts:
    """`size` bytes of an element; `ends` of the documents."""
    a = options_of(launch)
    warps, programs = launch.options["num_warps"], int(np.prod(launch.grid))
    units = int(size == 2)
    factors = 4 * a.get("normalize", 0)
    if launch.name == "prepare":
        row = up(a["dim"] * size, SECTOR)
        return Counts(programs * (2 * row + a["operand_stride"] * size + 2 * SECTOR), 0)
    if launch.name == "finish":
        return Counts(programs * (a["width"] * (2 * size + 12) + 2 * SECTOR), 0)
    if launch.name == "tokens":
        return Counts(a["rows"] * (up(a["dim"] * size, SECTOR) + 1 + a["has_mask"]), 0)
    if launch.name == "sum_tokens":
        pairs = a["pairs"]
        scalars = (1 + a["length_normalize"]) * SECTOR
        return Counts(pairs * (4 * up(a["query_length"], 8) + 4 + scalars), 0)
    if launch.name == "scan":
        rows, dim = a["group_rows"], a["dim"]
        moved = operations = 0
        for end in ends * (programs // (a["tiles"] * len(ends))):
            steps = up(end, a["BJ"]) // a["BJ"]
            inner = up(dim, a["BK"])
            operations += a["tiles"] * steps * 2 * a["BJ"] * a["BQ"] * inner
            passes = 1 if a["WHOLE"] else steps
            moved += a["tiles"] * end * dim * size + rows * dim * size * passes
            # argmax and token scores; masks and factors; the end, by each warp
            moved += rows * (8 + a["has_query_mask"] + factors) + a["tiles"] * warps * SECTOR
            moved += a["tiles"] * warps * end * (a["has_document_mask"] + factors)
        return Counts(moved, operations * units)
    if launch.name == "query_gradients":
        pairs = a["rows"] * a["candidate_count"]
        across = launch.grid[1]
        # A document row for each row and candidate; its place, its weight, and its factor.
        scalars = across * (2 + a["length_normalize"] + a["normalize"]) * SECTOR
        return Counts(pairs * (a["dim"] * size + scalars) + a["rows"] * a["dim"] * 4, 0)
    length, dim, across = a["query_length"], a["dim"], launch.grid[1]
    if launch.name == "document_gradients":
        pairs = a["pairs"] * len(ends)
        steps = up(length, a["BQ"]) // a["BQ"]
        smooth = int(a["SMOOTH"])
        # Query rows, what they matched by each warp, and weights; with SMOOTH the products again.
        each = length * (dim * size + across * warps * (4 + 4 * smooth + factors))
        each += across * warps * SECTOR * (1 + a["length_normalize"])
        height = a["document_length"]
        each += smooth * across * steps * (min(height, a["BJ"]) + a["BQ"]) * dim * size
        operations = steps * across * 2 * a["BJ"] * a["BQ"] * a["BO"] * (1 + a["SPLIT"])
        operations += smooth * across * steps * 2 * a["BJ"] * a["BQ"] * up(dim, a["BK"])
        moved = pairs * a["tiles"] * each + len(ends) * height * dim * 4
        return Counts(moved, pairs * a["tiles"] * operations * units)
    assert launch.name == "smooth_query_gradients"
    moved = a["group_rows"] * dim * 4
    operations = 0
    for end in ends:
        steps = up(end, a["BJ"]) // a["BJ"]
        # The products again, for each part of the dimensions; then rows of the document.
        moved += a["tiles"] * across * (end + steps * a["BQ"]) * dim * size
        moved += a["tiles"] * end * dim * size
        moved += a["group_rows"] * across * 16 * warps
        products = a["BJ"] * a["BQ"] * (up(dim, a["BK"]) + a["BO"] * (1 + a["SPLIT"]))
        operations += a["tiles"] * across * steps * 2 * products
    return Counts(moved, operations * units)


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    form = Form(call.case, "padded", "padded", (call.dtype,) * 2)
    # Copies, because torch's memory begins at a sector, as a GPU's does.
    given = [None if x is None else as_tensor(x).clone() for x in form.arguments]
    masks = [None if m is None or m.all() else m for m in given[2:]]
    sides = [Given(n, x, None, m) for n, x, m in zip("qd", given[:2], masks, strict=True)]
    options = Options(
        call.case.options.get("normalize", False),
        call.case.options.get("zero_rows") == "pad",
        temperature=call.case.options.get("temperature", 0.0),
    )
    tiles = configs.config(f"sm{arch}", call.dtype)
    weights = call.case["grad_scores"]
    launches = Launches(interp, arch, order)
    with triton_cache(), triton_hosts.intercepted("maxsim", launches):
        found = maxsim_triton.forward(
            *sides, None, options, argmax=True, token_scores=True, tiles=tiles
        )
        values = found.token_scores if options.temperature else None
        grads = maxsim_triton.backward(
            *sides,
            None,
            options,
            torch.from_numpy(weights).float(),
            found.argmax,
            values,
            (True, True),
            tiles=tiles,
        )
    error, allowed = compared(form, found.scores, grads, weights)
    size = 4 if call.dtype == "float32" else 2
    ends = [int(np.flatnonzero(m)[-1]) + 1 if m.any() else 0 for m in form.document_mask]
    for launch, counters in launches.done:
        counts = expected(launch, size, ends)
        yield Run(
            name=call.name,
            kernel=launch.name,
            arch=arch,
            sizes={
                "Q": len(given[0]),
                "N": len(given[1]),
                "Lq": given[0].shape[1],
                "Ld": given[1].shape[1],
                "D": call.case.dim,
            },
            order=order,
            ok=error <= allowed,
            error=error,
            counters=counters,
            expected_global_bytes=counts.bytes,
            expected_flops=counts.operations,
            requirements=call.requirements,
        )


def compared(form: Form, scores: Any, grads: Any, weights: Any) -> tuple[float, float]:
    """The largest error, relative to the size of its terms, and what is allowed."""
    exact = form.oracle()
    size = exact.scale + len(form.wide[0][0]) * form.options.get("temperature", 0.0)
    worst = float((np.abs(scores.numpy() - exact.scores) / np.maximum(size, 1e-30)).max())
    allowed = ROUNDOFFS["maxsim.scores"] * ROUNDOFF["float32"]
    options = {n: x for n, x in form.options.items() if n != "empty_score"}
    right = oracle.maxsim_grad(*form.wide, weights, *form.case.mask_arrays, **options)
    for ours, side in zip(grads, right, strict=True):
        scale = max(np.abs(x).max(initial=0.0) for x in side)
        for grad, theirs in zip(ours.numpy(), side, strict=True):
            # Two numbers of 16 bits for each share of a smooth maximum.
            error = np.abs(grad[: len(theirs)] - theirs).max(initial=0.0) / max(scale, 1e-30)
            worst = max(worst, float(error) * allowed / 2.0**-17)
    return worst, allowed


def runs(interp: ModuleType) -> Iterator[Run]:
    for arch in (80, 120):
        for call in CALLS:
            for order in (0, 1, 7):
                yield from run(interp, call, arch, order)
