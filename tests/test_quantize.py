"""simtile.quantize on the CPU: every code against the definition, bit for bit."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import as_tensor

import simtile
from simtile import _core
from simtile.quantized import KINDS, PER_DIMENSION, PER_VECTOR
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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("kind", PER_DIMENSION)
def test_no_numbers(level, dtype, kind):
    """NaN and infinities have the codes that NumPy's arithmetic gives them, and are reported."""
    x = vectors(211, 37, DTYPES[dtype], 3, ordinary=True)
    x[7, 3], x[9, 36], x[11, 2], x[50, :4] = np.nan, np.inf, -np.inf, np.nan
    ranges = np.stack([np.full(37, -2, np.float32), np.full(37, 2, np.float32)])
    _core._use_level(level)
    try:
        with pytest.warns(RuntimeWarning, match="x: found a NaN or an infinity in row 7 or in"):
            given_ranges = simtile.quantize(x, kind, ranges=ranges, threads=2)
        with pytest.warns(RuntimeWarning, match="in row 0 or in the ranges"):
            own_ranges = simtile.quantize(x, kind, threads=2)
    finally:
        _core._use_level(None)
    check(given_ranges, x, kind, ranges)
    with np.errstate(invalid="ignore"):
        check(own_ranges, x, kind, None)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bits_of_what_is_no_number(level, dtype):
    x = vectors(9, 70, DTYPES[dtype], 4, ordinary=True)
    x[:, ::7] = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1])[:, None]
    _core._use_level(level)
    try:
        found = simtile.quantize(x, "binary")
    finally:
        _core._use_level(None)
    with np.errstate(invalid="ignore"):  # of ml_dtypes
        np.testing.assert_array_equal(found.codes, np.packbits(x > 0, axis=1))


@pytest.mark.parametrize("kind", PER_VECTOR)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 60, 69])
def test_no_scale(kind, dtype, bad, column):
    x = vectors(500, 70, DTYPES[dtype], 4, ordinary=True)
    x[400:, column] = bad
    with pytest.raises(ValueError, match=f"x: found a NaN, .* in row 400, .*{kind!r} divides"):
        simtile.quantize(x, kind, threads=2)
    if dtype == "float64":
        x[:] = 1e300  # no float32
        with pytest.raises(ValueError, match="in row 0, "):
            simtile.quantize(x, kind)


@pytest.mark.parametrize("kind", PER_VECTOR)
def test_zero_and_tiny_vectors(kind):
    x = np.zeros((4, 9), np.float32)
    x[1, 3], x[2] = 1e-45, 1e-38
    q = simtile.quantize(x, kind)
    np.testing.assert_array_equal(q.scale[:2], 0)
    np.testing.assert_array_equal(q.codes[:2], 0)
    check(q, x, kind, None)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_tensors(dtype):
    """Of torch, also those that want a gradient; ranges and calibration may be tensors too."""
    x = vectors(120, 33, DTYPES[dtype], 5, ordinary=True)
    other = vectors(130, 33, DTYPES[dtype], 6, ordinary=True)
    for kind in KINDS:
        for options in ({}, {"ranges": True}, {"calibration": other}):
            if options and kind not in PER_DIMENSION:
                continue
            arrays = {**options}
            if "ranges" in arrays:
                arrays["ranges"] = simtile.quantize(other, kind).ranges
            tensors = {name: as_tensor(array) for name, array in arrays.items()}
            found = simtile.quantize(as_tensor(x).requires_grad_(), kind, **tensors)
            expected = simtile.quantize(x, kind, **arrays)
            assert isinstance(found.codes, torch.Tensor)
            np.testing.assert_array_equal(found.codes.numpy(), expected.codes, strict=True)
            if expected.ranges is not None:
                np.testing.assert_array_equal(found.ranges.numpy(), expected.ranges, strict=True)
    with pytest.raises(ValueError, match=r"x: found a tensor on meta, expected the CPU or CUDA"):
        simtile.quantize(torch.zeros((3, 3), device="meta"))
    with pytest.raises(ValueError, match=r"x: found int8 \[3, 3\], expected float32.*x.float\(\)"):
        simtile.quantize(torch.zeros((3, 3), dtype=torch.int8))


