"""simtile.Quantized: what fits together, what it says of itself, and back to numbers."""

import numpy as np
import pytest
import torch
from test_quantize import call, vectors

import simtile
from simtile.quantized import CODE_KINDS, KINDS, PER_DIMENSION, PER_VECTOR, unpack
from simtile.reference import topk_numpy

SHAPES = [(1, 1), (2, 7), (111, 33), (300, 384)]


def some(kind, rows=111, dim=33, **options):
    return call(vectors(rows, dim, np.float32, 5, ordinary=True), kind, **options)


def numbers(q):
    """x̂ in double precision, by the definition."""
    codes = unpack(q.codes, q.kind, q.dim).astype(np.float64)
    if q.kind == "binary":
        return 2 * codes - 1
    if q.kind in PER_VECTOR:
        return codes * q.scale[:, None].astype(np.float64)
    return codes * q.scale.astype(np.float64) + q.offset.astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_dequantize(kind, rows, dim):
    options = {"ranges": np.array([[-3.0] * dim, [3.0] * dim])} if kind in PER_DIMENSION else {}
    q = some(kind, rows, dim, **options)
    found = q.dequantize()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers(q).astype(np.float32))


@pytest.mark.parametrize(("kind", "levels"), [("int8", 255), ("uint8", 255), ("int4", 15)])
def test_an_element_is_in_its_cell(kind, levels):
    x = vectors(300, 64, np.float32, 6, ordinary=True)
    q = call(x, kind)
    steps = (x.max(0) - x.min(0)).astype(np.float64) / levels
    errors = np.abs(q.dequantize() - x)
    # Only the largest value of a column has the highest level: it is half a step from its middle.
    assert (errors <= steps * 0.5 + 1e-6).all()
    assert (q.dequantize() - x.astype(np.float64)).mean() == pytest.approx(0, abs=steps.mean() / 50)


def test_a_column_of_one_value_is_that_value():
    x = vectors(120, 5, np.float32, 7, ordinary=True)
    x[:, 2], x[:, 4] = 0.3, 0.0
    for kind in PER_DIMENSION:
        back = simtile.quantize(x, kind).dequantize()
        # The step is 1 there, and the offset a float32 near 128.
        np.testing.assert_allclose(back[:, 2], 0.3, rtol=0, atol=128 * 2.0**-24)
        np.testing.assert_array_equal(back[:, 4], 0.0)


