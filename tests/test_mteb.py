"""simtile.integrations.mteb by the protocol of mteb's backends, and in mteb where that is."""

import doctest
import enum
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import simtile
from simtile.demo.corpus import load_corpus
from simtile.integrations.mteb import SimtileSearchIndex


class ScoringFunction(str, enum.Enum):
    """As mteb names them."""

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    EUCLIDEAN = "euclidean"
    MAX_SIM = "MaxSim"


def model_of(name):
    return SimpleNamespace(mteb_model_meta=SimpleNamespace(similarity_fn_name=name))


def all_scores(name, queries, documents):
    """[Q, N] in float64, more for better, as mteb has them."""
    q, x = (v.astype(np.float64) for v in (queries, documents))
    if name == "euclidean":
        return -np.linalg.norm(q[:, None] - x[None], axis=2)
    if name == "cosine":
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
    return q @ x.T


@given(
    name=st.sampled_from(["cosine", "dot", "euclidean"]),
    documents=st.sampled_from([1, 5, 60]),
    k=st.sampled_from([1, 4, 20]),
    tensors=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_protocol(name, documents, k, tensors, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((documents, 8)).astype(np.float32)
    q = rng.standard_normal((4, 8)).astype(np.float32)
    given_x, given_q = (torch.from_numpy(v) if tensors else v for v in (x, q))
    names = [f"d{i}" for i in rng.permutation(documents)]
    index = SimtileSearchIndex(model_of(ScoringFunction(name)))
    half = documents // 2
    index.add_documents(given_x[:half], names[:half])
    index.add_documents(given_x[half:], names[half:])
    scores = all_scores(name, q, x)

    values, places = index.search(given_q, k, similarity_fn=None)
    for row, its_values, its_places in zip(scores, values, places, strict=True):
        order = np.argsort(-row)[:k]
        assert its_places == order.tolist()
        np.testing.assert_allclose(its_values, row[order], rtol=1e-5, atol=1e-6)

    chosen = [rng.permutation(documents)[: rng.integers(0, documents + 1)] for _ in q]
    ranked = {f"q{i}": [names[j] for j in rows] for i, rows in enumerate(chosen)}
    ids = {i: f"q{i}" for i in range(len(q))}
    values, places = index.search(
        given_q, k, similarity_fn=None, top_ranked=ranked, query_idx_to_id=ids
    )
    for row, rows, its_values, its_places in zip(scores, chosen, values, places, strict=True):
        order = np.argsort(-row[rows])[:k]
        assert its_places == order.tolist()  # among the candidates, as the protocol has it
        np.testing.assert_allclose(its_values, row[rows][order], rtol=1e-5, atol=1e-6)

    index.clear()
    with pytest.raises(ValueError, match="search: found no documents"):
        index.search(given_q, k)
    index.add_documents(given_x, names)  # nothing is left of those before


def test_compressed():
    corpus = load_corpus()
    names = [f"d{i}" for i in range(len(corpus.documents))]
    exact = simtile.topk(corpus.queries[:50], corpus.documents, 10)[1]
    overlaps = {}
    for dtype in ("float32", "int8", ("binary", "int8"), "binary"):
        index = SimtileSearchIndex(model_of("cosine"), dtype, threads=1)
        index.add_documents(corpus.documents, names)
        overlaps[dtype] = simtile.metrics.overlap(
            exact, np.array(index.search(corpus.queries[:50], 10)[1])
        )
    assert overlaps["float32"] == 1
    assert overlaps["int8"] > 0.98
    assert overlaps["binary", "int8"] > 0.95 > 0.8 > overlaps["binary"]


def test_example():
    module = importlib.import_module("simtile.integrations.mteb")
    done = doctest.testmod(module, globs={"np": np, **vars(module)})
    assert done.attempted > 0
    assert done.failed == 0


def test_wrong_inputs():
    for model in (model_of(ScoringFunction.MAX_SIM), model_of(None), object()):
        with pytest.raises(ValueError, match="model: found the similarity"):
            SimtileSearchIndex(model)
    with pytest.raises(ValueError, match="dtype: found 'int3'"):
        SimtileSearchIndex(model_of("dot"), "int3")
    index = SimtileSearchIndex(model_of("dot"))
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"idxs: found 2 for embeddings \[3, 3\]"):
        index.add_documents(x, ["a", "b"])
    with pytest.raises(ValueError, match="idxs: found 'a' more than once"):
        index.add_documents(x, ["a", "b", "a"])
    index.add_documents(x, ["a", "b", "c"])
    with pytest.raises(ValueError, match="idxs: found 'b' more than once"):
        index.add_documents(x[:1], ["b"])
    with pytest.raises(ValueError, match="query_idx_to_id: found None"):
        index.search(x, 1, top_ranked={"q": ["a"]})
    with pytest.raises(ValueError, match="top_ranked: found 'z'"):
        index.search(x[:1], 1, top_ranked={"q": ["z"]}, query_idx_to_id={0: "q"})


@pytest.mark.deep
@pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None,
    reason="mteb is not installed (it is no development requirement: 0.2 GB with what it needs)",
)
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("rerank", [False, True])
def test_in_mteb(metric, rerank, monkeypatch):
    """SearchEncoderWrapper finds with this backend what it finds without one."""
    import datasets
    from mteb.models import SearchEncoderWrapper, search_wrappers
    from mteb.models.model_meta import ScoringFunction
    from sentence_transformers.util import SimilarityFunction

    rng = np.random.default_rng(0)
    vectors = {f"d{i}": rng.standard_normal(12).astype(np.float32) for i in range(90)}
    vectors |= {f"q{i}": rng.standard_normal(12).astype(np.float32) for i in range(7)}
    sides = {
        side: datasets.Dataset.from_dict({"id": [name for name in vectors if name[0] == side]})
        for side in "dq"
    }

    class Encoder:
        mteb_model_meta = SimpleNamespace(similarity_fn_name=ScoringFunction(metric))
        similarity = staticmethod(SimilarityFunction.to_similarity_fn(metric))

        def encode(self, rows, **_):
            return np.stack([vectors[name] for name in rows["id"]])

    # What makes batches of texts of a dataset is not what is tested.
    monkeypatch.setattr(search_wrappers, "create_dataloader", lambda dataset, **_: dataset)
    ranked = None
    if rerank:
        ranked = {f"q{i}": [f"d{j}" for j in rng.permutation(90)[:15]] for i in range(7)}
    found = []
    for backend in (None, SimtileSearchIndex(Encoder())):
        wrapper = SearchEncoderWrapper(Encoder(), index_backend=backend)
        common = {"task_metadata": None, "hf_split": "test", "hf_subset": "en", "encode_kwargs": {}}
        for _ in range(2):  # the backend is cleared after each search
            wrapper.index(sides["d"], **common)
            results = wrapper.search(sides["q"], top_k=5, top_ranked=ranked, **common)
        found.append(results)
    plain, ours = found
    assert plain.keys() == ours.keys() == set(sides["q"]["id"])
    for query, scores in plain.items():
        assert len(scores) == 5
        assert ours[query] == pytest.approx(scores, rel=1e-5, abs=1e-6)
