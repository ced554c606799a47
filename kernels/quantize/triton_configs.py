"""The tile shapes of triton.py, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simtile.kernels.quantize import triton as kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
DTYPES = tuple(ITEMSIZE)
WARPS = 4
# Elements of a tile that is packed; each thread has 16 of them.
TILE = 2048
# Bytes of vectors that each thread has of a tile that is not packed: loads and stores of one tile
# are shared out alike, and with more bytes neighbouring threads would not read side by side.
THREAD_BYTES = 16
# Tiles of rows that a program of `by_dimension` goes through.
REPEAT = 8
# Columns of a tile of `ends`, and how many programs share the rows of one block of columns: enough
# for every multiprocessor, few enough that going over what they found is short.
END_COLUMNS = 128
END_ROWS = TILE // END_COLUMNS
END_PARTS = 64

# Elements a byte.
PER = {"int8": 1, "uint8": 1, "int4": 2, "binary": 8, "int8_vector": 1, "int4_vector": 2}
TOP = {"int8": 255, "uint8": 255, "int4": 15, "int8_vector": 127, "int4_vector": 7}
FLIP = {"int8": 128, "uint8": 0, "int4": 8}


class Tile(NamedTuple):
    rows: int
    bytes: int  # of codes


def tile(kind: str, dim: int, item: int) -> Tile:
    """Rows as wide as the vectors are, up to a whole tile; `item` is the size of an element."""
    elements = TILE if PER[kind] > 1 else WARPS * 32 * THREAD_BYTES // item
    columns = min(max(64, 1 << (dim - 1).bit_length()), elements, 1024)
    return Tile(elements // columns, columns // PER[kind])


def code_options(kind: str, dim: int, item: int) -> dict[str, Any]:
    rows, width = tile(kind, dim, item)
    options: dict[str, Any] = {"ROWS": rows, "BYTES": width}
    if kind != "binary":
        options |= {"TOP": TOP[kind], "PER": PER[kind]}
    if kind in FLIP:
        options |= {"FLIP": FLIP[kind], "REPEAT": REPEAT}
    return options


_KINDS = {
    "starts": "*fp32",
    "steps": "*fp32",
    "scales": "*fp32",
    "codes": "*u8",
    "flags": "*i8",
}


def _variant(name: str, kernel: Any, dtype: str, constexprs: dict[str, Any]) -> Variant:
    found = "*fp64" if dtype == "float64" else "*fp32"
    kinds = {
        **_KINDS,
        "x": POINTERS[dtype],
        **dict.fromkeys(("smallest", "largest"), found),
    }
    return variant(f"{name}[{dtype}]", kernel, dtype, kinds, constexprs, WARPS)


def variants(family: str, dim: int = 768) -> Iterator[Variant]:
    """Every kernel in every element type; all families run the same."""
    for dtype in DTYPES:
        tiles = {"ROWS": END_ROWS, "BLOCK": END_COLUMNS}
        yield _variant("ends", kernels.ends, dtype, tiles)
        for kind in PER:
            options = code_options(kind, dim, ITEMSIZE[dtype])
            if kind == "binary":
                yield _variant("signs", kernels.signs, dtype, options)
            elif kind in FLIP:
                yield _variant(f"by_dimension {kind}", kernels.by_dimension, dtype, options)
            else:
                yield _variant(f"by_vector {kind}", kernels.by_vector, dtype, options)