@pytest.mark.parametrize(("kind", "top"), [("int8_vector", 127), ("int4_vector", 7)])
def test_a_vector_is_within_half_a_step(kind, top):
    x = vectors(300, 64, np.float32, 8, ordinary=True)
    largest = np.abs(x).max(1, keepdims=True)
    assert (np.abs(call(x, kind).dequantize() - x) <= largest / top * 0.5001).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_norms(kind, rows, dim):
    options = {"ranges": np.array([[-3.0] * dim, [3.0] * dim])} if kind in PER_DIMENSION else {}
    x = vectors(rows, dim, np.float32, 9, ordinary=True)
    x[rows // 2] = 0
    q = call(x, kind, **options)
    squares = (numbers(q) ** 2).sum(1)
    np.testing.assert_allclose(q.squared_norms, squares, rtol=3e-7)
    assert q.squared_norms is q.squared_norms  # computed once
    if kind in PER_VECTOR:
        squares = (unpack(q.codes, kind, dim).astype(np.float64) ** 2).sum(1)
        assert q.inverse_norms[rows // 2] == 0
    with np.errstate(divide="ignore"):
        inverse = np.where(squares == 0, 0, 1 / np.sqrt(squares))
    np.testing.assert_allclose(q.inverse_norms, inverse, rtol=1e-7)
    if kind not in PER_VECTOR:  # to the bit: they go into scores
        for is_inverse, found in ((True, q.inverse_norms), (False, q.squared_norms)):
            expected = np.empty(rows, np.float32)
            kinds = (CODE_KINDS[kind], q.codes, dim, q.scale, q.offset, is_inverse, 1, expected)
            topk_numpy.code_norms(*kinds)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_norms", [False, True])
def test_slices(kind, with_norms):
    q = some(kind)
    if with_norms:
        assert len(q.inverse_norms) == 111
    for rows in (slice(3, 40), slice(None), slice(50, 50), slice(1, None, 7), slice(-5, None)):
        part = q[rows]
        assert part.kind == kind
        assert part.shape == (len(q.codes[rows]), 33)
        assert np.shares_memory(part.codes, q.codes) or len(part) == 0
        np.testing.assert_array_equal(part.dequantize(), q.dequantize()[rows])
        np.testing.assert_array_equal(part.inverse_norms, q.inverse_norms[rows])
        np.testing.assert_array_equal(part.squared_norms, q.squared_norms[rows])


def test_what_it_is_not():
    q = some("int8")
    with pytest.raises(TypeError, match=r"rows: found 3, expected a slice"):
        q[3]
    with pytest.raises(TypeError, match="rows: found int64 \\[2\\], expected a slice"):
        q[np.array([1, 2])]
    with pytest.raises(ValueError, match="rows: found the step -1, expected one above 0"):
        q[::-1]
    with pytest.raises(TypeError, match=r"\.dequantize\(\) the numbers"):
        np.asarray(q)
    with pytest.raises(TypeError, match="not iterable"):
        list(q)
    assert repr(q) == "Quantized('int8' [111, 33])"


def test_bytes():
    assert some("int8").nbytes == 111 * 33 + 2 * 33 * 4
    assert some("int4").nbytes == 111 * 17 + 2 * 33 * 4
    assert some("int4_vector").nbytes == 111 * 17 + 111 * 4
    assert some("binary").nbytes == 111 * 5


def test_signed_bits():
    q = some("binary")
    expected = (q.codes.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(q.signed_bits(), expected, strict=True)
    np.testing.assert_array_equal(q.to("cpu").signed_bits().numpy(), expected, strict=True)
    with pytest.raises(ValueError, match="signed_bits: found 'int8', expected 'binary'"):
        some("int8").signed_bits()


def test_by_hand():
    codes = np.arange(12, dtype=np.int8).reshape(3, 4)
    plain = simtile.Quantized(codes, 1, 0, 4, "int8")
    np.testing.assert_array_equal(plain.scale, np.ones(4, np.float32), strict=True)
    np.testing.assert_array_equal(plain.offset, np.zeros(4, np.float32), strict=True)
    np.testing.assert_array_equal(plain.dequantize(), codes.astype(np.float32), strict=True)
    scaled = simtile.Quantized(codes, np.array([1.0, 2.0, 0.5]), None, 4, "int8_vector")
    assert scaled.scale.dtype == np.float32
    np.testing.assert_array_equal(scaled.dequantize()[1], 2.0 * codes[1])
    assert simtile.Quantized(codes, 0.5, None, 4, "int8_vector").scale.shape == (3,)
    # Columns are made contiguous, rows may be apart.
    columns = simtile.Quantized(np.asfortranarray(codes), 1, 0, 4, "int8")
    np.testing.assert_array_equal(columns.dequantize(), plain.dequantize())
    apart = np.zeros((6, 8), np.int8)[::2, :4]
    assert simtile.Quantized(apart, 1, 0, 4, "int8").codes.strides == apart.strides


CODES = np.zeros((3, 4), np.int8)
BYTES = np.zeros((3, 4), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CODES, 1, 0, 4, "int9"), r"kind: found 'int9', expected one of 'int8'"),
        ((CODES, 1, 0, 0, "int8"), r"dim: found 0, expected at least 1"),
        ((CODES, 1, 0, 5, "int8"), r"codes: found int8 \[3, 4\], expected \[N, 5\] for 'int8' wi"),
        ((CODES[0], 1, 0, 4, "int8"), r"codes: found int8 \[4\], expected \[N, 4\]"),
        ((BYTES, 1, 0, 4, "int8"), r"codes: found uint8 \[3, 4\], expected int8 for 'int8'"),
        ((CODES, 1, 0, 8, "int4"), r"codes: found int8 \[3, 4\], expected uint8 for 'int4'"),
        ((BYTES, 1, 0, 4, "int4"), r"codes: found uint8 \[3, 4\], expected \[N, 2\] for 'int4'"),
        ((CODES, None, None, 32, "binary"), r"'binary' is x.view\(np.uint8\) \^ 0x80"),
        ((BYTES, 1, None, 32, "binary"), r"scale: found 1, expected None: bits have none"),
        ((np.zeros((3, 4)), 1, 0, 4, "int8"), r"found float64 .*simtile.quantize makes codes"),
        ((CODES, 1, 0, 4, "int8_vector"), r"offset: found 0, expected None: 'int8_vector' is sym"),
        (
            (CODES, np.ones(4), None, 4, "int8_vector"),
            r"scale: found float32 \[4\], expected float32 \[3\], one per vec",
        ),
        ((CODES, np.ones(3), 0, 4, "int8"), r"scale: found .* expected float32 \[4\], one per dim"),
        ((CODES, None, 0, 4, "int8"), r"scale: found None, expected a number or float32 \[4\]"),
        ((CODES, 1, None, 4, "int8"), r"offset: found None, expected a number or float32 \[4\]"),
        ((CODES, "a", 0, 4, "int8"), r"scale: found 'a', expected a number"),
        ((CODES, -1, None, 4, "int8_vector"), r"scale: found one below 0, expected none"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        simtile.Quantized(*arguments)


def test_other_types_that_do_not_fit():
    with pytest.raises(TypeError, match="codes: found list, expected an array or a tensor of int8"):
        simtile.Quantized([[1]], 1, 0, 1, "int8")
    with pytest.raises(ValueError, match=r"ranges: found float64 \[4\], expected float32 \[2, 4\]"):
        simtile.Quantized(CODES, 1, 0, 4, "int8", ranges=np.zeros(4))
    with pytest.raises(ValueError, match=r"ranges: found .* expected None for 'int8_vector'"):
        simtile.Quantized(CODES, 1, None, 4, "int8_vector", ranges=np.zeros((2, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors(kind):
    """Tensors in, tensors out, on the same memory; back to arrays without a copy."""
    q = some(kind)
    x = torch.from_numpy(vectors(111, 33, np.float32, 5, ordinary=True)).requires_grad_()
    tensors = call(x, kind)
    for name in ("codes", "scale", "offset", "ranges"):
        value, expected = getattr(tensors, name), getattr(q, name)
        if expected is None:
            assert value is None
        else:
            assert isinstance(value, torch.Tensor)
            np.testing.assert_array_equal(value.numpy(), expected, strict=True)
    arrays = tensors.numpy()
    assert np.shares_memory(arrays.codes, tensors.codes.numpy())
    np.testing.assert_array_equal(tensors.dequantize().numpy(), q.dequantize())
    np.testing.assert_array_equal(tensors[3:9].inverse_norms.numpy(), q.inverse_norms[3:9])
    assert repr(tensors) == f"Quantized({kind!r} [111, 33], device='cpu')"
    assert q.numpy() is q
    by_hand = simtile.Quantized(tensors.codes, q.scale, q.offset, 33, kind)
    if q.scale is not None:
        assert isinstance(by_hand.scale, torch.Tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_device(kind):
    q = some(kind)
    there = q.to("cuda")
    assert there.codes.is_cuda
    np.testing.assert_array_equal(there.dequantize().cpu().numpy(), q.dequantize())
    np.testing.assert_array_equal(there.inverse_norms.cpu().numpy(), q.inverse_norms)
    np.testing.assert_array_equal(there.numpy().codes, q.codes)
