"""simtile.integrations.sentence_transformers beside sentence-transformers itself.

sentence-transformers, faiss-cpu and usearch are development requirements: without them this file
fails, it is not skipped.
"""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simtile.demo.corpus import load_corpus
from simtile.integrations import sentence_transformers as ours

# Nothing is asked of the network by what imports transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    # SWIG's types without __module__, on Python 3.12 and newer
    warnings.filterwarnings("ignore", "builtin type .*[Ss]wig", DeprecationWarning)
    import faiss
    import sentence_transformers.util as peer_util
    from sentence_transformers.util import quantization as peer

# OpenMP's threads wait in a loop: beside other programs, more than one is slower.
faiss.omp_set_num_threads(1)

SEARCHES = {
    "faiss": ("float32", "uint8", "ubinary"),
    "usearch": ("float32", "int8", "binary", "ubinary"),
}
EVERY = [(library, precision) for library in SEARCHES for precision in SEARCHES[library]]

seeds = st.integers(0, 2**32 - 1)
counts = st.sampled_from([2, 3, 7, 111, 300])
dims = st.sampled_from([1, 7, 8, 65, 384])
precisions = st.sampled_from(ours.PRECISIONS)


def same(own, theirs):
    assert type(own) is type(theirs)
    assert own.dtype == theirs.dtype
    assert own.shape == theirs.shape
    assert own.tobytes() == theirs.tobytes()


def random_embeddings(rng, n, dim, dtype=np.float32):
    x = rng.standard_normal((n, dim)).astype(dtype)
    x[rng.random(x.shape) < 0.05] = 0
    x[rng.random(x.shape) < 0.02] = -0.0
    x[:, rng.random(dim) < 0.1] = 0.25  # a range of length 0
    return x


def search(module, library, *arguments, **options):
    return getattr(module, f"semantic_search_{library}")(*arguments, **options)


def scores_of(results):
    return [[hit["score"] for hit in hits] for hits in results]


def ids_of(results):
    return [[hit["corpus_id"] for hit in hits] for hits in results]


@given(
    n=counts,
    dim=dims,
    precision=precisions,
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    source=st.sampled_from(["ranges", "float64 ranges", "calibration", "itself"]),
    strided=st.booleans(),
    seed=seeds,
)
def test_quantize_is_the_same_bytes(n, dim, precision, dtype, source, strided, seed):
    rng = np.random.default_rng(seed)
    x = random_embeddings(rng, n, dim, dtype)
    if strided:
        x = np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)[::2, ::2]
    options = {}
    other = random_embeddings(rng, 50, dim, dtype)
    if source == "calibration":
        options["calibration_embeddings"] = other
    elif source != "itself":
        options["ranges"] = np.stack([other.min(0), other.max(0)]).astype(
            "float64" if source == "float64 ranges" else "float32"
        )
    own = ours.quantize_embeddings(x, precision, **options)
    same(own, peer.quantize_embeddings(x, precision, **options))


def test_quantize_real_embeddings():
    documents = load_corpus().documents
    for precision in ours.PRECISIONS:
        own = ours.quantize_embeddings(documents, precision)
        same(own, peer.quantize_embeddings(documents, precision))


@pytest.mark.parametrize("precision", ours.PRECISIONS)
def test_quantize_inputs(precision):
    rng = np.random.default_rng(1)
    x = random_embeddings(rng, 12, 20)
    ranges = np.stack([x.min(0), x.max(0)])
    tensor = torch.from_numpy(x)
    inputs = {
        "one vector": x[0],
        "three axes": x.reshape(3, 4, 20),
        "no rows": x[:0],
        "float32 tensor": tensor,
        "float16 tensor": tensor.half(),
        "bfloat16 tensor": tensor.bfloat16(),
        "list of vectors": list(x),
        "list of tensors": list(tensor),
        "list of bfloat16 tensors": list(tensor.bfloat16()),
        "list of lists": x.tolist(),
        "integers": np.rint(3 * x).astype(np.int64),
    }
    for name, embeddings in inputs.items():
        own = ours.quantize_embeddings(embeddings, precision, ranges)
        try:
            same(own, peer.quantize_embeddings(embeddings, precision, ranges))
        except AssertionError as error:
            raise AssertionError(name) from error
    same(
        ours.quantize_embeddings(tensor.clone().requires_grad_(), precision, ranges),
        ours.quantize_embeddings(x, precision, ranges),
    )
    assert ours.quantize_embeddings([], precision) == []