@pytest.mark.parametrize("kind", PER_DIMENSION)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_quantiles(kind, dtype):
    x = vectors(211, 19, DTYPES[dtype], 8, ordinary=True)
    q = simtile.quantize(x, kind, quantiles=(0.02, 0.97))
    expected = np.quantile(x.astype(np.float64), (0.02, 0.97), axis=0).astype(np.float32)
    np.testing.assert_array_equal(q.ranges, expected, strict=True)
    check(q, x, kind, expected)
    everything = simtile.quantize(x, kind, quantiles=(0, 1))
    np.testing.assert_array_equal(everything.codes, simtile.quantize(x, kind).codes)
    of_others = simtile.quantize(x[:3], kind, calibration=x, quantiles=(0.02, 0.97))
    np.testing.assert_array_equal(of_others.codes, q.codes[:3])


def test_later_vectors_take_the_ranges():
    x = vectors(300, 40, np.float32, 9, ordinary=True)
    first = simtile.quantize(x[:200])
    later = simtile.quantize(x[200:], ranges=first.ranges)
    np.testing.assert_array_equal(
        np.concatenate([first.codes, later.codes]),
        simtile.quantize(x, calibration=x[:200]).codes,
    )
    np.testing.assert_array_equal(later.scale, first.scale)
    np.testing.assert_array_equal(later.offset, first.offset)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind):
    ranges = np.array([[-1.0] * 5, [1.0] * 5]) if kind in PER_DIMENSION else None
    q = simtile.quantize(np.zeros((0, 5), np.float32), kind, ranges=ranges)
    assert q.shape == (0, 5)
    assert q.dequantize().shape == (0, 5)
    assert q.inverse_norms.shape == (0,)


def test_few_rows():
    x = vectors(99, 5, np.float32, 10, ordinary=True)
    with pytest.warns(UserWarning, match="of 'int8' are taken from 99 rows; .* 100 are") as caught:
        simtile.quantize(x)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simtile.quantize(x, "int8_vector")
        simtile.quantize(x, "binary")
        simtile.quantize(x, ranges=[[-1] * 5, [1] * 5])
        simtile.quantize(x, calibration=x)
    x[3, 3] = np.nan
    with pytest.warns(RuntimeWarning, match="NaN") as caught:
        simtile.quantize(x, ranges=[[-1] * 5, [1] * 5])
    assert caught[0].filename == __file__


X = np.zeros((120, 4), np.float32)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X, {"kind": "int2"}, "kind: found 'int2', expected one of 'int8'"),
        (X[0], {}, r"x: found shape \[4\], expected \[N, D\]; a single vector is x\[None, :\]"),
        (X[:, :0], {}, r"x: found shape \[120, 0\], expected at least one column"),
        (X.astype(np.int8), {}, r"x: found int8 \[120, 4\], expected float32"),
        (X.view(np.uint16), {}, "uint16 is never read as bfloat16"),
        (X[:1], {}, r"x: found 1 rows, expected at least 2 to take the ranges of 'int8' from"),
        (X[:0], {"kind": "int4"}, r"x: found 0 rows, expected at least 2"),
        (X, {"calibration": X[:1]}, r"calibration: found 1 rows, expected at least 2"),
        (X, {"calibration": X[:, :3]}, r"calibration: found shape \[120, 3\], expected \[M, 4\]"),
        (X, {"ranges": X}, r"ranges: found shape \[120, 4\], expected \[2, 4\]: the smallest"),
        (X, {"ranges": X[:2].astype(str)}, r"ranges: found <U\d+ \[2, 4\], expected floats"),
        (X, {"ranges": [[0, 0, 1, 0], [1, 1, 0, 1]]}, r"found 1.0 to 0.0 in column 2, expected"),
        (X, {"ranges": [[0, 0, 0, 0], [1, 1, 0, np.nan]]}, r"found 0.0 to nan in column 3"),
        (X, {"ranges": X[:2], "calibration": X}, "calibration: found one beside ranges"),
        (X, {"ranges": X[:2], "quantiles": (0, 1)}, "quantiles: found one beside ranges"),
        (X, {"quantiles": 0.5}, r"quantiles: found 0.5, expected a pair such as"),
        (X, {"quantiles": (0.9, 0.1)}, r"expected 0 <= lower < upper <= 1"),
        (X, {"quantiles": (0.1, np.nan)}, r"expected 0 <= lower < upper <= 1"),
        (X, {"kind": "binary", "ranges": X[:2]}, "ranges: found one for 'binary', expected None"),
        (X, {"kind": "int4_vector", "calibration": X}, "calibration: found one for 'int4_vector'"),
        (X, {"kind": "binary", "quantiles": (0, 1)}, "quantiles: found one for 'binary'"),
        (X, {"threads": 0}, "threads: found 0, expected 1 to 1024"),
    ],
)
def test_errors(x, options, message):
    with pytest.raises(ValueError, match=message):
        simtile.quantize(x, **options)


