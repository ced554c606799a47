"""The tile shapes of triton.py, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simtile.kernels.pairwise import triton as kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

DTYPES = ("float32", "bfloat16", "float16")


class Tile(NamedTuple):
    """Rows, columns and depth of a tile of similarities; columns of gradients."""

    m: int
    n: int
    k: int
    d: int
    num_warps: int
    num_stages: int


# Nothing has been timed: these are shapes that compile without spills. float32 products take the
# general units, whose tiles keep every accumulator in a thread's registers.
FLOAT32 = Tile(32, 64, 16, 64, 4, 2)
SM120_GRADIENTS_FLOAT32 = Tile(32, 64, 16, 32, 4, 2)  # with 64 columns of gradients it spills
HALF = Tile(64, 64, 64, 128, 4, 3)
# AMD's scalar registers hold the conditions of a tile's elements, and so bound its size.
GFX_FLOAT32 = Tile(64, 64, 16, 32, 4, 1)
GFX_HALF = Tile(64, 64, 64, 64, 4, 1)
GFX_HARDEST = Tile(16, 32, 32, 16, 4, 1)
# Columns of a program that gathers, of one warp: 4 to a thread, and the numbers that belong to a
# row, which every warp reads, are read once.
GATHER = 128
GATHER_WARPS = 1


def tile(kernel: str, dtype: str, family: str) -> Tile:
    if (kernel, dtype, family) == ("potential_gradients", "float32", "sm120"):
        return SM120_GRADIENTS_FLOAT32
    if not family.startswith("gfx"):
        return FLOAT32 if dtype == "float32" else HALF
    if kernel == "hardest":
        return GFX_HARDEST
    return GFX_FLOAT32 if dtype == "float32" else GFX_HALF


_KINDS = {
    **dict.fromkeys(("factor", "half", "square", "maxima", "totals", "grad"), "*fp32"),
    **dict.fromkeys(("labels", "chosen_by", "starts"), "*i64"),
    **dict.fromkeys(("positive", "negative"), "*i32"),
    "t": "fp32",
}
_GATHER_KINDS = {
    **dict.fromkeys(("factor", "coefficient", "grad"), "*fp64"),
    **dict.fromkeys(("positive", "negative"), "*i64"),
}


def _variant(
    name: str, kernel: Any, dtype: str, constexprs: dict[str, Any], warps: int, stages: int
) -> Variant:
    kinds = {**_KINDS, "x": POINTERS[dtype]}
    if kernel is kernels.gather_chosen:
        kinds |= _GATHER_KINDS
    expects = None
    if kernel is not kernels.gather_chosen:
        expects = "fma" if dtype == "float32" else "mma"
    return variant(f"{name}[{dtype}]", kernel, dtype, kinds, constexprs, warps, stages, expects)


def variants(family: str) -> Iterator[Variant]:
    """Every kernel in every element type."""
    for dtype in DTYPES:
        for kernel in (kernels.hardest, kernels.exponent_sums, kernels.potential_gradients):
            name = kernel.__name__
            m, n, k, d, warps, stages = tile(name, dtype, family)
            constexprs = {"BM": m, "BN": n, "BK": k, "PRECISION": "ieee", "EMULATE": False}
            if kernel is kernels.potential_gradients:
                constexprs["BD"] = d
            yield _variant(name, kernel, dtype, constexprs, warps, stages)
        for cosine in (False, True):
            yield _variant(
                f"gather_chosen{' cosine' * cosine}",
                kernels.gather_chosen,
                dtype,
                {"COSINE": cosine, "BLOCK": GATHER},
                GATHER_WARPS,
                1,
            )