@pytest.mark.parametrize("precision", ours.PRECISIONS)
@pytest.mark.parametrize("source", ["ranges", "calibration", "themselves"])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["arrays", "tensors"])
def test_quantize_a_list_of_matrices(precision, source, make):
    rng = np.random.default_rng(2)
    x = random_embeddings(rng, 150, 9)
    matrices = [make(part) for part in (x[:3], x[3:3], x[3:4], x[4:])]
    options = {
        "ranges": {"ranges": np.stack([x.min(0), x.max(0)])},
        "calibration": {"calibration_embeddings": x[:60] * 2},
        "themselves": {},
    }[source]
    own = ours.quantize_embeddings(matrices, precision, **options)
    theirs = peer.quantize_embeddings(matrices, precision, **options)
    assert len(own) == len(theirs) == 4
    for found, wanted in zip(own, theirs, strict=True):
        same(found, wanted)


def test_quantize_warns_as_the_original_does(caplog):
    x = np.random.default_rng(3).standard_normal((99, 4)).astype(np.float32)
    for module in (ours, peer):
        caplog.clear()
        module.quantize_embeddings(x, "int8")
        assert len(caplog.records) == 1
        assert "99 embeddings" in caplog.text
        caplog.clear()
        module.quantize_embeddings(np.tile(x, (2, 1)), "int8")
        module.quantize_embeddings(x, "int8", calibration_embeddings=x)
        module.quantize_embeddings(x, "binary")
        assert not caplog.records


@given(
    n=counts,
    queries=st.sampled_from([1, 3, 9]),
    dim=st.sampled_from([7, 8, 65, 128]),
    top_k=st.sampled_from([1, 4, 10, 500]),
    multiplier=st.sampled_from([1, 2, 4]),
    rescore=st.booleans(),
    coded=st.booleans(),
    seed=seeds,
)
@pytest.mark.parametrize(("library", "precision"), EVERY)
def test_search(library, precision, n, queries, dim, top_k, multiplier, rescore, coded, seed):
    rng = np.random.default_rng(seed)
    documents = rng.standard_normal((n, dim)).astype(np.float32)
    x = rng.standard_normal((queries, dim)).astype(np.float32)
    ranges = np.stack([documents.min(0), documents.max(0)])
    corpus = peer.quantize_embeddings(documents, precision, ranges)
    if coded:
        x = peer.quantize_embeddings(x, precision, ranges)
    coded = coded and precision != "float32"
    options = {
        "corpus_precision": precision,
        "top_k": top_k,
        "rescore": rescore,
        "rescore_multiplier": multiplier,
    }
    if not coded:
        options["ranges"] = ranges
    theirs = search(peer, library, x, corpus, **options)
    own = search(ours, library, x, corpus, **options)
    assert len(own) == 2
    assert isinstance(own[1], float)
    assert len(own[0]) == len(theirs[0])
    steps = 1 if "binary" in precision else (ranges[1] - ranges[0]) / 255
    for query, hits, wanted in zip(x, own[0], theirs[0], strict=True):
        # A float query for codes has 15 bits and a sign (simtile.topk).
        rounding = np.abs(query * steps).max() / 65278 * dim * (1 if "binary" in precision else 255)
        assert len(hits) == len(wanted)
        assert [type(value) for hit in hits for value in hit.values()] == [int, float] * len(hits)
        assert len({hit["corpus_id"] for hit in hits}) == len(hits)
        found, best = (np.array([hit["score"] for hit in some]) for some in (hits, wanted))
        if precision == "float32":
            np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)
        elif "binary" in precision and (coded or not rescore):
            np.testing.assert_array_equal(found, best)  # Hamming distances
        elif coded:
            np.testing.assert_allclose(found, best, rtol=1e-4, atol=30 * (precision == "uint8"))
        elif rescore:
            # The same scores of the same documents, and as good ones or better in every place.
            assert (found >= best - rounding - 1e-4).all()
            own_scores = {hit["corpus_id"]: hit["score"] for hit in hits}
            for hit in wanted:
                if hit["corpus_id"] in own_scores:
                    assert abs(own_scores[hit["corpus_id"]] - hit["score"]) <= rounding + 1e-4
        elif library == "usearch":
            assert (np.diff(found) >= 0).all()  # a distance, on another scale than the original's
        else:
            assert (np.diff(found) <= 0).all()


