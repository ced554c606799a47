"""The contrastive family in Triton (kernels/info_nce/triton_contrast.py, and what its host code
launches of the plain loss's kernels) executed and counted, as info_nce_triton.py does that loss."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import contrastive_kernel
import contrastive_tally
import contrastive_triton
import tolerances
import triton_hosts
import triton_worker
from _ptx import SECTOR, Run
from _ptx_triton import Counts, Launch, Launches, on_sectors, options_of, up
from ahead_of_time import triton_cache
from contrastive_triton import CLIP, EVERYTHING, OWN
from simtile.kernels.info_nce import triton_configs as configs

from ptx import info_nce_triton as plain

FOUR = {"directions": EVERYTHING["directions"], "temperature": 0.3}
# A temperature at which all candidates count.
FULL = {**EVERYTHING, "temperature": 0.3, "ids": True}
BOTH = {**CLIP, "temperature": 0.3}


class Call(NamedTuple):
    name: str
    drawn: dict[str, Any]
    sizes: tuple[int, int, int]  # queries, dimensions, the guide's
    dtype: str = "bfloat16"
    precision: str = "ieee"
    statistics: bool = False
    special: tuple[str, ...] = ()
    close: float | None = None  # how far similarities stay from thresholds; None: a rounding
    chunk_bytes: int | None = None  # None: as the host code has it
    not_held: tuple[str, ...] = ()  # as in info_nce_triton.py


TINY = (*plain.TINY, "pair_scores", "block_scores", "own_block_scores")
CALLS = (
    Call("bf16, everything, statistics", FULL, (100, 256, 128), statistics=True),
    Call(
        "fp16, four directions",
        {**FOUR, "negatives_per_query": 1, "bank": 5, "false_negative_margin": 0.2},
        (125, 256, 64),
        "float16",
        statistics=True,
    ),
    Call("bf16, clip", {**BOTH, "bank": 6}, (200, 256, 64), statistics=True),
    Call(
        "fp32 ieee, guide",
        {**BOTH, "guide": ("absolute", 0.1), "negatives_per_query": 1},
        (64, 192, 64),
        "float32",
    ),
    Call(
        "fp32 tf32, hardness",
        {**FOUR, "hardness": "in_batch_negatives", "ids": True},
        (90, 256, 64),
        "float32",
        "tf32",
    ),
    Call(
        "fp32 tf32, everything",
        FULL,
        (5, 40, 33),
        "float32",
        "tf32",
        statistics=True,
        close=4e-3,
        not_held=TINY,
    ),
    Call("fp32 tf32x3, everything", FULL, (40, 128, 64), "float32", "tf32x3"),
    Call(
        "bf16, own negatives, statistics",
        {**OWN, "temperature": 0.3, "negatives_per_query": 4, "bank": 8},
        (100, 256, 128),
        statistics=True,
    ),
    Call(
        "fp32, own negatives",
        {**OWN, "temperature": 0.3, "negatives_per_query": 17},
        (33, 128, 64),
        "float32",
    ),
    Call(
        "bf16, two chunks",
        {**FOUR, "row_weights": True, "false_negative_margin": -0.3},
        (270, 64, 64),
        chunk_bytes=1,
        statistics=True,
    ),
    Call("bf16 odd", FULL, (70, 115, 33), statistics=True, not_held=plain.RAGGED),
    Call(
        "fp16 odd, ties",
        {**FULL, "guide": ("absolute", 0.0), "false_negative_margin": 0.0},
        (33, 111, 7),
        "float16",
        statistics=True,
        special=("duplicates", "zero rows"),
        not_held=plain.RAGGED,
    ),
    Call(
        "fp32 ties",
        {**BOTH, "guide": ("absolute", 0.0), "false_negative_margin": 0.0},
        (17, 40, 16),
        "float32",
        special=("duplicates",),
        not_held=TINY,
    ),
    Call("fp32 odd, own negatives", OWN, (7, 5, 3), "float32", statistics=True, not_held=TINY),
    Call(
        "fp32 1 x 1",
        {**FOUR, "guide": ("absolute", 0.1)},
        (1, 1, 1),
        "float32",
        statistics=True,
        not_held=TINY,
    ),
)


def expected(launch: Launch, dtype: str, precision: str) -> Counts:
    """By the README's formulas; of the plain loss's kernels those of info_nce_triton.py."""
    a = options_of(launch)
    size = 4 if dtype == "float32" else 2
    units = plain.on_units(dtype, precision)
    if launch.name == "pair_scores":
        m, n, inner = a["BM"], a["BN"], up(a["dim"], a["BK"])
        parts = up(m, n) // n
        # Operands, factors and targets of each part; logits and thresholds.
        each = (m + n) * (inner * size + 4) + 8 * n * a["has_targets"]
        written = 4 * m * (1 if a["GUIDE"] else 2)
        programs = launch.grid[0]
        return Counts(
            programs * (parts * each + written), programs * parts * 2 * m * n * inner * units
        )
    if launch.name == "block_scores":
        m, n, inner = a["BM"], a["BN"], up(a["dim"], a["BK"])
        guide = up(a["guide_dim"], a["BK"]) if a["GUIDE"] else 0
        sides = 2 if a["GUIDE"] else 1
        operands, tile = (m + n) * (inner + guide) * size, m * n * size * a["STORE"]
        # Factors and thresholds; ids and targets; sums, which lie a row of tiles apart.
        vectors = sides * 4 * (2 * m + n) + 8 * (m * a["has_targets"] + (m + n) * a["has_ids"])
        sums = (6 if a["STATISTICS"] else 3) * SECTOR * m
        programs = launch.grid[0]
        return Counts(
            programs * (operands + tile + vectors + sums),
            programs * 2 * m * n * (inner + guide) * units,
        )
    if launch.name == "own_block_scores":
        rows, parts = launch.grid
        guide = int(a["GUIDE"])
        # The pair as often as there are negatives, so that it is added up as they are.
        width = (1 + a["needs_pair"]) * a["operand_stride"] + 2 * guide * a["guide_stride"]
        negatives = a["own"] * (width * size + 4 * (1 + guide) + 4)
        numbers = 2 + a["has_targets"] + a["needs_pair"] + 2 * guide
        sums = 3 * 4 if a["STATISTICS"] else 0
        return Counts(rows * (negatives + parts * (width * size + numbers * SECTOR + sums)), 0)
    return plain.expected(launch, dtype, precision)


def execute(
    interp: ModuleType, call: Call, case: Any, arch: int, order: int
) -> tuple[Launches, list[Any]]:
    launches = Launches(interp, arch, order)
    arrays, dtype, options, need = contrastive_triton.arguments(
        case, call.dtype, contrastive_triton.ALL, call.precision
    )
    options = {name: on_sectors(interp, x) for name, x in options.items()}
    with triton_cache(), triton_hosts.intercepted("info_nce", launches):
        result = triton_worker.info_nce(
            on_sectors(interp, arrays),
            dtype,
            {**options, "statistics": call.statistics},
            need,
            chunk_bytes=call.chunk_bytes,
            tiles=configs.config(f"sm{arch}", call.dtype, call.precision),
        )
    return launches, result


def run(
    interp: ModuleType, call: Call, case: Any, truth: Any, arch: int, order: int
) -> Iterator[Run]:
    launches, result = execute(interp, call, case, arch, order)
    arithmetic = tolerances.PRECISIONS[call.precision]
    dtype, precision = call.dtype, call.precision
    tally = result.pop() if call.statistics else None
    outputs = contrastive_triton.as_result(result)
    comparisons = contrastive_kernel.compared(case, dtype, outputs, truth, arithmetic)
    compared = list(tolerances.errors(comparisons, arithmetic))
    if tally is not None:
        of_tally = contrastive_tally.tally_errors(case, dtype, tally, truth, arithmetic)
        compared += [(error, allowed) for _, error, allowed in of_tally]
    ok = all(error <= allowed for error, allowed in compared)
    worst = max(error for error, _ in compared)
    for kernel, counters, counts in launches.by_kernel(lambda x: expected(x, dtype, precision)):
        yield Run(
            name=call.name,
            kernel=kernel,
            arch=arch,
            sizes={
                "N": case.queries,
                "M": len(case["documents"]),
                "D": case.dimensions,
                "G": case.guide_dimensions if case["guide"] else 0,
                "K": case["negatives_per_query"] or 0,
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
    for call in CALLS:
        n, dimensions, guide = call.sizes
        case, truth = contrastive_kernel.clear_case(
            call.drawn, call.dtype, n, call.special, dimensions, guide, call.close
        )
        for arch in (80, 120):
            for order in (0, 1, 7):
                yield from run(interp, call, case, truth, arch, order)
