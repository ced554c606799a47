"""FlatIndex: what it finds is what simtile.topk finds among the documents it holds."""

import copy

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import simtile
from simtile import FlatIndex, _files, _storage

DIM = 11
RANGES = np.array([[-3.0] * DIM, [3.0] * DIM], np.float32)
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = ("int8", "uint8", "int4", "binary", "int8_vector", "int4_vector")
KINDS = [
    *((dtype, metric) for dtype in (*FLOATS, *CODES) for metric in ("cosine", "dot", "l2")),
    ("binary", "hamming"),
]


def small_vectors(rng, count, dim=DIM):
    """Many of them equal, some zero: scores tie."""
    return rng.integers(-2, 3, (count, dim)).astype(np.float32) * (rng.random((count, 1)) < 0.9)


def new_index(dtype, metric, dim=DIM):
    ranges = RANGES if dtype in ("int8", "uint8", "int4") else None
    return FlatIndex(dim, dtype, metric=metric, ranges=ranges)


def as_stored(x, dtype):
    """Documents as simtile.topk takes them."""
    if dtype in FLOATS:
        return x.astype(FLOATS[dtype])
    ranged = dtype in ("int8", "uint8", "int4")
    return simtile.quantize(x, dtype, ranges=RANGES if ranged else None)


class Model:
    """The documents in a dict, searched by the reference."""

    def __init__(self, dtype, metric):
        self.dtype, self.metric, self.vectors = dtype, metric, {}

    def prepared(self):
        ids = np.array(sorted(self.vectors), np.int64)
        x = np.array([self.vectors[i] for i in ids.tolist()], np.float32).reshape(-1, DIM)
        return ids, as_stored(x, self.dtype)

    def queries(self, q):
        return simtile.quantize(q, "binary") if self.metric == "hamming" else q

    def mask(self, allowed):
        return (
            None
            if allowed is None
            else np.array([i in allowed for i in sorted(self.vectors)], bool)
        )

    def search(self, q, k, allowed=None):
        ids, documents = self.prepared()
        scores, rows = simtile.topk(
            *(self.queries(q), documents, k),
            metric=self.metric,
            allow=self.mask(allowed),
            backend="reference",
        )
        return scores, np.append(ids, -1)[rows]

    def range_search(self, q, threshold, allowed=None):
        ids, documents = self.prepared()
        offsets, scores, rows = simtile.range_search(
            *(self.queries(q), documents, threshold),
            metric=self.metric,
            allow=self.mask(allowed),
            backend="reference",
        )
        return offsets, scores, ids[rows]


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


