"""What the tests of pooling draw, how they run it, and what it should give."""

from contextlib import contextmanager
from typing import NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from tolerances import CPU, ROUNDOFF, allowed_error

from simtile import _pool
from simtile.reference import pool_numpy

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
# Half of the smallest step of a type.
SMALLEST = {"float32": 1e-45, "float64": 0.0, "bfloat16": 1e-40, "float16": 2.0**-25}
LARGEST = {"float32": 3.4e38, "float64": 1.7e308, "bfloat16": 3.38e38, "float16": 65504.0}
MASKS = ("none", "right", "left", "holes")
TENSOR_LAYOUTS = ("plain", "tokens apart", "turned", "columns")
LAYOUTS = (*TENSOR_LAYOUTS, "reversed")
VALUES = ("ordinary", "ties", "huge", "tiny", "zeros")
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


class Case(NamedTuple):
    rows: int
    length: int
    width: int  # D
    dim: int
    dtype: str
    how: str = "mean"
    mask: str = "none"
    weighted: bool = False
    normalize: bool = True
    values: str = "ordinary"
    layout: str = "plain"
    seed: int = 0

    def mask_array(self):
        """bool [N, L], or None; now and then a row has no tokens."""
        if self.mask == "none":
            return None
        rng = np.random.default_rng([self.seed, 1])
        place = np.arange(self.length)
        counts = rng.integers(0, self.length + 1, (self.rows, 1))
        if self.mask == "right":
            return place < counts
        if self.mask == "left":
            return place >= self.length - counts
        return rng.random((self.rows, self.length)) < rng.choice([0.05, 0.5, 0.9])

    def tokens(self):
        """[N, L, D] in the element type; padding is NaN."""
        rng = np.random.default_rng([self.seed, 2])
        x = rng.standard_normal((self.rows, self.length, self.width))
        if self.values == "ties":
            x = np.round(x) + 0.0
        elif self.values == "huge":
            x *= 1e4 if self.dtype == "float16" else 1e30
        elif self.values == "tiny":
            x *= 1e-7 if self.dtype == "float16" else 1e-30
        elif self.values == "zeros":
            x[rng.random(self.rows) < 0.5] = 0.0
        elif self.values in BAD and x.size:
            rows = np.arange(0, self.rows, 2)
            x[rows, rng.integers(0, self.length, len(rows)), 0] = BAD[self.values]
        mask = self.mask_array()
        if mask is not None:
            x[~mask] = np.nan
        return laid_out(x.astype(DTYPES[self.dtype]), self.layout)

    def weights(self):
        """float32 [N, L], now and then all 0 in a row; NaN where there is no token."""
        if not self.weighted:
            return None
        rng = np.random.default_rng([self.seed, 3])
        w = rng.random((self.rows, self.length)).astype(np.float32)
        w[rng.random(self.rows) < 0.1] = 0.0
        mask = self.mask_array()
        if mask is not None:
            w[~mask] = np.nan
        return w

    def grad(self):
        rng = np.random.default_rng([self.seed, 4])
        return rng.standard_normal((self.rows, self.dim)).astype(DTYPES[self.dtype])

    def options(self):
        return {"weights": self.weights(), "dim": self.dim, "normalize": self.normalize}


def laid_out(x, layout):
    """The same values with other strides."""
    n, length, width = x.shape
    if layout == "tokens apart":
        wide = np.full((n, length + 2, width + 3), np.nan, x.dtype)
        wide[:, 1:-1, 1:-2] = x
        return wide[:, 1:-1, 1:-2]
    if layout == "turned":  # as [L, N, D] encoders give them
        return np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    if layout == "reversed":
        return x[::-1, ::-1].copy()[::-1, ::-1]
    return np.asfortranarray(x) if layout == "columns" else x


@st.composite
def cases(draw, sizes, lengths, widths, dtypes=tuple(DTYPES), layouts=LAYOUTS, values=VALUES):
    how = draw(st.sampled_from(_pool.HOW))
    width = draw(widths)
    dim = draw(st.sampled_from(sorted({1, (width + 1) // 2, width})))
    return Case(
        draw(sizes),
        draw(lengths),
        width,
        dim,
        draw(st.sampled_from(dtypes)),
        how,
        draw(st.sampled_from(MASKS)),
        how == "mean" and draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(values)),
        draw(st.sampled_from(layouts)),
        draw(st.integers(0, 2**32 - 1)),
    )


def oracle(case):
    return pool_numpy.pool(
        case.tokens().astype(np.float64), case.mask_array(), case.how, **case.options()
    )


def oracle_grad(case):
    options = {name: case.options()[name] for name in ("weights", "normalize")}
    return pool_numpy.pool_grad(
        case.tokens().astype(np.float64), case.grad(), case.mask_array(), case.how, **options
    )


def check(name, found, expected, size, dtype, arithmetic=CPU):
    """Fail where `found`, of the element type, is further off than rounding explains."""
    found = found.astype(np.float64)
    assert found.shape == expected.shape
    limit = allowed_error(name, dtype, 1.0, arithmetic) * size + SMALLEST[dtype]
    if dtype in ("bfloat16", "float16"):
        limit = limit + ROUNDOFF[dtype] * np.abs(expected)
    with np.errstate(invalid="ignore"):
        error = np.abs(found - expected)
        right = (error <= limit) | (found == expected) | (np.isnan(found) & np.isnan(expected))
        # What no number of the type is.
        right |= np.isinf(found) & (found * expected > 0) & (np.abs(expected) > LARGEST[dtype])
    assert right.all(), (
        f"{name} ({dtype}): {(~right).sum()} of {right.size} wrong, the first "
        f"{found[~right][0]} for {expected[~right][0]}, allowed {limit[~right][0]:.3g}"
    )


class _PoisonedNumpy:
    """NumPy, whose new memory is full of NaN, of integers that nothing means."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        array = np.empty(shape, dtype)
        array.view(np.uint8).fill(0x77 if array.dtype.kind == "i" else 0xFF)
        return array


@contextmanager
def poisoned():
    """What the kernels on the CPU have to write is full of NaN before."""
    _pool.np, before = _PoisonedNumpy(), _pool.np
    try:
        yield
    finally:
        _pool.np = before
