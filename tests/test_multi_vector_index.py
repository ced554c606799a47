"""MultiVectorIndex: what it finds is what MaxSim of the tokens it holds defines."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from info_nce_backends import cpu_level
from multi_vector_cases import CODES, DIM, FLOATS, assert_same, draw_documents, new_index
from tolerances import ROUNDOFF, ROUNDOFFS

import simtile
from simtile import (
    MultiVectorIndex,
    _maxsim_run,
    _multi_vector_search,
    _storage,
    _token_encoding,
    _token_storage,
    _vectors,
)
from simtile.reference import maxsim_numpy as oracle


def as_codes(tokens, index):
    """Tokens as `simtile.maxsim_packed` takes them."""
    if index.codec is not None:
        return index.codec.encode(tokens)
    return simtile.quantize(tokens, "int8_vector" if index.dtype == "int8" else "binary")


def unit(tokens):
    return _token_encoding.normalized(_vectors.Rows(tokens, "float32", None)).array


def scores_of(index, queries, documents, empty_score):
    """Of floats by the oracle, of codes by those of all documents together."""
    shape = len(queries), len(documents)
    if index.dtype in FLOATS:
        scores = oracle.maxsim(queries, documents, empty_score=empty_score).scores
        return np.reshape(scores, shape).astype(np.float32)
    tokens = np.concatenate([np.zeros((0, DIM), np.float32), *documents])
    offsets = np.cumsum([0, *map(len, documents)])
    codes = as_codes(tokens, index)
    scores = simtile.maxsim_packed(queries, codes, offsets, empty_score=empty_score)
    return scores.reshape(shape)


def ranked(scores, ids, k):
    """The best k of scores [Q, N]: highest first, then the lowest id."""
    found = np.full((len(scores), k), -np.inf, np.float32), np.full((len(scores), k), -1)
    for q, row in enumerate(scores):
        order = sorted(range(len(ids)), key=lambda n: (-row[n], ids[n]))[:k]
        found[0][q, : len(order)] = row[order]
        found[1][q, : len(order)] = np.array(ids, np.int64)[order]
    return found


class AgainstTheOracle(RuleBasedStateMachine):
    """The index beside a dict of its documents."""

    @initialize(dtype=st.sampled_from([*FLOATS, *CODES]), automatic=st.booleans())
    def start(self, dtype, automatic):
        self.index = new_index(dtype)
        self.documents, self.automatic, self.next_id = {}, automatic, 0

    @rule(count=st.integers(0, 5), seed=st.integers(0, 2**32), packed=st.booleans())
    def add(self, count, seed, packed):
        rng = np.random.default_rng(seed)
        x = draw_documents(rng, count)
        if self.automatic:
            ids = np.arange(self.next_id, self.next_id + count)
            self.next_id += count
        else:
            ids = rng.permutation(np.setdiff1d(np.arange(60), list(self.documents)))[:count]
            x = x[: len(ids)]
        self.documents.update(zip(ids.tolist(), x, strict=True))
        if packed:
            x = np.concatenate([np.zeros((0, DIM)), *x]), np.cumsum([0, *map(len, x)])
        found = self.index.add(x, None if self.automatic else ids)
        assert found.tolist() == ids.tolist()

    def some_ids(self, rng, count):
        return rng.permutation(np.array(list(self.documents), np.int64))[:count]

    @rule(count=st.integers(0, 4), seed=st.integers(0, 2**32))
    def update(self, count, seed):
        rng = np.random.default_rng(seed)
        ids = self.some_ids(rng, count)
        x = draw_documents(rng, len(ids))
        self.index.update(x, ids)
        self.documents.update(zip(ids.tolist(), x, strict=True))

    @rule(count=st.integers(0, 6), seed=st.integers(0, 2**32))
    def remove(self, count, seed):
        ids = self.some_ids(np.random.default_rng(seed), count)
        self.index.remove(ids)
        for i in ids.tolist():
            del self.documents[i]

    @rule(mmap=st.booleans(), full=st.booleans())
    def reload(self, mmap, full):
        path = self.directory / "index"
        self.index.save(path)
        verify = "full" if full else "header"
        self.index = MultiVectorIndex.load(path, mmap, verify=verify)

    @rule(k=st.integers(1, 9), seed=st.integers(0, 2**32), threads=st.sampled_from([1, 3]))
    def search(self, k, seed, threads):
        rng = np.random.default_rng(seed)
        queries = draw_documents(rng, rng.integers(0, 4))
        ids = np.array(list(self.documents), np.int64)
        assert self.index.ids.tolist() == ids.tolist()
        assert self.index.lengths.tolist() == [len(x) for x in self.documents.values()]
        options = {"empty_score": -3.0, "threads": threads}
        scores = scores_of(self.index, queries, list(self.documents.values()), -3.0)
        assert_same([self.index.score(queries, **options)], [scores])
        assert_same(self.index.search(queries, k, **options), ranked(scores, ids, k))
        everything = {**options, "prefilter": max(k, len(ids))}
        assert_same(self.index.search(queries, k, **everything), ranked(scores, ids, k))
        mask = rng.random((len(queries), len(ids))) < 0.5
        for prefilter in (None, max(k, len(ids))):
            found = self.index.search(queries, k, allow=mask, prefilter=prefilter, **options)
            for q in range(len(queries)):
                one = ranked(scores[q : q + 1, mask[q]], ids[mask[q]], k)
                assert_same([x[q] for x in found], [x[0] for x in one])
        allowed = self.some_ids(rng, len(ids) // 2)
        if len(allowed) > 1:  # of one document both an id and a mask could be meant
            there = np.isin(ids, allowed)
            found = self.index.search(queries, k, allow=allowed, **options)
            assert_same(found, ranked(scores[:, there], ids[there], k))
        places = rng.integers(-1, max(len(ids), 0), (len(queries), 4))
        picked = np.append(scores, np.full((len(queries), 1), -np.inf, np.float32), axis=1)
        expected = np.take_along_axis(picked, places % (len(ids) + 1), 1)
        assert_same([self.index.score(queries, np.append(ids, -1)[places], **options)], [expected])


@pytest.mark.parametrize("copied_bytes", [0, 1 << 26])
def test_finds_what_the_oracle_finds(monkeypatch, tmp_path, copied_bytes):
    """With many segments, or one that is copied; with tokens moved together at every chance."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", copied_bytes)
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 3)
    monkeypatch.setattr(_token_storage, "COMPACTED_TOKENS", 10)
    monkeypatch.setattr(_multi_vector_search, "SCORES", 5)
    monkeypatch.setattr(AgainstTheOracle, "directory", tmp_path, raising=False)
    run_state_machine_as_test(AgainstTheOracle, settings=settings(stateful_step_count=15))


