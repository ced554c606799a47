"""CascadeIndex: a stage finds what a FlatIndex of it finds among what was handed on to it."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import simtile
from simtile import CascadeIndex, FlatIndex, _cascade_bounds, _storage, cascade_index

DIM = 24
STAGES = [
    ("binary", "int8"),
    ("binary", "int8", "float32"),
    ("binary", "int4_vector"),
    ("int4", "float16"),
    ("int8_vector", "bfloat16"),
    ("uint8", "float32"),
]
METRICS = ("cosine", "dot", "l2")
RANGES = np.array([[-4.0] * DIM, [4.0] * DIM], np.float32)


def vectors(rng, count):
    """Around a few centres, some of them equal and some zero."""
    centres = rng.normal(size=(5, DIM))
    x = centres[rng.integers(5, size=count)] + 0.4 * rng.normal(size=(count, DIM))
    x[rng.random(count) < 0.03] = 0
    same = rng.random(count) < 0.1
    x[same] = x[0] if count else 0
    return x.astype(np.float32)


def ranges_of(stages):
    return RANGES if {"int8", "uint8", "int4"} & set(stages) else None


def filled(stages, metric, x, ids=None, parts=1, **options):
    """A cascade, and a FlatIndex of each stage, of the same documents."""
    index = CascadeIndex(DIM, stages, metric=metric, ranges=ranges_of(stages), **options)
    flat = [
        FlatIndex(
            DIM,
            dtype,
            metric="hamming" if dtype == "binary" else metric,
            ranges=ranges_of([dtype]),
        )
        for dtype in stages
    ]
    for part in np.array_split(np.arange(len(x)), parts):
        for one in (index, *flat):
            one.add(x[part], None if ids is None else ids[part])
    return index, flat


def by_hand(index, flat, queries, k, allow=None):
    """The stages one after the other, each a FlatIndex that may find what the one before found."""
    results = []
    for q, query in enumerate(queries):
        mask = (
            np.ones(len(index), bool)
            if allow is None
            else np.atleast_2d(allow)[min(q, len(np.atleast_2d(allow)) - 1)].copy()
        )
        for stage, one in enumerate(flat):
            wanted = int(np.ceil(k * (*index.oversample, 1)[stage]))
            scores, ids = one.search(query[None], wanted, allow=mask)
            mask = np.isin(one.ids, ids[0])
        results.append((scores[0], ids[0]))
    return tuple(np.array(x) for x in zip(*results, strict=True))


def check(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("stages", STAGES, ids="-".join)
@settings(max_examples=12)
@given(
    metric=st.sampled_from(METRICS),
    count=st.sampled_from((0, 1, 7, 111, 300)),
    k=st.sampled_from((1, 3, 10, 400)),
    oversample=st.sampled_from((1, 2.5, 8)),
    allow=st.sampled_from(("all", "some", "none", "each")),
    shuffled=st.booleans(),
    parts=st.sampled_from((1, 3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_stage_is_a_flat_index(
    stages, metric, count, k, oversample, allow, shuffled, parts, seed
):
    rng = np.random.default_rng(seed)
    x, queries = vectors(rng, count), vectors(rng, 3) + np.float32(0.01)
    ids = rng.permutation(10 * count + 1)[:count] if shuffled else None
    index, flat = filled(stages, metric, x, ids, parts, oversample=[oversample] * (len(stages) - 1))
    mask = {
        "all": None,
        "some": rng.random(count) < 0.4,
        "none": np.zeros(count, bool),
        "each": rng.random((3, count)) < 0.4,
    }[allow]
    check(index.search(queries, k, allow=mask), by_hand(index, flat, queries, k, mask))


@pytest.mark.parametrize("stages", STAGES, ids="-".join)
@settings(max_examples=15)
@given(
    metric=st.sampled_from(METRICS),
    count=st.sampled_from((1, 7, 111, 500)),
    k=st.sampled_from((1, 5, 20)),
    allow=st.booleans(),
    parts=st.sampled_from((1, 3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_certified_results_are_exact(stages, metric, count, k, allow, parts, seed):
    rng = np.random.default_rng(seed)
    x, queries = vectors(rng, count), vectors(rng, 4)
    index, flat = filled(stages, metric, x, None, parts, oversample=[1] * (len(stages) - 1))
    mask = rng.random((4, count)) < 0.5 if allow else None
    expected = flat[-1].search(queries, k, allow=mask)
    scores, ids, certified = index.search(queries, k, allow=mask, certify=True)
    check((scores, ids), expected)
    plain = index.search(queries, k, allow=mask)
    for row in np.flatnonzero(certified):
        check((plain[0][row], plain[1][row]), (expected[0][row], expected[1][row]))


@pytest.mark.parametrize("stages", STAGES, ids="-".join)
@settings(max_examples=10)
@given(metric=st.sampled_from(METRICS), seed=st.integers(0, 2**32 - 1))
def test_bounds_hold_for_every_document(stages, metric, seed):
    rng = np.random.default_rng(seed)
    x, queries = vectors(rng, 200), vectors(rng, 3)
    index, flat = filled(stages, metric, x)
    forms = _cascade_bounds.measure(index._encodings, index._storage.snapshot)
    everything = np.tile(index.ids, (3, 1))
    last = flat[-1].score(queries, everything).astype(np.float64)
    for stage, form in enumerate(forms[:-1]):
        bounds = _cascade_bounds.Bounds(
            index._encodings[stage], form, index._encodings[-1], forms[-1], queries.astype(float)
        )
        own = flat[stage].score(queries, everything).astype(np.float64)
        better = metric == "l2"
        for column in range(200):
            best = bounds.better_than(own[:, column])
            assert ((best <= last[:, column]) if better else (best >= last[:, column])).all()
            needed = bounds.needed(last[:, column])
            upper = index._encodings[stage].metric in ("hamming", "l2")
            assert ((own[:, column] <= needed) if upper else (own[:, column] >= needed)).all()


EXTREME = [
    ("binary", "int8"),
    ("binary", "int8_vector", "float32"),
    ("int8_vector", "bfloat16"),
    ("int4", "float32"),
    ("uint8", "int4_vector"),
]


def extreme_vectors(rng, count, dim, values):
    x = rng.normal(size=(count, dim))
    if values == "norms":
        x *= 10.0 ** rng.uniform(-30, 30, (count, 1))
    elif values == "integers":
        x = rng.integers(-2, 3, (count, dim))
    elif values == "equal":
        x[:] = x[:1]
    else:
        x *= {"huge": 1e30, "tiny": 1e-30, "subnormal": 1e-40, "one": 1}[values]
    x[rng.random(count) < 0.05] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("stages", EXTREME, ids="-".join)
@settings(max_examples=40)
@given(
    metric=st.sampled_from(METRICS),
    dim=st.sampled_from((1, 7, 24)),
    count=st.sampled_from((1, 7, 111, 400)),
    k=st.sampled_from((1, 5, 500)),
    documents=st.sampled_from(("norms", "integers", "equal", "huge", "tiny", "subnormal", "one")),
    asked=st.sampled_from(("norms", "integers", "one", "one", "subnormal")),
    allow=st.booleans(),
    removed=st.booleans(),
    oversample=st.sampled_from((1, 3, 20)),
    seed=st.integers(0, 2**32 - 1),
)
def test_certificates_of_extreme_documents(
    stages, metric, dim, count, k, documents, asked, allow, removed, oversample, seed
):
    """Results are exact, and so are those without certificate for which it was given."""
    rng = np.random.default_rng(seed)
    x = extreme_vectors(rng, count, dim, documents)
    queries = extreme_vectors(rng, 5, dim, asked)
    largest = np.maximum(np.abs(x).max(0), np.float32(1e-37))
    ranges = np.array([-largest, largest])
    factors = [oversample] * (len(stages) - 1)
    of_dimensions = {"int8", "uint8", "int4"}
    index = CascadeIndex(
        dim,
        stages,
        metric=metric,
        oversample=factors,
        ranges=ranges if of_dimensions & set(stages) else None,
    )
    flat = FlatIndex(
        dim,
        stages[-1],
        metric=metric,
        ranges=ranges if stages[-1] in of_dimensions else None,
    )
    ids = rng.permutation(3 * count)[:count]
    for one in (index, flat):
        for part in np.array_split(np.arange(count), 3):
            one.add(x[part], ids[part])
        if removed:
            one.remove(ids[: count // 3])
    mask = rng.random((5, len(index))) < 0.5 if allow else None
    expected = flat.search(queries, k, allow=mask)
    scores, found, certified = index.search(queries, k, allow=mask, certify=True)
    check((scores, found), expected)
    plain = index.search(queries, k, allow=mask)
    check(
        (plain[0][certified], plain[1][certified]), (expected[0][certified], expected[1][certified])
    )


@pytest.mark.parametrize("dtype", ["int8", "int8_vector"])
def test_one_zero_document_does_not_undo_certificates(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, DIM)).astype(np.float32)
    x[77] = 0
    index, flat = filled((dtype, "float32"), "cosine", x, oversample=[20])
    scores, ids, certified = index.search(x[:8], 3, certify=True)
    check((scores, ids), flat[-1].search(x[:8], 3))
    assert certified.tolist() == [True] * 8
    assert index.search(x[77:78], 3, certify=True)[2].tolist() == [False]


def test_bounds_of_what_has_no_angle():
    """A zero document has a cosine of 0, a zero query that with all; an infinity is a large one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, DIM)).astype(np.float32)
    x[77] = 0

    def bounds(stages, metric, queries):
        index, _ = filled(stages, metric, x)
        forms = _cascade_bounds.measure(index._encodings, index._storage.snapshot)
        first, last = index._encodings
        return _cascade_bounds.Bounds(first, forms[0], last, forms[1], queries)

    for stages in (("int8", "float32"), ("int8_vector", "float32")):
        found = bounds(stages, "cosine", x[:1])
        assert (found.better_than(np.array([-0.5, -1.0])) >= 0).all()
        assert np.isneginf(found.needed(np.array([-0.1, 0.0]))).all()
        assert np.isfinite(found.needed(np.array([0.1]))).all()
        found = bounds(stages, "cosine", x[77:78])
        assert found.better_than(np.zeros(1)) >= 0
        assert np.isneginf(found.needed(np.zeros(1)))
    far = bounds(("int8", "float32"), "l2", x[:1])
    assert far.better_than(np.array([np.inf])) <= np.finfo(np.float32).max


