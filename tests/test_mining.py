"""Hard negatives against the definition, over tuples of options; known cases; mapped files."""

import doctest
import random
import re

import numpy as np
import pytest
from device_fakes import CudaTensor, cuda_tensor, pretend_cuda
from hypothesis import given
from hypothesis import strategies as st

import simtile
from simtile import _search_call, _search_operands, _tensors, batches, mining
from simtile.reference import mining as reference
from simtile.reference import topk_numpy

QUERY = "How do I print a return label?"
PASSAGES = [
    "How do I print a return shipping label?",
    "Return label printer calibration guide",
    "How do I replace a damaged shipping label?",
    "Forklift battery maintenance schedule",
]
RELEVANCE = np.array([0.97, 0.12, 0.21, 0.01])


def rows(seed, *shape, integers=False):
    """Gaussian, or small integers: then many scores are equal."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, shape) if integers else rng.standard_normal(shape)
    return x.astype(np.float32)


def all_scores(queries, documents, metric):
    """The scores of every pair by the definition, larger is better: float32 [N, M]."""
    operands = _search_operands.prepare(queries, documents, metric, "ignore")
    every = np.tile(np.arange(len(documents)), (operands.query_count, 1))
    scores = _search_call.score_rows(operands, every, backend="reference")
    scores = -np.sqrt(scores) if metric == "l2" else scores
    if operands.searched is not None:
        scores[~operands.searched] = np.nan  # finds nothing
    return scores


def ragged(rng, queries, documents, most, least=0):
    counts = rng.integers(least, most + 1, queries)
    return [rng.permutation(documents)[:count].tolist() for count in counts]


@st.composite
def cases(draw):
    queries, documents = draw(st.integers(1, 7)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    margin = draw(st.sampled_from([None, "absolute_margin", "relative_margin", "both"]))
    most = draw(st.integers(1, 4))
    least = 1 if margin else 0
    k, range_min = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    options = {
        "k": k,
        "range_min": range_min,
        "range_max": range_min + k + draw(st.integers(0, 20)),
        "max_score": draw(st.sampled_from([None, 0.0, 0.5])),
        "min_score": draw(st.sampled_from([None, -0.5, 0.0])),
        "absolute_margin": 0.1 if margin in ("absolute_margin", "both") else None,
        "relative_margin": 0.2 if margin in ("relative_margin", "both") else None,
        "sampling": draw(st.sampled_from(["top", "random"])),
        "seed": seed,
    }
    if draw(st.booleans()):
        options["ids"] = rng.integers(0, draw(st.integers(1, documents + 1)), documents)
        options["distinct"] = draw(st.booleans())
    kind = draw(st.sampled_from([None, "mask", "masks", "rows"]))
    allow, mask = None, None
    if kind == "mask":
        allow = rng.random(documents) < 0.7
        mask = np.broadcast_to(allow, (queries, documents))
    elif kind == "masks":
        allow = mask = rng.random((queries, documents)) < 0.7
    elif kind == "rows":
        chosen = rng.random(documents) < 0.7
        chosen[min(2, documents - 1)] = True  # so that it is no list of zeros and ones
        mask = np.broadcast_to(chosen, (queries, documents))
        allow = np.flatnonzero(chosen)
        if len(allow) == documents:
            allow = None
    filters = {
        None: None,
        "bools": lambda query, documents: (documents + query) % 3 > 0,
        "floats": lambda query, documents: np.cos(documents * 7.0 + query).round(1),
    }
    options["filter"] = filters[draw(st.sampled_from(list(filters)))]
    ties = draw(st.booleans())
    dim = draw(st.sampled_from([1, 3, 16, 111]))
    return {
        "queries": rows(seed, queries, dim, integers=ties),
        "documents": rows(seed + 1, documents, dim, integers=ties),
        "metric": draw(st.sampled_from(["cosine", "dot", "l2"])),
        "positives": ragged(rng, queries, documents, most, least),
        "block_size": draw(st.sampled_from([None, 1, 2, 100])),
        "options": options,
        "allow": allow,
        "mask": mask,
    }


def expected(case, documents=None):
    scores = all_scores(
        case["queries"], case["documents"] if documents is None else documents, case["metric"]
    )
    return reference.mine_hard_negatives(
        scores, case["positives"], allow=case["mask"], **case["options"]
    )


def equal(found, right):
    np.testing.assert_array_equal(found.indices, right[0])
    np.testing.assert_array_equal(found.scores, right[1])
    assert found.indices.dtype == np.int64
    assert found.scores.dtype == np.float32


@given(cases())
def test_arrays(case):
    found = simtile.mine_hard_negatives(
        case["queries"],
        case["documents"],
        case["positives"],
        metric=case["metric"],
        allow=case["allow"],
        block_size=case["block_size"],
        **case["options"],
    )
    equal(found, expected(case))


@given(cases(), st.integers(0, 2**16))
def test_an_index_with_ids_of_its_own(case, seed):
    """Ids ascend with rows, so that equal scores have the same order; some were removed."""
    count, dim = case["documents"].shape
    names = 3 + 5 * np.arange(count)
    index = simtile.FlatIndex(dim, metric=case["metric"])
    index.add(rows(seed, 2, dim), names[-1] + 1 + np.arange(2))
    half = count // 2
    index.add(case["documents"][:half], names[:half])
    index.add(case["documents"][half:], names[half:])
    index.remove(names[-1] + 1 + np.arange(2))
    options = dict(case["options"])
    if options["filter"] is not None:
        given_filter = options["filter"]
        options["filter"] = lambda query, ids: given_filter(query, (ids - 3) // 5)
    allow = case["allow"]
    if allow is not None and allow.dtype != bool:
        allow = names[allow]
    found = simtile.mine_hard_negatives(
        case["queries"],
        index,
        [names[own].tolist() for own in case["positives"]],
        allow=allow,
        block_size=case["block_size"],
        **options,
    )
    indices, scores = expected(case)
    equal(found, (np.where(indices < 0, -1, names[indices]), scores))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "binary", "int8_vector", "int4_vector"])
def test_codes(kind):
    queries, documents = rows(0, 5, 24), rows(1, 200, 24)
    codes = simtile.quantize(documents, kind)
    positives = np.arange(5)
    options = {"k": 4, "range_min": 1, "range_max": 12, "relative_margin": 0.05}
    found = simtile.mine_hard_negatives(queries, codes, positives, **options)
    right = reference.mine_hard_negatives(
        all_scores(queries, codes, "cosine"), positives[:, None].tolist(), **options
    )
    equal(found, right)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_floats(dtype):
    queries, documents = rows(0, 5, 24).astype(dtype), rows(1, 60, 24).astype(dtype)
    found = simtile.mine_hard_negatives(queries, documents, np.arange(5), k=3)
    equal(found, simtile.mine_hard_negatives(queries[::-1][::-1], documents, np.arange(5), k=3))
    scores = all_scores(queries, documents, "cosine")
    right = reference.mine_hard_negatives(scores, [[i] for i in range(5)], k=3, range_max=4)
    equal(found, right)


def test_positives_in_every_form():
    queries, documents = rows(0, 3, 8), rows(1, 30, 8)
    lists = [[4, 7], [], [9]]
    forms = [
        lists,
        [np.array([4, 7]), (), [np.int64(9)]],
        np.array([[4, 7], [-1, -1], [-1, 9]]),
        (np.array([0, 2, 2, 3]), np.array([4, 7, 9])),
        ([0, 2, 2, 3], [4, 7, 9]),
    ]
    found = [simtile.mine_hard_negatives(queries, documents, x, k=5) for x in forms]
    for other in found[1:]:
        equal(other, found[0])
    ones = [
        simtile.mine_hard_negatives(queries, documents, x, k=5)
        for x in ([4, 7, 9], [[4], [7], [9]])
    ]
    equal(*ones)
    none = [simtile.mine_hard_negatives(queries, documents, x, k=5) for x in (None, [[], [], []])]
    equal(*none)
    np.testing.assert_array_equal(none[0].indices, simtile.topk(queries, documents, 5)[1])


def test_many_copies_of_a_text():
    """The window counts texts: it is searched wider until it has them, or has all documents."""
    documents = np.repeat(rows(1, 12, 8), [200, 1, 1, 300, 1, 1, 1, 1, 1, 1, 1, 1], axis=0)
    ids = np.repeat(np.arange(12), [200, 1, 1, 300, 1, 1, 1, 1, 1, 1, 1, 1])
    queries = rows(1, 12, 8)[[0, 3]] + 0.01
    for distinct in (True, False):
        options = {"k": 4, "range_max": 6, "ids": ids, "distinct": distinct}
        found = simtile.mine_hard_negatives(queries, documents, [0, 202], **options)
        scores = all_scores(queries, documents, "cosine")
        equal(found, reference.mine_hard_negatives(scores, [[0], [202]], **options))
    assert not np.isin(ids[found.indices[0]], ids[[0]]).any()


def test_the_draws_are_those_of_random_seed():
    queries, documents = rows(0, 4, 8), rows(1, 50, 8)
    found = simtile.mine_hard_negatives(
        queries, documents, None, k=3, range_max=20, sampling="random", seed=7
    )
    ranked = simtile.topk(queries, documents, 20)[1]
    random.seed(7)
    for own, ranks in zip(found.indices, ranked, strict=True):
        assert own.tolist() == ranks[sorted(random.sample(range(20), 3))].tolist()


def test_nan():
    queries, documents = rows(0, 3, 8), rows(1, 20, 8)
    queries[1, 3] = np.nan
    with pytest.raises(ValueError, match="queries: found NaN in query 1, expected numbers"):
        simtile.mine_hard_negatives(queries, documents, [0, 1, 2], k=2, block_size=1)
    found = simtile.mine_hard_negatives(queries, documents, [0, 1, 2], k=2, nan="ignore")
    assert (found.indices[1] == -1).all()
    assert np.isneginf(found.scores[1]).all()
    others = simtile.mine_hard_negatives(queries[[0, 2]], documents, [0, 2], k=2)
    equal(others, (found.indices[[0, 2]], found.scores[[0, 2]]))
    documents[5] = np.nan
    found = simtile.mine_hard_negatives(queries[[0]], documents, [5], k=19, range_max=20)
    assert 5 not in found.indices
    with pytest.raises(ValueError, match="documents: found NaN in a positive of query 0"):
        simtile.mine_hard_negatives(queries[[0]], documents, [5], k=2, absolute_margin=0.1)
    found = simtile.mine_hard_negatives(
        queries[[0]], documents, [5], k=2, absolute_margin=0.1, nan="ignore"
    )
    assert (found.indices == -1).all()


def test_empty():
    documents = rows(1, 20, 8)
    found = simtile.mine_hard_negatives(np.empty((0, 8), np.float32), documents, [], k=2)
    assert found.indices.shape == found.scores.shape == (0, 2)
    found = simtile.mine_hard_negatives(rows(0, 2, 8), documents[:0], None, k=2)
    assert (found.indices == -1).all()
    found = simtile.mine_hard_negatives(rows(0, 2, 8), documents, [0, 1], k=2, allow=[])
    assert (found.indices == -1).all()
    found = simtile.mine_hard_negatives(rows(0, 2, 8), documents[:1], [0, 0], k=2)
    assert (found.indices == -1).all()


def test_candidates_are_scored_or_bring_their_scores():
    queries, documents = rows(0, 3, 8), rows(1, 30, 8)
    lists = [[4, 7, 9, 20, 4], [1], [29, 3, 8]]
    positives = [7, 1, 5]
    found = simtile.mine_hard_negatives(queries, documents, positives, k=3, candidates=lists)
    scores = all_scores(queries, documents, "cosine")
    mask = np.zeros((3, 30), bool)
    for own, row in zip(mask, lists, strict=True):
        own[row] = True
    options = {"k": 3, "range_max": 30, "allow": mask}
    equal(found, reference.mine_hard_negatives(scores, [[7], [1], [5]], **options))
    index = simtile.FlatIndex(8)
    index.add(documents)
    equal(simtile.mine_hard_negatives(queries, index, positives, k=3, candidates=lists), found)
    # The same from lists with scores; texts serve as queries and documents.
    padded = np.array([x + [-1] * (5 - len(x)) for x in lists])
    brought = np.take_along_axis(scores, padded, axis=1)
    texts = ["a"] * 3, ["b"] * 30
    again = simtile.mine_hard_negatives(*texts, positives, k=3, candidates=(brought, padded))
    equal(again, found)
    allowed = np.arange(8, 30)
    equal(
        simtile.mine_hard_negatives(
            *texts, positives, k=3, candidates=(brought, padded), allow=allowed
        ),
        simtile.mine_hard_negatives(
            queries, documents, positives, k=3, candidates=lists, allow=allowed
        ),
    )


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def is_irrelevant(query, documents):
    return RELEVANCE[documents] < 0.30


def test_lexically_close_and_irrelevant():
    vocabulary = sorted(set().union(*map(words, [QUERY, *PASSAGES])))
    counts = np.array(
        [[word in words(text) for word in vocabulary] for text in [QUERY, *PASSAGES]], np.float32
    )
    found = simtile.mine_hard_negatives(
        counts[:1],
        counts[1:],
        k=2,
        min_score=1e-6,
        filter=is_irrelevant,
    )
    assert [PASSAGES[i] for i in found.indices[0]] == [PASSAGES[2], PASSAGES[1]]
    overlap = np.array([[len(words(QUERY) & words(text)) for text in PASSAGES]])
    assert overlap.tolist() == [[7, 2, 5, 0]]
    rank = np.arange(4)[None]
    listed = simtile.mine_hard_negatives(
        [QUERY], PASSAGES, k=3, candidates=(overlap, rank), min_score=1, filter=is_irrelevant
    )
    assert listed.indices.tolist() == [[2, 1, -1]]
    assert listed.scores[0, :2].tolist() == [5.0, 2.0]


def test_a_filter_is_asked_once_for_what_is_left():
    queries, documents = rows(0, 2, 8), rows(1, 9, 8)
    asked = []

    def scores(query, given):
        asked.append((query, given.tolist()))
        return -given.astype(np.float64)

    found = simtile.mine_hard_negatives(
        queries, documents, [[3, 5], [0]], k=2, range_max=20, absolute_margin=1.0, filter=scores
    )
    order = simtile.topk(queries, documents, 9)[1].tolist()
    assert asked == [
        (0, [i for i in order[0] if i not in (3, 5)]),
        (0, [3, 5]),
        (1, [i for i in order[1] if i != 0]),
        (1, [0]),
    ]
    # Of -5 and -3 the worse, less the margin: the best of the others are 6 and 7.
    assert found.indices.tolist() == [[6, 7], [1, 2]]
    assert found.scores.tolist() == [[-6.0, -7.0], [-1.0, -2.0]]


def test_a_mapped_file_and_progress(tmp_path):
    documents = rows(1, 400, 16)
    mapped = np.memmap(tmp_path / "documents", np.float32, "w+", shape=documents.shape)
    mapped[:] = documents
    mapped.flush()
    documents_file = np.memmap(tmp_path / "documents", np.float32, "r", shape=documents.shape)
    queries = rows(0, 10, 16)
    calls = []
    found = simtile.mine_hard_negatives(
        queries,
        documents_file,
        np.arange(10),
        k=3,
        block_size=4,
        progress=lambda *x: calls.append(x),
    )
    assert calls == [(0, 10), (4, 10), (8, 10), (10, 10)]
    equal(found, simtile.mine_hard_negatives(queries, documents, np.arange(10), k=3))
    index = simtile.FlatIndex(16)
    index.add(documents)
    index.save(tmp_path / "index")
    index = simtile.FlatIndex.load(tmp_path / "index")
    equal(simtile.mine_hard_negatives(queries, index, np.arange(10), k=3), found)
    for threads in (1, 3):
        equal(
            simtile.mine_hard_negatives(queries, documents, np.arange(10), k=3, threads=threads),
            found,
        )


def test_a_bar_is_shown(capsys):
    simtile.mine_hard_negatives(rows(0, 3, 8), rows(1, 9, 8), [0, 1, 2], k=2, progress=True)
    assert "mining hard negatives" in capsys.readouterr().out


def test_memory_is_a_block_s():
    """Blocks of any size find the same, so a small one serves any number of queries."""
    from simtile import _mining

    assert _mining.block_of(None, 32) == _mining.MOST_QUERIES
    assert _mining.block_of(None, 1 << 15) == 64
    assert _mining.block_of(None, 1 << 30) == 1


def test_tensors():
    torch = pytest.importorskip("torch")
    queries, documents = rows(0, 3, 8), rows(1, 30, 8)
    found = simtile.mine_hard_negatives(queries, documents, [1, 2, 3], k=2)
    again = simtile.mine_hard_negatives(
        torch.tensor(queries), torch.tensor(documents), torch.tensor([1, 2, 3]), k=2
    )
    assert isinstance(again, mining.HardNegatives)
    assert isinstance(again.indices, torch.Tensor)
    equal(mining.HardNegatives(*(x.numpy() for x in again)), found)
    codes = simtile.quantize(torch.tensor(queries), "int8_vector")
    again = simtile.mine_hard_negatives(
        codes, simtile.quantize(documents, "int8_vector"), [1, 2, 3], k=2, ids=np.arange(30) // 2
    )
    assert isinstance(again.scores, torch.Tensor)


@pytest.mark.parametrize("module", [mining, batches])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


class ReferenceOnTensors:
    """In the place of the launches on a GPU: the definition, on tensors that say they are there."""

    def _run(self, name, arguments, shape, *more):
        assert all(x is None or isinstance(x, CudaTensor) for x in arguments[-2:])
        given = [_tensors.as_array(x) if isinstance(x, CudaTensor) else x for x in arguments]
        out = [np.empty(shape, dtype) for dtype in more]
        getattr(topk_numpy, name)(*given, 0, *out)
        return tuple(cuda_tensor(x) for x in out)

    def search(self, *arguments):
        shape = (len(arguments[2]), arguments[10])
        return self._run("topk", arguments, shape, np.float32, np.int64)

    def score_rows(self, *arguments):
        return self._run("score_rows", arguments, tuple(arguments[-1].shape), np.float32)[0]


def test_tensors_of_a_gpu_are_searched_there(monkeypatch):
    """No GPU has run this; the launches are those of `topk`."""
    queries, documents = rows(0, 3, 8), rows(1, 30, 8)
    options = {"k": 2, "relative_margin": 0.1, "ids": np.arange(30) // 2, "range_max": 6}
    options["allow"] = np.arange(30) % 3 > 0
    right = simtile.mine_hard_negatives(queries, documents, [1, 2, 3], **options)
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(_search_call, "_cuda", ReferenceOnTensors)
    found = simtile.mine_hard_negatives(
        cuda_tensor(queries), cuda_tensor(documents), [1, 2, 3], **options
    )
    assert all(isinstance(x, CudaTensor) for x in found)
    equal(mining.HardNegatives(*(_tensors.as_array(x) for x in found)), right)
