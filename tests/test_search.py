"""simtile.topk, range_search and merge_topk: from what users have to the kernels, and back."""

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import KINDS, as_given, cases, without_nan
from topk_cases import check

import simtile
from simtile import Quantized
from simtile.reference import topk_numpy as oracle

BACKENDS = ("reference", "cpu")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def to_arrays(found, tensors=False):
    for x in found:
        assert isinstance(x, torch.Tensor if tensors else np.ndarray)
    return tuple(np.asarray(x) for x in found)


def as_mask(case, tensors):
    mask = case["allow"]
    return torch.from_numpy(mask) if tensors and mask is not None else mask


PLAIN = {"rank": False, "candidates": None}


@every_backend
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), tensors=st.booleans(), threads=st.sampled_from((None, 1, 2, 5)))
def test_what_is_given_is_searched(backend, kind, data, tensors, threads):
    case = data.draw(cases((kind,), **PLAIN))
    queries, documents = as_given(case, tensors)
    found = simtile.topk(
        queries,
        documents,
        case.k,
        metric=case.metric,
        allow=as_mask(case, tensors),
        nan="ignore",
        backend=backend,
        threads=threads,
    )
    check(to_arrays(found, tensors), without_nan(case, case.topk(oracle)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float64"])
@given(data=st.data())
def test_what_is_given_is_searched_on_a_gpu(kind, data):
    case = data.draw(cases((kind,), **PLAIN))
    queries, documents = (x.to("cuda") for x in as_given(case, tensors=True))
    found = simtile.topk(
        queries,
        documents,
        case.k,
        metric=case.metric,
        allow=as_mask(case, tensors=True),
        nan="ignore",
    )
    assert all(x.device.type == "cuda" for x in found)
    check(tuple(x.cpu().numpy() for x in found), without_nan(case, case.topk(oracle)))


@every_backend
@given(case=cases(**PLAIN), data=st.data(), tensors=st.booleans())
def test_range_search_finds_the_first_of_topk(backend, case, data, tensors):
    queries, documents = as_given(case, tensors)
    whole = replace(case, k=case.documents + 1)
    scores, ids = without_nan(whole, whole.topk(oracle))
    exact = scores[ids >= 0].tolist() or [0.0]
    exact += [float(np.nextafter(x, np.inf)) for x in exact]  # rounded to the score again
    threshold = data.draw(st.one_of(st.sampled_from(exact), st.floats(-1.0, 100.0)))
    offsets, *found = simtile.range_search(
        queries,
        documents,
        threshold,
        metric=case.metric,
        allow=as_mask(case, tensors),
        nan="ignore",
        backend=backend,
    )
    offsets, *found = to_arrays((offsets, *found), tensors)
    assert offsets.dtype == np.int64
    assert len(offsets) == case.queries + 1
    assert offsets[0] == 0
    descending = case.metric in ("cosine", "dot")
    with np.errstate(over="ignore"):
        limit = np.float32(threshold)
    for i in range(case.queries):
        hits = (scores[i] >= limit if descending else scores[i] <= limit) & (ids[i] >= 0)
        own = slice(offsets[i], offsets[i + 1])
        check([x[own] for x in found], (scores[i, hits], ids[i, hits]))


@every_backend
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("query_dtype", ["float32", "float64", "float16", "bfloat16"])
def test_queries_are_cast_to_the_type_of_the_search(backend, dtype, query_dtype):
    rng = np.random.default_rng(0)
    types = {name: getattr(ml_dtypes, name, None) or name for name in (dtype, query_dtype)}
    queries = rng.normal(size=(5, 33)).astype(types[query_dtype])
    documents = rng.normal(size=(50, 33)).astype(types[dtype])
    same = queries.astype(np.float64 if dtype == "float64" else np.float32)
    stored = documents.view(np.uint16) if dtype == "bfloat16" else documents
    expected = np.empty((5, 7), np.float32), np.empty((5, 7), np.int64)
    none = (None,) * 5
    oracle.topk(dtype, "cosine", same, stored, 33, *none, 7, None, None, None, 1, *expected)
    check(simtile.topk(queries, documents, 7, backend=backend), expected)


@every_backend
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["int8_vector", "int4_vector"])
@pytest.mark.parametrize("query_kind", ["int8_vector", "int4_vector"])
def test_integer_queries_are_multiplied_as_they_are(backend, metric, kind, query_kind):
    rng = np.random.default_rng(1)
    q, d = rng.normal(size=(4, 31)), rng.normal(size=(60, 31))
    queries, documents = simtile.quantize(q, query_kind), simtile.quantize(d, kind)
    scores, ids = simtile.topk(queries, documents, 60, metric=metric, backend=backend)
    x, y = (v.dequantize().astype(np.float64) for v in (queries, documents))
    expected = x @ y.T
    if metric == "cosine":
        expected /= np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    elif metric == "l2":
        expected = ((x[:, None] - y) ** 2).sum(2)
    found = np.take_along_axis(expected, ids, 1)
    # A query of 15 bits would be off by 1e-5.
    np.testing.assert_allclose(scores, found, rtol=1e-6, atol=1e-6)
    in_tensors = simtile.topk(queries.to("cpu"), documents, 60, metric=metric, backend=backend)
    check(to_arrays(in_tensors, tensors=True), (scores, ids))


@every_backend
def test_plain_integers_have_exact_dot_products(backend):
    rng = np.random.default_rng(2)
    q, d = (rng.integers(-128, 128, size=(n, 111), dtype=np.int8) for n in (5, 200))
    queries, documents = (Quantized(x, 1, 0, 111, "int8") for x in (q, d))
    scores, ids = simtile.topk(queries, documents, 200, metric="dot", backend=backend)
    dots = q.astype(np.int64) @ d.T.astype(np.int64)
    assert (scores == np.take_along_axis(dots, ids, 1)).all()
    doubled = Quantized(q, 2, 0, 111, "int8"), Quantized(d, 0.5, 0, 111, "int8")
    check(simtile.topk(*doubled, 200, metric="dot", backend=backend), (scores, ids))


@every_backend
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
def test_calibrated_queries_are_dequantised(backend, kind, metric):
    rng = np.random.default_rng(3)
    codes = simtile.quantize(rng.normal(size=(120, 17)).astype(np.float32), kind)
    options = {"metric": metric, "backend": backend}
    for scale, offset in ((codes.scale, codes.offset), (0.1, codes.offset), (codes.scale, 0)):
        x = Quantized(codes.codes, scale, offset, 17, kind)
        for documents in (x, x.dequantize()):
            expected = simtile.topk(x.dequantize(), documents, 5, **options)
            check(simtile.topk(x, documents, 5, **options), expected)


@every_backend
def test_bits_of_three_kinds_of_input(backend):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(30, 20))
    bits = simtile.quantize(x, "binary")
    expected = simtile.topk(bits, bits, 5, metric="hamming", backend=backend)
    assert expected[0].dtype == np.int32
    for queries, documents in ((bits.codes, bits.codes), (bits, bits.codes), (bits.codes, bits)):
        check(simtile.topk(queries, documents, 5, metric="hamming", backend=backend), expected)
    scores, ids = simtile.topk(x, bits, 30, metric="dot", backend=backend)
    expected = x.astype(np.float32) @ np.where(x > 0, 1.0, -1.0).T
    np.testing.assert_allclose(scores, np.take_along_axis(expected, ids, 1), atol=2e-3)