def test_wrong_calls_of_the_kernel_do_not_touch_memory():
    codes, ends = np.zeros((120, 4), np.uint8), np.zeros(4, np.float32)
    scales = np.zeros(120, np.float32)
    good = (X, "float32", "int8", ends, ends + 1, codes, None, 1)
    assert _core.quantize(*good) == -1

    def refused(message, **changes):
        names = ("x", "dtype", "kind", "starts", "steps", "codes", "scales", "threads")
        call = {**dict(zip(names, good, strict=True)), **changes}
        with pytest.raises(ValueError, match=message):
            _core.quantize(**call)

    refused("kind: unknown", kind="int9")
    refused("dtype: unknown", dtype="float8")
    refused("x: dtype float32 is not the one announced", dtype="float64")
    refused("x: not a matrix", x=X[0])
    refused("x: rows go backwards", x=X[::-1])
    refused("x: the last axis", x=np.asfortranarray(X))
    refused("starts, steps", starts=None)
    refused("starts, steps", kind="int8_vector", scales=scales)
    refused("steps: shape", steps=ends[:3])
    refused("codes: shape", codes=codes[:, :3])
    refused("codes: shape", kind="int4")
    refused("codes: not C-contiguous", codes=np.asfortranarray(codes))
    refused("codes: dtype", codes=codes.view(np.int8))
    refused("scales: expected with one scale a vector", scales=scales)
    refused("scales: expected", kind="int8_vector", starts=None, steps=None)
    refused("threads", threads=5000)
    with pytest.raises(ValueError, match="ends: dtype"):
        _core.value_ranges(X, "float32", np.zeros((2, 4)), 1)
    with pytest.raises(ValueError, match="ends: shape"):
        _core.value_ranges(X, "float32", np.zeros((2, 3), np.float32), 1)
    with pytest.raises(ValueError, match="x: no rows"):
        _core.value_ranges(X[:0], "float32", np.zeros((2, 4), np.float32), 1)


@pytest.mark.slow  # importing sentence_transformers takes seconds
@given(case=calls())
def test_the_bytes_of_sentence_transformers(case):
    name = "sentence_transformers.util.quantization"
    module = pytest.importorskip(name, reason="sentence-transformers is not installed")
    x = vectors(max(case["rows"], 2), case["dim"], DTYPES[case["dtype"]], case["seed"])
    rng = np.random.default_rng(case["seed"])
    if case["seed"] % 3 == 0:
        x.flat[rng.integers(0, x.size, 3)] = [np.nan, np.inf, -np.inf]
    options, theirs = {}, {}
    if case["from_ranges"]:
        ranges = np.sort(rng.standard_normal((2, case["dim"])), axis=0)
        options = theirs = {"ranges": ranges}
    elif case["seed"] % 2:
        options, theirs = {"calibration": x[:2]}, {"calibration_embeddings": x[:2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, precision in (("int8", "int8"), ("uint8", "uint8"), ("binary", "ubinary")):
            found = simtile.quantize(x, kind, **(options if kind != "binary" else {}))
            expected = module.quantize_embeddings(x, precision, **theirs)
            np.testing.assert_array_equal(found.codes, expected, strict=True)
        expected = module.quantize_embeddings(x, "binary")
        np.testing.assert_array_equal(found.signed_bits(), expected, strict=True)
