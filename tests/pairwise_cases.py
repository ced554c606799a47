"""What the tests of losses over all pairs draw, and how they run the kernels."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from tolerances import ACCUMULATOR, CPU, ROUNDOFF, check_rounding

from simtile import _core, _pairwise
from simtile.reference import pairwise_numpy as oracle

NUMPY = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
DTYPES = tuple(NUMPY)
LAYOUTS = ("contiguous", "padded", "strided")
# scaled: one factor for all rows, far from 1. mixed: a factor a row. equal: rows in groups of the
# same. zeros: some rows are zero.
SPECIAL = ("huge", "tiny", "mixed", "equal", "zeros")


class Case(NamedTuple):
    rows: int
    dimensions: int
    dtype: str = "float32"
    normalize: bool = False
    metric: str = "euclidean"
    labels: int = 4  # how many different ones
    margin: float = 0.5
    t: float = 2.0
    layout: str = "contiguous"
    special: str = ""
    seed: int = 0

    @property
    def x(self):
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((self.rows, self.dimensions)) / np.sqrt(self.dimensions)
        if self.special == "huge":
            x *= 2.0**90 if self.dtype in ("float32", "bfloat16") else 2.0**12
        elif self.special == "tiny":
            x *= 2.0**-90 if self.dtype in ("float32", "bfloat16") else 2.0**-6
        elif self.special == "mixed":
            x *= np.exp2(rng.integers(-4, 5, (self.rows, 1)))
        elif self.special == "equal":
            x = x[rng.integers(0, (self.rows + 2) // 3, self.rows)]
        elif self.special == "zeros":
            x[rng.random(self.rows) < 0.3] = 0
        x = x.astype(NUMPY[self.dtype])
        if self.layout == "padded":
            wide = np.full((self.rows, self.dimensions + 5), np.nan, x.dtype)
            wide[:, 2:-3] = x
            return wide[:, 2:-3]
        if self.layout == "strided":
            wide = np.full((self.rows, 2 * self.dimensions), np.nan, x.dtype)
            wide[:, ::2] = x
            return wide[:, ::2]
        return x

    @property
    def label_array(self):
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(0, self.labels, self.rows) * 1_000_003 - 7

    @property
    def accumulator(self):
        return ACCUMULATOR.get(self.dtype, "float32")

    @property
    def roundoff(self):
        return ROUNDOFF[self.accumulator]


def cases(rows, dimensions, **fixed):
    drawn = {
        "rows": rows,
        "dimensions": dimensions,
        "dtype": st.sampled_from(DTYPES),
        "normalize": st.booleans(),
        "metric": st.sampled_from(_pairwise.BATCH_HARD_METRICS),
        "labels": st.sampled_from([1, 2, 5, 1000]),
        "margin": st.sampled_from([0.0, 0.5, 3.0]),
        "t": st.sampled_from([0.5, 2.0, 10.0]),
        "layout": st.sampled_from(LAYOUTS),
        "special": st.sampled_from(("", *SPECIAL)),
        "seed": st.integers(0, 2**32 - 1),
    }
    return st.builds(Case, **{**drawn, **fixed})


def wide(x):
    return x.astype(np.float64)


def kernel_rows(case):
    x = _pairwise.as_kernel(case.x, case.dtype)
    return np.ascontiguousarray(x) if case.layout == "strided" else x


def run_hardest(case, threads=1):
    """The kernel as it is, on outputs full of what it must overwrite."""
    n = case.rows
    found = _pairwise.Hardest(
        np.full(n, -77), np.full(n, -77), np.full(n, -77.0), np.full(n, -77.0)
    )
    _core.hardest_pairs(
        kernel_rows(case),
        case.dtype,
        np.unique(case.label_array, return_inverse=True)[1].reshape(n).astype(np.int64),
        "cosine" if case.metric == "cosine" else "euclidean",
        case.normalize,
        *found,
        threads,
    )
    return found


def run_gradients(case, found, weights, threads=1):
    number = np.float64 if case.dtype == "float64" else np.float32
    grad = np.full((case.rows, case.dimensions), np.nan, number)
    _core.pair_gradients(
        kernel_rows(case),
        case.dtype,
        "cosine" if case.metric == "cosine" else "euclidean",
        case.normalize,
        found.positive,
        found.negative,
        weights.positive,
        weights.negative,
        grad,
        threads,
    )
    return grad


def run_uniformity(case, threads=1):
    number = np.float64 if case.dtype == "float64" else np.float32
    grad = np.full((case.rows, case.dimensions), np.nan, number)
    value = _core.uniformity(kernel_rows(case), case.dtype, case.t, case.normalize, grad, threads)
    return value, grad


def order_error(case):
    """By how much a product's rounding may displace a distance [N, N] that is compared: squared if
    Euclidean."""
    x = wide(case.x)
    u = oracle.unit(x) if case.normalize or case.metric == "cosine" else x
    lengths = np.square(u).sum(1)
    largest = lengths.max(initial=0.0)
    return 16 * case.roundoff * (lengths[:, None] + lengths + 2.0**-60 * largest)


def check_hardest(case, found):
    """What was chosen is as hard as any other, up to the rounding of a product."""
    x, labels = wide(case.x), case.label_array
    u = oracle.unit(x) if case.normalize or case.metric == "cosine" else x
    d = oracle.distances(u, "cosine" if case.metric == "cosine" else "squared_euclidean")
    error = order_error(case)
    rows = np.arange(case.rows)
    same = labels[:, None] == labels
    for chosen, distance, allowed, sign in (
        (found.positive, found.positive_distance, same & ~np.eye(case.rows, dtype=bool), 1.0),
        (found.negative, found.negative_distance, ~same, -1.0),
    ):
        has = allowed.any(axis=1)
        np.testing.assert_array_equal(chosen >= 0, has)
        np.testing.assert_array_equal(chosen[~has], -1)
        assert np.isnan(distance[~has]).all()
        i, j = rows[has], chosen[has]
        assert allowed[i, j].all()
        np.testing.assert_allclose(distance[has], d[i, j], rtol=1e-9, atol=1e-13)
        worst = np.where(allowed, sign * d - error, -np.inf).max(axis=1)[has]
        assert (sign * d[i, j] + error[i, j] >= worst).all()


def check_gradient(name, case, grad, expected, scale, condition=1.0, arithmetic=CPU):
    check_rounding(name, grad, expected, scale, case.dtype, condition, arithmetic, case.dimensions)


def uniformity_compared(case, value, grad):
    """What tolerances.py takes of a value and its gradient."""
    exact = oracle.uniformity(wide(case.x), case.t, case.normalize)
    size = 1.0 + abs(exact.value) + exact.largest
    yield "pairwise.uniformity", np.float64(value), exact.value, 1.0, case.dtype, size
    # An exponent is rounded by a share of the squares that it comes from.
    scale = np.maximum(exact.grad_scale, 1e-30)
    condition = 1.0 + exact.largest
    yield "pairwise.grad_uniformity", grad, exact.grad, scale, case.dtype, condition


def check_uniformity(case, value, grad, arithmetic=CPU):
    for comparison in uniformity_compared(case, value, grad):
        check_rounding(*comparison, arithmetic, case.dimensions)
