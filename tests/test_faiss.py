"""simtile.integrations.faiss beside faiss itself, on the same arrays.

faiss-cpu is a development requirement: without it this file fails, it is not skipped.
"""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtile.integrations import faiss as ours

with warnings.catch_warnings():
    # SWIG's types without __module__, on Python 3.12 and newer
    warnings.filterwarnings("ignore", "builtin type .*[Ss]wig", DeprecationWarning)
    import faiss

# OpenMP's threads wait in a loop: beside other programs, more than one is slower.
faiss.omp_set_num_threads(1)

FLOAT_METRICS = {"ip": ours.METRIC_INNER_PRODUCT, "l2": ours.METRIC_L2}

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 7, 40, 111, 300])
query_counts = st.sampled_from([0, 1, 3, 25])  # faiss has other code from 20 queries on
dims = st.sampled_from([1, 3, 16, 31, 64])
ks = st.sampled_from([1, 2, 10, 130])


def floats(rng, n, dim, ties=False):
    # Small integers: every product and sum is exact in float32, and there are ties.
    if ties:
        return rng.integers(-3, 4, (n, dim)).astype(np.float32)
    return rng.standard_normal((n, dim)).astype(np.float32)


def pair(name, dim):
    return getattr(faiss, name)(dim), getattr(ours, name)(dim)


