"""Operations as functions of their sizes, each with what it must give and what work it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import maxsim_contenders
import numpy as np
import topk_contenders
from _common import GateFailed
from info_nce_contenders import TEMPERATURE, relative_error
from topk_compare import gate, operations

import simtile
from simtile.reference import info_nce_numpy, pool_numpy, quantize_numpy

THREADS = "threads"
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Point:
    """One size of one operation."""

    call: Callable[[], Any]
    check: Callable[[], None]  # raises GateFailed
    work: float  # operations, or bytes read and written at least


@dataclass(frozen=True)
class Operation:
    """`base` is where the others stand while one size varies; all are off the round numbers."""

    make: Callable[[Sizes], Point]
    base: Sizes  # without the threads
    axes: Mapping[str, tuple[int, ...]]
    quick: Mapping[str, tuple[int, ...]]
    unit: str = "operations"


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def info_nce_grad(sizes: Sizes) -> Point:
    n, dim = sizes["N"], sizes["D"]
    queries = normal(n, dim)
    documents = 0.5 * queries + normal(n, dim, seed=1)

    def call() -> Any:
        return simtile.info_nce_grad(
            queries, documents, temperature=TEMPERATURE, threads=sizes[THREADS]
        )

    def check() -> None:
        loss, *grads = call()
        exact = info_nce_numpy.info_nce_grad(
            queries, documents, temperature=TEMPERATURE, row_weights=np.full(n, 1 / n)
        )
        errors = [abs(loss / exact.losses.mean() - 1)]
        for grad, wanted in zip(grads, (exact.queries, exact.documents), strict=True):
            errors.append(relative_error(grad, wanted))
        near("info_nce_grad", sizes, max(errors), 1e-5)

    return Point(call, check, 6.0 * n * n * dim)


def maxsim(sizes: Sizes) -> Point:
    lengths = np.full(sizes["documents"], 173)
    scene = maxsim_contenders.Scene(1, sizes["query tokens"], lengths, sizes["D"], sizes[THREADS])

    def check() -> None:
        off = np.abs(np.asarray(scene.simtile(), np.float64) - scene.oracle()).max()
        near("maxsim", sizes, float(off), maxsim_contenders.TOLERANCE * sizes["query tokens"])

    return Point(scene.simtile, check, 2 * scene.products)


def topk(kind: str) -> Callable[[Sizes], Point]:
    def make(sizes: Sizes) -> Point:
        queries, k = sizes["queries"], sizes["k"]
        corpus = topk_contenders.OfKind(kind, sizes["N"], sizes["D"], queries, sizes[THREADS])
        return Point(
            lambda: corpus.simtile(queries, k),
            lambda: gate(corpus, queries, k),
            operations(corpus, queries),
        )

    return make


def pool(sizes: Sizes) -> Point:
    rows, dim = sizes["rows"], sizes["D"]
    length = 129
    tokens = normal(rows, length, dim)
    kept = np.random.default_rng(1).integers(length // 2, length + 1, (rows, 1))
    mask = np.arange(length) < kept

    def call() -> Any:
        return simtile.pool(tokens, mask, threads=sizes[THREADS])

    def check() -> None:
        exact = pool_numpy.pool(tokens, mask).vectors
        near("pool", sizes, float(np.abs(call() - exact).max() / np.abs(exact).max()), 1e-5)

    return Point(call, check, 4.0 * dim * (int(mask.sum()) + rows))


def quantize(sizes: Sizes) -> Point:
    n, dim = sizes["N"], sizes["D"]
    x = normal(n, dim)

    def call() -> Any:
        return simtile.quantize(x, "int8_vector", threads=sizes[THREADS])

    def check() -> None:
        found = call()
        codes, scale, _ = quantize_numpy.quantize(x, "int8_vector")
        if not (np.array_equal(found.codes, codes) and np.array_equal(found.scale, scale)):
            raise GateFailed(f"quantize, {shown(sizes)}: other codes than the definition's")

    return Point(call, check, 5.0 * n * dim + 4 * n)


def near(name: str, sizes: Sizes, error: float, allowed: float) -> None:
    if not error <= allowed:
        raise GateFailed(f"{name}, {shown(sizes)}: error {error:.2g}, allowed {allowed:.2g}")


def shown(sizes: Sizes) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sizes.items())


SEARCH = {"N": 100_003, "D": 389, "queries": 11, "k": 10}
SEARCH_AXES = {
    "N": (10_007, 30_011, 100_003, 200_003),
    "D": (97, 193, 389, 771),
    "queries": (1, 3, 11, 33, 101),
    "k": (1, 10, 101, 1009),
}
SEARCH_QUICK = {"N": (1_009, 3_001), "D": (65, 97), "queries": (1, 3), "k": (1, 10)}

OPERATIONS: Mapping[str, Operation] = {
    "info_nce_grad": Operation(
        info_nce_grad,
        {"N": 1537, "D": 389},
        {"N": (193, 389, 769, 1537, 3073), "D": (65, 129, 259, 389, 771)},
        {"N": (65, 193), "D": (65, 129)},
    ),
    "maxsim": Operation(
        maxsim,
        {"documents": 501, "query tokens": 31, "D": 129},
        {"documents": (63, 251, 501, 1003), "query tokens": (1, 7, 31, 129), "D": (33, 65, 129)},
        {"documents": (9, 31), "query tokens": (1, 7), "D": (33, 65)},
    ),
    **{
        f"topk, {name}": Operation(topk(kind), SEARCH, SEARCH_AXES, SEARCH_QUICK)
        for name, kind in (("float32", "float32"), ("int8", "int8"), ("bits", "packed"))
    },
    "pool": Operation(
        pool,
        {"rows": 129, "D": 389},
        {"rows": (1, 9, 33, 129, 513), "D": (97, 193, 389, 771)},
        {"rows": (1, 9), "D": (97, 193)},
        "bytes",
    ),
    "quantize": Operation(
        quantize,
        {"N": 100_003, "D": 389},
        {"N": (10_007, 30_011, 100_003, 300_007), "D": (97, 193, 389, 771)},
        {"N": (1_009, 3_001), "D": (97, 193)},
        "bytes",
    ),
}
