"""What FlatIndex refuses, and how it says so."""

import copy

import ml_dtypes
import numpy as np
import pytest
from flat_index_cases import CODES, DIM, FLOATS, RANGES, assert_same, new_index

import simtile
from simtile import FlatIndex


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [*FLOATS, *CODES])
def test_documents_that_cannot_be_compared_are_refused(dtype, value):
    index = new_index(dtype, "cosine")
    index.add(np.ones((3, DIM)))
    x = np.ones((3000, DIM), np.float32)
    x[2345, 4] = value
    what = "NaN" if np.isnan(value) else "an infinity"
    for documents in (x, x.astype(ml_dtypes.bfloat16)):
        with pytest.raises(ValueError, match=f"x: found {what} in row 2345"):
            index.add(documents)
        with pytest.raises(ValueError, match=f"x: found {what} in row 2"):
            index.update(documents[2343:2346], [0, 1, 2])
    assert len(index) == 3


def test_floats_too_large_for_the_stored_type_are_refused():
    for dtype, value in (("float16", 65520.0), ("bfloat16", 3.4e38), ("float32", 1e39)):
        x = np.ones((3, DIM))
        x[1, 2] = value
        with pytest.raises(ValueError, match=r"x: found .* in row 1, beyond the range of"):
            FlatIndex(DIM, dtype).add(x)


def test_properties():
    index = FlatIndex(DIM, "int8_vector", metric="l2")
    index.add(np.ones((4, DIM)), [3, 1, 2**62, 0])
    assert (index.dim, index.dtype, index.metric, len(index)) == (DIM, "int8_vector", "l2", 4)
    assert index.nbytes == 4 * (DIM + 4 + 4 + 8)
    assert 3 in index
    assert np.int64(2**62) in index
    for other in (4, -1, 2**64, "3", True, 3.0):
        assert other not in index
    index.remove([3])
    assert 3 not in index
    assert index.ids.tolist() == [1, 2**62, 0]
    assert repr(index).startswith("FlatIndex(11, 'int8_vector', metric='l2'; 3 documents, ")
    with pytest.raises(TypeError, match="not a sequence"):
        iter(index)
    with pytest.raises(TypeError, match="is not pickled or copied; save it"):
        copy.deepcopy(index)
    automatic = FlatIndex(DIM, "binary")
    automatic.add(np.ones((4, DIM)))
    assert automatic.nbytes == 4 * 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, ValueError, "dim: found 0"),
        ((1 << 25,), {}, ValueError, "dim: found 33554432, expected 1 to 16777216"),
        ((True,), {}, TypeError, "dim: found True"),
        ((3.0,), {}, TypeError, "dim: found 3.0"),
        ((3, "float64"), {}, ValueError, "dtype: found 'float64', expected one of"),
        (
            (3, "int8"),
            {"metric": "hamming"},
            ValueError,
            "metric: found 'hamming' for dtype 'int8'",
        ),
        ((3, "int8"), {"metric": "euclid"}, ValueError, "metric: found 'euclid'"),
        ((3,), {"ranges": RANGES}, ValueError, "ranges: found some for dtype 'float32'"),
        ((3, "int8"), {"ranges": RANGES}, ValueError, r"ranges: found shape \[2, 11\]"),
        ((3,), {"device": "tpu"}, ValueError, "device: found 'tpu'"),
    ],
)
def test_wrong_arguments_of_an_index(arguments, options, error, message):
    with pytest.raises(error, match=message):
        FlatIndex(*arguments, **options)


def test_wrong_arguments_of_calls():
    index = FlatIndex(DIM)
    index.add(np.eye(3, DIM), [5, 2, 9])
    q = np.ones((2, DIM))
    for call, message in [
        (lambda: index.add(np.ones((2, 3))), r"x: found float64 \[2, 3\], expected \[N, 11\]"),
        (lambda: index.add(np.ones(DIM)), r"a single vector is x\[None, :\]"),
        (lambda: index.add(np.ones((2, DIM), int)), "x: found int64"),
        (lambda: index.add(np.ones((2, DIM), np.int8)), "expected floats"),
        (lambda: index.add(simtile.quantize(q, "binary")), "expected kind 'float32'"),
        (lambda: index.add(q, [1]), r"ids: found int64 \[1\], expected \[2\], one for each row"),
        (lambda: index.add(q, [[1, 3]]), r"ids: found int64 \[1, 2\]"),
        (lambda: index.add(q, [1.0, 3.0]), "ids: found float64"),
        (lambda: index.add(q, [True, False]), "ids: found bool"),
        (lambda: index.add(q, [3, -1]), r"ids: found -1 at \[1\], expected 0 to"),
        (lambda: index.add(q, np.array([1, 2**63], np.uint64)), "ids: found 9223372036854775808"),
        (lambda: index.add(q, [3, 3]), r"ids: found 3 at \[0\] and at \[1\], expected it once"),
        (lambda: index.add(q, [3, 5]), r"ids: found 5 at \[1\], which is in the index already"),
        (lambda: index.add(q), "ids: found None, expected ids because those before"),
        (lambda: index.update(q, [5, 7]), r"ids: found 7 at \[1\], which is not in the index"),
        (lambda: index.update(q, [5, 5]), "expected it once"),
        (lambda: index.update(q, [5]), "one for each row of x"),
        (lambda: index.remove([5, 7]), r"ids: found 7 at \[1\], which is not in the index"),
        (lambda: index.remove([5, 5]), "expected it once"),
        (lambda: index.search(q, 0), "k: found 0"),
        (lambda: index.search(q[:, 1:], 1), r"queries: found float64 \[2, 10\]"),
        (lambda: index.search(q, 1, threads=0), "threads: found 0"),
        (lambda: index.search(q, 1, allow=[4]), "allow: found the unknown id 4"),
        (lambda: index.search(q, 1, allow=np.ones(2, bool)), r"allow: found a mask \[2\]"),
        (lambda: index.score(q, [5, 2]), r"ids: found int64 \[2\], expected integers \[2, C\]"),
        (lambda: index.score(q, [[5]]), r"expected integers \[2, C\]"),
        (lambda: index.score(q, [[5.0], [2.0]]), "ids: found float64"),
        (lambda: index.score(q, [[5], [3]]), r"ids: found 3 at \[1, 0\], which is not in"),
        (lambda: index.score(q, [[5], [-2]]), r"ids: found -2 at \[1, 0\], which is not in"),
        (lambda: index.range_search(q, float("nan")), "threshold: found nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert index.ids.tolist() == [5, 2, 9]
    assert_same(index.search(np.eye(1, DIM), 1), ([[np.float32(1)]], [[5]]))


def test_ids_of_zeros_and_ones_are_refused():
    index = FlatIndex(DIM)
    index.add(np.eye(2, DIM))
    with pytest.raises(ValueError, match="zeros and ones"):
        index.search(np.ones((1, DIM)), 1, allow=np.array([1, 0]))
    assert index.search(np.ones((1, DIM)), 2, allow=[1])[1].tolist() == [[1, -1]]
