"""The tile shapes of triton.py, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simtile.kernels.siglip import triton as kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

DTYPES = ("float32", "bfloat16", "float16")


class Tile(NamedTuple):
    """Rows, columns and depth of a product's tile."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


# Nothing has been timed: these are shapes that compile without spills. float32 products take the
# general units, whose tiles keep every accumulator in a thread's registers.
FLOAT32 = Tile(32, 64, 16, 4, 2)
SM120_PRODUCTS_FLOAT32 = Tile(32, 32, 16, 4, 2)
HALF = Tile(64, 64, 64, 4, 3)
HALF_PRODUCTS = Tile(64, 128, 32, 4, 3)
# AMD's scalar registers hold the conditions of a tile's elements, and so bound its size.
GFX_COEFFICIENTS = Tile(16, 32, 32, 4, 1)
GFX_FLOAT32 = Tile(32, 64, 16, 4, 1)
GFX_HALF = Tile(64, 64, 32, 4, 1)
GROUP = 8  # tiles of rows that share tiles of columns


def tile(kernel: str, dtype: str, family: str) -> Tile:
    if family.startswith("gfx"):
        if kernel == "coefficients":
            return GFX_COEFFICIENTS
        return GFX_FLOAT32 if dtype == "float32" else GFX_HALF
    if kernel == "products":
        if dtype == "float32":
            return SM120_PRODUCTS_FLOAT32 if family == "sm120" else FLOAT32
        return HALF_PRODUCTS
    return FLOAT32 if dtype == "float32" else HALF


def scale(dtype: str) -> float:
    """What coefficients are multiplied by in the element type: where training starts they are about
    4.5e-5, which float16 would hold with fewer digits."""
    return 4096.0 if dtype == "float16" else 1.0


_FLOATS = (
    *("q_factor", "d_factor", "factor", "scalars"),
    *("losses", "sums", "weighted", "kept", "out"),
)


def _variant(name: str, dtype: str, family: str, **constexprs: Any) -> Variant:
    kernel = getattr(kernels, name)
    m, n, k, warps, stages = tile(name, dtype, family)
    constexprs |= {"BM": m, "BN": n, "BK": k, "PRECISION": "ieee", "EMULATE": False}
    kinds = dict.fromkeys(_FLOATS, "*fp32") | dict.fromkeys("qdx", POINTERS[dtype])
    marks = " turned" * constexprs.get("TURNED", False) + " loss" * (not constexprs.get("KEEP", 1))
    expects = "fma" if dtype == "float32" else "mma"
    return variant(
        f"{name}{marks}[{dtype}]", kernel, dtype, kinds, constexprs, warps, stages, expects
    )


def variants(family: str) -> Iterator[Variant]:
    """Every kernel in every element type."""
    for dtype in DTYPES:
        for keep in (False, True):
            yield _variant("coefficients", dtype, family, KEEP=keep, GROUP=GROUP)
        for turned in (False, True):
            yield _variant("products", dtype, family, TURNED=turned, SCALE=scale(dtype))
