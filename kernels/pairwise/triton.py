"""Losses over all pairs in Triton: every row against all rows, tile by tile.

    hardest              of every row the furthest row with its label and the nearest with another
    gather_chosen        gradients of the chosen pairs, each row gathering its own
    exponent_sums        of every row the largest exponent and the sum of exponentials
    potential_gradients  exponentials times rows

Every output element is written by one program, which adds in a fixed order: no atomics. Rows come
scaled by powers of two, with a float32 factor each that is left of their normalisation. Formulas
and counts: README.md.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import dot, narrow

# No row: more than any index.
NO_ROW = tl.constexpr(2**31 - 1)

_SIZES = ["rows", "t"]
_UNALIGNED = ["labels"]


@triton.jit
def similarities(
    x,
    stride,
    i,  # rows of the tile [BM]
    i_inside,
    j,  # its columns [BN]
    j_inside,
    dim,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Rows times rows, float32 [BM, BN]."""
    k = tl.arange(0, BK)
    own = x + i.to(tl.int64) * stride
    other = x + j.to(tl.int64) * stride
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, dim, BK):
        inside = (start + k < dim)[None, :]
        a = tl.load(own[:, None] + start + k[None, :], i_inside[:, None] & inside, other=0.0)
        b = tl.load(other[:, None] + start + k[None, :], j_inside[:, None] & inside, other=0.0)
        sums = dot(a, tl.trans(b), sums, PRECISION, EMULATE)
    return sums


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def hardest(
    x,  # [rows, dim]
    stride,
    factor,  # float32 [rows]: similarity = product * factor_i * factor_j
    half,  # float32 [rows]: |u|^2 / 2, or 0 with cosine; NaN of rows that are not finite
    labels,  # int64 [rows]
    positive,  # int32 [rows]: NO_ROW is none
    negative,
    rows,
    dim,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    i_inside = i < rows
    of_row = tl.load(factor + i, i_inside, other=0.0)
    label = tl.load(labels + i, i_inside, other=0)
    furthest = tl.full((BM,), float("-inf"), tl.float32)
    nearest = tl.full((BM,), float("inf"), tl.float32)
    furthest_at = tl.full((BM,), NO_ROW, tl.int32)
    nearest_at = tl.full((BM,), NO_ROW, tl.int32)
    for start in range(0, rows, BN):
        j = start + tl.arange(0, BN)
        j_inside = j < rows
        sums = similarities(
            x, stride, i, i_inside, j, j_inside, dim, BM, BN, BK, PRECISION, EMULATE
        )
        of_column = tl.load(factor + j, j_inside, other=0.0)
        value = tl.load(half + j, j_inside, other=0.0)[None, :]
        value = value - sums * of_column[None, :] * of_row[:, None]
        same = label[:, None] == tl.load(labels + j, j_inside, other=0)[None, :]
        there = j_inside[None, :] & (i[:, None] != j[None, :])
        is_nan = value != value
        # A row that is not finite is further and nearer than any other.
        far = tl.where(is_nan, float("inf"), value)
        near = tl.where(is_nan, float("-inf"), value)
        far = tl.where(there & same, far, float("-inf"))
        near = tl.where(there & (same == 0), near, float("inf"))
        tile_far = tl.max(far, 1)
        tile_near = tl.min(near, 1)
        column = tl.broadcast_to(j[None, :], (BM, BN))
        far_at = tl.min(tl.where(far == tile_far[:, None], column, NO_ROW), 1)
        near_at = tl.min(tl.where(near == tile_near[:, None], column, NO_ROW), 1)
        # Of equals the earlier tile's stays.
        further, nearer = tile_far > furthest, tile_near < nearest
        furthest = tl.where(further, tile_far, furthest)
        nearest = tl.where(nearer, tile_near, nearest)
        furthest_at = tl.where(further, far_at, furthest_at)
        nearest_at = tl.where(nearer, near_at, nearest_at)
    tl.store(positive + i, furthest_at, i_inside)
    tl.store(negative + i, nearest_at, i_inside)


@triton.jit(do_not_specialize=_SIZES)
def gather_chosen(
    x,  # [rows, dim]
    stride,
    factor,  # float64 [rows]: u = row * factor
    positive,  # int64 [rows]
    negative,
    coefficient,  # float64 [2 * rows]: of pair 2 i, row i's positive, and 2 i + 1, its negative
    chosen_by,  # int64: pairs in the order of the row that they chose
    starts,  # int64 [rows + 1]: where those of a row begin
    grad,  # float64 [rows, dim], with respect to u
    rows,
    dim,
    COSINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < dim
    own = tl.load(x + i * stride + d, inside, other=0.0).to(tl.float64) * tl.load(factor + i)
    if COSINE:
        own = own * 0.0
    sums = tl.zeros((BLOCK,), tl.float64)
    for side in range(2):
        weight = tl.load(coefficient + 2 * i + side)
        j = tl.where(side == 0, tl.load(positive + i), tl.load(negative + i))
        j = tl.where(j < 0, i, j)
        other = tl.load(x + j * stride + d, inside, other=0.0).to(tl.float64)
        term = weight * (own - other * tl.load(factor + j))
        sums += tl.where(weight != 0.0, term, 0.0)
    first, last = tl.load(starts + i), tl.load(starts + i + 1)
    for at in range(first, last):
        pair = tl.load(chosen_by + at)
        j = pair // 2
        other = tl.load(x + j * stride + d, inside, other=0.0).to(tl.float64)
        sums += tl.load(coefficient + pair) * (own - other * tl.load(factor + j))
    tl.store(grad + i * dim + d, sums, inside)


@triton.jit
def exponents(sums, of_row, of_column, square_i, square_j, there, t):
    """-t |u_i - u_j|^2, and -inf where there is no pair."""
    distance = (
        square_i[:, None] + square_j[None, :] - 2.0 * (sums * of_column[None, :] * of_row[:, None])
    )
    distance = tl.where(distance < 0.0, 0.0, distance)
    return tl.where(there, -t * distance, float("-inf"))


@triton.jit(do_not_specialize=_SIZES)
def exponent_sums(
    x,
    stride,
    factor,
    square,  # float32 [rows]: |u|^2
    maxima,  # float32 [rows]: the largest exponent of each row, -inf if none is finite
    totals,  # float32 [rows]: Σ exp(exponent - maximum)
    rows,
    dim,
    t,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    i_inside = i < rows
    of_row = tl.load(factor + i, i_inside, other=0.0)
    square_i = tl.load(square + i, i_inside, other=0.0)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, rows, BN):
        j = start + tl.arange(0, BN)
        j_inside = j < rows
        sums = similarities(
            x, stride, i, i_inside, j, j_inside, dim, BM, BN, BK, PRECISION, EMULATE
        )
        there = j_inside[None, :] & (i[:, None] != j[None, :])
        of_column = tl.load(factor + j, j_inside, other=0.0)
        square_j = tl.load(square + j, j_inside, other=0.0)
        e = exponents(sums, of_row, of_column, square_i, square_j, there, t)
        known = tl.where(e == e, e, float("-inf"))
        new = tl.maximum(largest, tl.max(known, 1))
        shift = tl.where(new > float("-inf"), new, 0.0)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(e - shift[:, None]), 1)
        largest = new
    tl.store(maxima + i, largest, i_inside)
    tl.store(totals + i, total, i_inside)


@triton.jit(do_not_specialize=_SIZES)
def potential_gradients(
    x,
    stride,
    factor,
    square,
    maxima,
    grad,  # float32 [rows, dim]: Σ_j exp(exponent - maximum) u_j
    rows,
    dim,
    t,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    i_inside = i < rows
    d_inside = d < dim
    of_row = tl.load(factor + i, i_inside, other=0.0)
    square_i = tl.load(square + i, i_inside, other=0.0)
    largest = tl.load(maxima + i, i_inside, other=0.0)
    shift = tl.where(largest > float("-inf"), largest, 0.0)
    result = tl.zeros((BM, BD), tl.float32)
    for start in range(0, rows, BN):
        j = start + tl.arange(0, BN)
        j_inside = j < rows
        sums = similarities(
            x, stride, i, i_inside, j, j_inside, dim, BM, BN, BK, PRECISION, EMULATE
        )
        there = j_inside[None, :] & (i[:, None] != j[None, :])
        of_column = tl.load(factor + j, j_inside, other=0.0)
        square_j = tl.load(square + j, j_inside, other=0.0)
        e = exponents(sums, of_row, of_column, square_i, square_j, there, t)
        e = tl.exp(e - shift[:, None]) * of_column[None, :]
        values = tl.load(
            x + j.to(tl.int64)[:, None] * stride + d[None, :],
            j_inside[:, None] & d_inside[None, :],
            other=0.0,
        )
        coefficients = narrow(e, x.dtype.element_ty, EMULATE)
        result = dot(coefficients, values, result, PRECISION, EMULATE)
    at = grad + i.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(at, result, i_inside[:, None] & d_inside[None, :])
