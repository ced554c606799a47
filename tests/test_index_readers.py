"""FlatIndex.from_faiss and from_usearch beside the real libraries."""

import faiss
import numpy as np
import pytest
from usearch.index import Index

import simtile
from simtile import FlatIndex

DIM = 21
METRICS = {"dot": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
QUANTIZERS = {
    "QT_8bit": "uint8",
    "QT_8bit_uniform": "uint8",
    "QT_8bit_direct": "uint8",
    "QT_8bit_direct_signed": "uint8",
    "QT_4bit": "int4",
    "QT_4bit_uniform": "int4",
    "QT_fp16": "float16",
    "QT_bf16": "bfloat16",
}


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)


def assert_found_alike(found, expected, tolerance=1e-5):
    """The same scores; the same ids but where two scores are as close as that."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=tolerance)
    for i, j in zip(*np.nonzero(found[1] != expected[1]), strict=True):
        close = np.abs(expected[0][i] - expected[0][i, j]) <= 4 * tolerance
        last = found[1].shape[1] - 1
        assert found[1][i, j] in expected[1][i][close] or close[last]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("with_ids", [False, True])
def test_faiss_flat(x, metric, with_ids):
    flat = faiss.IndexFlatIP(DIM) if metric == "dot" else faiss.IndexFlatL2(DIM)
    for original in (flat, faiss.IndexFlat(DIM, METRICS[metric])):
        if with_ids:
            original = faiss.IndexIDMap2(original)
            original.add_with_ids(x, np.random.default_rng(1).permutation(1000)[:300])
        else:
            original.add(x)
        index = FlatIndex.from_faiss(original)
        assert (index.dtype, index.metric, len(index)) == ("float32", metric, 300)
        assert_found_alike(index.search(x[:9], 10), original.search(x[:9], 10))
    cosine = FlatIndex.from_faiss(original, metric="cosine")
    np.testing.assert_allclose(cosine.search(x[:9], 1)[0], 1, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("dim", [DIM, 8])
def test_faiss_scalar_quantizer(x, metric, kind, dim):
    x = np.ascontiguousarray(x[:, :dim])
    if "direct" in kind:
        x = np.random.default_rng(2).integers(0, 128, x.shape).astype(np.float32)
        x -= 64 if "signed" in kind else 0
    original = faiss.IndexScalarQuantizer(
        dim, getattr(faiss.ScalarQuantizer, kind), METRICS[metric]
    )
    original.train(x[:250])
    original.add(x)
    index = FlatIndex.from_faiss(faiss.deserialize_index(faiss.serialize_index(original)))
    assert (index.dtype, index.metric) == (QUANTIZERS[kind], metric)
    q = x[:9] + 0.1
    # Each element of a query is rounded by up to half of 1/32639 of the largest, and l2 takes the
    # products twice.
    tolerance = 1e-4 + dim * np.abs(q).max() * np.ptp(x) / 32639
    assert_found_alike(index.search(q, 10), original.search(q, 10), tolerance)
    index.add(x[:3])
    original.add(x[:3])
    assert_found_alike(index.search(q, 10), original.search(q, 10), tolerance)


@pytest.mark.parametrize("with_ids", [False, True])
def test_faiss_bits(with_ids):
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (300, 5), np.uint8)
    original = faiss.IndexBinaryFlat(40)
    if with_ids:
        original = faiss.IndexBinaryIDMap(original)
        original.add_with_ids(packed, np.arange(300) * 7)
    else:
        original.add(packed)
    index = FlatIndex.from_faiss(original)
    scores, ids = index.search(packed[:9], 300)
    expected, _ = original.search(packed[:9], 300)
    np.testing.assert_array_equal(scores, expected, strict=True)
    for i in range(9):
        distances = np.unpackbits(packed ^ packed[i], axis=1).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        assert ids[i].tolist() == (order * (7 if with_ids else 1)).tolist()


def test_faiss_indexes_that_are_none_of_these(x):
    approximate = faiss.IndexHNSWFlat(DIM, 8)
    with pytest.raises(TypeError, match=r"index: found a faiss\.IndexHNSWFlat, expected"):
        FlatIndex.from_faiss(approximate)
    with pytest.raises(ValueError, match="metric_type"):
        FlatIndex.from_faiss(faiss.IndexFlat(DIM, faiss.METRIC_L1))
    with pytest.raises(ValueError, match="qtype"):
        FlatIndex.from_faiss(faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_6bit))
    with pytest.raises(TypeError, match="index: found ndarray, expected an index of faiss"):
        FlatIndex.from_faiss(x)
    flat = faiss.IndexFlatL2(DIM)
    x[7, 3] = np.nan
    flat.add(x)
    with pytest.raises(ValueError, match="index: found NaN in row 7"):
        FlatIndex.from_faiss(flat)
    assert len(FlatIndex.from_faiss(faiss.IndexFlatL2(DIM))) == 0
    assert len(FlatIndex.from_faiss(faiss.IndexBinaryFlat(16))) == 0


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16", "i8"])
@pytest.mark.parametrize("metric", ["cos", "ip", "l2sq"])
def test_usearch(x, dtype, metric):
    original = Index(ndim=DIM, dtype=dtype, metric=metric)
    keys = np.random.default_rng(1).permutation(1000)[:300]
    original.add(keys, x)
    index = FlatIndex.from_usearch(original)
    stored = {"f64": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8_vector"}
    assert index.dtype == stored.get(dtype, "float32")
    assert index.ids.tolist() == sorted(keys.tolist())
    q = x[:9]
    if dtype != "f64":  # usearch rounds queries as it rounds documents
        q = np.array([original.get(int(key)) for key in keys[:9]])
        if dtype == "i8":
            q = simtile.Quantized(q, 1, None, DIM, "int8_vector")
    scores, ids = index.search(q, 10)
    found = original.search(x[:9], 10, exact=True)
    expected = found.distances if metric == "l2sq" else 1 - found.distances
    tolerance = 2e-2 if dtype in ("f16", "bf16") else 1e-3
    assert_found_alike((scores, ids), (expected, found.keys.astype(np.int64)), tolerance)


def test_usearch_bits():
    packed = np.random.default_rng(0).integers(0, 256, (100, 5), np.uint8)
    original = Index(ndim=40, dtype="b1", metric="hamming")
    original.add(np.arange(100), packed)
    scores, _ = FlatIndex.from_usearch(original).search(packed[:9], 10)
    np.testing.assert_array_equal(scores, original.search(packed[:9], 10, exact=True).distances)


def test_usearch_indexes_that_are_none_of_these(x):
    with pytest.raises(ValueError, match="multi=True"):
        FlatIndex.from_usearch(Index(ndim=DIM, multi=True))
    with pytest.raises(ValueError, match="dtype F32 and metric Hamming"):
        FlatIndex.from_usearch(Index(ndim=DIM, dtype="f32", metric="hamming"))
    with pytest.raises(TypeError, match="expected an index of usearch"):
        FlatIndex.from_usearch(x)
    assert len(FlatIndex.from_usearch(Index(ndim=DIM))) == 0
