"""The sigmoid loss in Triton: a tile of similarities leaves its product as loss and coefficients.

    coefficients  of a chunk of queries and all documents ∂loss/∂logit, and each row's sums by tile
    products      coefficients times documents, and turned over, times queries

The coefficients of a chunk are stored; no logit's share depends on another's, so nothing is
computed twice. Every output element is written by one program, which adds in a fixed order: no
atomics. Rows come scaled by powers of two, with a float32 factor each that is left of their
normalisation. Formulas and counts: README.md.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import dot, grouped, log1p, narrow


@triton.jit(do_not_specialize=["first", "rows", "documents"])
def coefficients(
    q,  # [rows of the chunk, dim]
    q_stride,
    d,  # [documents, dim]
    d_stride,
    q_factor,  # float32 [rows]: similarity = product * q_factor_i * d_factor_j
    d_factor,  # float32 [documents]
    scalars,  # float32 [2]: 1 / temperature, bias
    losses,  # float32 [tiles of columns, rows]: of each row of a tile the losses,
    sums,  # the coefficients,
    weighted,  # and coefficients times similarity
    kept,  # float32 [rows, kept_stride] where KEEP: the coefficients
    kept_stride,
    first,  # the chunk's first query, whose document is the one of that number
    rows,
    documents,
    dim,
    KEEP: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    tile_i, tile_j = grouped(tl.program_id(0), tl.cdiv(rows, BM), tl.cdiv(documents, BN), GROUP)
    i = tile_i * BM + tl.arange(0, BM)
    j = tile_j * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    i_inside, j_inside = i < rows, j < documents
    own = q + i.to(tl.int64) * q_stride
    other = d + j.to(tl.int64) * d_stride
    product = tl.zeros((BM, BN), tl.float32)
    for start in range(0, dim, BK):
        inside = (start + k < dim)[None, :]
        a = tl.load(own[:, None] + start + k[None, :], i_inside[:, None] & inside, other=0.0)
        b = tl.load(other[:, None] + start + k[None, :], j_inside[:, None] & inside, other=0.0)
        product = dot(a, tl.trans(b), product, PRECISION, EMULATE)

    of_row = tl.load(q_factor + i, i_inside, other=0.0)
    of_column = tl.load(d_factor + j, j_inside, other=0.0)
    similarity = product * of_column[None, :] * of_row[:, None]
    logit = similarity * tl.load(scalars) + tl.load(scalars + 1)
    # A pair's own logit is that of the other class.
    is_pair = (first + i)[:, None] == j[None, :]
    logit = tl.where(is_pair, -logit, logit)
    e = tl.exp(tl.where(logit < 0.0, logit, -logit))
    loss = tl.where(logit > 0.0, logit, 0.0) + log1p(e)
    coefficient = tl.where(logit < 0.0, e, 1.0) / (1.0 + e)
    coefficient = tl.where(is_pair, -coefficient, coefficient)
    there = i_inside[:, None] & j_inside[None, :]
    loss = tl.where(there, loss, 0.0)
    coefficient = tl.where(there, coefficient, 0.0)

    at = tile_j.to(tl.int64) * rows + i
    tl.store(losses + at, tl.sum(loss, 1), i_inside)
    tl.store(sums + at, tl.sum(coefficient, 1), i_inside)
    tl.store(weighted + at, tl.sum(coefficient * similarity, 1), i_inside)
    if KEEP:
        place = kept + i.to(tl.int64)[:, None] * kept_stride + j[None, :]
        tl.store(place, coefficient, there)


@triton.jit(do_not_specialize=["accumulate", "rows", "depth"])
def products(
    kept,  # float32 [queries of the chunk, kept_stride]
    kept_stride,
    x,  # [depth, dim]: documents, or with TURNED queries of the chunk
    x_stride,
    factor,  # float32 [depth]
    out,  # float32 [rows, dim]
    accumulate,  # 0: out has nothing yet
    rows,  # of the output: queries of the chunk, or documents
    depth,  # what is summed over: documents, or queries of the chunk
    dim,
    TURNED: tl.constexpr,
    SCALE: tl.constexpr,  # a power of two that keeps small coefficients in the element type
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    i_inside, c_inside = i < rows, c < dim
    result = tl.zeros((BM, BN), tl.float32)
    for start in range(0, depth, BK):
        k = start + tl.arange(0, BK)
        k_inside = k < depth
        if TURNED:
            at = kept + k.to(tl.int64)[None, :] * kept_stride + i[:, None]
        else:
            at = kept + i.to(tl.int64)[:, None] * kept_stride + k[None, :]
        a = tl.load(at, i_inside[:, None] & k_inside[None, :], other=0.0)
        a = a * (tl.load(factor + k, k_inside, other=0.0) * SCALE)[None, :]
        b = tl.load(
            x + k.to(tl.int64)[:, None] * x_stride + c[None, :],
            k_inside[:, None] & c_inside[None, :],
            other=0.0,
        )
        result = dot(narrow(a, x.dtype.element_ty, EMULATE), b, result, PRECISION, EMULATE)
    place = out + i.to(tl.int64)[:, None] * dim + c[None, :]
    inside = i_inside[:, None] & c_inside[None, :]
    before = tl.load(place, inside & (accumulate != 0), other=0.0)
    tl.store(place, before + result * (1.0 / SCALE), inside)