@every_backend
def test_more_than_there_is(backend):
    x = np.eye(3, dtype=np.float32)
    scores, ids = simtile.topk(x, x, 5, backend=backend)
    assert ids.tolist() == [[0, 1, 2, -1, -1], [1, 0, 2, -1, -1], [2, 0, 1, -1, -1]]
    assert scores[0].tolist() == [1, 0, 0, -np.inf, -np.inf]
    scores, ids = simtile.topk(x, x[:0], 2, metric="l2", backend=backend)
    assert (ids == -1).all()
    assert (scores == np.inf).all()
    packed = np.zeros((2, 3), np.uint8)
    scores, ids = simtile.topk(packed, packed[:1], 2, metric="hamming", backend=backend)
    assert scores.tolist() == [[0, 2**31 - 1]] * 2
    assert [x.shape for x in simtile.topk(x[:0], x, 2, backend=backend)] == [(0, 2), (0, 2)]
    offsets, scores, ids = simtile.range_search(x[:0], x, 0.5, backend=backend)
    assert (offsets.tolist(), scores.shape, ids.shape) == ([0], (0,), (0,))


@every_backend
def test_lists_and_columns_that_lie_apart(backend):
    x = np.random.default_rng(5).normal(size=(33, 40)).astype(np.float32)
    expected = simtile.topk(x[:2], x, 4, backend=backend)
    check(simtile.topk(x[:2], np.asfortranarray(x), 4, backend=backend), expected)
    backwards = np.ascontiguousarray(x[::-1])[::-1]
    check(simtile.topk(x[:2], backwards, 4, backend=backend), expected)
    check(simtile.topk(x[:2].tolist(), x, 4, backend=backend), expected)
    check(simtile.topk(x[:2], x.astype(">f4"), 4, backend=backend), expected)
    one = np.broadcast_to(x[0], (2, 40))  # cast, its rows would still lie in one place
    wide = x.astype(np.float64)
    check(simtile.topk(one, wide, 4, backend=backend), simtile.topk(one.copy(), wide, 4))
    tensor = torch.from_numpy(x).requires_grad_()
    found = simtile.topk(tensor[:2], tensor.T.contiguous().T, 4, backend=backend)
    assert not found[0].requires_grad
    check(tuple(v.numpy() for v in found), expected)


