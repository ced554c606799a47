"""simtile.pool on the CPU against the oracle, the oracle against the lists, and what it refuses."""

import doctest
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_cases import BAD, DTYPES, LAYOUTS, VALUES, Case, cases, check, oracle, poisoned
from tolerances import ROUNDOFF

import simtile
from simtile import _core, _pool
from simtile.quantized import KINDS, PER_DIMENSION
from simtile.reference import pool as lists
from simtile.reference import pool_numpy

LEVELS = _core.cpu_info()["detected"]
SIZES = st.sampled_from([0, 1, 2, 7, 40])
LENGTHS = st.sampled_from([0, 1, 7, 16, 33, 111])
WIDTHS = st.sampled_from([1, 3, 7, 16, 65, 111, 384])
WORDS = np.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.7, 0.1, 0.0]])


def run(case, **options):
    with poisoned():
        return simtile.pool(
            case.tokens(), case.mask_array(), case.how, **{**case.options(), **options}
        )


@pytest.mark.parametrize("level", LEVELS)
@given(
    case=cases(SIZES, LENGTHS, WIDTHS, tuple(DTYPES), LAYOUTS, (*VALUES, *BAD)),
    threads=st.sampled_from([1, 2, 3]),
)
def test_kernel_is_the_oracle(level, case, threads):
    _core._use_level(level)
    try:
        found = run(case, threads=threads)
    finally:
        _core._use_level(None)
    assert found.dtype == DTYPES[case.dtype]
    truth = oracle(case)
    check("pool.vectors", found, truth.vectors, truth.size, case.dtype)


