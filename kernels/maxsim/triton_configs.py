"""The tile shapes by family of GPUs, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from simtile.kernels.info_nce.triton_configs import DTYPES, FAMILIES, operand_stride, row_block
from simtile.kernels.maxsim import triton as kernels
from simtile.kernels.maxsim import triton_gradients as gradient_kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

__all__ = ["DTYPES", "FAMILIES", "Config", "Tile", "config", "operand_stride", "row_block"]


class Tile(NamedTuple):
    """Rows of a document, rows of queries, the step through the dimensions, how it is run."""

    documents: int
    queries: int
    inner: int
    warps: int
    stages: int


class Config(NamedTuple):
    """Tiles of up to NARROW query rows, of more, of smooth maxima, and of the gradients.

    Four warps of `smooth_query`, because eight would do the same work twice.
    """

    narrow: Tile
    wide: Tile
    smooth: Tile
    gradient: Tile
    smooth_query: Tile

    def scan(self, rows: int, smooth: bool) -> Tile:
        return self.smooth if smooth else self.narrow if rows <= NARROW else self.wide


NARROW = 32  # query rows that share a document, up to which the tile is the narrow one
GRADIENT_DIMS = 128  # dimensions that a program of the gradients owns
# The same of smooth_query_gradients, whose programs hold more. With 64 rows sm100's compiler would
# make tf32 products of float32.
SMOOTH_DIMS = {"float32": 32, "bfloat16": 64, "float16": 64}
GATHER = 4  # query rows of a program of query_gradients
TOKEN_ROWS, TOKEN_BLOCK = 16, 128  # of a step of `tokens`
PAIRS, PAIR_BLOCK = 32, 32  # of a step of sum_tokens

# Chosen by compiling ahead of time, not by timing one against another: products, maxima and places
# of a tile stay in registers, operands in the shared memory of every family. Rows of up to 128
# numbers of 16 bits are multiplied whole, and then a query's are read once. Float32 has no matrix
# unit on NVIDIA, so its steps through the dimensions are short.
# A smooth maximum has a fourth number for each element of a tile.
_HALF = Config(
    Tile(128, 32, 128, 8, 2),
    Tile(64, 128, 128, 8, 2),
    Tile(64, 64, 128, 8, 2),
    Tile(64, 32, 64, 8, 2),
    Tile(64, 32, 64, 4, 2),
)
_FLOAT = Config(
    Tile(64, 32, 32, 4, 2),
    Tile(32, 128, 32, 8, 2),
    Tile(32, 64, 32, 8, 2),
    Tile(32, 32, 32, 4, 2),
    Tile(32, 32, 32, 8, 2),
)
# gfx942 keeps what a tile compares in scalar registers, of which larger tiles spill; sm100's
# compiler gives 8 warps of a product without its matrix unit 128 registers a thread.
_AMD = Config(*[Tile(64, 16, 128, 4, 2)] * 3, *[Tile(64, 16, 32, 4, 1)] * 2)
_AMD_FLOAT = Config(*[Tile(64, 16, 32, 4, 2)] * 3, *[Tile(64, 16, 32, 4, 1)] * 2)
CONFIGS = {
    "half": {
        **dict.fromkeys(FAMILIES, _HALF),
        "sm120": _HALF._replace(
            narrow=Tile(64, 32, 128, 4, 2), smooth_query=Tile(32, 32, 64, 4, 2)
        ),
        "gfx942": _AMD,
    },
    "float32": {
        **dict.fromkeys(FAMILIES, _FLOAT),
        "sm100": _FLOAT._replace(narrow=Tile(32, 32, 32, 4, 2), wide=Tile(16, 128, 32, 8, 2)),
        "gfx942": _AMD_FLOAT,
    },
}


# Triton 3.2 cannot compile the gradients of float32 in two stages, nor, for Hopper, those of smooth
# maxima of 16 bits by eight warps.
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    for _name, _changed in (("half", {"warps": 4}), ("float32", {"stages": 1})):
        for _family in ("sm80", "sm90"):
            _pinned = CONFIGS[_name][_family]
            CONFIGS[_name][_family] = _pinned._replace(
                gradient=_pinned.gradient._replace(**_changed)
            )


def config(family: str, dtype: str) -> Config:
    """The pinned tiles; KeyError where a family has none."""
    return CONFIGS[dtype if dtype == "float32" else "half"][family]


def scan_options(tile: Tile, dim: int, smooth: bool) -> dict[str, Any]:
    inner = min(tile.inner, 64) if dim <= 64 else tile.inner
    return {
        "SMOOTH": smooth,
        "WHOLE": dim <= inner,
        "BJ": tile.documents,
        "BQ": tile.queries,
        "BK": inner,
        "PRECISION": "ieee",
    }


def gradient_options(
    tile: Tile, dtype: str, dim: int, normalize: bool, smooth: bool
) -> dict[str, Any]:
    """Of document_gradients; 0 and 1 need not be split to be exact in 16 bits."""
    return {
        "SMOOTH": smooth,
        "SPLIT": dtype != "float32" and (normalize or smooth),
        "BJ": tile.documents,
        "BQ": tile.queries,
        "BK": tile.inner,
        "BO": gradient_dims(dim),
        "PRECISION": "ieee",
    }


def smooth_options(tile: Tile, dtype: str, dim: int) -> dict[str, Any]:
    """Of smooth_query_gradients."""
    options = gradient_options(tile, dtype, dim, False, True)
    del options["SMOOTH"]
    return {**options, "BO": SMOOTH_DIMS[dtype]}


def gradient_dims(dim: int) -> int:
    return min(GRADIENT_DIMS, operand_stride(dim))


_KINDS = {
    "mask": "*u8",
    "there": "*u8",
    "query_mask": "*u8",
    "document_mask": "*u8",
    "query_factor": "*fp32",
    "document_factor": "*fp32",
    "factor": "*fp32",
    "inverse": "*fp32",
    "document_ends": "*i32",
    "query_counts": "*i32",
    "candidates": "*i64",
    "order": "*i64",
    "bounds": "*i64",
    "argmax": "*i32",
    "token_scores": "*fp32",
    "scores": "*fp32",
    "grad_scores": "*fp32",
    "grad": "*fp32",
    "empty_score": "fp32",
    "temperature": "fp32",
}


def _variant(
    name: str,
    kernel: Any,
    dtype: str,
    constexprs: dict[str, Any],
    warps: int,
    stages: int = 1,
    expects: str | None = None,
) -> Variant:
    element = POINTERS[dtype]
    kinds = {**_KINDS, **dict.fromkeys(("x", "operand", "queries", "documents"), element)}
    return variant(name, kernel, dtype, kinds, constexprs, warps, stages, expects)


def variants(family: str, dim: int = 128) -> Iterator[Variant]:
    """Every kernel in every element type, as it runs on one family of GPUs."""
    for dtype in DTYPES:
        tiles = config(family, dtype)
        expects = "mma" if dtype != "float32" or family == "gfx942" else "fma"
        block = {"ROWS": TOKEN_ROWS, "BLOCK": TOKEN_BLOCK}
        yield _variant(f"tokens[{dtype}]", kernels.tokens, dtype, block, 4)
        gather = {"ROWS": GATHER, "BLOCK": gradient_dims(dim)}
        yield _variant(
            f"query_gradients[{dtype}]", gradient_kernels.query_gradients, dtype, gather, 4
        )
        tile = tiles.gradient
        for smooth in (False, True):
            of = f"{dtype}, smooth" if smooth else dtype
            scans = {f"{of}, narrow": tiles.narrow, f"{of}, wide": tiles.wide}
            for label, scanned in ({of: tiles.smooth} if smooth else scans).items():
                yield _variant(
                    f"scan[{label}]",
                    kernels.scan,
                    dtype,
                    {**scan_options(scanned, dim, smooth), "EMULATE": False},
                    scanned.warps,
                    scanned.stages,
                    expects,
                )
            for normalize in (False, True):
                options = gradient_options(tile, dtype, dim, normalize, smooth)
                if normalize and not options["SPLIT"]:
                    continue  # the same
                if smooth and normalize:
                    continue
                yield _variant(
                    f"document_gradients[{of}{', normalize' if normalize else ''}]",
                    gradient_kernels.document_gradients,
                    dtype,
                    {**options, "EMULATE": False},
                    tile.warps,
                    tile.stages,
                    expects,
                )
        tile = tiles.smooth_query
        options = smooth_options(tile, dtype, dim)
        yield _variant(
            f"smooth_query_gradients[{dtype}]",
            gradient_kernels.smooth_query_gradients,
            dtype,
            {**options, "EMULATE": False},
            tile.warps,
            tile.stages,
            "mma of warps" if options["SPLIT"] and family != "gfx942" else expects,
        )
    block = {"PAIRS": PAIRS, "BLOCK": PAIR_BLOCK}
    yield _variant("sum_tokens", kernels.sum_tokens, "float32", block, 4)