@every_backend
def test_rows_that_lie_far_apart(backend):
    """Further than a task's documents take bytes: fewer than one of them would be in a task."""
    x = np.zeros((9, 1 << 17), np.float32)[:, :8]
    x[...] = np.random.default_rng(5).normal(size=x.shape)
    near = x.copy()
    check(simtile.topk(near[:2], x, 4, backend=backend), simtile.topk(near[:2], near, 4))
    found = simtile.range_search(near[:2], x, 0.2, backend=backend)
    for one, other in zip(found, simtile.range_search(near[:2], near, 0.2), strict=True):
        np.testing.assert_array_equal(one, other)


@every_backend
@pytest.mark.parametrize("kind", ["float32", "int8", "int8_vector", "binary"])
def test_a_query_with_nan(backend, kind):
    rng = np.random.default_rng(6)
    queries, x = (rng.normal(size=(n, 9)).astype(np.float32) for n in (4, 150))
    documents = x if kind == "float32" else simtile.quantize(x, kind)
    expected = [v.copy() for v in simtile.topk(queries, documents, 3, backend=backend)]
    queries[1, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"queries: found NaN in 1 of 4 queries, .* query 1; .*ign"
    ):
        simtile.topk(queries, documents, 3, backend=backend)
    with pytest.raises(ValueError, match="queries: found NaN"):
        simtile.range_search(queries, documents, 0.0, backend=backend)
    expected[0][1], expected[1][1] = -np.inf, -1
    check(simtile.topk(queries, documents, 3, nan="ignore", backend=backend), expected)
    allow = np.ones((4, 150), bool)
    allow[2, expected[1][2, 0]] = False
    _, ids = simtile.topk(queries, documents, 2, nan="ignore", allow=allow, backend=backend)
    assert ids[2].tolist() == expected[1][2, 1:].tolist()  # the masks of the others are theirs
    offsets, _, _ = simtile.range_search(queries, documents, -1.0, nan="ignore", backend=backend)
    assert np.diff(offsets).tolist() == [150, 0, 150, 150]


@every_backend
def test_documents_with_nan_are_not_found(backend):
    x = np.float32([[1, 0], [np.nan, 0], [0, 1], [np.inf, 1]])
    _, ids = simtile.topk(x[:1], x, 4, backend=backend)
    assert ids.tolist() == [[0, 2, -1, -1]]
    scores, ids = simtile.topk(x[[0, 2]], x, 4, metric="dot", backend=backend)
    assert ids.tolist() == [[3, 0, 2, -1], [2, 0, -1, -1]]  # 0 · inf is NaN
    assert scores[0, 0] == np.inf


