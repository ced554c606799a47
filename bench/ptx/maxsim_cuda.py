"""MaxSim (kernels/maxsim/cuda.cuh) as its dispatch launches it, executed and counted."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from _ptx import ROOT, Json, Run, cuda_ptx, total

sys.path.insert(0, str(ROOT / "tests"))

import test_maxsim_cuda_codes as codes
import test_maxsim_cuda_residual as residuals
import test_maxsim_cuda_topk as best
from cuda_host import build
from maxsim_cases import Case
from maxsim_cuda_host import Call, Host, address, search
from tolerances import ROUNDOFF, ROUNDOFFS

from simtile._maxsim_select import best as select

# The dispatch names every instance that it may launch; nvcc emits them all.
SOURCE = """
#include "cuda/maxsim_topk_dispatch.hpp"
struct Launch {
  template <class Args>
  void operator()(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared, Args args) const {
    kernel<<<grid, block, shared>>>(args);
  }
};
void instantiate(const simtile::cuda::MaxsimTopkArgs& args, const simtile::cuda::Device& device) {
  run(args.pairs, device, nullptr, Launch{});
  run(args, device, nullptr, Launch{});
}
"""

MULTIPROCESSORS = 1  # few shares of some thousand rows: each is as long as one of millions
SHARED_BYTES = 163 << 10
RAGGED = tuple(60 + 37 * i % 241 for i in range(40))  # 60 to 300 tokens
PRODUCTS = {("float32", 3): 6, ("float16", 3): 5, ("bfloat16", 3): 3, ("bfloat16", 1): 1}
STEP = {
    "float32": (16, 16),
    "float16": (32, 16),
    "bfloat16": (32, 16),
    **dict.fromkeys(("bits", "residual1", "residual2", "residual4"), (128, 32)),
}
CENTROIDS = 256


def floats(queries: tuple[int, ...], dim: int, dtype: str, query_dtype: str, **options: Any) -> Any:
    documents = options.pop("documents", RAGGED)
    masks = options.pop("masks", ("absent", "absent"))
    case = Case(queries, documents, dim, "random", masks, options)
    return Call(case, dtype, query_dtype=query_dtype)


def coded(
    kind: str, query_kind: str, queries: tuple[int, ...], dim: int, documents: Any = RAGGED
) -> Any:
    call = codes.Call(kind, query_kind, queries, documents, dim, 1)
    call.masks = [np.ones_like(x) for x in call.masks]
    return call


def residual(bits: int, queries: tuple[int, ...], dim: int, documents: Any = RAGGED) -> Any:
    call = residuals.Call(bits, queries, documents, dim, 1, CENTROIDS)
    call.masks, call.masked = [np.ones_like(x) for x in call.masks], False
    call.gap = 0
    return call


# name, call, held to the requirements
CASES = (
    ("32 x 128", lambda: floats((32,), 128, "bfloat16", "bfloat16"), True),
    ("32 x 128, float queries", lambda: floats((32,), 128, "bfloat16", "float32"), True),
    (
        "4 of 32 x 128",
        lambda: floats((32,) * 4, 128, "bfloat16", "bfloat16", documents=RAGGED * 3),
        True,
    ),
    ("float16", lambda: floats((32,), 128, "float16", "float16"), True),
    ("float32", lambda: floats((32,), 128, "float32", "float32"), True),
    ("4 of 32 x 128, float32", lambda: floats((32,) * 4, 128, "float32", "float32"), True),
    ("normalised", lambda: floats((32,), 128, "float32", "float32", normalize=True), True),
    ("int8", lambda: coded("int8", "int16", (32,), 128, RAGGED * 2), False),
    ("int8 and int8", lambda: coded("int8", "int8", (32,) * 4, 128, RAGGED * 2), False),
    ("bits", lambda: coded("bits", "int16", (32,), 128), False),
    ("uint8", lambda: coded("uint8", "int16", (9, 3), 96), False),
    ("residual, 1 bit", lambda: residual(1, (32,), 128, RAGGED * 3), True),
    ("residual, 2 bits", lambda: residual(2, (32,), 128, RAGGED * 2), True),
    ("residual, 4 bits", lambda: residual(4, (32,), 128, RAGGED * 2), True),
    ("4 of 32, residual, 2 bits", lambda: residual(2, (32,) * 4, 128, RAGGED * 2), True),
    ("residual, 4 bits, D = 96", lambda: residual(4, (9, 3), 96), False),
    ("residual, 2 bits, D = 33", lambda: residual(2, (40, 130), 33, (9, 20)), False),
    (
        "holes, odd",
        lambda: floats(
            (33, 130, 1),
            33,
            "float32",
            "float32",
            documents=(40, 0, 7, 61),
            masks=("holes", "holes"),
            zero_rows="pad",
        ),
        False,
    ),
    ("long rows", lambda: floats((20,), 2000, "bfloat16", "float32", documents=(9, 20)), False),
)

# name, k, candidates: the best of 400 short documents, allowed to each query or not
SEARCHES = (
    ("the best 10", 10, None),
    ("the best 10 of candidates", 10, 200),
    ("the best 1,500 of candidates", 1500, 5000),
)


def expected(call: Any, plan: Json) -> tuple[int, int]:
    """Bytes and matrix operations by the README's formulas."""
    kind = getattr(call, "dtype", None) or call.kind
    queries, documents = (
        (call.case.query_lengths, call.case.document_lengths)
        if isinstance(call, Call)
        else [tuple(x.tolist()) for x in call.lengths]
    )
    dim = call.case.dim if isinstance(call, Call) else call.dim
    bits = {"float32": 32, "float16": 16, "bfloat16": 16, "bits": 1}.get(kind, 8)
    if kind.startswith("residual"):
        bits = call.bits
    width = -(-dim * bits // 8)
    planes, columns, groups = plan["planes"], plan["columns"], plan["groups"]
    packed = 32 * planes * plan["steps"] * columns
    tokens = sum(queries)
    per_group = -(-tokens // groups)
    used = -(-per_group // 16) * 16
    tiles = sum(-(-n // plan["tile_rows"]) for n in documents)
    segments = len(documents) + min(tiles, 8 * plan["blocks"]) - 1
    # Rows; the group packed, and staged by every block; maxima and rows of every segment.
    moved = groups * (sum(documents) * width + packed * (1 + plan["blocks"]))
    moved += groups * segments * (used + per_group) * 8
    moved += tokens * dim * (4 if kind in ("float32",) else 2) + 4 * len(queries) * len(documents)
    if not isinstance(call, Call) and call.factors is not None:
        moved += 4 * groups * sum(documents)
    if kind.startswith("residual"):
        # Ids, and of every token its centroid's products; these are made of both sides' floats, the
        # queries' once for every 64 centroids.
        moved += groups * sum(documents) * (4 + 4 * used)
        count = len(call.centroids)
        moved += 4 * groups * (count * (dim + used) + -(-count // 64) * per_group * dim)
    step, depth = STEP.get(kind, (64, 32))
    instructions = -(-dim // step) * step // depth
    products = PRODUCTS.get((kind, planes), 2 * planes if kind.startswith("residual") else planes)
    flops = 2 * groups * tiles * plan["tile_rows"] * used * instructions * depth * products
    return moved, flops


def arguments(argument: bytes, arrays: list[Any]) -> list[Any]:
    """The kernels' argument in words; an address inside an array replaced by what follows there."""
    words = []
    for (word,) in struct.iter_unpack("Q", argument):
        for x in arrays:
            if 0 <= word - x.ctypes.data < x.nbytes:
                words.append(x.view(np.uint8).reshape(-1)[word - x.ctypes.data :])
                break
        else:
            words.append(("Q", word))
    return words


class Interpreted(Host):
    """The dispatch on the CPU, its launches in the interpreter."""

    def run(self, given: Json) -> None:
        names = ("scores", "argmax", "token_scores")
        self.launch(given, self.module.workspace_bytes, self.module.launches, names)

    def search(self, given: Json) -> None:
        sizes, launches = self.module.search_workspace_bytes, self.module.search_launches
        self.launch(given, sizes, launches, ("best_scores", "best_ids"))

    def launch(
        self, given: Json, workspace_bytes: Any, launches: Any, outputs: tuple[str, ...]
    ) -> None:
        interp, module = self.interp, self.ptx
        moved = {}
        for name, x in given.items():
            if isinstance(x, np.ndarray) and x.size:
                moved[name] = interp.aligned(x.shape, x.dtype)
                moved[name][...] = x
        call = self.given({**given, **moved})
        self.plan = self.module.plan(call)
        workspace = interp.aligned(workspace_bytes(call), np.uint8, 0x5A)
        arrays = [*moved.values(), workspace]
        counters, self.kernels = [], []
        for name, grid, block, shared_bytes, argument in launches(call, address(workspace)):
            self.kernels.append(name)
            packed = arguments(argument, arrays)
            module.launch(name, grid, (block,), packed, shared_bytes, self.order)
            counters.append(interp.stats())
        self.counters = total(counters)
        for name in outputs:
            if name in moved:
                given[name][...] = moved[name]


def run(interp: ModuleType, module: Any, host: Any, name: str, call: Any, **where: Any) -> Run:
    """One call with all its launches, on outputs and a workspace full of what is no result."""
    device = Interpreted(host, where["order"], MULTIPROCESSORS, SHARED_BYTES)
    device.interp, device.ptx = interp, module
    scores, _, _ = call.run(device)
    if isinstance(call, Call):
        oracle = call.oracle()
        bound = ROUNDOFFS["maxsim.scores"] * ROUNDOFF["float32"] * oracle.scale
        distance = np.abs(scores - oracle.scores)
        ok, error = bool((distance <= bound + 1e-37).all()), float(distance.max())
        sizes = {"Q": len(call.case.query_lengths), "N": scores.shape[1], "D": call.case.dim}
    else:
        distance = np.abs(scores - call.expected()[0])
        ok, error = bool((distance == 0).all()), float(distance.max())
        sizes = {"Q": len(call.lengths[0]), "N": scores.shape[1], "D": call.dim}
    moved, flops = expected(call, device.plan)
    return Run(
        name=name,
        kernel=", ".join(dict.fromkeys(device.kernels)),
        sizes=sizes,
        ok=ok,
        error=error,
        counters=device.counters,
        expected_global_bytes=moved,
        expected_flops=flops,
        **where,
    )


def run_search(
    interp: ModuleType, module: Any, host: Any, name: str, k: int, listed: int | None, **where: Any
) -> Run:
    """A search; its oracle is all scores, as they are executed, sorted."""
    device = Interpreted(host, where["order"], MULTIPROCESSORS, SHARED_BYTES)
    device.interp, device.ptx = interp, module
    call = floats((9, 3), 33, "bfloat16", "float32", documents=tuple(i % 4 for i in range(400)))
    rng = np.random.default_rng(k)
    allow = rng.random((2, 400)) < 0.7
    candidates = None if listed is None else rng.integers(-1, 400, (2, listed))
    found = search(device, best.arguments(call), k, candidates, allow)
    counters, kernels, plan = device.counters, device.kernels, device.plan
    scores = call.run(device)[0]
    if candidates is not None:
        scores = np.take_along_axis(scores, np.maximum(candidates, 0), axis=1)
    exact = select(scores, candidates, allow, k)
    ok = all(np.array_equal(x, y) for x, y in zip(found, exact, strict=True))
    moved, flops = expected(call, plan)
    return Run(
        name=name,
        kernel=", ".join(dict.fromkeys(kernels)),
        sizes={"Q": 2, "N": 400, "D": 33, "k": k},
        ok=ok,
        error=0.0 if ok else float("inf"),
        counters=counters,
        # Of scoring alone, the rest by the formula of lists: the run is not held to it.
        expected_global_bytes=moved + 4 * scores.size + 12 * found[1].size,
        expected_flops=flops,
        requirements=False,
        **where,
    )


def runs(interp: ModuleType) -> Iterator[Run]:
    host = build.load("maxsim")
    for arch in (80, 120):
        module = interp.Module(cuda_ptx(SOURCE, arch))
        for name, call, requirements in CASES:
            for order in (0, 1, 7):
                where = {"arch": arch, "order": order, "requirements": requirements}
                yield run(interp, module, host, name, call(), **where)
        for name, k, listed in SEARCHES:
            for order in (0, 1, 7):
                yield run_search(interp, module, host, name, k, listed, arch=arch, order=order)