OPTIONS = [
    {},
    {"rescore": False},
    {"rescore_multiplier": 4},
    {"exact": False},
    {"rescore": False, "exact": False},
]


@pytest.mark.parametrize(
    ("count", "asked"),
    # the originals take most of the time: graphs for exact=False, a Python loop for every id
    [(500, 40), pytest.param(2754, 500, marks=pytest.mark.deep)],
)
@pytest.mark.parametrize(
    ("library", "precision", "calibrated"),
    [
        (*search, calibrated)
        for search in EVERY
        for calibrated in ((True, False) if search[1].endswith("int8") else (True,))
    ],
)
def test_overlap_with_exact_search_is_at_least_the_originals(
    library, precision, calibrated, count, asked
):
    corpus = load_corpus()
    queries, documents = corpus.queries[:asked], corpus.documents[:count]
    exact = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :10]

    def overlap(results):
        found = zip(exact, ids_of(results), strict=True)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in found])

    ranges = np.stack([documents.min(0), documents.max(0)])
    codes = peer.quantize_embeddings(documents, precision, ranges)
    query_codes = peer.quantize_embeddings(queries, precision, ranges)
    for x in (queries, query_codes):
        for options in OPTIONS:
            options = {**options, "corpus_precision": precision}
            if calibrated:
                options["ranges"] = ranges
            theirs = overlap(search(peer, library, x, codes, **options)[0])
            own = overlap(search(ours, library, x, codes, **options)[0])
            hamming = "binary" in precision and (x is query_codes or not options.get("rescore", 1))
            # Equal distances, or ranges of 40 queries for their codes: chance decides some places.
            by_chance = hamming or not calibrated
            assert own >= theirs - (0.01 if by_chance else 0.0005), options
            if precision in ("int8", "uint8") and calibrated and x is queries:
                assert own > 0.99


@pytest.mark.parametrize(("library", "precision"), EVERY)
def test_index_is_reusable(library, precision):
    rng = np.random.default_rng(4)
    documents = rng.standard_normal((40, 16)).astype(np.float32)
    queries = rng.standard_normal((3, 16)).astype(np.float32)
    ranges = np.stack([documents.min(0), documents.max(0)])
    corpus = ours.quantize_embeddings(documents, precision, ranges)
    options = {"corpus_precision": precision, "ranges": ranges}
    first, seconds, index = search(ours, library, queries, corpus, output_index=True, **options)
    assert seconds > 0
    assert len(index) == index.ntotal == 40
    again = search(ours, library, queries, corpus_index=index, output_index=True, **options)
    assert again[0] == first
    assert again[2] is index
    one = search(ours, library, queries[:1], corpus_index=index, **options)
    assert one[0] == first[:1]


