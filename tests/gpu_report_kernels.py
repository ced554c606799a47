"""Kernels for the tests of the GPU report: a product of tiles that fits, and one that spills."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from simtile.kernels.tile.triton_variants import Variant


@triton.jit
def scores(q, d, out, N: tl.constexpr, K: tl.constexpr):
    n, k = tl.arange(0, N), tl.arange(0, K)
    queries = tl.load(q + n[:, None] * K + k[None, :])
    documents = tl.load(d + n[:, None] * K + k[None, :])
    result = tl.dot(queries, tl.trans(documents), input_precision="ieee")
    tl.store(out + n[:, None] * N + n[None, :], result)


def variants(family: str) -> Iterator[Variant]:
    signature = {"q": "*bf16", "d": "*bf16", "out": "*fp32"}
    sizes = {"N": 64, "K": 64}
    yield Variant("fits", scores, signature, sizes, 4, 2, "bfloat16", "mma", tuple(signature))
    if family == "sm80":
        signature = {**signature, "q": "*fp32", "d": "*fp32"}
        # a tile's accumulators alone are 512 registers of each of 32 threads
        sizes = {"N": 128, "K": 16}
        yield Variant("spills", scores, signature, sizes, 1, 2, "float32", "fma", tuple(signature))