class AgainstTheReference(RuleBasedStateMachine):
    @initialize(kind=st.sampled_from(KINDS), automatic=st.booleans(), seed=st.integers(0, 2**32))
    def start(self, kind, automatic, seed):
        self.index = new_index(*kind)
        self.model = Model(*kind)
        self.automatic = automatic
        self.next_id = 0

    @rule(count=st.integers(0, 7), seed=st.integers(0, 2**32))
    def add(self, count, seed):
        rng = np.random.default_rng(seed)
        x = small_vectors(rng, count)
        if self.automatic:
            ids = np.arange(self.next_id, self.next_id + count)
            self.next_id += count
            found = self.index.add(x)
        else:
            ids = rng.permutation(np.setdiff1d(np.arange(60), list(self.model.vectors)))[:count]
            x = x[: len(ids)]
            found = self.index.add(x, ids)
        assert found.tolist() == ids.tolist()
        self.model.vectors.update(zip(ids.tolist(), x, strict=True))

    def some_ids(self, rng, count):
        return rng.permutation(np.array(list(self.model.vectors), np.int64))[:count]

    @rule(count=st.integers(0, 5), seed=st.integers(0, 2**32))
    def update(self, count, seed):
        rng = np.random.default_rng(seed)
        ids = self.some_ids(rng, count)
        x = small_vectors(rng, len(ids))
        self.index.update(x, ids)
        self.model.vectors.update(zip(ids.tolist(), x, strict=True))

    @rule(count=st.integers(0, 5), seed=st.integers(0, 2**32))
    def remove(self, count, seed):
        ids = self.some_ids(np.random.default_rng(seed), count)
        self.index.remove(ids.tolist())
        for i in ids.tolist():
            del self.model.vectors[i]

    @rule(mmap=st.booleans(), verify=st.sampled_from([None, "header", "full"]))
    def save_and_load(self, mmap, verify):
        self.index.save(self.path)
        self.index = FlatIndex.load(self.path, mmap, verify=verify)

    @rule(
        k=st.integers(1, 70),
        allow=st.sampled_from(["all", "ids", "mask", "masks"]),
        threads=st.sampled_from([None, 1, 2]),
        seed=st.integers(0, 2**32),
    )
    def search(self, k, allow, threads, seed):
        rng = np.random.default_rng(seed)
        q = small_vectors(rng, 3)
        ids = self.index.ids.tolist()
        assert ids == list(self.model.vectors)
        given, allowed = None, None
        if allow != "all":
            mask = rng.random((3, len(ids)) if allow == "masks" else len(ids)) < 0.6
            given = np.array(ids, np.int64)[mask] if allow == "ids" else mask
            allowed = mask
        if allow == "ids" and len(given) == len(ids) and set(ids) <= {0, 1}:
            given = None if len(ids) == 0 else mask  # zeros and ones are refused
        found = self.index.search(q, k, allow=given, threads=threads)
        threshold = float(found[0][0, len(ids) // 3]) if k > len(ids) > 0 else 0.5
        ranged = self.index.range_search(q, threshold, allow=given, threads=threads)
        parts = []
        for i in range(3):
            row = allowed[i] if allow == "masks" else allowed
            kept = None if row is None else {x for x, ok in zip(ids, row, strict=True) if ok}
            parts.append(
                (
                    self.model.search(q[i : i + 1], k, kept),
                    self.model.range_search(q[i : i + 1], threshold, kept),
                )
            )
        assert_same(found, [np.concatenate([p[0][j] for p in parts]) for j in range(2)])
        assert_same(ranged[1:], [np.concatenate([p[1][j] for p in parts]) for j in (1, 2)])
        assert np.diff(ranged[0]).tolist() == [len(p[1][1]) for p in parts]
        np.testing.assert_array_equal(
            self.index.score(q, found[1], threads=threads), found[0], strict=True
        )


@pytest.mark.parametrize("copied_bytes", [0, 1 << 26])
def test_finds_what_the_reference_finds(monkeypatch, tmp_path, copied_bytes):
    """Whatever was added, updated, removed, saved and loaded before, in many segments or one."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", copied_bytes)
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 5)
    monkeypatch.setattr(_storage, "LEAST_ROOM", 3)
    AgainstTheReference.path = tmp_path / "index"
    run_state_machine_as_test(AgainstTheReference, settings=settings(stateful_step_count=15))


@pytest.mark.parametrize(("dtype", "metric"), KINDS)
def test_every_kind_in_several_segments(monkeypatch, dtype, metric):
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    rng = np.random.default_rng(3)
    x, ids = small_vectors(rng, 111), rng.permutation(500)[:111]
    index, model = new_index(dtype, metric), Model(dtype, metric)
    for part in (slice(0, 40), slice(40, 41), slice(41, 111)):
        index.add(x[part], ids[part])
    model.vectors = dict(zip(ids.tolist(), x, strict=True))
    q = small_vectors(rng, 7)
    found = index.search(q, 111)
    assert_same(found, model.search(q, 111))
    assert_same(index.range_search(q, found[0][0, 30]), model.range_search(q, found[0][0, 30]))
    candidates = rng.permutation(ids)[: 7 * 9].reshape(7, 9)
    candidates[:, 3] = -1
    scores = index.score(q, candidates)
    worst = {"l2": np.inf, "hamming": 2**31 - 1}.get(metric, -np.inf)
    for i in range(7):
        by_id = dict(zip(found[1][i].tolist(), found[0][i], strict=True)) | {-1: worst}
        assert scores[i].tolist() == [by_id[c] for c in candidates[i].tolist()]


@given(seed=st.integers(0, 2**32), wide=st.booleans())
def test_bfloat16_is_rounded_as_elsewhere(seed, wide):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (20, 7), np.uint32)
    bits[rng.random((20, 7)) < 0.3] &= np.uint32(0xFFFF8000)  # halves, which go to even
    x = bits.view(np.float32)
    x = np.where(np.isfinite(x) & (np.abs(x) < 3e38), x, np.float32(1))
    index = FlatIndex(7, "bfloat16", metric="l2")
    index.add(x.astype(np.float64) if wide else x)
    stored = index._storage.snapshot.segments[0].columns["codes"]
    np.testing.assert_array_equal(stored, x.astype(ml_dtypes.bfloat16).view(np.uint16))
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("dtype", [*FLOATS, "float64"])
def test_takes_floats_of_every_type_and_library(dtype):
    rng = np.random.default_rng(0)
    x = small_vectors(rng, 30).astype({**FLOATS, "float64": np.float64}[dtype])
    q = small_vectors(rng, 4)
    expected = FlatIndex(DIM)
    expected.add(x.astype(np.float32))
    index = FlatIndex(DIM)
    index.add(x[::-1][::-1])
    tensor = FlatIndex(DIM)
    tensor.add(torch.from_numpy(x.astype(np.float32)).to(getattr(torch, dtype)))
    for found in (index, tensor):
        assert_same(found.search(q, 5), expected.search(q, 5))
    scores, ids = index.search(torch.from_numpy(q), 5)
    assert isinstance(scores, torch.Tensor)
    assert isinstance(ids, torch.Tensor)
    assert_same((scores.numpy(), ids.numpy()), expected.search(q, 5))
    assert isinstance(index.score(torch.from_numpy(q), ids), torch.Tensor)
    assert torch.equal(index.score(torch.from_numpy(q), ids), scores)
    offsets, *_ = index.range_search(torch.from_numpy(q), 0.5)
    assert isinstance(offsets, torch.Tensor)


def test_what_was_given_may_change_afterwards():
    x, ids = small_vectors(np.random.default_rng(0), 30), np.arange(30)[::-1].copy()
    index = FlatIndex(DIM, metric="dot")
    index.add(x, ids)
    before = index.search(x, 3)
    x_before = x.copy()
    x[:], ids[:] = 7, 7
    assert_same(index.search(x_before, 3), before)
    assert index.ids.tolist() == list(range(30))[::-1]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
def test_ranges_are_those_of_the_first_hundred(tmp_path, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, DIM)).astype(np.float32)
    index = FlatIndex(DIM, dtype)
    assert index.ranges is None
    with pytest.raises(ValueError, match=r"x: found 99 rows in the first add, expected at least 1"):
        index.add(x[:99])
    assert len(index.add(x[:0])) == 0
    assert index.ranges is None
    assert len(index) == 0
    with pytest.raises(ValueError, match="at \\[1\\], expected it once"):
        index.add(x[:100], np.zeros(100, int))
    assert index.ranges is None  # nothing was added
    index.save(tmp_path / "a")
    index = FlatIndex.load(tmp_path / "a")
    index.add(x[:100])
    ranges = simtile.quantize(x[:100], dtype).ranges
    np.testing.assert_array_equal(index.ranges, ranges)
    index.add(x[100:101] * 100)
    np.testing.assert_array_equal(index.ranges, ranges)
    with_ranges = FlatIndex(DIM, dtype, ranges=ranges)
    with_ranges.add(x[:1])
    index.save(tmp_path / "a")
    np.testing.assert_array_equal(FlatIndex.load(tmp_path / "a").ranges, ranges)
    taken = FlatIndex(DIM, dtype)
    taken.add(simtile.quantize(x[:120], dtype, ranges=ranges))  # a Quantized brings its own
    np.testing.assert_array_equal(taken.ranges, ranges)
    with pytest.raises(ValueError, match="another scale or offset than the index has"):
        taken.add(simtile.quantize(x[:120], dtype, ranges=2 * ranges))


def test_packed_bits_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 21)).astype(np.float32)
    packed = np.packbits(x > 0, axis=1)
    found = []
    for documents in (x, packed, simtile.quantize(x, "binary"), torch.from_numpy(packed)):
        index = FlatIndex(21, "binary", metric="hamming")
        index.add(documents)
        for queries in (x[:5], packed[:5], simtile.quantize(x[:5], "binary")):
            found.append(index.search(queries, 9))
    for other in found[1:]:
        assert_same(other, found[0])
    assert found[0][0].dtype == np.int32
    for wrong in (packed[:, :2], np.append(packed, packed[:, :1], axis=1)):
        with pytest.raises(ValueError, match=r"x: found uint8 .*21 bits a row"):
            index.add(wrong)
    packed[3, 2] |= 1
    with pytest.raises(ValueError, match="x: found bits beyond the 21 of row 3, expected zeros"):
        index.add(packed)
    with pytest.raises(ValueError, match="queries: found bits beyond the 21 of row 3"):
        index.search(packed, 1)
    with pytest.raises(ValueError, match="queries: found int8"):
        index.search(packed.view(np.int8), 1)
    cosine = FlatIndex(21, "binary")
    cosine.add(x)
    with pytest.raises(ValueError, match='metric="hamming"'):
        cosine.search(packed[:2], 1)


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


def test_a_query_of_bits_with_nan():
    index = FlatIndex(DIM, "binary", metric="hamming")
    index.add(np.ones((3, DIM)))
    q = np.ones((3, DIM))
    q[1, 4] = np.nan
    for queries in (q, q.astype(np.float32), q.astype(ml_dtypes.bfloat16), torch.from_numpy(q)):
        with pytest.raises(ValueError, match="queries: found NaN in 1 of 3 queries"):
            index.search(queries, 2)
        scores, ids = index.search(queries, 2, nan="ignore", allow=np.ones((3, 3), bool))
        assert ids.tolist() == [[0, 1], [-1, -1], [0, 1]]
        assert scores.tolist() == [[0, 0], [2**31 - 1] * 2, [0, 0]]


def test_a_query_with_nan():
    index = FlatIndex(DIM)
    index.add(np.ones((3, DIM)))
    q = np.ones((3, DIM), np.float32)
    q[1, 4] = np.nan
    with pytest.raises(ValueError, match="queries: found NaN in 1 of 3 queries"):
        index.search(q, 2)
    scores, ids = index.search(q, 2, nan="ignore", allow=np.ones((3, 3), bool))
    assert ids.tolist() == [[0, 1], [-1, -1], [0, 1]]
    assert scores[1].tolist() == [-np.inf, -np.inf]
    scores = index.score(q, [[0, 1], [0, 1], [2, -1]], nan="ignore")
    assert np.isneginf(scores).tolist() == [[False] * 2, [True] * 2, [False, True]]
    offsets, *_ = index.range_search(q, 0.5, nan="ignore")
    assert offsets.tolist() == [0, 3, 3, 6]


def test_an_empty_index_finds_nothing(tmp_path):
    for dtype, metric in KINDS:
        for index in (new_index(dtype, metric), FlatIndex(DIM, dtype, metric=metric)):
            index.save(tmp_path / "a")
            for one in (index, FlatIndex.load(tmp_path / "a")):
                scores, ids = one.search(np.ones((2, DIM)), 3)
                assert ids.tolist() == [[-1] * 3] * 2
                expected = {"l2": np.inf, "hamming": 2**31 - 1}.get(metric, -np.inf)
                assert scores.tolist() == [[expected] * 3] * 2
                assert scores.dtype == (np.int32 if metric == "hamming" else np.float32)
                assert one.range_search(np.ones((2, DIM)), 0.0)[0].tolist() == [0, 0, 0]
                assert one.score(np.ones((2, DIM)), [[-1], [-1]]).tolist() == [[expected]] * 2
                assert one.search(np.ones((2, DIM)), 3, allow=[])[1].tolist() == [[-1] * 3] * 2
                with pytest.raises(ValueError, match="unknown id 0"):
                    one.search(np.ones((2, DIM)), 3, allow=[0])


@pytest.mark.parametrize(("dtype", "metric"), KINDS)
def test_no_queries_and_no_candidates(dtype, metric):
    index = new_index(dtype, metric)
    index.add(np.ones((4, DIM)))
    none = np.empty((0, DIM), np.float32)
    assert [x.shape for x in index.search(none, 3)] == [(0, 3), (0, 3)]
    assert [x.shape for x in index.range_search(none, 0.5)] == [(1,), (0,), (0,)]
    assert index.score(none, np.empty((0, 4), int)).shape == (0, 4)
    assert index.score(np.ones((2, DIM)), np.empty((2, 0), int)).shape == (2, 0)
    assert index.add(none).tolist() == []
    index.update(none, [])
    index.remove([])
    assert len(index) == 4


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


def test_an_updated_document_keeps_its_place_in_masks():
    """A mask made from the order of adding still means the same documents."""
    index = FlatIndex(DIM)
    index.add(np.eye(6, DIM))
    index.update(np.eye(6, DIM)[1:2], [4])
    assert index.ids.tolist() == [0, 1, 2, 3, 4, 5]
    mask = np.array([False, False, False, False, True, False])
    assert index.search(np.ones((1, DIM)), 3, allow=mask)[1].tolist() == [[4, -1, -1]]
    index.remove([0])
    assert index.search(np.ones((1, DIM)), 3, allow=mask[1:])[1].tolist() == [[4, -1, -1]]


def test_a_mapped_index_can_save_over_its_own_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, DIM)).astype(np.float32)
    index = FlatIndex(DIM, "float16")
    index.add(x, rng.permutation(50))
    index.save(tmp_path / "a")
    mapped = FlatIndex.load(tmp_path / "a")
    mapped.remove(mapped.ids[:10])
    mapped.add(x[:5], np.arange(100, 105))
    mapped.update(x[:2], [104, mapped.ids[3]])
    expected = mapped.search(x, 20)
    mapped.save(tmp_path / "a")
    assert_same(mapped.search(x, 20), expected)
    again = FlatIndex.load(tmp_path / "a", mmap=False)
    assert_same(again.search(x, 20), expected)
    assert again.ids.tolist() == mapped.ids.tolist()


def test_numbering_goes_on_after_loading(tmp_path):
    index = FlatIndex(DIM)
    index.add(np.eye(4, DIM))
    index.remove([3])
    index.save(tmp_path / "a")
    index = FlatIndex.load(tmp_path / "a")
    assert index.add(np.eye(1, DIM)).tolist() == [4]
    index.remove(index.ids)
    index.save(tmp_path / "a")
    index = FlatIndex.load(tmp_path / "a")
    assert len(index) == 0
    with pytest.raises(ValueError, match="expected None because those before were numbered"):
        index.add(np.eye(1, DIM), [9])
    assert index.add(np.eye(1, DIM)).tolist() == [5]


def write_changed(path, change):
    """A valid file with other contents."""
    contents = _files.read(path, "FlatIndex")
    attributes, arrays = contents.attributes, contents.arrays
    change(attributes, arrays)
    sections = [_files.section(name, array) for name, array in arrays.items()]
    _files.write(path, "FlatIndex", attributes, sections)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, s: a.pop("dim"),
        lambda a, s: a.update(dim="11"),
        lambda a, s: a.update(dim=12),
        lambda a, s: a.update(dim=10**7),
        lambda a, s: a.update(dim=10**30),
        lambda a, s: a.update(dtype="float32"),
        lambda a, s: a.update(dtype=["int8"]),
        lambda a, s: a.update(metric="dot"),
        lambda a, s: a.update(metric=None),
        lambda a, s: a.update(documents=4),
        lambda a, s: a.update(documents=True),
        lambda a, s: a.update(documents=-1),
        lambda a, s: a.update(automatic_ids=1),
        lambda a, s: a.update(automatic_ids=None),
        lambda a, s: a.update(automatic_ids=True, next_id=3),
        lambda a, s: a.update(automatic_ids=True, next_id=2**63),
        lambda a, s: a.pop("next_id"),
        lambda a, s: s.pop("codes"),
        lambda a, s: s.pop("norms"),
        lambda a, s: s.pop("ranges"),
        lambda a, s: s.update(more=np.zeros(3)),
        lambda a, s: s.update(codes=s["codes"].astype(np.int16)),
        lambda a, s: s.update(codes=s["codes"][:2]),
        lambda a, s: s.update(codes=s["codes"].reshape(-1)),
        lambda a, s: s.update(norms=s["norms"].astype(np.float64)),
        lambda a, s: s.update(ids=s["ids"].astype(np.int32)),
        lambda a, s: s.update(ids=s["ids"][:2]),
        lambda a, s: s.update(ids=np.array([1, 7, 1])),
        lambda a, s: s.update(ids=np.array([1, -7, 2])),
        lambda a, s: s.update(ranges=-s["ranges"]),
        lambda a, s: s.update(ranges=s["ranges"] * np.nan),
        lambda a, s: s.update(ranges=s["ranges"][:1]),
        lambda a, s: s.update(ranges=s["ranges"].astype(np.float64)),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change):
    index = new_index("int8", "cosine")
    index.add(np.ones((3, DIM)), [4, 9, 2])
    index.save(tmp_path / "a")
    write_changed(tmp_path / "a", lambda a, s: None)
    FlatIndex.load(tmp_path / "a", verify="full")
    write_changed(tmp_path / "a", change)
    with pytest.raises(ValueError, match=r"damaged|twice"):
        FlatIndex.load(tmp_path / "a", verify="full")


@given(data=st.data(), mmap=st.booleans())
def test_a_changed_byte_never_crashes(tmp_path_factory, data, mmap):
    """With "full" it is found; with "header" a search ends with a result or an error."""
    path = tmp_path_factory.mktemp("index") / "a"
    index = new_index("int8", "l2")
    index.add(small_vectors(np.random.default_rng(0), 20), np.arange(20)[::-1] * 3)
    index.save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if bytes(raw) == path.read_bytes():
        return
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=str(path)):
        FlatIndex.load(path, mmap, verify="full")
    try:
        loaded = FlatIndex.load(path, mmap, verify="header")
        loaded.search(np.ones((2, DIM)), 5)
        loaded.search(np.ones((2, DIM)), 5, allow=[3])
        loaded.add(np.ones((1, DIM)), [1000])
        loaded.remove([3])
    except ValueError:
        pass


def test_a_large_index_is_mapped_in_milliseconds(tmp_path):
    """Automatic ids take no section: nothing of the size of the index is read or made."""
    import time

    rows, dim = 2_000_000, 256

    def zeros():
        block = np.zeros((100_000, dim // 8), np.uint8)
        for _ in range(rows // len(block)):
            yield block

    attributes = {"dim": dim, "dtype": "binary", "metric": "hamming"}
    attributes |= {"documents": rows, "automatic_ids": True, "next_id": rows}
    codes = _files.Section("codes", "uint8", (rows, dim // 8), zeros())
    _files.write(tmp_path / "a", "FlatIndex", attributes, [codes])
    elapsed = []
    for _ in range(5):
        begin = time.perf_counter()
        index = FlatIndex.load(tmp_path / "a")
        elapsed.append(time.perf_counter() - begin)
    assert min(elapsed) < 0.05
    assert index.search(np.zeros((1, dim)), 2)[1].tolist() == [[0, 1]]
    assert rows - 1 in index
