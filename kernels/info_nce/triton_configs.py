"""The pinned tile shapes by family of GPUs, and what is compiled ahead of time.

Nothing here imports torch or needs a driver.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from simtile.kernels.info_nce import triton as kernels
from simtile.kernels.info_nce import triton_contrast as family_kernels
from simtile.kernels.info_nce import triton_gradients as gradient_kernels
from simtile.kernels.tile.triton_variants import POINTERS, Variant, variant

# Operands are padded with zeros to whole tiles: every side of a tile below divides these.
ROW_PADDING = 256
DIM_PADDING = 128
NARROW_DIM = 64  # up to here a row is padded to this only

# Exponentials and coefficients that are kept in 16 bits are multiplied by 2^15, which they then do
# not exceed. What a float16 loses at its lower end, 2^-40, is far below a rounding of a sum of
# ordinary size; README.md says who notices.
HALF_SCALE = 32768.0

FAMILIES = ("sm80", "sm90", "sm100", "sm120", "gfx942")
PRECISIONS = ("ieee", "tf32", "tf32x3")
DTYPES = ("float32", "bfloat16", "float16")


class Tile(NamedTuple):
    """A tile of an output, the step through the inner dimension, and how it is run."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


class Config(NamedTuple):
    """Tile shapes of the two kinds of matrix products: scores, and gradients."""

    scores: Tile
    product: Tile


# Chosen by compiling ahead of time, not by timing one against another. Each is the largest tile
# whose sums and epilogue stay in registers (docs/gpu-report.md has the counts; 128 x 256 spills
# everywhere) and whose stages fit the shared memory of a block: 163 KiB on sm80, 227 on sm90 and
# sm100, 99 on sm120 and on the sm86 and sm89 that use its row, 64 on gfx942. Float32 "ieee" has no
# matrix unit on NVIDIA, so its tile is what 255 registers hold; "tf32x3" keeps two parts of each
# operand. On gfx942 wider scores spill scalar registers, and with three stages
# those of block_scores; it has no tf32x3.
_WIDE = Tile(128, 128, 64, 8, 3)
_DEEP = Tile(128, 128, 64, 8, 4)
_TF32 = Tile(128, 128, 32, 8, 3)
_TF32X3 = Tile(128, 64, 32, 8, 3)
_IEEE = Tile(64, 64, 32, 8, 3)
CONFIGS: dict[str, dict[str, Config]] = {
    "sm80": {
        "half": Config(_WIDE, _WIDE),
        "tf32": Config(_TF32, _TF32),
        "tf32x3": Config(_TF32X3, _TF32X3),
        "ieee": Config(_IEEE, _IEEE),
    },
    "sm90": {
        "half": Config(_DEEP, _DEEP),
        "tf32": Config(_TF32, _TF32),
        "tf32x3": Config(_TF32X3, _TF32X3),
        "ieee": Config(_IEEE, _IEEE),
    },
    "sm100": {
        "half": Config(_DEEP, _DEEP),
        "tf32": Config(_TF32, _TF32),
        "tf32x3": Config(_TF32X3, _TF32X3),
        "ieee": Config(_IEEE, _IEEE),
    },
    "sm120": {
        "half": Config(_WIDE, _WIDE),
        "tf32": Config(_TF32, _TF32),
        "tf32x3": Config(_TF32X3, _TF32X3),
        "ieee": Config(_IEEE, _IEEE),
    },
    "gfx942": {
        "half": Config(Tile(128, 64, 64, 8, 2), Tile(128, 128, 64, 8, 2)),
        "tf32": Config(Tile(128, 64, 32, 8, 2), Tile(128, 128, 32, 8, 2)),
        "ieee": Config(_IEEE._replace(stages=2), _IEEE),
    },
}
# Neighbouring programs take tiles of 8 rows of tiles before they move right: what L2 holds of the
# operands then serves 8 times as many tiles.
GROUP = 8
COEFFICIENT_ROWS = 32  # of a tile of `coefficients`; its columns are those of the scores
TILE_BLOCK = 128  # tiles that a warp of `row_losses` reads at once
OWN_BLOCK = 16  # negatives, and
OWN_DIMS = 128  # dimensions, of a step of own_scores
# Elements of a row that are read at once, 4 to a thread: 8 or 16 bytes, so that the sectors that a
# warp asks for are full. Of rows that are not aligned, which threads read one by one, fewer.
ROW_BLOCK = 1024
RAGGED_BLOCK = 256


def config(family: str, dtype: str, precision: str) -> Config:
    """The pinned tiles; KeyError where a family has none."""
    return CONFIGS[family][precision if dtype == "float32" else "half"]


# Of pair_scores, which is little work: with more sm120 spills in tf32x3.
PAIR_STAGES = 1


def block_tile(tile: Tile, guided: bool, dtype: str, precision: str) -> Tile:
    """The tile of block_scores. With a guide it holds a second tile's sums: of 64 columns of each,
    in float32's "ieee" and "tf32x3" 32; sm120 spills with more, gfx942 in "tf32" with fewer."""
    widest = 32 if dtype == "float32" and precision != "tf32" else 64
    return tile._replace(columns=min(tile.columns, widest)) if guided else tile