def exact_scores(metric, x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    if metric == "ip":
        return x @ y.T
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def check_floats(metric, x, y, theirs, own, tolerance=1e-4):
    """The same distances and padding; ids may differ where distances are equal."""
    for found, wanted in zip(own, theirs, strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
    np.testing.assert_allclose(own[0], theirs[0], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(own[1] < 0, theirs[1] < 0)
    exact = exact_scores(metric, x, y)
    for row, (scores, ids) in enumerate(zip(*own, strict=True)):
        ids = ids[ids >= 0]
        assert len(set(ids)) == len(ids)
        np.testing.assert_allclose(scores[: len(ids)], exact[row, ids], rtol=1e-6, atol=1e-6)


def check_hamming(x, y, theirs, own):
    for found, wanted in zip(own, theirs, strict=True):
        assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(own[0], theirs[0])
    np.testing.assert_array_equal(own[1] < 0, theirs[1] < 0)
    for row, (distances, ids) in enumerate(zip(*own, strict=True)):
        ids = ids[ids >= 0]
        differing = np.unpackbits(x[row] ^ y[ids], axis=1).sum(1)
        np.testing.assert_array_equal(distances[: len(ids)], differing)
        # ties to the lowest id
        assert sorted(zip(differing, ids, strict=True)) == list(zip(differing, ids, strict=True))


@given(n=sizes, nq=query_counts, dim=dims, k=ks, seed=seeds, ties=st.booleans())
@pytest.mark.parametrize(("name", "metric"), [("IndexFlatIP", "ip"), ("IndexFlatL2", "l2")])
def test_flat_search(name, metric, n, nq, dim, k, seed, ties):
    rng = np.random.default_rng(seed)
    y, x = floats(rng, n, dim, ties), floats(rng, nq, dim, ties)
    peer, index = pair(name, dim)
    for half in (y[: n // 2], y[n // 2 :]):
        peer.add(half)
        index.add(half)
    assert index.ntotal == peer.ntotal == n
    own, theirs = index.search(x, k), peer.search(x, k)
    check_floats(metric, x, y, theirs, own)
    if ties:
        np.testing.assert_array_equal(own[0], theirs[0])
    own = ours.knn(x, y, k, FLOAT_METRICS[metric])
    check_floats(metric, x, y, faiss.knn(x, y, k, FLOAT_METRICS[metric]), own)


@given(n=sizes, nq=query_counts, width=st.sampled_from([1, 3, 16, 17, 48]), k=ks, seed=seeds)
def test_binary_search(n, nq, width, k, seed):
    rng = np.random.default_rng(seed)
    # few different bytes: many equal distances
    y, x = (rng.choice([0, 1, 3, 255], (rows, width)).astype(np.uint8) for rows in (n, nq))
    peer, index = pair("IndexBinaryFlat", 8 * width)
    peer.add(y)
    index.add(y)
    check_hamming(x, y, peer.search(x, k), index.search(x, k))
    check_hamming(x, y, faiss.knn_hamming(x, y, k), ours.knn_hamming(x, y, k))
    for variant in ("hc", "mc"):
        own = ours.knn_hamming(x, y, min(k, n), variant)
        check_hamming(x, y, faiss.knn_hamming(x, y, min(k, n), variant), own)


@given(n=sizes, nq=query_counts, dim=dims, seed=seeds, place=st.floats(0, 1))
@pytest.mark.parametrize(("name", "metric"), [("IndexFlatIP", "ip"), ("IndexFlatL2", "l2")])
def test_flat_range_search(name, metric, n, nq, dim, seed, place):
    # Exact in float32: a threshold that some distances are equal to tells < from <=.
    rng = np.random.default_rng(seed)
    y, x = floats(rng, n, dim, ties=True), floats(rng, nq, dim, ties=True)
    peer, index = pair(name, dim)
    peer.add(y)
    index.add(y)
    all_scores = exact_scores(metric, x, y).ravel()
    threshold = float(np.quantile(all_scores, place, method="nearest")) if nq else 0.0
    same_ranges(index.range_search(x, threshold), peer.range_search(x, threshold))


@given(
    n=sizes, nq=query_counts, width=st.sampled_from([1, 3, 16]), seed=seeds, r=st.integers(-2, 140)
)
def test_binary_range_search(n, nq, width, seed, r):
    rng = np.random.default_rng(seed)
    y, x = (rng.integers(0, 256, (rows, width), dtype=np.uint8) for rows in (n, nq))
    peer, index = pair("IndexBinaryFlat", 8 * width)
    peer.add(y)
    index.add(y)
    same_ranges(index.range_search(x, r), peer.range_search(x, r))


def same_ranges(own, theirs):
    lims, scores, ids = theirs
    # what faiss returns without a hit may have another type
    wanted_types = [lims.dtype, scores.dtype, ids.dtype if len(ids) else np.dtype(np.int64)]
    assert [found.dtype for found in own] == wanted_types
    # faiss's order within a query depends on its threads
    order = np.lexsort((ids, np.repeat(np.arange(len(lims) - 1), np.diff(lims.astype(int)))))
    np.testing.assert_array_equal(own[0], lims)
    np.testing.assert_array_equal(own[1], scores[order])
    np.testing.assert_array_equal(own[2], ids[order])


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("threshold", [np.inf, -np.inf, np.nan, 0])
def test_range_search_thresholds(metric, threshold):
    name = {"ip": "IndexFlatIP", "l2": "IndexFlatL2"}[metric]
    peer, index = pair(name, 4)
    x = np.eye(4, dtype=np.float32)
    peer.add(x)
    index.add(x)
    same_ranges(index.range_search(x, threshold), peer.range_search(x, threshold))


SELECTORS = {
    "range": lambda module, ids, n: module.IDSelectorRange(n // 4, n // 2),
    "batch": lambda module, ids, n: module.IDSelectorBatch(ids),
    "array": lambda module, ids, n: module.IDSelectorArray(ids),
    "bitmap": lambda module, ids, n: module.IDSelectorBitmap(
        np.packbits(np.isin(np.arange(n), ids), bitorder="little")
    ),
    "not": lambda module, ids, n: module.IDSelectorNot(module.IDSelectorBatch(ids)),
    "and": lambda module, ids, n: module.IDSelectorAnd(
        module.IDSelectorBatch(ids), module.IDSelectorRange(0, n // 2)
    ),
    "or": lambda module, ids, n: module.IDSelectorOr(
        module.IDSelectorBatch(ids), module.IDSelectorRange(0, n // 2)
    ),
    "xor": lambda module, ids, n: module.IDSelectorXOr(
        module.IDSelectorBatch(ids), module.IDSelectorRange(0, n // 2)
    ),
    "all": lambda module, ids, n: module.IDSelectorAll(),
}


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("foreign", [False, True], ids=["own selector", "faiss's selector"])
def test_selectors(kind, foreign):
    rng = np.random.default_rng(5)
    n, dim, k = 101, 16, 12
    y, x = floats(rng, n, dim, ties=True), floats(rng, 3, dim, ties=True)
    ids = np.concatenate([rng.choice(n, 30, replace=False), [n + 7]])
    # faiss's objects do not keep what they are made of
    theirs, own = SELECTORS[kind](faiss, ids, n), SELECTORS[kind](ours, ids, n)
    members = [theirs.is_member(i) for i in range(n)]
    assert [own.is_member(i) for i in range(n)] == members
    peer_params = faiss.SearchParameters(sel=theirs)
    params = peer_params if foreign else ours.SearchParameters(sel=own)

    peer, index = pair("IndexFlatIP", dim)
    peer.add(y)
    index.add(y)
    found = index.search(x, k, params=params)
    check_floats("ip", x, y, peer.search(x, k, params=peer_params), found)
    assert all(members[i] for i in found[1].ravel() if i >= 0)
    same_ranges(
        index.range_search(x, 3.0, params=params), peer.range_search(x, 3.0, params=peer_params)
    )

    bits, bit_queries = np.packbits(y > 0, axis=1), np.packbits(x > 0, axis=1)
    peer, index = pair("IndexBinaryFlat", dim)
    peer.add(bits)
    index.add(bits)
    own_found = index.search(bit_queries, k, params=params)
    check_hamming(bit_queries, bits, peer.search(bit_queries, k, params=peer_params), own_found)

    assert index.remove_ids(own) == peer.remove_ids(theirs)
    assert index.ntotal == peer.ntotal
    np.testing.assert_array_equal(index.reconstruct_n(), peer.reconstruct_n())


def test_selects_nothing_and_everything():
    index = ours.IndexFlatL2(2)
    index.add(np.eye(2))
    nothing = ours.SearchParameters(sel=ours.IDSelectorBatch([]))
    assert (index.search(np.eye(2), 1, params=nothing)[1] == -1).all()
    for params in (None, ours.SearchParameters()):
        assert index.search(np.eye(2), 1, params=params)[1].ravel().tolist() == [0, 1]


@given(seed=seeds, steps=st.lists(st.sampled_from(["add", "remove", "reset"]), max_size=8))
def test_add_remove_reset(seed, steps):
    rng = np.random.default_rng(seed)
    peer, index = pair("IndexFlatIP", 5)
    for step in ["add", *steps]:
        if step == "add":
            rows = floats(rng, int(rng.integers(0, 9)), 5)
            peer.add(rows)
            index.add(rows)
        elif step == "remove":
            ids = rng.integers(-3, 20, 4)
            assert index.remove_ids(ids) == peer.remove_ids(ids)
        else:
            peer.reset()
            index.reset()
        assert index.ntotal == peer.ntotal
        np.testing.assert_array_equal(index.reconstruct_n(), peer.reconstruct_n())
    x = floats(rng, 2, 5)
    own, theirs = index.search_and_reconstruct(x, 3), peer.search_and_reconstruct(x, 3)
    check_floats("ip", x, index.reconstruct_n(), theirs[:2], own[:2])
    np.testing.assert_array_equal(own[2], theirs[2])
    np.testing.assert_array_equal(index.assign(x, 3), peer.assign(x, 3))


@pytest.mark.parametrize("k", [1, 2, 40])
@pytest.mark.parametrize("nq", [1, 30])
@pytest.mark.parametrize(("name", "metric"), [("IndexFlatIP", "ip"), ("IndexFlatL2", "l2")])
def test_not_finite(name, metric, nq, k):
    y = np.array([[1e30] * 4, [-1e30] * 4, [0] * 4], np.float32)
    x = np.full((nq, 4), 1e30, np.float32)
    for query in (1e30, np.nan):
        x[0] = query
        peer, index = pair(name, 4)
        peer.add(y)
        index.add(y)
        own, theirs = index.search(x, k), peer.search(x, k)
        np.testing.assert_array_equal(own[0], theirs[0])
        np.testing.assert_array_equal(own[1], theirs[1])


def test_documents_with_nan_are_not_found():
    rng = np.random.default_rng(3)
    y = floats(rng, 9, 4)
    y[[0, 4], 1] = np.nan
    for name in ("IndexFlatIP", "IndexFlatL2"):
        peer, index = pair(name, 4)
        peer.add(y)
        index.add(y)
        x = floats(rng, 2, 4)
        np.testing.assert_array_equal(index.search(x, 9)[1], peer.search(x, 9)[1])


def test_empty_index():
    for name, x in [
        ("IndexFlatIP", np.ones((2, 8), np.float32)),
        ("IndexFlatL2", np.ones((2, 8), np.float32)),
        ("IndexBinaryFlat", np.ones((2, 1), np.uint8)),
    ]:
        peer, index = pair(name, 8)
        for found, wanted in zip(index.search(x, 3), peer.search(x, 3), strict=True):
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == wanted.dtype
        same_ranges(index.range_search(x, 2), peer.range_search(x, 2))


def test_attributes():
    for name, dim in [("IndexFlatIP", 24), ("IndexFlatL2", 24), ("IndexBinaryFlat", 24)]:
        peer, index = pair(name, dim)
        for attribute in ("d", "ntotal", "is_trained", "metric_type", "code_size", "verbose"):
            assert getattr(index, attribute) == getattr(peer, attribute), attribute
    assert ours.IndexFlat(3).metric_type == faiss.IndexFlat(3).metric_type
    assert (ours.METRIC_L2, ours.METRIC_INNER_PRODUCT) == (
        faiss.METRIC_L2,
        faiss.METRIC_INNER_PRODUCT,
    )


def test_inputs_and_outputs():
    rng = np.random.default_rng(9)
    y = rng.standard_normal((20, 6))
    index = ours.IndexFlatIP(6)
    index.train(y)
    index.add(y)  # float64
    y[:] = 0  # the index has a copy
    x = np.asfortranarray(rng.standard_normal((4, 12)).astype(np.float32))[:, ::2]
    scores, ids = np.empty((4, 3), np.float32), np.empty((4, 3), np.int64)
    returned = index.search(x, 3, D=scores, I=ids)
    assert returned[0] is scores
    assert returned[1] is ids
    np.testing.assert_array_equal(scores, index.search(x.copy(), 3)[0])
    assert scores.all()
    np.testing.assert_array_equal(index.reconstruct_batch([3, 0, 3])[1], index.reconstruct(0))
    index.reconstruct(0)[:] = 7
    assert (index.reconstruct(0) != 7).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda i: i.search(np.ones(4), 1), ValueError, r"x: found float64 \[4\].*x\[None, :\]"),
        (lambda i: i.search(np.ones((1, 3)), 1), ValueError, r"expected float32 \[n, 4\]"),
        (lambda i: i.search(np.ones((1, 4)), 0), ValueError, "k: found 0, expected at least 1"),
        (lambda i: i.search(np.ones((1, 4)), 1.5), TypeError, "k: found 1.5, expected an int"),
        (lambda i: i.search(np.ones((1, 4)), 1, params=3), TypeError, "params: found int"),
        (lambda i: i.add(np.array([["a"] * 4])), ValueError, "x: found <U1"),
        (lambda i: i.add_with_ids(np.ones((1, 4)), [1]), RuntimeError, "simtile.FlatIndex"),
        (lambda i: i.reconstruct(2), IndexError, "2 vectors"),
        (lambda i: i.reconstruct(-1), IndexError, "2 vectors"),
        (lambda i: i.reconstruct_n(1, 2), IndexError, "ids 1 to 2"),
        (lambda i: i.reconstruct_batch([0, 5]), IndexError, "id 5"),
        (lambda i: i.remove_ids(np.ones(2)), TypeError, "expected integers"),
        (lambda i: i.remove_ids(np.ones(2, bool)), TypeError, "IDSelectorBitmap"),
        (lambda i: i.search(np.ones((1, 4)), 1, D=np.ones((1, 1))), ValueError, "D: found"),
        (lambda i: ours.IndexFlatIP(0), ValueError, "d: found 0"),
        (lambda i: ours.IndexFlat(4, 2), ValueError, "METRIC_L2"),
        (lambda i: ours.IndexBinaryFlat(12), ValueError, "multiple of 8"),
        (lambda i: ours.IndexBinaryFlat(8).add(np.ones((1, 1))), TypeError, "packbits"),
        (lambda i: ours.IndexBinaryFlat(8).add(np.ones((1, 2), "u1")), ValueError, r"\[n, 1\]"),
        (
            lambda i: ours.IndexBinaryFlat(8).range_search(np.ones((1, 1), "u1"), 2.5),
            TypeError,
            "thresh: found 2.5",
        ),
        (lambda i: ours.knn(np.ones((1, 4)), np.ones((1, 3)), 1), ValueError, r"xq.*\[n, 3\]"),
        (lambda i: ours.knn(np.ones((1, 4)), np.ones((1, 4)), 1, 23), ValueError, "metric"),
        (lambda i: ours.knn_hamming(np.ones((1, 4)), np.ones((1, 4)), 1), TypeError, "xb"),
        (
            lambda i: ours.knn_hamming(np.ones((1, 4), "u1"), np.ones((1, 4), "u1"), 1, "x"),
            NotImplementedError,
            "variant",
        ),
        (lambda i: ours.SearchParameters(sel=[1]), TypeError, "IDSelectorBatch"),
        (lambda i: ours.IDSelectorBitmap([True]), TypeError, "packbits"),
    ],
)
def test_errors(call, error, message):
    index = ours.IndexFlatL2(4)
    index.add(np.zeros((2, 4)))
    with pytest.raises(error, match=message):
        call(index)
    assert index.ntotal == 2