@given(
    dtype=st.sampled_from(sorted(FLOATS)),
    normalize=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masks_batches_and_normalized_tokens(dtype, normalize, holes, seed):
    """What is masked is not stored, even NaN of a query; lengths are those before rounding."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 9, DIM))
    q = rng.normal(size=(3, 4, DIM))
    mask = rng.random((5, 9)) < 0.7
    query_mask = rng.random((3, 4)) < 0.7
    if not holes:
        mask.sort(axis=1)
        query_mask.sort(axis=1)
    q[~query_mask] = np.nan
    index = MultiVectorIndex(DIM, dtype, normalize=normalize)
    assert index.add(torch.from_numpy(x), mask=mask).tolist() == [0, 1, 2, 3, 4]
    found = index.score(torch.from_numpy(q), query_mask=query_mask)
    assert isinstance(found, torch.Tensor)
    assert index.lengths.tolist() == mask.sum(1).tolist()
    if normalize:
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        q /= np.linalg.norm(q, axis=-1, keepdims=True)
    # ml_dtypes rounds to bfloat16 by way of float32 too; twice rounded to float16 is not once.
    wide = x.astype(FLOATS[dtype]).astype(np.float64)
    documents = [row[there] for row, there in zip(wide, mask, strict=True)]
    queries = [row[there] for row, there in zip(q, query_mask, strict=True)]
    expected = np.array(oracle.maxsim(queries, documents).scores).reshape(3, 5)
    sizes = (
        4 * np.linalg.norm(np.nan_to_num(q), axis=-1).max() * np.linalg.norm(wide, axis=-1).max()
    )
    step = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    # A length that differs in its last digit may round a value of a narrow type the other way.
    atol = sizes * (ROUNDOFFS["maxsim.scores"] * ROUNDOFF["float32"] + (step if normalize else 0))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_codes_are_those_of_the_tokens(tmp_path, dtype, normalize):
    """Learnt from the first tokens; the scores are near those of what codes stand for."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, DIM)).astype(np.float32) for n in rng.integers(0, 30, 40)]
    q = rng.normal(size=(3, 6, DIM)).astype(np.float32)
    index = MultiVectorIndex(DIM, dtype, normalize=normalize)
    index.add(x[:30])
    index.add(x[30:])
    if normalize:
        x = [unit(row) for row in x]  # to the last bit: a value at a bucket's end counts
        q = q / np.linalg.norm(q, axis=2, keepdims=True)
    tokens, offsets = np.concatenate(x), np.cumsum([0, *map(len, x)])
    if dtype.startswith("residual"):
        bits = int(dtype[-1])
        learnt = simtile.ResidualCodec.train(np.concatenate(x[:30]), bits)
        for name in ("centroids", "bucket_weights", "bucket_cutoffs"):
            np.testing.assert_array_equal(getattr(index.codec, name), getattr(learnt, name))
        stored = index.codec.encode(tokens)
        wide, width = stored.decode(), (DIM * bits + 7) // 8 + 8
    else:
        stored = as_codes(tokens, index)
        wide = stored.dequantize()
        if dtype == "binary" and normalize:
            wide = wide / np.sqrt(DIM)
        width = {"int8": DIM + 4, "binary": (DIM + 7) // 8}[dtype]
    assert index.token_bytes == width
    expected = oracle.maxsim(q, [wide[a:b] for a, b in itertools.pairwise(offsets)]).scores
    found = index.score(q)
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=1e-3)
    index.save(tmp_path / "a")
    for mmap in (False, True):
        again = MultiVectorIndex.load(tmp_path / "a", mmap)
        assert_same([again.score(q)], [found])
        again.add(x[:1])
        assert_same([again.score(q, [[40]] * 3)], [index.score(q, [[0]] * 3)])


def test_a_codec_is_given_or_learnt_once(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 12, DIM))
    index = MultiVectorIndex(DIM, "residual2", centroids=5)
    with pytest.raises(ValueError, match="found 96 tokens in the first add, expected at least 100"):
        index.add(x[:8])
    assert index.codec is None
    index.add([np.zeros((0, DIM))])
    assert index.search(x[0], 2)[1].tolist() == [[0, -1]]
    index.save(tmp_path / "a")
    index = MultiVectorIndex.load(tmp_path / "a")
    with pytest.raises(ValueError, match="ids: found ids"):
        index.add(x, np.arange(10))
    assert index.codec is None  # of an add that failed
    index.add(x)
    learnt = index.codec
    assert learnt.centroids.shape == (5, DIM)
    index.add(x[:1])
    assert index.codec is learnt
    chosen = rng.normal(size=(4, DIM)).astype(np.float32)
    MultiVectorIndex(DIM, "residual1", centroids=chosen).save(tmp_path / "b")
    index = MultiVectorIndex.load(tmp_path / "b")
    index.add(x)
    np.testing.assert_array_equal(index.codec.centroids, chosen)


