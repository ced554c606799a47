"""The tile shapes of triton.py, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simtile.kernels.pool import triton as kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

DTYPES = ("float32", "bfloat16", "float16")
HOW = {"mean": 0, "max": 1, "cls": 2, "last": 3}
# Nothing has been timed. Tokens that a program of `pooled` asks memory for at once, each thread
# with some 16 bytes of every one: with more of "max" the compilers of sm_90 and sm_100 spill.
TOKENS = {"mean": 8, "max": 2, "cls": 1, "last": 1}
# Columns that one program can normalise, with 16 warps.
WIDEST = 4096
# Of FIRST and LAST: bytes of the mask that are looked at together.
SCAN = 256
# Tokens of a program of `spread`, and the most columns.
SPREAD_TOKENS = 16
SPREAD_BLOCK = 1024
# The tile of `dots`.
DOT_ROWS = 16
DOT_BLOCK = 128


def power_of_two(x: int) -> int:
    return 1 << max(x - 1, 0).bit_length()


def block(dim: int, most: int) -> int:
    """Columns of a program."""
    return min(max(power_of_two(dim), 128), most)


def warps(columns: int) -> int:
    """For each thread 4 columns, as far as 16 warps go."""
    return min(max(columns // 128, 1), 16)


_KINDS = {
    "offsets": "*i64",
    "mask": "*u8",
    "positions": "*i32",
    **dict.fromkeys(("weights", "raw", "totals", "grad", "coefficients"), "*fp32"),
}


def _variant(name: str, kernel: Any, dtype: str, columns: int, **constexprs: Any) -> Variant:
    element = POINTERS[dtype]
    kinds = {**_KINDS, "tokens": element, "vectors": element, "out": element}
    if kernel is kernels.dots:
        kinds |= {"vectors": "*fp32", "out": "*fp32"}
    return variant(f"{name}[{dtype}]", kernel, dtype, kinds, constexprs, warps(columns))


def pooled_options(how: str, dim: int) -> dict[str, Any]:
    columns = block(dim, WIDEST)
    return {
        "HOW": HOW[how],
        "WHOLE": dim <= WIDEST,
        "TOKENS": TOKENS[how],
        "BLOCK": columns,
        "SCAN": SCAN,
    }


def spread_options(chosen: bool, token_dim: int) -> dict[str, Any]:
    return {
        "CHOSEN": chosen,
        "TOKENS": SPREAD_TOKENS,
        "BLOCK": block(token_dim, SPREAD_BLOCK),
    }


def variants(family: str, dim: int = 768) -> Iterator[Variant]:
    """Every kernel in every element type; all families run the same."""
    for dtype in DTYPES:
        for how in HOW:
            options = pooled_options(how, dim)
            yield _variant(
                f"pooled {how}", kernels.pooled, dtype, options["BLOCK"], **options, EMULATE=False
            )
        for chosen in (False, True):
            options = spread_options(chosen, dim)
            name = f"spread{' chosen' * chosen}"
            yield _variant(name, kernels.spread, dtype, options["BLOCK"], **options, EMULATE=False)
        yield _variant("dots", kernels.dots, dtype, 512, ROWS=DOT_ROWS, BLOCK=DOT_BLOCK)
