"""siglip in Triton (kernels/siglip/triton.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. Losses and gradients are held to the NumPy oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import siglip_cases
import tolerances
import triton_launches
import triton_worker
from _ptx import Run
from _ptx_triton import Counts, Launch, Launches, options_of, up
from ahead_of_time import triton_cache

from simtile.ops import siglip_triton


class Call(NamedTuple):
    name: str
    sizes: tuple[int, int, int]  # queries, dimensions, documents more than queries
    dtype: str
    drawn: dict[str, Any] = {}  # noqa: RUF012
    special: tuple[str, ...] = ()
    need: tuple[bool, bool] = (True, True)
    chunk_bytes: int = siglip_triton.CHUNK_BYTES
    requirements: bool = True  # False where rows begin between sectors, or are few


# Where training starts, and where all logits count.
EVEN = {"temperature": 0.3, "bias": -1.0}
CALLS = (
    Call("bf16", (128, 384, 64), "bfloat16"),
    Call("bf16, losses", (128, 384, 0), "bfloat16", need=(False, False)),
    Call("fp16", (128, 256, 0), "float16", EVEN),
    Call("fp32", (96, 128, 32), "float32", EVEN),
    Call("bf16, three chunks", (160, 256, 31), "bfloat16", EVEN, chunk_bytes=1),
    Call("fp32, documents", (70, 64, 3), "float32", EVEN, need=(False, True)),
    Call(
        "bf16 odd",
        (111, 115, 5),
        "bfloat16",
        {**EVEN, "normalize": False},
        ("duplicates", "zero rows"),
        requirements=False,
    ),
    Call("fp16 odd", (33, 65, 64), "float16", chunk_bytes=1, requirements=False),
    Call(
        "fp32, exponentials that vanish",
        (7, 9, 2),
        "float32",
        {"temperature": 1e-3, "bias": -300.0},
        requirements=False,
    ),
    Call("fp32 1 x 1", (1, 1, 0), "float32", requirements=False),
)


def expected(launch: Launch, size: int) -> Counts:
    """By the README's formulas; `size` bytes of an element."""
    a = options_of(launch)
    m, n, units = a["BM"], a["BN"], int(size == 2)
    rows, dim = a["rows"], a["dim"]
    if launch.name == "coefficients":
        documents = a["documents"]
        down, across = up(rows, m) // m, up(documents, n) // n
        operands = (across * rows + down * documents) * (dim * size + 4)
        written = across * rows * 12 + rows * documents * 4 * a["KEEP"]
        operations = down * across * 2 * m * n * up(dim, a["BK"])
        return Counts(operands + written, operations * units)
    assert launch.name == "products"
    depth = a["depth"]
    down, across = launch.grid
    operands = across * rows * depth * 4 + down * depth * (dim * size + 4 * across)
    gradients = rows * dim * 4 * (1 + a["accumulate"])
    operations = down * across * 2 * m * n * up(depth, a["BK"])
    return Counts(operands + gradients, operations * units)


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    queries, dimensions, bank = call.sizes
    case = siglip_cases.siglip_case(queries, dimensions, bank, 2, call.special, **call.drawn)
    case = siglip_cases.rounded(case, call.dtype)
    launches = Launches(interp, arch, order)
    with (
        triton_cache(),
        mock.patch.object(siglip_triton, "family", return_value=f"sm{arch}"),
        triton_launches.intercepted(siglip_triton, launches),
    ):
        result = triton_worker.siglip(
            case, call.dtype, call.need, small_tiles=False, chunk_bytes=call.chunk_bytes
        )
    comparisons = siglip_cases.compared(case, call.dtype, result, tolerances.TRITON)
    compared = list(tolerances.errors(comparisons, tolerances.TRITON, case.dimensions))
    ok = all(error <= allowed for error, allowed in compared)
    size = 4 if call.dtype == "float32" else 2
    for kernel, counters, counts in launches.by_kernel(lambda x: expected(x, size)):
        yield Run(
            name=call.name,
            kernel=kernel,
            arch=arch,
            sizes={"N": queries, "M": queries + bank, "D": dimensions},
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
