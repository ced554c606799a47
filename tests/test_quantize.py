"""simtile.quantize on the CPU: every code against the definition, bit for bit."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simtile
from simtile import _core
from simtile.quantized import KINDS, PER_DIMENSION
from simtile.reference import quantize as lists
from simtile.reference import quantize_numpy as oracle

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
LEVELS = _core.cpu_info()["detected"]
SIZES = (1, 2, 7, 31, 111, 300)
DIMENSIONS = (1, 2, 7, 8, 16, 33, 111, 384, 515, 989)


def vectors(rows, dim, dtype, seed, ordinary=False):
    """Ordinary columns beside huge, tiny, constant and whole ones; ties with the ends of levels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim))
    if not ordinary:
        kind = rng.integers(0, 5, dim)
        x *= np.where(kind == 1, 10.0 ** rng.integers(-40, 30, dim), 1.0)
        x[:, kind == 2] = np.round(x[:, kind == 2] * 100)
        x[:, kind == 3] = x[:1, kind == 3]
        x[rng.random(x.shape) < 0.02] = 0.0
        x[rng.random(rows) < 0.05] = -0.0
    with np.errstate(over="ignore", under="ignore"):
        return np.clip(x, -6e4, 6e4).astype(dtype) if dtype == np.float16 else x.astype(dtype)


def strided(x, layout):
    """The same values with other strides."""
    if layout == "rows apart":
        wide = np.zeros((x.shape[0], x.shape[1] + 3), x.dtype)
        wide[:, 1:-2] = x
        return wide[:, 1:-2]
    if layout == "reversed":
        return x[::-1].copy()[::-1]
    if layout == "columns":
        return np.asfortranarray(x)
    return x


def call(x, kind, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="x: the ranges of")
        return simtile.quantize(x, kind, **options)


def check(quantized, x, kind, ranges):
    codes, scale, offset = oracle.quantize(x, kind, ranges=ranges)
    np.testing.assert_array_equal(quantized.codes, oracle.pack(codes, kind), strict=True)
    for found, expected in ((quantized.scale, scale), (quantized.offset, offset)):
        if expected is None:
            assert found is None
        else:
            np.testing.assert_array_equal(found, expected, strict=True)
    assert quantized.shape == x.shape
    assert quantized.kind == kind


@st.composite
def calls(draw):
    return {
        "rows": draw(st.sampled_from(SIZES)),
        "dim": draw(st.sampled_from(DIMENSIONS)),
        "dtype": draw(st.sampled_from(list(DTYPES))),
        "kind": draw(st.sampled_from(KINDS)),
        "layout": draw(st.sampled_from(["plain", "rows apart", "reversed", "columns"])),
        "from_ranges": draw(st.booleans()),
        "threads": draw(st.sampled_from([1, 2, 3])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@pytest.mark.parametrize("level", LEVELS)
@given(case=calls())
def test_codes(level, case):
    x = vectors(case["rows"], case["dim"], DTYPES[case["dtype"]], case["seed"])
    kind, ranges = case["kind"], None
    if kind in PER_DIMENSION and (case["from_ranges"] or case["rows"] < 2):
        ranges = np.random.default_rng(case["seed"]).standard_normal((2, case["dim"]))
        ranges = np.sort(ranges, axis=0).astype(np.float32)
    _core._use_level(level)
    try:
        found = call(strided(x, case["layout"]), kind, ranges=ranges, threads=case["threads"])
    finally:
        _core._use_level(None)
    check(found, x, kind, ranges)


@given(case=calls())
def test_oracle(case):
    """The oracle is the lists."""
    x = vectors(min(case["rows"], 31), min(case["dim"], 16), DTYPES[case["dtype"]], case["seed"])
    kind, ranges = case["kind"], None
    if kind in PER_DIMENSION and len(x) < 2:
        ranges = np.sort(vectors(2, x.shape[1], np.float32, case["seed"]), axis=0)
    codes, scale, offset = oracle.quantize(x, kind, ranges=ranges)
    expected = lists.quantize(
        x.astype(np.float64).tolist(),
        kind,
        ranges=None if ranges is None else ranges.astype(np.float64).tolist(),
        dtype=case["dtype"],
    )
    assert codes.tolist() == expected.codes
    for found, of_lists in ((scale, expected.scale), (offset, expected.offset)):
        assert (None if found is None else found.tolist()) == of_lists