def test_calibration_embeddings_give_the_ranges():
    rng = np.random.default_rng(5)
    documents = rng.standard_normal((300, 16)).astype(np.float32)
    corpus = ours.quantize_embeddings(documents, "int8")
    by_ranges, by_calibration = (
        ours.semantic_search_usearch(documents[:4], corpus, corpus_precision="int8", **options)[0]
        for options in (
            {"ranges": np.stack([documents.min(0), documents.max(0)])},
            {"calibration_embeddings": documents},
        )
    )
    assert by_ranges == by_calibration
    assert [ids[0] for ids in ids_of(by_ranges)] == [0, 1, 2, 3]


def test_inputs_of_searches():
    rng = np.random.default_rng(6)
    documents = rng.standard_normal((40, 16)).astype(np.float32)
    queries = documents[:3]
    wanted = ours.semantic_search_faiss(queries, documents)[0]
    for convert in (torch.from_numpy, np.asfortranarray, np.float64):
        found = ours.semantic_search_faiss(convert(queries), convert(documents))[0]
        assert ids_of(found) == ids_of(wanted)
        np.testing.assert_allclose(scores_of(found), scores_of(wanted), rtol=1e-6)
    assert ours.semantic_search_faiss(queries[:0], documents)[0] == []
    assert ours.semantic_search_faiss(queries, documents[:0])[0] == [[], [], []]
    assert ours.semantic_search_faiss(queries, documents, top_k=0)[0] == [[], [], []]
    read_only = documents.copy()
    read_only.flags.writeable = False
    assert ours.semantic_search_faiss(read_only[:3], read_only)[0] == wanted


@given(
    n=counts,
    queries=st.sampled_from([1, 3, 9]),
    dim=dims,
    top_k=st.sampled_from([1, 10, 500]),
    chunks=st.sampled_from([(100, 500000), (2, 5)]),
    name=st.sampled_from(["cos_sim", "dot_score"]),
    seed=seeds,
)
def test_semantic_search(n, queries, dim, top_k, chunks, name, seed):
    rng = np.random.default_rng(seed)
    x, documents = (rng.standard_normal((rows, dim)).astype(np.float32) for rows in (queries, n))
    documents[rng.random(n) < 0.1] = 0
    theirs = peer_util.semantic_search(
        x, documents, *chunks, top_k=top_k, score_function=getattr(peer_util, name)
    )
    for score_function in (name, getattr(peer_util, name)):
        own = ours.util.semantic_search(
            x, documents, *chunks, top_k=top_k, score_function=score_function
        )
        exact = x.astype(np.float64) @ documents.T
        if name == "cos_sim":
            lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(documents, axis=1)
            exact /= np.maximum(lengths, 1e-30)
        for row, (hits, wanted) in enumerate(zip(own, theirs, strict=True)):
            found, best = (np.array([hit["score"] for hit in some]) for some in (hits, wanted))
            np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)
            ids = [hit["corpus_id"] for hit in hits]
            assert len(set(ids)) == len(ids)
            np.testing.assert_allclose(found, exact[row, ids], rtol=1e-5, atol=1e-6)


def test_semantic_search_inputs():
    rng = np.random.default_rng(7)
    documents = rng.standard_normal((30, 8)).astype(np.float32)
    wanted = ours.semantic_search(documents[:2], documents)
    tensor = torch.from_numpy(documents)
    for name, queries, corpus in [
        ("tensors", tensor[:2], tensor),
        ("queries tensor", tensor[:2], documents),
        ("corpus tensor", documents[:2], tensor),
        ("lists of tensors", list(tensor[:2]), list(tensor)),
        ("lists of arrays", list(documents[:2]), list(documents)),
        ("lists of numbers", documents[:2].tolist(), documents.tolist()),
        ("gradients", tensor[:2].clone().requires_grad_(), tensor),
        ("float64", documents[:2].astype(np.float64), documents),
    ]:
        found = ours.semantic_search(queries, corpus)
        assert ids_of(found) == ids_of(wanted), name
        np.testing.assert_allclose(scores_of(found), scores_of(wanted), rtol=1e-6)
    assert ids_of(ours.semantic_search(documents[1], documents)) == ids_of(wanted)[1:]
    for half in (torch.float16, torch.bfloat16):
        found = ours.semantic_search(tensor[:2].to(half), tensor.to(half))
        theirs = peer_util.semantic_search(tensor[:2].to(half), tensor.to(half))
        np.testing.assert_allclose(scores_of(found), scores_of(theirs), rtol=1e-4, atol=1e-5)
    assert ours.semantic_search(documents[:0], documents) == []
    assert ours.semantic_search(documents[:2], documents[:0]) == [[], []]
    assert ours.semantic_search(documents[:2], documents, top_k=0) == [[], []]


