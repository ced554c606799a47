"""quantize in Triton (kernels/quantize/triton.py) as its host code launches it, executed, counted.

A call runs on tensors of the CPU; each launch goes to the interpreter with the PTX that Triton
compiles for exactly that launch. The result is held to the NumPy oracle, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import test_quantize
import triton_launches
from _ptx import Run
from _ptx_triton import Launches, row
from ahead_of_time import triton_cache
from info_nce_cases import as_tensor

from simtile.ops import quantize_triton
from simtile.quantize import LEVELS, ZERO_LEVEL
from simtile.quantized import KINDS, PER_DIMENSION, code_width
from simtile.reference import quantize_numpy as oracle


class Call(NamedTuple):
    name: str
    rows: int
    dim: int
    dtype: str
    requirements: bool = True  # False where rows begin between sectors, or are few


CALLS = (
    Call("float32", 128, 768, "float32"),
    Call("bfloat16", 128, 768, "bfloat16"),
    Call("float16", 64, 384, "float16"),
    Call("float64", 64, 384, "float64"),
    Call("float32 odd", 33, 515, "float32", False),
    Call("float16 odd", 7, 33, "float16", False),
    Call("float32 1 x 1", 1, 1, "float32", False),
)


def expected_bytes(name: str, call: Call, kind: str, programs: int, found: int) -> int:
    """What a launch reads and writes by the README's formulas; `found` rows of ends are written."""
    size = {"float32": 4, "float64": 8}.get(call.dtype, 2)
    x, codes = call.rows * row(call.dim * size), call.rows * code_width(kind, call.dim)
    if name == "ends":
        return x + 2 * found * call.dim * max(size, 4)
    if name == "by_dimension":
        return x + codes + programs * 2 * 4 * call.dim
    if name == "by_vector":  # twice the row: its largest magnitude, then its codes
        return 2 * x + codes + 5 * call.rows
    return x + codes


def equal(found: Any, expected: Any) -> bool:
    if expected is None:
        return found is None
    return bool(np.array_equal(found.numpy(), expected, equal_nan=True))


def run(interp: ModuleType, call: Call, arch: int, order: int) -> Iterator[Run]:
    array = test_quantize.vectors(call.rows, call.dim, test_quantize.DTYPES[call.dtype], order)
    x = as_tensor(array)
    launches = Launches(interp, arch, order)
    kinds: list[tuple[str, bool]] = []
    with triton_cache(), triton_launches.intercepted(quantize_triton, launches):
        ends = quantize_triton.ranges(x)
        kinds.append(("int8", equal(ends, oracle.ranges_of(array.astype(wide(call.dtype))))))
        for kind in KINDS:
            starts = steps = None
            if kind in PER_DIMENSION:
                starts, steps, _ = quantize_triton.grid(ends, LEVELS[kind], ZERO_LEVEL[kind])
            found = quantize_triton.codes(x, kind, starts, steps)
            codes, scale, _ = oracle.quantize(array, kind)
            right = equal(found.codes, oracle.pack(codes, kind))
            if kind not in PER_DIMENSION:
                right = right and equal(found.scale, scale)
            kinds.append((kind, right))
    for (launch, counters), (kind, ok) in zip(launches.done, kinds, strict=True):
        name, grid = launch.name, launch.grid
        found_rows = grid[1] * 16 if name == "ends" else 0
        yield Run(
            name=f"{call.name}, {kind}" if name != "ends" else call.name,
            kernel=name,
            arch=arch,
            sizes={"N": call.rows, "D": call.dim},
            order=order,
            ok=ok,
            error=0.0 if ok else float("nan"),
            counters=counters,
            expected_global_bytes=expected_bytes(name, call, kind, grid[0], found_rows),
            expected_flops=0,
            requirements=call.requirements,
        )


def wide(dtype: str) -> Any:
    return np.float64 if dtype == "float64" else np.float32


def runs(interp: ModuleType) -> Iterator[Run]:
    for arch in (80, 120):
        for call in CALLS:
            for order in (0, 1, 7):
                yield from run(interp, call, arch, order)