# merge_topk


@given(
    case=cases(**PLAIN, queries=(1, 3)),
    data=st.data(),
    tensors=st.booleans(),
    first=st.sampled_from([0, 2**32 - 5, 2**40]),  # ids of 32 bits and of more are merged apart
)
def test_merged_parts_are_one_search(case, data, tensors, first):
    if case.documents == 0:
        return
    case = replace(case, values="few" if case.values == "special" else case.values)
    cuts = sorted(data.draw(st.lists(st.integers(0, case.documents), max_size=3)))
    expected = case.topk(oracle)
    expected[1][expected[1] >= 0] += first
    results = []
    for begin, end in zip([0, *cuts], [*cuts, case.documents], strict=True):
        part = replace(case, allow="absent")
        part.arrays.update(case.arrays)
        mask = np.zeros(case.documents, bool)
        mask[begin:end] = True
        part.arrays["allow"] = mask if case["allow"] is None else mask & case["allow"]
        scores, ids = part.topk(oracle)
        ids[ids >= 0] += first
        if tensors:
            scores, ids = torch.from_numpy(scores), torch.from_numpy(ids)
        results.append((scores, ids))
    order = data.draw(st.permutations(results))
    metric = case.metric if case.metric == "l2" else None
    check(to_arrays(simtile.merge_topk(order, metric=metric), tensors), expected)


def test_merge_by_hand():
    a = np.float32([[0.9, 0.5, -np.inf]]), np.int64([[7, 3, -1]])
    b = np.float32([[0.9, 0.5]]), np.int64([[2, 7]])
    scores, ids = simtile.merge_topk([a, b])
    assert ids.tolist() == [[2, 7, 3]]
    assert scores.tolist() == [[np.float32(0.9), np.float32(0.9), 0.5]]
    scores, ids = simtile.merge_topk([a, b], k=5)
    assert ids.tolist() == [[2, 7, 3, -1, -1]]
    assert scores[0, 3:].tolist() == [-np.inf] * 2
    scores, ids = simtile.merge_topk([a], k=1)
    assert ids.tolist() == [[7]]


def test_merge_refuses():
    a = np.float32([[0.9, 0.5]]), np.int64([[7, 3]])
    ascending = np.float32([[0.5, 0.9]]), np.int64([[7, 3]])
    padded = np.float32([[0.5, np.inf]]), np.int64([[7, -1]])
    with pytest.raises(ValueError, match=r"results\[1\].*not in the order of 'cosine'"):
        simtile.merge_topk([a, ascending])
    with pytest.raises(ValueError, match=r"results\[0\].*not in the order of 'cosine'"):
        simtile.merge_topk([padded])
    assert simtile.merge_topk([ascending, padded], metric="l2")[1].tolist() == [[7, 3]]
    with pytest.raises(ValueError, match=r"results\[1\]: found scores float32 \[1, 2\]"):
        simtile.merge_topk([(a[0].astype(np.int32), a[1]), a])
    with pytest.raises(ValueError, match="'hamming' for float32 scores"):
        simtile.merge_topk([a], metric="hamming")
    with pytest.raises(ValueError, match=r"scores \[1, 2\] and ids \[1, 1\]"):
        simtile.merge_topk([(a[0], a[1][:, :1])])
    with pytest.raises(ValueError, match="scores float64"):
        simtile.merge_topk([(a[0].astype(np.float64), a[1])])
    for wrong in ([], a, [a[0]], None):
        with pytest.raises(TypeError, match="results"):
            simtile.merge_topk(wrong)


# What is refused, and how it is said

X = np.ones((4, 8), np.float32)
CODES = np.ones((4, 8), np.int8)
BITS = np.ones((4, 1), np.uint8)
INT8 = Quantized(CODES, 1, 0, 8, "int8")
BINARY = Quantized(BITS, None, None, 8, "binary")

