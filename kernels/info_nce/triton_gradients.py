"""The gradients of InfoNCE in Triton: matrix products of what the kernels of triton.py stored.

The kernels in the order in which they run. The rules are those of triton.py:

    coefficients     exponentials -> coefficients of the gradient, in place
    products         coefficients times operands: gradients, each output tile owned by one program
    own_gradients    what a query's own negatives add to its gradient, and their own
    finish           the gradient of a normalised row -> that of the row
"""

import triton
import triton.language as tl
from simtile.kernels.info_nce.triton import NORM_FLOOR
from simtile.kernels.tile.triton import dot, grouped, narrow

_SIZES = [
    "row0",
    "rows",
    "candidates",
    "dim",
    "tiles",
    "has_targets",
    "own",
    "accumulate",
    "out_rows",
    "query_tiles",
]
# As in triton.py.
_UNALIGNED = ["factor", "inverse", "targets"]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def coefficients(
    exponentials,  # [rows of the chunk, score_stride]
    result,  # the same memory as elements of the operands' type
    score_stride,
    factors,  # [rows of the chunk, tiles], from row_losses
    positive_coefficient,
    candidate_factor,
    targets,
    row0,
    rows,
    tiles,
    has_targets,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EMULATE: tl.constexpr,
):
    tile_n = tl.program_id(0) % tiles
    local = (tl.program_id(0) // tiles * BM + tl.arange(0, BM)).to(tl.int64)
    row = row0 + local
    column = (tile_n * BN + tl.arange(0, BN)).to(tl.int64)
    row_there = row < rows
    target = tl.load(targets + row, mask=row_there & (has_targets != 0), other=-1)
    target = tl.where(has_targets != 0, target, row)
    factor = tl.load(factors + local * tiles + tile_n, mask=row_there, other=0.0)
    of_positive = tl.load(positive_coefficient + row, mask=row_there, other=0.0)
    at = local[:, None] * score_stride + column[None, :]
    values = tl.load(exponentials + at).to(tl.float32) * factor[:, None]
    values = tl.where(column[None, :] == target[:, None], of_positive[:, None], values)
    values *= tl.load(candidate_factor + column)[None, :]
    tl.store(result + at, narrow(values, result.dtype.element_ty, EMULATE))


@triton.jit
def product_tile(
    tile,
    matrix,  # coefficients: [out_rows, inner], or [inner, out_rows] if TRANSPOSED
    matrix_stride,
    operand,  # [inner, operand_stride]
    operand_stride,
    row_factor,  # [out_rows]: is in the coefficients and does not belong there
    scale,
    out,  # float32 [out_rows, operand_stride]
    out_rows,
    inner_size,
    dim,
    accumulate,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """A tile of coefficients times operands, to `out` or added to what it holds."""
    tile_m, tile_d = grouped(tile, tl.cdiv(out_rows, BM), tl.cdiv(dim, BD), GROUP)
    row = (tile_m * BM + tl.arange(0, BM)).to(tl.int64)
    d = tile_d * BD + tl.arange(0, BD)
    k = tl.arange(0, BK).to(tl.int64)
    x = operand + k[:, None] * operand_stride + d[None, :]  # [BK, BD]
    sums = tl.zeros((BM, BD), tl.float32)
    if TRANSPOSED:
        a = matrix + k[:, None] * matrix_stride + row[None, :]  # [BK, BM]
        for _ in range(0, inner_size, BK):
            sums = dot(tl.trans(tl.load(a)), tl.load(x), sums, PRECISION, EMULATE)
            a += BK * matrix_stride
            x += BK * operand_stride
    else:
        a = matrix + row[:, None] * matrix_stride + k[None, :]  # [BM, BK]
        for _ in range(0, inner_size, BK):
            sums = dot(tl.load(a), tl.load(x), sums, PRECISION, EMULATE)
            a += BK
            x += BK * operand_stride
    row_there = row < out_rows
    sums *= (scale / tl.load(row_factor + row, mask=row_there, other=1.0))[:, None]
    place = out + row[:, None] * operand_stride + d[None, :]
    if accumulate != 0:
        sums += tl.load(place, mask=row_there[:, None], other=0.0)
    tl.store(place, sums, mask=row_there[:, None])


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def products(
    matrix,  # coefficients [rows of the chunk, matrix_stride]
    matrix_stride,
    queries,  # operands: those of the chunk
    query_factor,
    candidates_operand,
    candidate_factor,
    operand_stride,
    temperature,
    total,  # one float32: multiplies all
    grad_queries,  # float32 [rows of the chunk, operand_stride]
    grad_candidates,  # float32 [out_rows, operand_stride]
    query_tiles,  # programs for grad_queries, each a long one, which begin first; 0: not wanted
    rows,  # of the chunk
    candidates,
    out_rows,
    dim,
    accumulate,  # add to what grad_candidates holds
    BM: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    E_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    ADD_QUERIES: tl.constexpr = 0,  # whether grad_queries is added to what it holds
):
    pid = tl.program_id(0)
    scale = tl.load(total) / (tl.load(temperature) * E_SCALE)
    if pid < query_tiles:
        product_tile(
            pid,
            matrix,
            matrix_stride,
            candidates_operand,
            operand_stride,
            query_factor,
            scale,
            grad_queries,
            rows,
            candidates,
            dim,
            ADD_QUERIES,
            False,
            BM,
            BD,
            BK,
            GROUP,
            PRECISION,
            EMULATE,
        )
    else:
        product_tile(
            pid - query_tiles,
            matrix,
            matrix_stride,
            queries,
            operand_stride,
            candidate_factor,
            scale,
            grad_candidates,
            out_rows,
            rows,
            dim,
            accumulate,
            True,
            BM,
            BD,
            BK,
            GROUP,
            PRECISION,
            EMULATE,
        )


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def own_gradients(
    queries,
    query_factor,
    negatives,
    negative_factor,
    operand_stride,
    own_coefficients,  # [rows, own]
    temperature,
    total,
    grad_queries,  # float32 [rows, operand_stride], added to if wanted
    grad_negatives,  # float32 [rows * own, operand_stride], if wanted
    own,
    QUERIES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < operand_stride
    scale = tl.load(total) / tl.load(temperature)
    q = tl.load(queries + row * operand_stride + d, mask=inside, other=0.0).to(tl.float32)
    q *= tl.load(query_factor + row)
    sums = tl.zeros((BLOCK,), tl.float32)
    for k in range(own):
        negative = row * own + k
        coefficient = tl.load(own_coefficients + negative)
        if NEGATIVES:
            place = grad_negatives + negative * operand_stride + d
            tl.store(place, q * (coefficient * scale), mask=inside)
        if QUERIES:
            n = tl.load(negatives + negative * operand_stride + d, mask=inside, other=0.0)
            sums += n.to(tl.float32) * (coefficient * tl.load(negative_factor + negative))
    if QUERIES:
        place = grad_queries + row * operand_stride + d
        tl.store(place, tl.load(place, mask=inside, other=0.0) + sums * scale, mask=inside)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def finish(
    grad,  # float32 [rows, operand_stride]: of the unit vectors; on return of the rows
    operand,
    operand_stride,
    factor,
    inverse,
    width,  # elements of a row that are there: D rounded up to a multiple of 16
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    unit = tl.load(factor + row)
    scale = tl.load(inverse + row)
    along_parts = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        u = tl.load(operand + row * operand_stride + start + columns, mask=inside, other=0.0)
        g = tl.load(grad + row * operand_stride + start + columns, mask=inside, other=0.0)
        along_parts += u.to(tl.float32) * unit * g
    # A row at or below the floor was divided by a constant.
    along = tl.where(scale >= 1.0 / NORM_FLOOR, 0.0, tl.sum(along_parts, 0))
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        u = tl.load(operand + row * operand_stride + start + columns, mask=inside, other=0.0)
        g = tl.load(grad + row * operand_stride + start + columns, mask=inside, other=0.0)
        result = (g - u.to(tl.float32) * unit * along) * scale
        tl.store(grad + row * operand_stride + start + columns, result, mask=inside)