def test_one_query_and_results_on_the_side_of_the_queries():
    rng = np.random.default_rng(0)
    index = MultiVectorIndex(DIM)
    index.add(draw_documents(rng, 9), np.arange(9)[::-1] * 5)
    q = rng.normal(size=(4, DIM))
    scores, ids = index.search(q, 3)
    assert scores.shape == ids.shape == (1, 3)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    for queries in (q[None], [q], torch.from_numpy(q), [torch.from_numpy(q)]):
        other = index.search(queries, 3)
        assert isinstance(other[0], torch.Tensor) == (
            isinstance(queries, torch.Tensor) or isinstance(queries[0], torch.Tensor)
        )
        assert_same([np.asarray(x) for x in other], (scores, ids))
    masked = index.search(q, 3, query_mask=[True, False, True, True])
    assert_same(masked, index.search(q[[0, 2, 3]], 3))
    assert index.search([], 3)[0].shape == (0, 3)


def test_a_prefilter_scores_those_of_the_nearest_means():
    """The candidates are what a FlatIndex of the means finds, those that are allowed."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, DIM)) + 1 for n in rng.integers(1, 9, 60)]
    q = [rng.normal(size=(n, DIM)) + 1 for n in (3, 5)]
    ids = rng.permutation(60)
    index = MultiVectorIndex(DIM)
    index.add(x, ids)
    means = simtile.FlatIndex(DIM, "bfloat16")
    means.add(np.array([row.astype(np.float32).mean(0) for row in x]), ids)
    allowed = rng.permutation(60)[:40]
    near = means.search(np.array([row.mean(0) for row in q]), 10, allow=allowed)[1]
    scores = index.score(q, near)
    found = index.search(q, 4, allow=allowed, prefilter=10)
    for i in range(2):
        order = np.lexsort((near[i], -scores[i]))[:4]
        assert_same([x[i] for x in found], [scores[i, order], near[i, order]])


def test_the_bits_do_not_depend_on_where_a_document_is(monkeypatch):
    """Scores of float tokens are those of `maxsim`, from all segments and as candidates."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 33)).astype(np.float32) for n in rng.integers(0, 40, 30)]
    q = rng.normal(size=(3, 7, 33)).astype(np.float32)
    index = MultiVectorIndex(33)
    for i in range(0, 30, 6):
        index.add(x[i : i + 6])
    expected = simtile.maxsim(q, x)
    assert_same([index.score(q)], [expected])
    places = rng.integers(0, 30, (3, 8))
    assert_same([index.score(q, places)], [np.take_along_axis(expected, places, 1)])
    assert_same(index.search(q, 30), ranked(expected, np.arange(30), 30))