REFUSED = {
    "documents: int8 codes [4, 8] have no scale; pass the Quantized that simtile.quantize "
    "returned": ((X, CODES, 1), {}),
    "queries: int8 codes [4, 8] have no scale": ((CODES, X, 1), {}),
    "documents: found uint8 [4, 1] and metric 'cosine'": ((X, BITS, 1), {}),
    "queries: found uint8 [4, 1] and metric 'dot'": ((BITS, X, 1), {"metric": "dot"}),
    "documents: found float32 [4, 8] and metric 'hamming', expected packed bits: pass "
    'simtile.quantize(x, "binary")': ((BITS, X, 1), {"metric": "hamming"}),
    "queries: found float32 [4, 8] and metric 'hamming', expected packed bits, uint8 [Q, 1]": (
        (X, BITS, 1),
        {"metric": "hamming"},
    ),
    "queries: found uint8 [4, 2], expected uint8 [Q, 1]": (
        (np.ones((4, 2), np.uint8), BITS, 1),
        {"metric": "hamming"},
    ),
    "metric: found 'hamming' for documents of kind 'int8'": ((X, INT8, 1), {"metric": "hamming"}),
    "queries: found a Quantized of kind 'binary' and metric 'cosine'": ((BINARY, X, 1), {}),
    "queries: found a Quantized of kind 'int8' and metric 'hamming', expected kind 'binary'": (
        (INT8, BINARY, 1),
        {"metric": "hamming"},
    ),
    "queries: found a Quantized of 8 dimensions, expected 3": ((INT8, X[:, :3].copy(), 1), {}),
    "queries: found float32 [4, 3], expected [Q, 8]": ((X[:, :3], X, 1), {}),
    "queries: found float32 [8], expected [Q, D]; a single vector is x[None, :]": (
        (X[0], X, 1),
        {},
    ),
    "documents: found float32 [8], expected [N, D]": ((X, X[0], 1), {}),
    "documents: found float32 [4, 0], expected at least one dimension": ((X, X[:, :0], 1), {}),
    "documents: found int64 [4, 8], expected float32": ((X, X.astype(np.int64), 1), {}),
    "uint16 is never read as bfloat16": ((X, X.astype(np.uint16), 1), {}),
    "queries: found torch.int64 [4, 8]": ((torch.ones(4, 8, dtype=torch.int64), X, 1), {}),
    "k: found 0, expected at least 1": ((X, X, 0), {}),
    "metric: found 'euclidean', expected one of 'cosine', 'dot', 'l2', 'hamming'": (
        (X, X, 1),
        {"metric": "euclidean"},
    ),
    "nan: found 'skip', expected one of 'raise', 'ignore'": ((X, X, 1), {"nan": "skip"}),
    "backend: found 'triton'": ((X, X, 1), {"backend": "triton"}),
    "threads: found 0": ((X, X, 1), {"threads": 0}),
    "queries: found 1e+300, beyond the range of float32": ((np.full((1, 8), 1e300), X, 1), {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    arguments, options = REFUSED[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        simtile.topk(*arguments, **options)


@pytest.mark.parametrize("k", [True, 1.0, None, "3"])
def test_k_is_an_integer(k):
    with pytest.raises(TypeError, match="k: found"):
        simtile.topk(X, X, k)
    assert simtile.topk(X, X, np.int64(1), backend="reference")[1].shape == (4, 1)


@pytest.mark.parametrize(
    ("threshold", "error"), [("1", TypeError), (True, TypeError), (np.nan, ValueError)]
)
def test_threshold_is_a_number(threshold, error):
    with pytest.raises(error, match="threshold: found"):
        simtile.range_search(X, X, threshold)


def test_a_named_backend_never_falls_back():
    with pytest.raises(RuntimeError, match="'cuda' searches tensors of a GPU"):
        simtile.topk(X, X, 1, backend="cuda")
    on_meta = torch.ones(4, 8, device="meta")  # stands for any device that is not the CPU
    with pytest.raises(ValueError, match="queries: found them on the CPU, expected meta"):
        simtile.topk(X, on_meta, 1)
    with pytest.raises(ValueError, match="queries: found them on meta, expected the CPU"):
        simtile.topk(on_meta, X, 1)
