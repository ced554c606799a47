"""What Triton kernels share: scaling by powers of two, roundings, products, tiles in order."""

import triton
import triton.language as tl


@triton.jit
def narrow(x, dtype: tl.constexpr, EMULATE: tl.constexpr):
    """float32 to an element type, to nearest even; to bfloat16 the interpreter is not exact."""
    if EMULATE and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, sums, PRECISION: tl.constexpr, EMULATE: tl.constexpr):
    """sums + a @ b in float32; the interpreter cannot multiply bfloat16."""
    if EMULATE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def exponent(largest):
    """Biased exponent of a float32 >= 0, within what `power` can invert."""
    biased = (largest.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    return tl.minimum(tl.maximum(biased, 1), 253)


@triton.jit
def power(biased):
    """2^(127 - biased): what brings a number with this biased exponent to [1, 2)."""
    return ((254 - biased) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 to the last digits, which log itself loses near 1."""
    z = x / (2.0 + x)
    z2 = z * z
    series = 1.0 / 15.0 + z2 * (1.0 / 17.0)
    series = 1.0 / 13.0 + z2 * series
    series = 1.0 / 11.0 + z2 * series
    series = 1.0 / 9.0 + z2 * series
    series = 1.0 / 7.0 + z2 * series
    series = 1.0 / 5.0 + z2 * series
    series = 1.0 / 3.0 + z2 * series
    return tl.where(x < 1.0, 2.0 * z + 2.0 * z * z2 * series, tl.log(1.0 + x))


@triton.jit
def grouped(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile of a program: GROUP tiles down, then to the right, so that neighbours share operands."""
    first = pid // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = pid % (GROUP * tiles_n)
    return first + within % height, within // height
