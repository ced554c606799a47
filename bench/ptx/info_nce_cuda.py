"""The info_nce forward by mma.sync (kernels/info_nce/cuda.cuh) as its dispatch launches it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from _ptx import ROOT, Json, Run, cuda_ptx

sys.path.insert(0, str(ROOT / "tests"))

import info_nce_cases
import info_nce_cuda_host
from cuda_host import build
from tolerances import CPU, allowed_error

STEP = 32  # dimensions that a warp multiplies at a time
WARPS = 8
SHARED_BYTES = info_nce_cuda_host.SHARED_BYTES

# The dispatch names every instance that it may launch; nvcc emits them all.
SOURCE = """
#include "cuda/info_nce_dispatch.hpp"
struct Launch {
  template <class... Parameters>
  void operator()(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                  Parameters... given) const {
    kernel<<<grid, block, shared>>>(given...);
  }
};
void instantiate(const simtile::cuda::InfoNceForwardArgs& args, const simtile::cuda::Device& on) {
  run(args, on, nullptr, Launch{});
}
"""


def bf16(*sizes: int, **options: Any) -> Any:
    # A temperature at which all candidates count.
    given = {"dtype": "bfloat16", "temperature": 0.5, **options}
    return info_nce_cases.Case(*sizes, **given)


# name, case, multiprocessors and shared bytes of the device, held to the requirements
CASES: tuple[tuple[str, Any, int, int, bool], ...] = (
    ("typical", bf16(256, 256, 384), 132, SHARED_BYTES, True),
    ("wide rows", bf16(64, 128, 768, normalize=False, temperature=1.0), 132, SHARED_BYTES, True),
    ("32 rows a block", bf16(128, 256, 384, 1), 4, SHARED_BYTES, True),
    ("few candidates", bf16(64, 64, 384), 132, SHARED_BYTES, True),
    ("ids, own negatives", bf16(100, 111, 768, 7, ids=True, own=True), 132, SHARED_BYTES, True),
    ("odd", bf16(111, 200, 515), 132, SHARED_BYTES, True),
    ("odd, padded rows", bf16(33, 111, 989, 3, layout="padded rows"), 132, SHARED_BYTES, True),
    ("in slices", bf16(32, 256, 1024), 132, 20 << 10, True),
    ("odd, in slices", bf16(20, 256, 989, targets=True), 132, 14 << 10, True),
    ("1 x 1", bf16(1, 1, 1), 132, SHARED_BYTES, False),
    ("7 x 7", bf16(7, 7, 7, 2, own=True, ids=True), 132, SHARED_BYTES, False),
    ("huge and tiny", bf16(9, 9, 33, 1, special=("huge rows", "tiny rows")), 132, 8 << 10, False),
)


def blocks(case: Any, plan: Json) -> Iterator[tuple[int, tuple[int, int]]]:
    """Rows of every block, and the documents and negatives that it reads."""
    tile = 16 * plan["row_tiles"]
    for first in range(0, case.queries, tile):
        rows = min(tile, case.queries - first)
        seen = rows if case.own else case.queries
        yield rows, (case.documents, seen * (case.negatives or 0))


def global_bytes(case: Any, plan: Json) -> int:
    """The README's formula: loads and stores of one launch."""
    row = 2 * case.dimensions
    total = 0
    for rows, columns in blocks(case, plan):
        groups = sum(-(-count // (8 * plan["column_tiles"])) for count in columns)
        staged = -(-groups // WARPS) if plan["slice"] < case.dimensions else 1
        total += rows * row * (case.normalize + staged) + sum(columns) * row
        total += 8 * rows * case.targets + (8 * rows + 8 * case.documents) * case.ids
        total += 12 * rows  # the loss and the two parts of the log-sum-exp
    return total


def matrix_operations(case: Any, plan: Json) -> int:
    """2 N (M + negatives) D with rows, columns and dimensions padded to tiles."""
    width = 8 * plan["column_tiles"]
    columns = sum(-(-count // width) * width for _, read in blocks(case, plan) for count in read)
    return 2 * 16 * plan["row_tiles"] * columns * (-(-case.dimensions // STEP) * STEP)


def on_device(interp: ModuleType, x: Any) -> tuple[Any, Any]:
    """A matrix with its stride, and the memory as cudaMalloc gives it; NaN between rows."""
    if x is None:
        return None, None
    stride = x.strides[0] // 2
    memory = interp.aligned((len(x) - 1) * stride + x.shape[1], np.uint16)
    memory[:] = np.array(np.nan, ml_dtypes.bfloat16).view(np.uint16)
    moved = np.ndarray(x.shape, x.dtype, memory, strides=x.strides)
    moved[...] = x
    return moved, memory


def run(interp: ModuleType, module: Any, host: Any, name: str, case: Any, **where: Any) -> Run:
    """One launch, on outputs full of NaN."""
    *matrices, k = info_nce_cuda_host.inputs(case)
    moved, memory = zip(*(on_device(interp, x) for x in matrices), strict=True)
    device = where.pop("multiprocessors"), where.pop("shared_bytes")
    plan = host.plan(*moved, k, case.normalize, case.own, *device)

    null = ("q", 0)
    outputs = [interp.aligned(case.queries, np.float32, np.nan) for _ in range(3)]
    sizes = {"N": case.queries, "M": case.documents, "K": k, "D": case.dimensions}
    ids = (case[what] for what in ("targets", "query_ids", "document_ids"))
    arguments = [
        *(("q", size) for size in sizes.values()),
        *(null if x is None else x for x in memory),
        *(null if x is None else ("q", x.strides[0] // 2) for x in moved),
        null,  # the temperature is a number
        ("d", case.temperature),
        ("?", case.normalize),
        ("?", case.own),
        *(null if x is None else interp.aligned(len(x), np.int64, x) for x in ids),
        *outputs,
        ("f", 1 / case.temperature),
        ("i", plan["slice"]),
    ]
    parameters = [plan["row_tiles"], plan["column_tiles"], int(plan["aligned"])]
    rows, columns, aligned = parameters
    module.launch(
        f"info_nce_forwardILi{rows}ELi{columns}ELb{aligned}ELb{case.normalize:d}E",
        (plan["blocks"],),
        (plan["threads"],),
        arguments,
        shared_bytes=plan["shared_bytes"],
        order=where["order"],
    )
    losses = (outputs[0], None, None, None, None)
    ((what, ours, expected, scale, dtype, condition),) = info_nce_cases.compared(case, losses)
    error = float(np.max(np.abs(ours - expected) / scale))
    return Run(
        name=name,
        kernel=f"info_nce_forward<{rows}, {columns}, {aligned}, {case.normalize:d}>",
        sizes=sizes,
        ok=error <= allowed_error(what, dtype, condition, CPU),
        error=error,
        counters=interp.stats(),
        expected_global_bytes=global_bytes(case, plan),
        expected_flops=matrix_operations(case, plan),
        **where,
    )


def runs(interp: ModuleType) -> Iterator[Run]:
    host = build.load("info_nce")
    for arch in (80, 120):
        module = interp.Module(cuda_ptx(SOURCE, arch))
        for name, case, multiprocessors, shared_bytes, requirements in CASES:
            for order in (0, 1, 7):
                where = {"arch": arch, "order": order, "requirements": requirements}
                device = {"multiprocessors": multiprocessors, "shared_bytes": shared_bytes}
                yield run(interp, module, host, name, case, **where, **device)
