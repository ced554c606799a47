"""Top-k (kernels/topk/cuda.cuh) as its dispatch launches it, executed and counted."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from _ptx import ROOT, Run, cuda_ptx, total

sys.path.insert(0, str(ROOT / "tests"))

import topk_cases
from cuda_host import build
from topk_cases import Case

# The dispatch names every instance that it may launch; nvcc emits them all.
SOURCE = """
#include "cuda/topk_dispatch.hpp"
struct Launch {
  template <class Args>
  void operator()(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared, Args args) const {
    kernel<<<grid, block, shared>>>(args);
  }
};
void instantiate(const simtile::cuda::TopkArgs& args, const simtile::cuda::Device& device) {
  run(args, device, nullptr, Launch{});
}
"""

MULTIPROCESSORS = 2  # few splits of a few thousand documents: each is as long as one of millions

# name, case, held to the requirements
CASES = (
    ("1024 bits", Case("hamming", 1, 4001, 128, 10), True),
    ("1024 bits", Case("hamming", 8, 4001, 128, 10), True),
    ("768 bits", Case("hamming", 1, 4001, 96, 10), True),
    ("768 bits", Case("hamming", 8, 4001, 96, 100), True),
    ("384 bits", Case("hamming", 1, 4001, 48, 10), True),
    ("256 bits", Case("hamming", 1, 4001, 32, 10), True),
    ("384 dimensions", Case("int8", 1, 3001, 384, 10, scales="both"), True),
    ("384 dimensions", Case("int8", 8, 3001, 384, 10), True),
    ("768 dimensions", Case("int8", 1, 3001, 768, 10), True),
    ("768 dimensions", Case("int8", 8, 3001, 768, 10, scales="document"), True),
    ("384 dimensions", Case("int8", 17, 3001, 384, 10, scales="both", allow="some"), True),
    ("768 dimensions", Case("int8", 32, 3001, 768, 33), True),
    ("a mask for each", Case("int8", 16, 1001, 384, 10, allow="per query", values="few"), False),
    ("two passes", Case("hamming", 2, 1501, 96, 1025, values="few"), False),
    ("odd rows", Case("hamming", 7, 989, 111, 33, layout="odd base"), False),
    ("odd rows", Case("int8", 9, 989, 300, 64, layout="word base", scales="special"), False),
    ("one document", Case("int8", 1, 1, 1, 5), False),
    ("no document", Case("hamming", 9, 0, 16, 5), False),
)


def global_bytes(case: Case, tile: int, splits: int) -> int:
    """The README's formula: loads and stores of a scan and of the merge, in one pass."""
    q, n, w = case.queries, case.documents, case.width
    tiles = -(-q // tile)
    scale = {"none": (0, 0), "query": (4, 0), "document": (0, 4)}.get(case.scales, (4, 4))
    mask = 0 if case["allow"] is None else 1
    scan = tiles * n * (w + scale[1] + mask) + splits * q * (w + scale[0])
    return scan + 2 * 8 * q * case.k * splits + 12 * q * case.k


def matrix_operations(case: Case) -> int:
    """2 Q N D with queries padded to 16, documents to 32, dimensions to 64."""
    rows, documents = -(-case.queries // 16) * 16, -(-case.documents // 32) * 32
    return 2 * rows * documents * (-(-case.width // 64) * 64)


def on_device(interp: ModuleType, x: Any) -> Any:
    """The array where cudaMalloc might have put it: the same strides and the same misalignment."""
    if x is None:
        return None
    span = (len(x) - 1) * x.strides[0] + x[0].nbytes if len(x) else 0
    offset = x.ctypes.data % 64
    memory = interp.aligned(span + offset, np.uint8, 0x5A)[offset:]
    moved = np.ndarray(x.shape, x.dtype, memory, strides=x.strides)
    moved[...] = x
    return moved


def arguments(argument: bytes, arrays: list[Any]) -> list[Any]:
    """A kernel's argument in words, the address of an array replaced by its memory."""
    memory = {}
    for x in arrays:
        if x is not None and x.size:
            memory[x.ctypes.data] = x if x.flags.c_contiguous else x.base
    return [memory.get(word, ("Q", word)) for (word,) in struct.iter_unpack("Q", argument)]


def run(interp: ModuleType, module: Any, host: Any, name: str, case: Case, **where: Any) -> Run:
    """One call with its passes, on outputs and a workspace full of what is no result."""
    names = ("queries", "documents", "query_scale", "document_scale", "allow")
    queries, documents, *options = (on_device(interp, case[what]) for what in names)
    inputs = (case.metric, queries, documents, case.k, *options, MULTIPROCESSORS)
    shape = (case.queries, case.k)
    scores = interp.aligned(shape, case.score_dtype)
    scores.view(np.int32)[...] = 0x5A5A5A5A
    ids = interp.aligned(shape, np.int64, -0x5A5A)
    workspace = interp.aligned(max(1, host.workspace_bytes(*inputs)), np.uint8, 0)

    arrays = [queries, documents, *options, scores, ids, workspace]
    tile, splits = host.division(*inputs)
    counters, kernel = [], "topk_merge"
    for launched, grid, block, shared_bytes, argument in host.launches(
        *inputs, scores, ids, workspace
    ):
        if launched != "topk_merge":
            kernel = launched
        packed = arguments(argument, arrays)
        module.launch(launched, (grid,), (block,), packed, shared_bytes, where["order"])
        counters.append(interp.stats())

    expected = topk_cases.run_oracle(case)
    equal = [
        np.array_equal(ours, theirs) for ours, theirs in zip((scores, ids), expected, strict=True)
    ]
    return Run(
        name=name,
        kernel=kernel,
        sizes={"Q": case.queries, "N": case.documents, "W": case.width, "k": case.k},
        ok=all(equal),
        error=float(np.sum(scores != expected[0]) + np.sum(ids != expected[1])),
        counters=total(counters),
        expected_global_bytes=global_bytes(case, tile, splits),
        expected_flops=matrix_operations(case) if kernel == "topk_scan_mma" else 0,
        **where,
    )


def runs(interp: ModuleType) -> Iterator[Run]:
    host = build.load("topk")
    for arch in (80, 120):
        module = interp.Module(cuda_ptx(SOURCE, arch))
        for name, case, requirements in CASES:
            for order in (0, 1, 7):
                where = {"arch": arch, "order": order, "requirements": requirements}
                yield run(interp, module, host, name, case, **where)
