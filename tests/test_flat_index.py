"""FlatIndex: what it finds is what simtile.topk finds among the documents it holds."""

import ml_dtypes
import numpy as np
import pytest
import torch
from flat_index_cases import CODES, DIM, FLOATS, RANGES, assert_same, new_index, small_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import simtile
from simtile import FlatIndex, _storage

KINDS = [
    *((dtype, metric) for dtype in (*FLOATS, *CODES) for metric in ("cosine", "dot", "l2")),
    ("binary", "hamming"),
]


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
