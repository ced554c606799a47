"""Search (kernels/topk/cuda.cuh) as its dispatch launches it, executed and counted."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from _ptx import ROOT, Run, cuda_ptx, total

sys.path.insert(0, str(ROOT / "tests"))

from cuda_host import build
from search_cases import Case
from topk_cuda import Host, masks

from simtile.reference import topk_numpy as oracle

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
    ("1024 bits", Case("packed", "hamming", 1, 4001, 1024), True),
    ("1024 bits", Case("packed", "hamming", 8, 4001, 1024), True),
    ("768 bits", Case("packed", "hamming", 1, 4001, 768), True),
    ("384 bits", Case("packed", "hamming", 1, 4001, 384), True),
    ("256 bits", Case("packed", "hamming", 1, 4001, 256), True),
    ("bits", Case("bits", "cosine", 1, 2001, 1024), True),
    ("int4", Case("int4", "l2", 1, 2001, 768), True),
    ("int8", Case("int8", "cosine", 1, 2001, 768), True),
    ("int8", Case("int8", "dot", 4, 2001, 384), True),
    ("uint8", Case("uint8", "dot", 1, 2001, 384), True),
    ("float32", Case("float32", "dot", 1, 1001, 384), False),
    ("float32", Case("float32", "l2", 4, 501, 96), False),
    ("float16", Case("float16", "cosine", 1, 1001, 384), False),
    ("bfloat16", Case("bfloat16", "dot", 3, 501, 128), False),
    ("float32, selected", Case("float32", "dot", 1, 4501, 16, k=1025), False),
    ("int8, many", Case("int8", "dot", 16, 1001, 384), True),
    ("bits, many", Case("packed", "hamming", 17, 1001, 1024), True),
    ("int8 and int8", Case("int8_vector", "l2", 17, 1001, 384, integer_queries=True), True),
    ("int4, many", Case("int4", "cosine", 9, 501, 384), False),
    ("bits, many", Case("bits", "dot", 9, 501, 256), False),
    ("a mask", Case("int8", "dot", 2, 1001, 384, allow="few"), False),
    ("a mask for each", Case("int8", "dot", 16, 1001, 384, allow="per query"), False),
    ("selected", Case("packed", "hamming", 2, 4501, 256, k=1025, values="few"), False),
    ("candidates", Case("int8", "dot", 2, 501, 96, candidates=60), False),
    ("odd rows", Case("packed", "hamming", 7, 989, 888, k=33, layout="odd base"), False),
    ("odd rows", Case("uint8", "l2", 3, 503, 111, k=64, layout="odd base"), False),
    ("one document", Case("int8", "dot", 1, 1, 1, k=5), False),
    ("no document", Case("packed", "hamming", 9, 0, 128, k=5), False),
)


def global_bytes(case: Case, tile: int, splits: int) -> int:
    """The README's formula: loads and stores of fold, scan and merge, without masks."""
    q, n, k = case.queries, case.documents, case.k
    width = case["documents"].shape[1]
    own = sum(4 for name in ("factor", "addend") if case[name] is not None)
    total_bytes = -(-q // tile) * n * (width + own) + 2 * 8 * q * k * splits + 12 * q * k
    if case.kind == "packed":
        return total_bytes + splits * q * width
    rows = 8 if case.kind == "bits" else 2 if case.stored == "int4" else 1
    planes = 1 if case.integer_queries else 2
    folded = planes * rows * (-(-width // 16) * 16)
    # The largest weight, sums and integers: each reads the query, and what it is multiplied with.
    read = case.dim * (1 if case.integer_queries else 4)
    passes = (1 if case.integer_queries else 2) + 1
    loads = read * passes
    if case["scale"] is not None:
        loads += 2 * 4 * case.dim + read + 4 * case.dim
    elif case.kind == "bits":
        loads += read
    return total_bytes + q * (loads + folded + 64) + splits * q * (folded + 64)


def matrix_operations(case: Case) -> int:
    """2 Q N D, of both planes, with queries padded to 16, documents to 32, rows to 64 bytes."""
    rows, documents = -(-case.queries // 16) * 16, -(-case.documents // 32) * 32
    planes = 1 if case.integer_queries else 2
    return 2 * planes * rows * documents * (-(-case.dim // 64) * 64)


def on_device(interp: ModuleType, x: Any) -> Any:
    """The array where cudaMalloc might have put it: the same strides and the same misalignment."""
    if not isinstance(x, np.ndarray):
        return x
    span = (len(x) - 1) * x.strides[0] + x[0].nbytes if len(x) else 0
    offset = x.ctypes.data % 64
    memory = interp.aligned(span + offset, np.uint8, 0x5A)[offset:]
    moved = np.ndarray(x.shape, x.dtype, memory, strides=x.strides)
    moved[...] = x
    return moved


def arguments(argument: bytes, arrays: list[Any]) -> list[Any]:
    """A kernel's argument in words; an address inside an array replaced by what follows there."""
    words = []
    for (word,) in struct.iter_unpack("Q", argument):
        for x in arrays:
            offset = word - x.ctypes.data
            if 0 <= offset < x.nbytes:
                words.append(x.view(np.uint8).reshape(-1)[offset:] if x.flags.c_contiguous else x)
                break
        else:
            words.append(("Q", word))
    return words


def run(interp: ModuleType, module: Any, host: Any, name: str, case: Case, **where: Any) -> Run:
    """One call with all its launches, on outputs and a workspace full of what is no result."""
    shim = Host(host, multiprocessors=MULTIPROCESSORS)
    given = {key: on_device(interp, x) for key, x in shim.given(case.operands).items()}
    given |= {key: on_device(interp, x) for key, x in masks(case).items()}
    shape = (case.queries, case.k)
    scores = interp.aligned(shape, case.score_dtype)
    scores.view(np.int32)[...] = 0x5A5A5A5A
    ids = interp.aligned(shape, np.int64, -0x5A5A)
    given |= {"k": case.k, "scores": scores, "ids": ids}
    workspace = interp.aligned(max(1, host.workspace_bytes(given, False)), np.uint8, 0)

    arrays = [x for x in (*given.values(), workspace) if isinstance(x, np.ndarray)]
    arrays = [x if x.flags.c_contiguous else x.base for x in arrays if x.size]
    tile, splits = host.division(given)
    counters, kernels = [], []
    for launched, grid, block, shared_bytes, argument in host.launches(given, workspace, False):
        kernels.append(readable(launched))
        packed = arguments(argument, arrays)
        module.launch(launched, grid, (block,), packed, shared_bytes, where["order"])
        counters.append(interp.stats())

    expected = case.topk(oracle)
    equal = [
        np.array_equal(ours, theirs) for ours, theirs in zip((scores, ids), expected, strict=True)
    ]
    matrix = any("mma" in kernel for kernel in kernels)
    return Run(
        name=name,
        kernel=", ".join(dict.fromkeys(kernels)),
        sizes={"Q": case.queries, "N": case.documents, "D": case.dim, "k": case.k},
        ok=all(equal),
        error=float(np.sum(scores != expected[0]) + np.sum(ids != expected[1])),
        counters=total(counters),
        expected_global_bytes=global_bytes(case, max(tile, 1), max(splits, 1)),
        expected_flops=matrix_operations(case) if matrix else 0,
        **where,
    )


def readable(mangled: str) -> str:
    """`topk_scan<Int8, 16, 8, 1>` of the part of a mangled name."""
    kernel, _, rest = mangled.partition("INS1_")
    values = re.findall(r"Li(\d+)", rest)
    codes = re.match(r"\d+([A-Z]\w*?)ELi", rest)
    return f"{kernel}<{', '.join([codes[1], *values])}>" if codes else kernel


def runs(interp: ModuleType) -> Iterator[Run]:
    host = build.load("topk")
    for arch in (80, 120):
        module = interp.Module(cuda_ptx(SOURCE, arch))
        for name, case, requirements in CASES:
            for order in (0, 1, 7):
                where = {"arch": arch, "order": order, "requirements": requirements}
                yield run(interp, module, host, name, case, **where)
