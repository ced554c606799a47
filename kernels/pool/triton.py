"""pool in Triton: a row of tokens to one vector, and what gradients need of every token.

    pooled   a row's mean, first, last or largest tokens, normalised where one block has all columns
    spread   the gradient of tokens: their row's times a coefficient, or where they are largest
    dots     the product of every token with a vector of its row

A program has one row and a block of its columns, reads its tokens once, TOKENS at a time, and
writes alone what it writes. Padding is not read. Addresses are 64-bit; other numbers of rows and
tokens compile nothing anew. Formulas and counts: README.md.
"""

import triton
import triton.language as tl
from simtile.kernels.tile.triton import exponent, narrow, power

MEAN = tl.constexpr(0)
LARGEST = tl.constexpr(1)
FIRST = tl.constexpr(2)
LAST = tl.constexpr(3)
SMALLEST_WEIGHT = tl.constexpr(1e-9)
SMALLEST_NORM = tl.constexpr(1e-12)
NOWHERE = tl.constexpr(2**31 - 1)

_SIZES = ["length", "packed", "masked", "weighted", "normalize", "keep"]
_UNALIGNED = ["offsets", "mask", "weights"]


@triton.jit
def span(offsets, n, length, packed):
    """Where a row's tokens begin among all, and how many there are."""
    begin = tl.load(offsets + n, packed != 0, other=0)
    end = tl.load(offsets + n + 1, packed != 0, other=0)
    first = tl.where(packed != 0, begin, n * length)
    count = tl.where(packed != 0, end - begin, length).to(tl.int32)
    return first, count


@triton.jit
def only_token(mask, first, count, masked, WHICH: tl.constexpr, SCAN: tl.constexpr):
    """The first or the last token of a row, -1 if there is none."""
    best = tl.full((), NOWHERE if WHICH == FIRST else -1, tl.int32)
    for start in range(0, count, SCAN):
        t = start + tl.arange(0, SCAN)
        kept = tl.load(mask + first + t, (t < count) & (masked != 0), other=1)
        is_token = (t < count) & (kept != 0)
        if WHICH == FIRST:
            best = tl.minimum(best, tl.min(tl.where(is_token, t, NOWHERE), 0))
        else:
            best = tl.maximum(best, tl.max(tl.where(is_token, t, -1), 0))
    return tl.where(best == NOWHERE, -1, best)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_UNALIGNED)