def custom_score(a, b):
    return a @ b.T


X = np.ones((2, 8), np.float32)
CODES = np.ones((2, 8), np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.quantize_embeddings(X, "int4"), ValueError, "precision: found 'int4'"),
        (lambda: ours.quantize_embeddings(CODES, "int8"), ValueError, "look like codes"),
        (lambda: ours.quantize_embeddings(X[:1], "int8"), ValueError, "single embedding"),
        (lambda: ours.quantize_embeddings(X[0], "uint8"), ValueError, "single embedding"),
        (lambda: ours.quantize_embeddings(X, "int8", X[:, :7]), ValueError, r"\[2, 7\].*\[2, 8\]"),
        (lambda: ours.semantic_search_faiss(X), ValueError, "found neither"),
        (
            lambda: ours.semantic_search_faiss(X, X, ours.CorpusIndex(X, "float32")),
            ValueError,
            "found both",
        ),
        (
            lambda: ours.semantic_search_faiss(X, X, corpus_precision="int8"),
            ValueError,
            "corpus_precision: found 'int8', expected one of 'float32', 'uint8', 'ubinary'",
        ),
        (
            lambda: ours.semantic_search_usearch(X, CODES, corpus_precision="uint8"),
            ValueError,
            "'binary'",
        ),
        (lambda: ours.semantic_search_faiss(X, CODES), ValueError, "found uint8.*float32"),
        (
            lambda: ours.semantic_search_faiss(X, X, corpus_precision="uint8"),
            ValueError,
            "quantize_embeddings",
        ),
        (
            lambda: ours.semantic_search_faiss(X, corpus_index=faiss.IndexFlatIP(8)),
            TypeError,
            "reconstruct_n",
        ),
        (
            lambda: ours.semantic_search_faiss(
                X, corpus_index=ours.CorpusIndex(CODES, "uint8"), corpus_precision="float32"
            ),
            ValueError,
            "an index of uint8 embeddings",
        ),
        (lambda: ours.semantic_search_faiss(X[0], X), ValueError, r"x\[None, :\]"),
        (lambda: ours.semantic_search_faiss(X[:, :3], X), ValueError, r"queries.*\[Q, 8\]"),
        (lambda: ours.semantic_search_faiss(X * np.nan, X), ValueError, "NaN"),
        (lambda: ours.semantic_search(X, X, score_function=custom_score), ValueError, "cos_sim"),
        (
            lambda: ours.semantic_search(X, X, score_function=peer_util.euclidean_sim),
            ValueError,
            "score_function",
        ),
        (lambda: ours.semantic_search(torch.eye(2).to_sparse(), X), TypeError, "to_dense"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_needs_neither_torch_nor_the_originals():
    code = """
import sys
for name in ("torch", "faiss", "usearch", "sentence_transformers"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
from simtile.integrations import faiss, sentence_transformers as st
x = np.random.default_rng(0).standard_normal((200, 16)).astype("float32")
index = faiss.IndexFlatIP(16)
index.add(x)
assert index.search(x[:1], 1)[1].shape == (1, 1)
codes = st.quantize_embeddings(x, "int8")
st.semantic_search_usearch(x, codes, corpus_precision="int8")
assert st.util.semantic_search(x[:1], x)[0][0]["corpus_id"] == 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
