"""info_nce in Triton (kernels/info_nce/triton*.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. A kernel's counts are those of all its launches in the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import info_nce_backends
import info_nce_cases
import tolerances
import triton_hosts
from _ptx import SECTOR, Run
from _ptx_triton import Counts, Launch, Launches, options_of, row, up
from ahead_of_time import triton_cache
from simtile.kernels.info_nce import triton_configs as configs

from simtile.ops import info_nce_triton_call

Case = info_nce_cases.Case


class Call(NamedTuple):
    name: str
    case: Any
    precision: str = "ieee"
    chunk_bytes: int | None = None  # None: as the host code has it
    # Kernels that are there for their results only: where a size is so small that the sector
    # decides, and `prepare` where rows of odd length begin between sectors.
    not_held: tuple[str, ...] = ()


def case(*sizes: int, dtype: str = "bfloat16", **options: Any) -> Any:
    # A temperature at which all candidates count.
    return Case(*sizes, dtype=dtype, **{"temperature": 0.3, **options})


RAGGED = ("prepare",)
TINY = (
    "prepare",
    "scores",
    "row_losses",
    "coefficients",
    "products",
    "finish",
    "own_scores",
    "own_gradients",
)
CALLS = (
    Call("bf16", case(250, 250, 768)),
    Call("fp16, negatives", case(125, 128, 384, 1, dtype="float16", ids=True)),
    Call("fp32 ieee", case(250, 250, 384, dtype="float32")),
    Call("fp32 tf32", case(250, 250, 384, dtype="float32"), "tf32"),
    Call("fp32 tf32x3", case(250, 250, 384, dtype="float32"), "tf32x3"),
    Call("bf16, own negatives", case(120, 128, 256, 5, own=True, targets=True)),
    Call("bf16, two chunks", case(500, 250, 64, targets=True, row_weights=True), chunk_bytes=1),
    Call("bf16 odd", case(111, 200, 515, 1), not_held=RAGGED),
    Call("fp16 odd", case(33, 989, 111, 3, dtype="float16", layout="padded rows"), not_held=RAGGED),
    Call("fp32 odd", case(7, 9, 5, 2, dtype="float32", own=True, ids=True), not_held=TINY),
    Call("fp32 1 x 1", case(1, 1, 1, dtype="float32"), not_held=TINY),
    Call(
        "fp32 huge, tiny",
        case(33, 40, 130, dtype="float32", special=("huge rows", "tiny rows"), targets=True),
        "tf32x3",
        not_held=RAGGED,
    ),
)


def on_units(dtype: str, precision: str) -> int:
    """Products on the matrix units for one of the operands' type."""
    return {"ieee": int(dtype != "float32"), "tf32": 1, "tf32x3": 3}[precision]


def expected(launch: Launch, dtype: str, precision: str) -> Counts:
    a = options_of(launch)
    size = 4 if dtype == "float32" else 2
    units = on_units(dtype, precision)
    programs = launch.grid[0]
    if launch.name == "prepare":
        # Twice the row: for its norm, and to scale it; then the operand and two factors.
        source, stored = a["rows"] * row(a["dim"] * size), row(a["operand_stride"] * size)
        return Counts(2 * source + programs * (stored + 2 * SECTOR), 0)
    if launch.name == "scores":
        m, n = a["BM"], a["BN"]
        inner = up(a["dim"], a["BK"])
        operands, tile = (m + n) * inner * size, m * n * size * a["STORE"]
        # Factors; ids and targets; maxima, sums and weighted sums, which lie a row of tiles apart,
        # and the positives' logits.
        vectors = 4 * (m + n) + 8 * (m * a["has_targets"] + (m + n) * a["has_ids"])
        sums = 3 * SECTOR * m + 4 * m
        operations = 2 * m * n * inner * units
        return Counts(programs * (operands + tile + vectors + sums), programs * operations)
    if launch.name == "coefficients":
        m, n = a["BM"], a["BN"]
        # A factor of the tile, which lies a row of tiles from the next; the positive's; targets;
        # and by each warp the columns' factors.
        warps = launch.options["num_warps"]
        vectors = (SECTOR + 4 + 8 * a["has_targets"]) * m + 4 * n * warps
        return Counts(programs * (2 * m * n * size + vectors), 0)
    if launch.name == "products":
        m, d, k = (a[name] for name in ("BM", "BD", "BK"))
        across = -(-a["dim"] // d)
        passes = 2 if a["accumulate"] else 1
        moved = multiplied = 0
        for tiles, rows, inner, times in (
            (a["query_tiles"], a["rows"], a["candidates"], 1 + a["ADD_QUERIES"]),
            (programs - a["query_tiles"], a["out_rows"], a["rows"], passes),
        ):
            inner = up(inner, k)
            moved += tiles * ((m + d) * inner * size + 4 * m)
            moved += 4 * rows * across * d * times * (tiles > 0)
            multiplied += tiles * 2 * m * d * inner
        return Counts(moved, multiplied * units)
    if launch.name == "finish":
        # Twice operand and gradient: for their product, and for the result.
        return Counts(programs * (a["width"] * (2 * size + 12) + 2 * SECTOR), 0)
    if launch.name == "row_losses":
        # Maxima three times, sums and weighted sums once, factors back; own logits three times, and
        # back; seven numbers of the row.
        tiles, own = row(4 * a["tiles"]), row(4 * a["own"]) if a["own"] else 0
        return Counts(programs * (6 * tiles + 4 * own + (7 + a["has_targets"]) * SECTOR), 0)
    if launch.name == "own_scores":
        negatives = a["own"] * (a["operand_stride"] * size + 8)
        queries = launch.grid[1] * (a["operand_stride"] * size + 2 * SECTOR)
        return Counts(programs * (negatives + queries), 0)
    assert launch.name == "own_gradients"
    stride, across = a["operand_stride"], launch.grid[1]
    negatives = a["own"] * (stride * (size + 4) + across * 2 * SECTOR)
    return Counts(programs * (negatives + stride * (size + 8) + across * 3 * SECTOR), 0)


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    launches = Launches(interp, arch, order)
    chunk_bytes = info_nce_triton_call.CHUNK_BYTES
    try:
        if call.chunk_bytes is not None:
            info_nce_triton_call.CHUNK_BYTES = call.chunk_bytes
        with triton_cache(), triton_hosts.intercepted("info_nce", launches):
            result = info_nce_backends.run_triton(
                call.case,
                precision=call.precision,
                tiles=configs.config(f"sm{arch}", call.case.dtype, call.precision),
            )
    finally:
        info_nce_triton_call.CHUNK_BYTES = chunk_bytes
    arithmetic = tolerances.PRECISIONS[call.precision]
    compared = list(info_nce_cases.errors(call.case, result, arithmetic))
    ok = all(error <= allowed for error, allowed in compared)
    worst = max(error for error, _ in compared)
    dtype, precision = call.case.dtype, call.precision
    for kernel, counters, counts in launches.by_kernel(lambda x: expected(x, dtype, precision)):
        yield Run(
            name=call.name,
            kernel=kernel,
            arch=arch,
            sizes={
                "N": call.case.queries,
                "M": call.case.documents,
                "D": call.case.dimensions,
                "K": call.case.negatives or 0,
            },
            order=order,
            ok=ok,
            error=float(worst),
            counters=counters,
            expected_global_bytes=counts.bytes,
            expected_flops=counts.operations,
            requirements=kernel not in call.not_held,
        )


def runs(interp: ModuleType) -> Iterator[Run]:
    for arch in (80, 120):
        for call in CALLS:
            for order in (0, 1, 7):
                yield from run(interp, call, arch, order)