@pytest.mark.parametrize("level", simtile.cpu_info()["detected"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_best_are_those_of_all_scores_bit_for_bit(monkeypatch, level, dtype):
    """With few and many tokens of queries, which kernels multiply differently, and equal documents.

    No matrix of scores is made on the way.
    """
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    rng = np.random.default_rng(0)
    own = [rng.normal(size=(n, 70)).astype(np.float32) for n in rng.integers(0, 30, 40)]
    ids = rng.permutation(500)[:120]
    index = MultiVectorIndex(70, dtype)
    for i in range(0, 120, 50):
        index.add([own[n % 40] for n in range(120)[i : i + 50]], ids[i : i + 50])
    index.remove(ids[::7])
    allowed = rng.random((5, len(index))) < 0.6
    calls = []
    with cpu_level(level):
        for lengths in ([3, 1, 0, 2, 5], [32, 5, 0, 33, 90]):
            q = [rng.normal(size=(n, 70)).astype(np.float32) for n in lengths]
            scores = index.score(q, empty_score=-9)
            for k, threads in ((1, 1), (7, 2), (500, 2)):
                options = {"empty_score": -9, "threads": threads}
                calls.append((q, k, options, None, ranked(scores, index.ids, k)))
                some = [ranked(scores[[i]][:, a], index.ids[a], k) for i, a in enumerate(allowed)]
                each = tuple(np.concatenate(x) for x in zip(*some, strict=True))
                calls.append((q, k, options, allowed, each))
        monkeypatch.delattr(_maxsim_run, "score")
        for q, k, options, allow, expected in calls:
            assert_same(index.search(q, k, allow=allow, **options), expected)


def test_what_was_given_may_change_afterwards():
    x, ids = np.ones((2, 3, DIM), np.float32), np.array([4, 7])
    index = MultiVectorIndex(DIM)
    index.add(x, ids)
    x[:], ids[:] = 0, 1
    assert index.ids.tolist() == [4, 7]
    assert index.score(np.ones((1, DIM)), [[4, 7]]).tolist() == [[DIM, DIM]]


@pytest.mark.parametrize("mapped", [False, True])
def test_tokens_of_removed_documents_are_given_back(monkeypatch, tmp_path, mapped):
    """Behind those of a file too, which stay; and memory grows with what is there alone."""
    monkeypatch.setattr(_storage, "COMPACTED_ROWS", 3)
    monkeypatch.setattr(_token_storage, "COMPACTED_TOKENS", 10)
    index = MultiVectorIndex(DIM)
    if mapped:
        index.add([np.full((7, DIM), -1, np.float32), np.zeros((0, DIM))], [1000, 1001])
        index.save(tmp_path / "a")
        index = MultiVectorIndex.load(tmp_path / "a")
    others = [1001, 1000, -1] if mapped else [-1, -1, -1]
    values = [0, -DIM, -np.inf] if mapped else [-np.inf] * 3
    index.add(np.zeros((5, 20, DIM), np.float32), np.arange(5))
    for i in range(1, 40):
        index.add(np.full((5, 20, DIM), i, np.float32), np.arange(5) + 5 * i)
        scores, ids = index.search(np.ones((1, DIM)), 13)
        assert ids[0].tolist() == [*range(5 * i, 5 * i + 5), *range(5 * i - 5, 5 * i), *others]
        assert scores[0].tolist() == [i * DIM] * 5 + [(i - 1) * DIM] * 5 + values
        index.remove(np.arange(5 * i - 5, 5 * i))
        total = sum(tokens.length for tokens in index._state.tokens)
        assert total <= 2 * 5 * 20 + 10 * 20