@given(case=cases(st.sampled_from([0, 1, 3]), st.sampled_from([0, 1, 5]), st.sampled_from([1, 4])))
def test_oracle_is_the_lists(case):
    case = case._replace(dtype="float64")
    truth, options = oracle(case), case.options()
    tokens, mask, weights = case.tokens(), case.mask_array(), options["weights"]
    found = lists.pool(
        tokens.tolist(),
        None if mask is None else mask.tolist(),
        case.how,
        weights=None if weights is None else weights.tolist(),
        dim=case.dim,
        normalize=case.normalize,
    )
    check("pool.vectors", np.array(found.vectors).reshape(truth.vectors.shape), truth.vectors,
          truth.size, "float64")  # fmt: skip
    if truth.positions is not None:
        positions = np.array(found.positions, int).reshape(truth.positions.shape)
        np.testing.assert_array_equal(positions, truth.positions)
    grad = case.grad()
    by_numpy = pool_numpy.pool_grad(
        tokens, grad, mask, case.how, weights=weights, normalize=case.normalize
    )
    by_lists = lists.pool_grad(
        np.nan_to_num(tokens).tolist(),
        grad.tolist(),
        None if mask is None else mask.tolist(),
        case.how,
        weights=None if weights is None else np.nan_to_num(weights).tolist(),
        normalize=case.normalize,
    )
    for name, expected, size in (
        ("tokens", by_numpy.tokens, by_numpy.token_size),
        ("weights", by_numpy.weights, by_numpy.weight_size),
    ):
        ours = np.array(getattr(by_lists, name)).reshape(expected.shape)
        check(f"pool.grad_{name}", ours, expected, size, "float64")


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_of_the_lists_are_slopes(how, normalize):
    rng = np.random.default_rng(5)
    tokens, weights = rng.standard_normal((2, 4, 3)), rng.random((2, 4)) + 0.5
    mask, grad = np.array([[1, 1, 0, 1], [0, 1, 1, 0]]), rng.standard_normal((2, 2))
    if how != "mean":
        weights = None

    def value(x, w):
        options = {"weights": w, "dim": 2, "normalize": normalize}
        return (grad * pool_numpy.pool(x, mask, how, **options).vectors).sum()

    found = lists.pool_grad(
        tokens.tolist(),
        grad.tolist(),
        mask.tolist(),
        how,
        weights=None if weights is None else weights.tolist(),
        normalize=normalize,
    )
    inputs = [(tokens, found.tokens)] + [(weights, found.weights)] * (weights is not None)
    for x, ours in inputs:
        ours = np.array(ours)
        for i in np.ndindex(*x.shape):
            before, step = x[i], 1e-6
            x[i] = before + step
            above = value(tokens, weights)
            x[i] = before - step
            below = value(tokens, weights)
            x[i] = before
            assert ours[i] == pytest.approx((above - below) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_word_vectors_in_any_order(dtype, backend):
    for order in itertools.permutations(WORDS):
        words = np.array(order, dtype)[None]
        found = simtile.pool(words, None, normalize=False, backend=backend)
        assert [f"{x:.3f}" for x in found[0]] == ["0.800", "0.133", "0.100"]
        assert found.dtype == dtype


@given(
    cases(st.sampled_from([2, 5]), st.sampled_from([1, 9]), st.sampled_from([7, 40])),
    st.sampled_from(["list", "offsets"]),
)
def test_lists_and_offsets_are_padded_batches(case, form):
    case = case._replace(mask="right", layout="plain")
    padded, mask, weights = case.tokens(), case.mask_array(), case.weights()
    lengths = mask.sum(axis=1)
    parts = [x[:n] for x, n in zip(padded, lengths, strict=True)]
    options, own = {}, None
    if weights is not None:
        own = [w[:n] for w, n in zip(weights, lengths, strict=True)]
    tokens = parts
    if form == "offsets":
        tokens, options = np.concatenate(parts), {"offsets": np.cumsum([0, *lengths])}
        own = None if own is None else np.concatenate(own)
    options |= {"weights": own, "dim": case.dim, "normalize": case.normalize}
    with poisoned():
        found = simtile.pool(tokens, None, case.how, **options)
    np.testing.assert_array_equal(found, run(case))
    by_lists = simtile.pool(tokens, None, case.how, backend="reference", **options)
    truth = oracle(case)
    check("pool.vectors", by_lists, truth.vectors, truth.size, case.dtype)
    holes = np.random.default_rng(case.seed).random(mask.shape) < 0.5
    masks = [own[:n] for own, n in zip(holes, lengths, strict=True)]
    if form == "offsets":
        masks = np.concatenate(masks)
    expected = simtile.pool(padded, mask & holes, case.how, **case.options())
    np.testing.assert_array_equal(simtile.pool(tokens, masks, case.how, **options), expected)


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_threads_give_the_same_bits(how, dtype):
    """Also where a row is shared out by columns, and where tasks have several rows."""
    for rows, length, width in ((1, 500, 700), (2, 33, 1000), (300, 9, 33)):
        case = Case(rows, length, width, width - 1, dtype, how, "holes", seed=rows)
        first = run(case, threads=1)
        truth = oracle(case)
        check("pool.vectors", first, truth.vectors, truth.size, dtype)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(run(case, threads=threads), first)


@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_row_without_tokens_is_zero(how, normalize):
    tokens = np.full((3, 4, 5), np.nan, np.float32)
    tokens[1] = 1.0
    mask = np.array([[0] * 4, [1] * 4, [0] * 4])
    for backend in ("cpu", "reference"):
        found = simtile.pool(tokens, mask, how, normalize=normalize, backend=backend)
        np.testing.assert_array_equal(found[::2], 0.0)
        assert (found[1] > 0).all()
        nothing = simtile.pool(tokens[:, :0], None, how, normalize=normalize, backend=backend)
        np.testing.assert_array_equal(nothing, np.zeros((3, 5), np.float32))
        assert simtile.pool(tokens[:0], None, how, backend=backend).shape == (0, 5)
        parts = simtile.pool([tokens[0, :0], tokens[1]], None, how, backend=backend)
        np.testing.assert_array_equal(parts[0], 0.0)
    for kind in KINDS:
        ranges = np.array([[-1.0] * 5, [1.0] * 5]) if kind in PER_DIMENSION else None
        assert simtile.pool(tokens, mask, how, kind=kind, ranges=ranges).shape == (3, 5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("how", _pool.HOW)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_nan_in_nan_out(dtype, how, backend):
    for bad in (np.nan, np.inf, -np.inf):
        for position in range(9):
            tokens = np.ones((2, 9, 5), DTYPES[dtype])
            tokens[:, position, 3] = bad
            whole = simtile.pool(tokens, None, how, normalize=False, backend=backend)
            unit = simtile.pool(tokens, None, how, backend=backend)
            chosen = {"cls": position == 0, "last": position == 8}.get(how, True)
            if how == "max" and bad == -np.inf:
                chosen = False
            expected = bad if chosen else 1.0
            np.testing.assert_array_equal(whole[:, 3].astype(float), expected)
            np.testing.assert_array_equal(whole[:, 2].astype(float), 1.0)
            assert np.isnan(unit.astype(float)).all() == chosen
            dropped = np.arange(9) != position
            kept = simtile.pool(tokens, np.tile(dropped, (2, 1)), how, backend=backend)
            assert np.isfinite(kept.astype(float)).all()


def test_signs_of_zero_and_infinities_in_max():
    x = np.array([[[-0.0, 0.0, -np.inf]], [[0.0, -0.0, -np.inf]]], np.float32).reshape(1, 2, 3)
    found = simtile.pool(x, None, "max", normalize=False)
    np.testing.assert_array_equal(np.signbit(found), [[True, False, True]])  # the first one stays
    assert found[0, 2] == -np.inf


@pytest.mark.parametrize("how", ["mean", "max"])
def test_no_worse_than_the_plain_formula(how):
    """Long rows in float32: sums of thousands."""
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((4, 5000, 48)) + 1).astype(np.float32)
    truth = pool_numpy.pool(x, None, how)
    found = simtile.pool(x, None, how)
    error = np.abs(found - truth.vectors) / np.abs(truth.vectors)
    assert error.max() < 2 * ROUNDOFF["float32"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_quantized_is_quantize(kind, dtype):
    case = Case(120, 9, 33, 21, dtype, "mean", "holes", seed=4)
    pooled = run(case)
    ranges = np.array([[-0.5] * 21, [0.5] * 21])
    for own in (None, ranges) if kind in PER_DIMENSION else (None,):
        found = run(case, kind=kind, ranges=own)
        expected = simtile.quantize(pooled, kind, ranges=own)
        assert repr(found) == repr(expected)
        for name in ("codes", "scale", "offset", "ranges"):
            ours, other = getattr(found, name), getattr(expected, name)
            np.testing.assert_array_equal(ours, other, strict=True)


def test_warnings_of_quantization_are_the_callers():
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    ranges = "^token_embeddings: the ranges of 'int8' are taken from 5 rows"
    with pytest.warns(UserWarning, match=ranges) as caught:
        simtile.pool(x, None, kind="int8")
    assert caught[0].filename == __file__
    x[2] = np.nan
    with pytest.warns(RuntimeWarning, match="^token_embeddings: found a NaN") as caught:
        simtile.pool(x, None, kind="int8", ranges=[[-1] * 4, [1] * 4])
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match=r"^token_embeddings: found a NaN.* in row 2, "):
        simtile.pool(x, None, kind="int8_vector")


@pytest.mark.parametrize("mask", [np.ones((2, 4), np.int64), np.ones((2, 4), np.uint8) * 200])
def test_masks_of_integers(mask):
    x = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    mask[0, 2:] = 0
    expected = simtile.pool(x, mask.astype(bool), "mean")
    np.testing.assert_array_equal(simtile.pool(x, mask, "mean"), expected)
    np.testing.assert_array_equal(simtile.pool(x, -mask.astype(np.int8), "mean"), expected)
    np.testing.assert_array_equal(simtile.pool(x, mask.tolist(), "mean"), expected)


def test_the_example():
    example = doctest.DocTestParser().get_doctest(simtile.pool.__doc__, {}, "pool", None, 0)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 3
    assert result.failed == 0


X = np.zeros((2, 4, 3), np.float32)
BITS = X.astype(ml_dtypes.bfloat16).view(np.uint16)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, None, "median"), {}, "how: found 'median', expected one of 'mean', 'cls', 'max', 'l"),
        ((X[0], None), {}, r"token_embeddings: found float32 \[4, 3\], expected \[B, L, D\]"),
        ((X[..., :0], None), {}, r"token_embeddings: found float32 \[2, 4, 0\], expected at least"),
        ((X.astype(int), None), {}, r"token_embeddings: found int64 \[2, 4, 3\], expected float32"),
        ((BITS, None), {}, "uint16 is never read as bfloat16"),
        (([], None), {}, "token_embeddings: found an empty list, expected at least one"),
        (([X[0], X[1, :, :2]], None), {}, r"token_embeddings\[1\]: found float32 \[4, 2\], exp"),
        ((X, X[..., 0]), {}, r"mask: found float32 \[2, 4\], expected bool, or integers"),
        ((X, np.ones((2, 3), bool)), {}, r"mask: found bool \[2, 3\], expected \[2, 4\]"),
        ((X, None), {"weights": np.ones((2, 3))}, r"weights: found float64 \[2, 3\], expected \[2"),
        ((X, None), {"weights": np.ones((2, 4), int)}, r"weights: found int64 .*x.astype"),
        ((X, None), {"weights": -np.ones((2, 4))}, r"weights: found -1\.0 at \[0, 0\], e"),
        ((X, None, "max"), {"weights": X[..., 0]}, "weights: found some for 'max', expected None"),
        (([*X], None), {"weights": [[1.0], [1.0]]}, "weights: found 2 vectors, expected 2, one"),
        ((X, None), {"dim": 4}, "dim: found 4, expected 1 to 3 because token_embeddings have 3"),
        ((X, None), {"dim": 0}, "dim: found 0, expected 1 to 3"),
        ((X, None), {"kind": "int2"}, "kind: found 'int2', expected one of"),
        ((X[:1], None), {"kind": "int8"}, "token_embeddings: found 1 rows, expected at least 2"),
        ((X, None), {"ranges": X[0]}, "ranges: found some without kind"),
        ((X, None), {"kind": "binary", "ranges": X[0]}, "ranges: found one for 'binary'"),
        ((X, None), {"threads": 0}, "threads: found 0"),
        ((X, None), {"backend": "gpu"}, "backend: found 'gpu'"),
        ((X, None), {"offsets": [0, 4]}, r"token_embeddings: found float32 \[2, 4, 3\], expected"),
        ((X[0], None), {"offsets": [0, 3]}, "offsets: found int64 .2. from 0 to 3, expected 0 to"),
        ((X[0], None), {"offsets": [0, 3, 2, 4]}, "offsets: found int64 .4., expected ascending"),
    ],
)  # fmt: skip
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        simtile.pool(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 2.0}, TypeError, "dim: found 2.0, expected an int or None"),
        ({"dim": True}, TypeError, "dim: found True, expected an int or None"),
        ({"threads": "2"}, TypeError, "threads: found '2'"),
        ({"backend": "triton"}, RuntimeError, "give the tensors to simtile.pool"),
    ],
)
def test_other_errors(options, error, message):
    with pytest.raises(error, match=message):
        simtile.pool(X, None, **options)
    with pytest.raises(TypeError, match="offsets: found some beside a list"):
        simtile.pool([X[0]], None, offsets=[0, 4])


