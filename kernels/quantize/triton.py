"""quantize in Triton: the arithmetic of cpu.hpp, which is that of NumPy, to the bit.

    ends           the smallest and the largest value of each column in some of the rows
    by_dimension   one scale a dimension: levels of the quotient, packed
    by_vector      one scale a vector: the row's largest magnitude, then its codes
    signs          one bit an element

Elements are packed PER to a byte: 1, 2 (int4, the even one in the low half) or 8 (bits, the first
one highest). Divisions are rounded as IEEE 754 says (`tl.div_rn`; what Triton makes of `/` for
float32 is not), and nothing is multiplied and then added. Each output element is written by one
program. Addresses are 64-bit; another number of rows compiles nothing anew.
"""

import triton
import triton.language as tl

# Not `dim` and `width`: that 16 divides them lets a thread read 16 bytes at once.
_SIZES = ["rows"]


@triton.jit
def quotient(x, y):
    """x / y, rounded to nearest even."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def wide(x):
    """As float32, or as the float64 that it is."""
    if x.dtype == tl.float64:
        result = x
    elif x.dtype == tl.bfloat16:  # its bits, because the interpreter makes subnormal numbers 0
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        result = bits.to(tl.float32, bitcast=True)
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def pack(codes, PER: tl.constexpr):
    """Codes [R, W * PER] that fit into their share of a byte to bytes [R, W]."""
    if PER == 1:
        packed = codes
    else:
        i = tl.arange(0, PER)
        shift = 7 - i if PER == 8 else 4 * i
        apart = tl.reshape(codes, (codes.shape[0], codes.shape[1] // PER, PER))
        packed = tl.sum(apart << shift[None, None, :], axis=2)
    return packed.to(tl.uint8)


@triton.jit(do_not_specialize=_SIZES)
def ends(
    x,  # [rows, dim]
    stride,
    rows,
    dim,
    smallest,  # [programs * ROWS, dim]
    largest,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    parts = tl.num_programs(1) * ROWS
    known = (column < dim)[None, :]
    number = wide(tl.load(x + column, column < 0, other=0.0)).dtype
    least = tl.full((ROWS, BLOCK), float("inf"), number)
    most = tl.full((ROWS, BLOCK), float("-inf"), number)
    for first in range(0, rows, parts):
        row = (first + part).to(tl.int64)[:, None]
        there = (row < rows) & known
        value = wide(tl.load(x + row * stride + column[None, :], mask=there, other=0.0))
        # NaN on either side stays.
        least = tl.where(there & ((value < least) | (value != value)), value, least)
        most = tl.where(there & ((value > most) | (value != value)), value, most)
    at = part.to(tl.int64)[:, None] * dim + column[None, :]
    there = (part >= 0)[:, None] & known
    tl.store(smallest + at, least, mask=there)
    tl.store(largest + at, most, mask=there)


@triton.jit(do_not_specialize=_SIZES)
def by_dimension(
    x,  # [rows, dim]
    stride,
    rows,
    dim,
    starts,  # float32 [dim]
    steps,
    codes,  # uint8 [rows, width]
    width,
    flags,  # int8 [rows], zeros: 1 where an element has no level
    TOP: tl.constexpr,  # 255, 15
    FLIP: tl.constexpr,  # what makes a level two's complement, and the level of NaN: 128, 0, 8
    PER: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    REPEAT: tl.constexpr,  # tiles of rows that share what is read of starts and steps
):
    for first in range(0, width, BYTES):
        byte = (first + tl.arange(0, BYTES))[None, :]
        column = first * PER + tl.arange(0, BYTES * PER)
        known = column < dim
        number = wide(tl.load(x + column, column < 0, other=0.0)).dtype
        start = tl.load(starts + column, known, other=0.0).to(number)[None, :]
        step = tl.load(steps + column, known, other=1.0).to(number)[None, :]
        for again in range(REPEAT):
            at = tl.program_id(0).to(tl.int64) * REPEAT * ROWS + again * ROWS + tl.arange(0, ROWS)
            row = at[:, None]
            inside = (row < rows) & known[None, :]
            value = wide(tl.load(x + row * stride + column[None, :], inside, other=0.0))
            # The selection changes nothing, but without it sm_100 and newer subtract from a float16
            # as it is (sub.f32.f16): the same number, but PTX interpreters may lack it.
            value = tl.where(inside, value, 0.0)
            q = quotient(value - start, tl.broadcast_to(step, value.shape))
            level = tl.where(q > 0, q, 0.0)
            level = tl.where(level < TOP, level, TOP)
            level = tl.where(q == q, level, FLIP)
            code = tl.where(inside, level.to(tl.int32) ^ FLIP, 0)
            tl.store(codes + row * width + byte, pack(code, PER), (row < rows) & (byte < width))
            undefined = tl.max(tl.where(inside & (q != q), 1, 0), axis=1)
            tl.store(flags + at, undefined.to(tl.int8), undefined != 0)


@triton.jit(do_not_specialize=_SIZES)
def by_vector(
    x,  # [rows, dim]
    stride,
    rows,
    dim,
    codes,  # uint8 [rows, width]
    width,
    scales,  # float32 [rows]
    flags,  # int8 [rows]: whether the scale is not finite
    TOP: tl.constexpr,  # 127, 7
    PER: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, BYTES * PER)
    source = x + row[:, None] * stride
    nothing = wide(tl.load(x + columns, columns < 0, other=0.0))
    # Numbers without their sign are ordered as their bits are; NaN comes after infinity.
    if nothing.dtype == tl.float64:
        bits = tl.zeros((ROWS,), tl.int64)
    else:
        bits = tl.zeros((ROWS,), tl.int32)
    for first in range(0, dim, BYTES * PER):
        column = (first + columns)[None, :]
        inside = (row < rows)[:, None] & (column < dim)
        magnitude = tl.abs(wide(tl.load(source + column, inside, other=0.0)))
        bits = tl.maximum(bits, tl.max(magnitude.to(bits.dtype, bitcast=True), axis=1))
    largest = bits.to(nothing.dtype, bitcast=True)
    scale = quotient(largest, tl.full((ROWS,), TOP, nothing.dtype)).to(tl.float32)
    finite = scale - scale == 0
    divides = finite & (scale != 0)
    tl.store(scales + row, scale, row < rows)
    tl.store(flags + row, tl.where(finite, 0, 1).to(tl.int8), row < rows)
    divisor = tl.where(divides, scale, 1.0).to(nothing.dtype)[:, None]
    # 1.5 * 2^23, 1.5 * 2^52: adding it leaves the rounded integer in the low bits of the mantissa.
    shift = 6755399441055744.0 if nothing.dtype == tl.float64 else 12582912.0
    for first in range(0, width, BYTES):
        column = (first * PER + columns)[None, :]
        inside = (row < rows)[:, None] & (column < dim)
        value = wide(tl.load(source + column, inside, other=0.0))
        q = quotient(value, tl.broadcast_to(divisor, value.shape))
        q = tl.where(q > -TOP, q, -TOP)
        q = tl.where(q < TOP, q, TOP)
        q = (q + shift) - shift
        code = tl.where(divides[:, None], q, 0.0).to(tl.int32) & (255 if PER == 1 else 15)
        byte = (first + tl.arange(0, BYTES))[None, :]
        there = (row < rows)[:, None] & (byte < width)
        tl.store(codes + row[:, None] * width + byte, pack(code, PER), there)


@triton.jit(do_not_specialize=_SIZES)
def signs(
    x,  # [rows, dim]
    stride,
    rows,
    dim,
    codes,  # uint8 [rows, width]
    width,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    for first in range(0, width, BYTES):
        column = (first * 8 + tl.arange(0, BYTES * 8))[None, :]
        inside = (row < rows) & (column < dim)
        value = wide(tl.load(x + row * stride + column, inside, other=0.0))
        byte = (first + tl.arange(0, BYTES))[None, :]
        there = (row < rows) & (byte < width)
        tl.store(codes + row * width + byte, pack(tl.where(value > 0, 1, 0), 8), there)