@pytest.mark.parametrize("metric", METRICS)
def test_widening_reads_what_bounds_leave(monkeypatch, metric):
    """Several queries by one reading of the first stage, and the last stage only where it must."""
    monkeypatch.setattr(cascade_index, "TOGETHER", 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, DIM)).astype(np.float32)
    index, flat = filled(("int8", "float32"), metric, x, oversample=[1])
    queries = x[:8] + 0.1
    masks = rng.random((8, 3000)) < 0.5
    for allow in (None, masks):
        scores, ids, certified, explanation = index.search(
            queries, 10, allow=allow, certify=True, explain=True
        )
        assert not certified.all()
        assert [stage.dtype for stage in explanation.widened] == ["int8"]
        check((scores, ids), flat[-1].search(queries, 10, allow=allow))
    monkeypatch.setattr(cascade_index, "MOST_WIDENED", 0)
    *found, _, explanation = index.search(queries, 10, certify=True, explain=True)
    assert [stage.dtype for stage in explanation.widened] == ["float32"]
    check(found, flat[-1].search(queries, 10))


def test_bounds_are_measured_again_after_a_change():
    """And forget the documents that they were measured of."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, DIM)).astype(np.float32)
    index, flat = filled(("int8", "float32"), "cosine", x, oversample=[5])
    index.search(x[:2], 3, certify=True)
    before = weakref.ref(index._storage.snapshot)
    for one in (index, flat[-1]):
        one.update(-4 * np.abs(x[:50]), np.arange(50))
    assert before() is None
    check(index.search(x[:9], 3, certify=True)[:2], flat[-1].search(x[:9], 3))


def test_measuring_takes_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    index, _ = filled(("binary", "int8", "float32"), "l2", vectors(rng, 500), parts=3)
    arguments = (index._encodings, index._storage.snapshot)
    whole = _cascade_bounds.measure(*arguments)
    monkeypatch.setattr(_cascade_bounds, "BLOCK_ELEMENTS", 7 * DIM)
    largest = []
    floats = _cascade_bounds.floats
    monkeypatch.setattr(
        _cascade_bounds, "floats", lambda *a: (largest.append(len(y := floats(*a))), y)[1]
    )
    for one, other in zip(_cascade_bounds.measure(*arguments), whole, strict=True):
        assert vars(one) == pytest.approx(vars(other), rel=1e-12)
    assert max(largest) == 7


def test_certificates_are_given_and_refused():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, DIM)).astype(np.float32)
    index, flat = filled(("int8", "float32"), "cosine", x, oversample=[20])
    *_, certified, explanation = index.search(x[:8], 3, certify=True, explain=True)
    assert certified.all()
    assert explanation.widened == []
    index, flat = filled(("binary", "int8", "float32"), "cosine", x, oversample=[1, 1])
    scores, ids, certified, explanation = index.search(x[:8], 3, certify=True, explain=True)
    assert not certified.all()
    assert explanation.widened
    check((scores, ids), flat[-1].search(x[:8], 3))


def test_nothing_outside_allow_comes_back_at_any_stage():
    rng = np.random.default_rng(1)
    x = vectors(rng, 400)
    index, _ = filled(("binary", "int8", "float32"), "cosine", x)
    for allowed in (np.array([], np.int64), np.array([7]), rng.permutation(400)[:30]):
        for certify in (False, True):
            _, ids, *_ = index.search(x[:5], 60, allow=allowed, certify=certify, threads=2)
            assert set(ids[ids >= 0].tolist()) <= set(allowed.tolist())
            assert (np.sort(ids, axis=1)[:, -len(allowed) or 60 :] >= 0).all()
    for wrong in ([400], np.ones(399, bool), np.ones(400), [[0]], np.eye(400, dtype=np.int64)[0]):
        with pytest.raises((ValueError, TypeError), match="allow"):
            index.search(x[:5], 3, allow=wrong)


def test_explanation_counts_what_each_stage_saw():
    x = vectors(np.random.default_rng(2), 500)
    index, _ = filled(("binary", "int8", "float32"), "dot", x, oversample=(10, 2))
    *_, explanation = index.search(x[:4], 5, explain=True)
    assert [(s.dtype, s.documents, s.kept) for s in explanation.stages] == [
        ("binary", 2000, 50),
        ("int8", 200, 10),
        ("float32", 40, 5),
    ]
    assert all(stage.seconds > 0 for stage in explanation.stages)


def test_writing_like_a_flat_index(monkeypatch):
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    monkeypatch.setattr(_storage, "LEAST_ROOM", 16)
    rng = np.random.default_rng(3)
    x = vectors(rng, 300)
    index, flat = filled(("binary", "int8"), "cosine", x, np.arange(300)[::-1].copy(), parts=7)
    replaced = np.array([299, 3, 150])
    for one in (index, *flat):
        one.update(x[:3] + 1, replaced)
        one.remove([5, 0, 298])
    assert len(index) == 297
    assert 5 not in index
    queries = vectors(rng, 4)
    check(index.search(queries, 9), by_hand(index, flat, queries, 9))
    wanted = np.array([[3, 150, -1], [1, 2, 4], [299, 7, 8], [9, 9, 10]])
    np.testing.assert_array_equal(index.score(queries, wanted), flat[-1].score(queries, wanted))
    for ours, theirs in zip(
        index.range_search(queries, 0.3), flat[-1].range_search(queries, 0.3), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="already"):
        index.add(x[:1], [299])


@pytest.mark.parametrize("mmap", [True, False])
def test_files(tmp_path, mmap):
    rng = np.random.default_rng(4)
    x = vectors(rng, 300)
    index, _ = filled(("binary", "int8", "float32"), "l2", x, oversample=(6, 3))
    index.save(tmp_path / "cascade")
    loaded = CascadeIndex.load(tmp_path / "cascade", mmap=mmap)
    assert (loaded.stages, loaded.oversample, loaded.metric) == (index.stages, (6, 3), "l2")
    check(loaded.search(x[:9], 7), index.search(x[:9], 7))
    loaded.add(x[:20])
    loaded.save(tmp_path / "cascade")  # which is mapped
    again = CascadeIndex.load(tmp_path / "cascade", mmap=mmap, verify="full")
    check(again.search(x[:9], 7), loaded.search(x[:9], 7))
    with pytest.raises(ValueError, match="CascadeIndex"):
        FlatIndex.load(tmp_path / "cascade")


def test_tensors_nan_and_empty():
    x = vectors(np.random.default_rng(5), 200)
    index, _ = filled(("binary", "int8"), "cosine", x)
    scores, ids, certified = index.search(torch.from_numpy(x[:3]), 4, certify=True)
    assert (scores.dtype, ids.dtype, certified.dtype) == (torch.float32, torch.int64, torch.bool)
    check((scores.numpy(), ids.numpy()), index.search(x[:3], 4, certify=True))
    queries = x[:3].copy()
    queries[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        index.search(queries, 4)
    with pytest.raises(ValueError, match=r"queries: found Quantized.*expected floats"):
        index.search(simtile.quantize(x[:3], "int8_vector"), 4)
    scores, ids, _ = index.search(queries, 4, nan="ignore", certify=True)
    assert (ids[1] == -1).all()
    check((scores[::2], ids[::2]), index.search(queries[::2], 4, certify=True)[:2])
    empty = CascadeIndex(DIM)
    scores, ids, certified = empty.search(x[:2], 3, certify=True)
    assert (ids == -1).all()
    assert certified.all()
    assert index.search(x[:0], 3)[1].shape == (0, 3)


def test_default_oversample_is_the_stated_one():
    index = CascadeIndex(DIM, ("binary", "int8", "float32"))
    assert index.oversample == (cascade_index.OVERSAMPLE["binary"], cascade_index.OTHER_OVERSAMPLE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ("int8",)}, "stages: found"),
        ({"stages": "binary"}, "stages: found 'binary'"),
        ({"stages": ("int8", "binary")}, "expected it first"),
        ({"stages": ("binary", "int9")}, "int9"),
        ({"metric": "hamming"}, "metric"),
        ({"oversample": (2, 3)}, "oversample: found"),
        ({"oversample": (0.5,)}, "oversample: found"),
        ({"oversample": "many"}, "oversample: found"),
        ({"stages": ("binary", "float32"), "ranges": RANGES}, "ranges: found"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        CascadeIndex(DIM, **arguments)


def test_what_cannot_be_added():
    index = CascadeIndex(8, ("binary", "int8"))
    with pytest.raises(ValueError, match="at least 100"):
        index.add(np.zeros((3, 8), np.float32))
    x = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    for wrong in (np.zeros((100, 1), np.uint8), simtile.quantize(x, "int8"), x[:, :7]):
        with pytest.raises(ValueError, match="x: found"):
            index.add(wrong)
    x[3, 3] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        index.add(x)
    assert len(index) == 0