def pooled(
    tokens,  # [N, L, D], or [T, D] if packed
    row_stride,
    token_stride,
    offsets,  # int64 [N + 1], read if packed
    mask,  # uint8 [N, L] or [T], read if masked
    weights,  # float32, likewise, read if weighted
    vectors,  # [N, dim], written if one block has all columns
    raw,  # float32 [N, dim], written if keep, as the others
    totals,  # float32 [N]
    positions,  # int32 [N, dim] of LARGEST, [N] of FIRST and LAST
    length,
    dim,
    packed,
    masked,
    weighted,
    normalize,
    keep,
    HOW: tl.constexpr,
    WHOLE: tl.constexpr,  # one block has all columns
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCAN: tl.constexpr,
    EMULATE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dim
    first, count = span(offsets, n, length, packed)
    source = tokens + tl.where(packed != 0, first * token_stride, n * row_stride) + column
    step = n * 0 + token_stride  # of 64 bits
    out = n * dim + column
    if HOW == MEAN:
        sums = tl.zeros((BLOCK,), tl.float32)
        lost = tl.zeros((BLOCK,), tl.float32)
        total = tl.full((), 0.0, tl.float32)
        for start in range(0, count, TOKENS):
            part = tl.zeros((BLOCK,), tl.float32)
            for u in tl.static_range(TOKENS):
                t = start + u
                there = t < count
                kept = tl.load(mask + first + t, there & (masked != 0), other=1)
                there = there & (kept != 0)
                w = tl.load(weights + first + t, there & (weighted != 0), other=1.0)
                w = tl.where(there, w, 0.0)
                at = source + t * step
                x = tl.load(at, inside & there, other=0.0).to(tl.float32)
                part += x * w
                total += w
            # Kahan's sum; what is not finite has no digits to lose.
            part = part - lost
            longer = sums + part
            lost = (longer - sums) - part
            lost = tl.where(lost - lost == 0, lost, 0.0)
            sums = longer
        value = sums / tl.where(total < SMALLEST_WEIGHT, SMALLEST_WEIGHT, total)
        tl.store(totals + n, total, (keep != 0) & (tl.program_id(1) == 0))
    elif HOW == LARGEST:
        value = tl.zeros((BLOCK,), tl.float32)
        where = tl.full((BLOCK,), -1, tl.int32)
        total = tl.full((), 0.0, tl.float32)
        for start in range(0, count, TOKENS):
            for u in tl.static_range(TOKENS):
                t = start + u
                there = t < count
                kept = tl.load(mask + first + t, there & (masked != 0), other=1)
                there = there & (kept != 0)
                at = source + t * step
                x = tl.load(at, inside & there, other=0.0).to(tl.float32)
                # The first of equal ones stays, and so does the first NaN.
                larger = (where < 0) | (x > value) | ((x != x) & (value == value))
                larger = larger & there
                value = tl.where(larger, x, value)
                where = tl.where(larger, t, where)
                total += tl.where(there, 1.0, 0.0)
        tl.store(positions + out, where, inside & (keep != 0))
        tl.store(totals + n, total, (keep != 0) & (tl.program_id(1) == 0))
    else:
        position = only_token(mask, first, count, masked, HOW, SCAN)
        at = source + position * step
        value = tl.load(at, inside & (position >= 0), other=0.0).to(tl.float32)
        mine = (keep != 0) & (tl.program_id(1) == 0)
        tl.store(positions + n, position, mine)
        tl.store(totals + n, 0.0, mine)
    tl.store(raw + out, value, inside & (keep != 0))
    if WHOLE:
        value = tl.where(inside, value, 0.0)
        # Squares of numbers within a power of two of 1: neither 1e30 nor 1e-30 leaves the range.
        scale = power(exponent(tl.max(tl.abs(value), 0)))
        scaled = value * scale
        norm = tl.sqrt_rn(tl.sum(scaled * scaled, 0))
        smallest = SMALLEST_NORM * scale
        norm = tl.where(norm < smallest, smallest, norm)
        norm = tl.where(norm - norm == 0, norm, float("nan"))  # an infinity has no direction
        unit = tl.div_rn(scaled, tl.broadcast_to(norm, scaled.shape))
        value = tl.where(normalize != 0, unit, value)
        tl.store(vectors + out, narrow(value, vectors.dtype.element_ty, EMULATE), inside)


@triton.jit(do_not_specialize=["length", "packed"], do_not_specialize_on_alignment=["offsets"])
def spread(
    grad,  # float32 [N, dim]
    offsets,  # int64 [N + 1], read if packed
    coefficients,  # float32 [N, L] or [T], read unless CHOSEN
    positions,  # int32 [N, dim], read if CHOSEN
    out,  # [N, L, D] or [T, D]
    length,
    dim,
    token_dim,  # D; beyond dim the gradient is 0
    packed,
    CHOSEN: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    EMULATE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    first, count = span(offsets, n, length, packed)
    g = tl.load(grad + n * dim + column, column < dim, other=0.0)
    where = tl.full((BLOCK,), -1, tl.int32)
    if CHOSEN:
        where = tl.load(positions + n * dim + column, column < dim, other=-1)
    for u in range(TOKENS):
        t = tl.program_id(1) * TOKENS + u
        there = t < count
        if CHOSEN:
            value = tl.where(where == t, g, 0.0)
        else:
            share = tl.load(coefficients + first + t, there, other=0.0)
            value = tl.where(share != 0, g * share, 0.0)  # padding has none, NaN or not
        at = out + (first + t) * token_dim + column
        value = narrow(value, out.dtype.element_ty, EMULATE)
        tl.store(at, value, there & (column < token_dim))


@triton.jit(
    do_not_specialize=["length", "packed", "masked"],
    do_not_specialize_on_alignment=["offsets", "mask"],
)
def dots(
    tokens,  # [N, L, D], or [T, D] if packed
    row_stride,
    token_stride,
    offsets,  # int64 [N + 1], read if packed
    mask,  # uint8 [N, L] or [T], read if masked
    vectors,  # float32 [N, dim]
    out,  # float32 [N, L] or [T]
    length,
    dim,
    packed,
    masked,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    first, count = span(offsets, n, length, packed)
    there = t < count
    kept = there & (tl.load(mask + first + t, there & (masked != 0), other=1) != 0)
    source = tokens + tl.where(packed != 0, first * token_stride, n * row_stride)
    source = source + t.to(tl.int64)[:, None] * token_stride
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, dim, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = kept[:, None] & (column < dim)[None, :]
        x = tl.load(source + column[None, :], inside, other=0.0).to(tl.float32)
        y = tl.load(vectors + n * dim + column, column < dim, other=0.0)
        # What is not read is no term, even of a vector that is NaN.
        sums += tl.where(inside, x * y[None, :], 0.0)
    tl.store(out + first + t, tl.sum(sums, 1), there)