def alternatives(tile: Tile) -> Iterator[Tile]:
    """Other tiles that operands are padded for, whether or not a GPU has room for them."""
    for rows, columns in ((64, 64), (64, 128), (128, 64), (128, 128), (256, 128)):
        for warps in (4, 8):
            for stages in (2, 3, 4):
                other = Tile(rows, columns, tile.inner, warps, stages)
                if other != tile:
                    yield other


def operand_stride(dim: int) -> int:
    """Elements of a padded row."""
    return NARROW_DIM if dim <= NARROW_DIM else -(-dim // DIM_PADDING) * DIM_PADDING


def padded_rows(rows: int) -> int:
    return -(-rows // ROW_PADDING) * ROW_PADDING


class RowBlock(NamedTuple):
    elements: int
    warps: int


def row_block(dim: int, aligned: bool = True) -> RowBlock:
    """How prepare, finish and own_gradients go through a row."""
    whole = 1 << (operand_stride(dim) - 1).bit_length()
    if not aligned:
        elements = min(whole, RAGGED_BLOCK)
        return RowBlock(elements, elements // 32)
    elements = min(whole, ROW_BLOCK)
    return RowBlock(elements, max(1, elements // 128))


def exponential_scale(dtype: str) -> float:
    return 1.0 if dtype == "float32" else HALF_SCALE


def score_options(tile: Tile, dtype: str, precision: str, store: bool) -> dict[str, Any]:
    return {
        "STORE": store,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.inner,
        "GROUP": GROUP,
        "E_SCALE": exponential_scale(dtype),
        "PRECISION": precision if dtype == "float32" else "ieee",
    }


def pair_options(tile: Tile, dtype: str, precision: str) -> dict[str, Any]:
    """Of pair_scores, whose products round as those of block_scores in the same tile."""
    options = score_options(tile, dtype, precision, False)
    return {name: options[name] for name in ("BM", "BN", "BK", "PRECISION")}


def loss_options(dtype: str, grad: bool) -> dict[str, Any]:
    return {"GRAD": grad, "BLOCK": TILE_BLOCK, "E_SCALE": exponential_scale(dtype)}


def product_options(tile: Tile, dtype: str, precision: str, dim: int) -> dict[str, Any]:
    return {
        "BM": tile.rows,
        "BD": min(tile.columns, operand_stride(dim)),
        "BK": tile.inner,
        "GROUP": GROUP,
        "E_SCALE": exponential_scale(dtype),
        "PRECISION": precision if dtype == "float32" else "ieee",
    }


# Arguments that are not float32 pointers or int32: operands have the element type of the case.
_OPERANDS = {
    "x",
    "operand",
    "queries",
    "candidates_operand",
    "negatives",
    "matrix",
    "result",
    "rows_operand",
    "columns_operand",
    "guide_rows",
    "guide_columns",
    "guide_negatives",
}
_FLOATS = {
    "factor",
    "inverse",
    "query_factor",
    "candidate_factor",
    "negative_factor",
    "temperature",
    "total",
    "tile_max",
    "tile_sum",
    "tile_weighted",
    "tile_similarity",
    "tile_kept",
    "tile_peak",
    "own_similarity",
    "own_kept",
    "own_ahead",
    "positive",
    "factors",
    "positive_coefficient",
    "logits",
    "own_logits",
    "own_coefficients",
    "row_weights",
    "losses",
    "temperature_gradient",
    "grad",
    "grad_queries",
    "grad_candidates",
    "grad_negatives",
    "row_factor",
    "column_factor",
    "guide_row_factor",
    "guide_column_factor",
    "guide_negative_factor",
    "threshold",
    "guide_threshold",
}
_INTEGERS = {"targets", "query_ids", "document_ids", "row_ids", "column_ids"}
_NUMBERS = {"own_strength", "harden_others", "harden_own", "margin", "guide_margin"}  # float32


def _variant(
    name: str,
    kernel: Any,
    dtype: str,
    constexprs: dict[str, Any],
    warps: int,
    stages: int = 1,
    expects: str | None = None,
) -> Variant:
    kinds = {
        **dict.fromkeys(_OPERANDS, POINTERS[dtype]),
        **dict.fromkeys(_FLOATS, "*fp32"),
        **dict.fromkeys(_INTEGERS, "*i64"),
        **dict.fromkeys(_NUMBERS, "fp32"),
        "exponentials": "*fp32" if dtype == "float32" else "*fp16",
    }
    return variant(name, kernel, dtype, kinds, constexprs, warps, stages, expects)


def variants(family: str, dim: int = 768) -> Iterator[Variant]:
    """Every kernel as it runs on one family of GPUs, and what some options make of it."""
    yield from plain_variants(family, dim)
    for dtype in DTYPES:
        yield from family_variants(family, dtype, dim)


def plain_variants(family: str, dim: int = 768) -> Iterator[Variant]:
    """The kernels of the plain loss, in every element type and precision."""
    for dtype in DTYPES:
        elements, warps = row_block(dim)
        block = {"BLOCK": elements}
        dense = {"stride_d": 1, **block}
        yield _variant(f"prepare[{dtype}]", kernels.prepare, dtype, dense, warps)
        yield _variant(f"finish[{dtype}]", gradient_kernels.finish, dtype, block, warps)
        own = {"BLOCK_K": OWN_BLOCK, "BLOCK_D": OWN_DIMS}
        yield _variant(f"own_scores[{dtype}]", kernels.own_scores, dtype, own, 4)
        both = {"QUERIES": True, "NEGATIVES": True, **block}
        yield _variant(
            f"own_gradients[{dtype}]", gradient_kernels.own_gradients, dtype, both, warps
        )
        options = {**loss_options(dtype, True), "COPIES": 1, "FAMILY": False}
        yield _variant(f"row_losses[{dtype}]", kernels.row_losses, dtype, options, 1)
        precisions = PRECISIONS if dtype == "float32" else ("ieee",)
        for precision in precisions:
            if dtype == "float32" and precision not in CONFIGS[family]:
                continue
            tiles = config(family, dtype, precision)
            of = f"{dtype}, {precision}" if dtype == "float32" else dtype
            on_matrix_unit = dtype != "float32" or precision != "ieee" or family == "gfx942"
            expects = "mma" if on_matrix_unit else "fma"
            for store in (False, True):
                yield _variant(
                    f"scores[{of}{', gradients' if store else ''}]",
                    kernels.scores,
                    dtype,
                    {**score_options(tiles.scores, dtype, precision, store), "EMULATE": False},
                    tiles.scores.warps,
                    tiles.scores.stages,
                    expects,
                )
            columns = {"BM": COEFFICIENT_ROWS, "BN": tiles.scores.columns, "EMULATE": False}
            yield _variant(f"coefficients[{of}]", gradient_kernels.coefficients, dtype, columns, 4)
            options = product_options(tiles.product, dtype, precision, dim)
            yield _variant(
                f"products[{of}]",
                gradient_kernels.products,
                dtype,
                {**options, "EMULATE": False, "ADD_QUERIES": 0},
                tiles.product.warps,
                tiles.product.stages,
                expects,
            )


def family_variants(family: str, dtype: str, dim: int) -> Iterator[Variant]:
    """The kernels of the contrastive family in one element type, in every precision, with a guide
    and without."""
    for guided, statistics in itertools.product((False, True), repeat=2):
        own = {"GUIDE": guided, "STATISTICS": statistics, "BLOCK_K": OWN_BLOCK, "BLOCK_D": OWN_DIMS}
        of = dtype + ", guide" * guided + ", statistics" * statistics
        yield _variant(f"own_block_scores[{of}]", family_kernels.own_block_scores, dtype, own, 4)
    options = {**loss_options(dtype, True), "COPIES": 2, "FAMILY": True}
    yield _variant(f"row_losses[{dtype}, family]", kernels.row_losses, dtype, options, 1)
    for precision in PRECISIONS if dtype == "float32" else ("ieee",):
        if dtype == "float32" and precision not in CONFIGS[family]:
            continue
        on_matrix_unit = dtype != "float32" or precision != "ieee" or family == "gfx942"
        expects = "mma" if on_matrix_unit else "fma"
        of = f"{dtype}, {precision}" if dtype == "float32" else dtype
        tiles = config(family, dtype, precision)
        yield from block_variants(tiles, dtype, precision, of, expects)
        options = product_options(tiles.product, dtype, precision, dim)
        yield _variant(
            f"products[{of}, family]",
            gradient_kernels.products,
            dtype,
            {**options, "EMULATE": False, "ADD_QUERIES": 1},
            tiles.product.warps,
            tiles.product.stages,
            expects,
        )


def block_variants(
    tiles: Config, dtype: str, precision: str, of: str, expects: str
) -> Iterator[Variant]:
    for guided in (False, True):
        tile = block_tile(tiles.scores, guided, dtype, precision)
        name = f"{of}, guide" if guided else of
        for by_guide in (False, True)[: 1 + guided]:
            options = {**pair_options(tile, dtype, precision), "GUIDE": by_guide, "EMULATE": False}
            yield _variant(
                f"pair_scores[{name}{', its cosines' if by_guide else ''}]",
                family_kernels.pair_scores,
                dtype,
                options,
                tile.warps,
                PAIR_STAGES,
                expects,
            )
        for statistics in (False, True):
            options = score_options(tile, dtype, precision, True)
            yield _variant(
                f"block_scores[{name}, gradients{', statistics' * statistics}]",
                family_kernels.block_scores,
                dtype,
                {**options, "GUIDE": guided, "STATISTICS": statistics, "EMULATE": False},
                tile.warps,
                tile.stages,
                expects,
            )
