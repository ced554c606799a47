"""The tile shapes of triton.py, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simtile.kernels.pairwise import triton as kernels

DTYPES = ("float32", "bfloat16", "float16")


class Tile(NamedTuple):
    """Rows, columns and depth of a tile of similarities; columns of gradients."""

    m: int
    n: int
    k: int
    d: int
    num_warps: int
    num_stages: int


# One shape for every family: nothing has been timed. float32 products take the general units, whose
# tiles keep every accumulator in a thread's registers.
FLOAT32 = Tile(32, 64, 32, 64, 4, 2)
HALF = Tile(64, 64, 64, 128, 4, 3)
# AMD's 64 KiB of shared memory hold two stages.
HALF_GFX = Tile(64, 64, 64, 128, 4, 2)
GATHER = 128  # columns of a program that gathers


def tile(dtype: str, family: str) -> Tile:
    if dtype == "float32":
        return FLOAT32
    return HALF_GFX if family.startswith("gfx") else HALF


class Variant(NamedTuple):
    """A kernel as it is compiled ahead of time for one family."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    dtype: str
    expects: str | None
    divisible: tuple[str, ...]  # arguments that are multiples of 16, as launches find them


_POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
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
    kinds = {**_KINDS, "x": _POINTERS[dtype]}
    if kernel is kernels.gather_chosen:
        kinds |= _GATHER_KINDS
    names = [parameter.name for parameter in kernel.params]
    signature = {n: "constexpr" if n in constexprs else kinds.get(n, "i32") for n in names}
    divisible = tuple(
        p.name
        for p in kernel.params
        if signature[p.name] != "constexpr"
        and not (p.do_not_specialize or p.do_not_specialize_on_alignment)
    )
    expects = None
    if kernel is not kernels.gather_chosen:
        expects = "fma" if dtype == "float32" else "mma"
    return Variant(
        f"{name}[{dtype}]",
        kernel,
        signature,
        constexprs,
        warps,
        stages,
        dtype,
        expects,
        divisible,
    )


def options(dtype: str, family: str, *, gradients: bool = False) -> dict[str, Any]:
    """Constants of a launch, without those of the compiler."""
    m, n, k, d, _, _ = tile(dtype, family)
    found: dict[str, Any] = {"BM": m, "BN": n, "BK": k, "PRECISION": "ieee", "EMULATE": False}
    return found | ({"BD": d} if gradients else {})


def variants(family: str) -> Iterator[Variant]:
    """Every kernel in every element type."""
    for dtype in DTYPES:
        *_, warps, stages = tile(dtype, family)
        shared = options(dtype, family)
        yield _variant("hardest", kernels.hardest, dtype, shared, warps, stages)
        yield _variant("exponent_sums", kernels.exponent_sums, dtype, shared, warps, stages)
        yield _variant(
            "potential_gradients",
            kernels.potential_gradients,
            dtype,
            options(dtype, family, gradients=True),
            warps,
            stages,
        )
        for cosine in (False, True):
            yield _variant(
                f"gather_chosen{' cosine' * cosine}",
                kernels.gather_chosen,
                dtype,
                {"COSINE": cosine, "BLOCK": GATHER},
                4,
                1,
            )