def test_wrong_calls_of_the_kernel_do_not_touch_memory():
    number, integers = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
    mask = np.ones((2, 4), np.uint8)
    good = {
        "tokens": X, "dtype": "float32", "how": "cls", "offsets": None, "mask": mask,
        "weights": None, "normalize": True, "out": number, "raw": number.copy(),
        "totals": np.zeros(2, np.float32), "positions": integers, "threads": 1,
    }  # fmt: skip
    _core.pool(**good)

    def refused(message, call=_core.pool, before=good, **changes):
        with pytest.raises(ValueError, match=message):
            call(**{**before, **changes})

    refused("dtype: unknown", dtype="float8")
    refused("how: unknown", how="sum")
    refused("tokens: dtype", dtype="float64")
    refused("tokens: not three-dimensional", tokens=X[0])
    refused("tokens: the last axis", tokens=np.asfortranarray(np.ones_like(X)))
    refused("mask: shape", mask=mask[:, :3].copy())
    refused("mask: dtype", mask=mask.view(bool))
    refused("mask: not C-contiguous", mask=np.ones((4, 2), np.uint8).T)
    refused("weights: expected for the mean only", weights=np.ones((2, 4), np.float32))
    refused("weights: dtype", how="mean", positions=None, weights=np.ones((2, 4)))
    refused("positions: not expected", how="mean")
    refused("positions: shape", how="max")
    refused("out: missing", out=None)
    refused("out: more columns", out=np.zeros((2, 4), np.float32))
    refused("out: shape", out=np.zeros((3, 3), np.float32))
    refused("raw: dtype", raw=np.zeros((2, 3)))
    packed = {**good, "tokens": X[0], "mask": None}
    for offsets, message in (
        ([1, 2, 4], "not from 0"), ([0, 2, 3], "not from 0"), ([0, 5, 4], "not ascending"),
    ):  # fmt: skip
        refused(f"offsets: {message}", before=packed, offsets=np.array(offsets))
    refused("offsets: dtype", before=packed, offsets=np.array([0, 2, 4], np.int32))
    spread = {
        "grad": number, "dtype": "float32", "offsets": None, "positions": None, "threads": 1,
        "coefficients": np.ones((2, 4), np.float32), "out": np.zeros_like(X),
    }  # fmt: skip
    _core.pool_spread(**spread)
    refused("expected one of", _core.pool_spread, spread, coefficients=None)
    refused("grad: more columns", _core.pool_spread, spread, out=np.zeros((2, 4, 2), np.float32))
    refused("grad: shape", _core.pool_spread, spread, grad=number[:1])
    refused("coefficients: shape", _core.pool_spread, spread, coefficients=X[..., 0][:1].copy())
    refused("out: missing, or", _core.pool_spread, spread, out=np.zeros((2, 4), np.float32))
    dots = {
        "tokens": X, "dtype": "float32", "offsets": None, "mask": mask, "vectors": number,
        "out": np.zeros((2, 4), np.float32), "threads": 1,
    }  # fmt: skip
    _core.pool_dots(**dots)
    refused("vectors: more columns", _core.pool_dots, dots, vectors=np.zeros((2, 4), np.float32))
    refused("vectors: shape", _core.pool_dots, dots, vectors=number[:1])
    refused("out: missing", _core.pool_dots, dots, out=None)
    refused("out: shape", _core.pool_dots, dots, out=np.zeros((2, 3), np.float32))
