"""What MultiVectorIndex refuses, and what stays as it was when a change fails."""

import numpy as np
import pytest
from multi_vector_cases import DIM, assert_same, codec, new_index

from simtile import (
    MultiVectorIndex,
    _storage,
    _token_storage,
)


def test_an_interrupted_change_changes_nothing(monkeypatch):
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 1)
    monkeypatch.setattr(_token_storage, "COMPACTED_TOKENS", 1)
    index = MultiVectorIndex(DIM)
    index.add(np.ones((9, 4, DIM)), np.arange(9))
    q = np.ones((1, DIM))
    before = index.search(q, 20)

    def fail(*_, **__):
        raise MemoryError("no memory")

    changes = [
        lambda: index.add(np.ones((3, 70, DIM)), [20, 21, 22]),
        lambda: index.update(np.zeros((8, 70, DIM)), np.arange(8)),
        lambda: index.remove(np.arange(8)),
    ]
    for owner, name in ((_storage, "replace"), (_token_storage, "replace")):
        for change in changes:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail)
                with pytest.raises(MemoryError):
                    change()
            assert len(index) == 9
            assert_same(index.search(q, 20), before)
    for change in changes:
        change()
    assert index.search(q, 20)[1][0, :5].tolist() == [8, 20, 21, 22, -1]


@pytest.mark.parametrize("dtype", ["float32", "int8", "residual2"])
def test_floats_beyond_float32(dtype):
    """Of documents they are refused, of queries rounded to an infinity."""
    index = new_index(dtype)
    index.add(np.ones((1, 2, DIM)))
    x = np.ones((2, 3, DIM))
    x[1, 0, 4] = -1e300
    with pytest.raises(
        ValueError, match=r"its tokens: found -1e\+300 in row 3, beyond the range of"
    ):
        index.add(x)
    assert len(index) == 1
    if dtype == "float32":
        assert index.search(-x[1, :1], 1)[0] == np.inf


def test_means_beyond_bfloat16():
    """The largest floats are stored; their means are rounded to what bfloat16 can hold."""
    largest = np.finfo(np.float32).max
    index = MultiVectorIndex(2)
    index.add([[[largest, 0]], [[-largest, 0], [-largest, 0]]])
    assert index.search(np.array([[1.0, 0]]), 1, prefilter=1)[1].tolist() == [[0]]
    scores = index.score(np.array([[1.0, 0]]))
    assert scores.tolist() == [[largest, -largest]]


def test_properties():
    index = MultiVectorIndex(DIM, "bfloat16")
    assert (len(index), index.nbytes, index.token_bytes) == (0, 0, 2 * DIM)
    index.add(np.zeros((2, 3, DIM)))
    assert (index.dim, index.dtype, index.normalize) == (DIM, "bfloat16", False)
    assert index.nbytes == 6 * 2 * DIM + 2 * (2 * DIM + 16)
    assert 1 in index
    assert 2 not in index
    assert repr(index) == (
        f"MultiVectorIndex(11, 'bfloat16', normalize=False; 2 documents, {index.nbytes} bytes)"
    )
    with pytest.raises(TypeError, match=r"not a sequence; its ids are \.ids"):
        list(index)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="dtype: found 'float8'"):
        MultiVectorIndex(DIM, "float8")
    with pytest.raises(ValueError, match="dim: found 0"):
        MultiVectorIndex(0)
    for options, message in (
        ({"dtype": "int8", "centroids": 3}, "centroids: found some for dtype 'int8'"),
        ({"dtype": "residual1", "centroids": 0}, "centroids: found 0"),
        ({"dtype": "residual1", "centroids": np.ones((3, 7))}, r"centroids: .*\[K, 11\]"),
        ({"dtype": "residual1", "codec": codec(2)}, "codec: found .*expected dim=11 and bits=1"),
        ({"dtype": "residual2", "codec": codec(2), "centroids": 3}, "centroids: found some beside"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiVectorIndex(DIM, **options)
    index = MultiVectorIndex(DIM)
    index.add(np.ones((2, 3, DIM)), [5, 9])
    q = np.ones((2, 3, DIM))
    calls = [
        (lambda: index.add(np.ones((3, DIM)), [1]), r"x: found .*expected \[B, L, D\] or a list"),
        (lambda: index.add(np.ones((1, 3, 7)), [1]), r"x: found float64 \[1, 3, 7\], expected 11"),
        (lambda: index.add(np.ones((1, 3, DIM)), [1, 2]), r"ids: found .*expected \[1\]"),
        (lambda: index.add(np.ones((1, 3, DIM)), [5]), r"ids: found 5 .*in the index already"),
        (lambda: index.add(np.ones((2, 3, DIM)), [7, 7]), r"ids: found 7 at \[0\] and at \[1\]"),
        (lambda: index.add((np.ones((3, DIM)), [0, 2]), [1]), r"x\[1\]: found .* from 0 to 2"),
        (lambda: index.add(np.full((1, 3, DIM), np.nan), [1]), r"its tokens: found NaN in row 0"),
        (lambda: index.add(np.ones((1, 3, DIM)), [1], mask=[[True]]), "mask: found"),
        (lambda: index.add(np.ones((1, 3, DIM))), "ids: found None, expected ids"),
        (lambda: index.update(q, [5, 6]), r"ids: found 6 at \[1\], which is not in the index"),
        (lambda: index.remove([6]), "ids: found 6"),
        (lambda: index.search(q[..., :7], 1), r"queries: found .*expected 11 dimensions"),
        (lambda: index.search(q * np.nan, 1), r"queries: found NaN at \[0, 0\]"),
        (lambda: index.search(q, 0), "k: found 0"),
        (lambda: index.search(q, 3, prefilter=2), "prefilter: found 2, expected at least k"),
        (lambda: index.search(q, 1, allow=[6]), "allow: found the unknown id 6"),
        (lambda: index.search(q, 1, allow=np.ones(3, bool)), r"allow: found a mask \[3\]"),
        (lambda: index.search(q, 1, threads=0), "threads: found 0"),
        (lambda: index.score(q, [[5, 6], [5, 9]]), r"ids: found 6 at \[0, 1\]"),
        (lambda: index.score(q, [5, 9]), r"ids: found int64 \[2\], expected integers \[2, C\]"),
    ]
    before = index.search(q, 3)
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    for call in (
        lambda: index.search(q, 1, prefilter=True),
        lambda: index.search(q, 1, empty_score="0"),
    ):
        with pytest.raises(TypeError, match=r"prefilter: found True|empty_score: found '0'"):
            call()
    assert_same(index.search(q, 3), before)
