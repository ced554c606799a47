"""simtile.integrations.sentence_transformers_evaluation beside sentence-transformers' own."""

import doctest
import json
import logging
import os

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import evaluation as original
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim, manhattan_sim
from tokenizers import Tokenizer, models, pre_tokenizers

from simtile import metrics
from simtile.demo.corpus import load_corpus
from simtile.integrations import sentence_transformers_evaluation as ours

FUNCTIONS = {"cosine": cos_sim, "dot": dot_score, "euclidean": euclidean_sim}
CUTOFFS = {
    "mrr_at_k": [3, 10],
    "ndcg_at_k": [10, 20],
    "accuracy_at_k": [1, 5],
    "precision_recall_at_k": [1, 7],
    "map_at_k": [25],
}


class Embedder:
    """A model that knows its texts' embeddings."""

    similarity_fn_name = "cosine"

    def __init__(self, rows, dtype=torch.float32):
        self.rows, self.dtype = rows, dtype
        self.model_card_data = self
        self.asked = []

    def set_evaluation_metrics(self, *_):
        pass

    def similarity(self, x, y):
        return cos_sim(x, y)

    def encode(self, texts, **_):
        return np.stack([self.rows[text] for text in texts])

    def encode_query(self, texts, *, convert_to_tensor, truncate_dim, **options):
        assert convert_to_tensor
        self.asked.append(("query", options["prompt"]))
        rows = torch.from_numpy(np.stack([self.rows[text] for text in texts]))
        return rows[:, :truncate_dim].to(self.dtype)

    def encode_document(self, texts, **options):
        found = self.encode_query(texts, **options)
        self.asked[-1] = ("document", options["prompt"])
        return found


def problem(seed, queries=12, documents=90, dim=24, ties=False):
    """Queries, corpus and relevant documents of evaluators, and the model that embeds them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((documents, dim))
    if ties:  # copies of a few, and no product that must be rounded
        x = rng.integers(-3, 4, (documents // 6, dim))[rng.integers(0, documents // 6, documents)]
    q = x[rng.integers(0, documents, queries)] + rng.integers(-1, 2, (queries, dim))
    names = [f"d{i}" for i in rng.permutation(documents)]  # not in the order of their ids
    rows = {f"text {name}": row for name, row in zip(names, x.astype(np.float32), strict=True)}
    rows |= {f"ask {i}": row for i, row in enumerate(q.astype(np.float32))}
    relevant = {
        f"q{i}": {f"d{j}" for j in rng.integers(0, documents, rng.integers(0, 6))}
        for i in range(queries)
    }
    relevant["q0"] = {"d1", "d2"}
    given = (
        {f"q{i}": f"ask {i}" for i in range(queries)},
        {name: f"text {name}" for name in names},
        relevant,
    )
    return given, Embedder(rows)


def separated(model, functions, width):
    """Whether no two scores are so near that the rounding of float32 orders them."""
    q, x = (
        torch.from_numpy(np.stack([row for name, row in model.rows.items() if name[0] == first]))
        for first in "at"
    )
    for function in functions.values():
        scores = function(q[:, :width].double(), x[:, :width].double()).sort(dim=1).values
        if scores.diff(dim=1).min() < 1e-6 * scores.abs().max():
            return False
    return True


def both(given, **options):
    return [
        library.InformationRetrievalEvaluator(*given, **CUTOFFS, **options)
        for library in (ours, original)
    ]


@given(
    seed=st.integers(0, 2**32 - 1),
    chunk=st.sampled_from([7, 40, 1000]),
    width=st.sampled_from([None, 9]),
    ties=st.booleans(),
)
def test_equal_metrics(seed, chunk, width, ties):
    given, model = problem(seed, ties=ties)
    # Ties are those of exact arithmetic: torch rounds cosines and distances of equal rows as their
    # places in the matrix will have it.
    functions = {"dot": dot_score} if ties else FUNCTIONS
    assume(ties or separated(model, functions, width))
    own, theirs = both(
        given, corpus_chunk_size=chunk, truncate_dim=width, score_functions=functions
    )
    assert own(model) == theirs(model)
    assert own.primary_metric == theirs.primary_metric


def test_example():
    texts = {"a question": [1, 0], "its answer": [2, 1], "something else": [0, 1]}
    model = Embedder({text: np.array(row, np.float32) for text, row in texts.items()})
    done = doctest.testmod(ours, globs={**vars(ours), "model": model})
    assert done.attempted > 0
    assert done.failed == 0


def test_the_similarity_of_the_model():
    given, model = problem(1)
    own, theirs = both(given, name="mine")
    assert own(model) == theirs(model)
    assert own.primary_metric == theirs.primary_metric == "mine_cosine_ndcg@20"
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match=r"score_functions\['manhattan'\]: found <bound method"):
        own(model)


def test_real_model_and_texts():
    words = [f"w{i}" for i in range(50)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_dim=16)],
        similarity_fn_name="dot",
        device="cpu",
    )
    rng = np.random.default_rng(0)
    corpus = {f"{i}": " ".join(rng.choice(words, 12)) for i in range(60)}
    queries = {f"q{i}": " ".join(corpus[f"{i}"].split()[:6]) for i in range(20)}
    given = queries, corpus, {f"q{i}": {f"{i}"} for i in range(20)}
    for options in (
        {},
        {"truncate_dim": 8, "corpus_chunk_size": 13},
        {"score_functions": FUNCTIONS},
    ):
        own, theirs = both(given, **options)
        assert own(model) == theirs(model)


@pytest.mark.parametrize("kind", ["tensor", "array", "bfloat16 model"])
def test_real_embeddings(kind):
    corpus = load_corpus()
    queries, documents = corpus.queries[:60], corpus.documents[:700]
    rows = {f"q{i}": row for i, row in enumerate(queries)}
    rows |= {f"d{i}": row for i, row in enumerate(documents)}
    texts = {name: name for name in rows}
    given = (
        {name: name for name in texts if name[0] == "q"},
        {name: name for name in texts if name[0] == "d"},
        {f"q{i}": {f"d{i}"} for i in range(len(queries))},
    )
    model = Embedder(rows)
    own, theirs = both(given, corpus_chunk_size=300)
    if kind == "bfloat16 model":  # scores of float32, where the original's are of bfloat16
        wide = own(
            Embedder({k: torch.tensor(v).bfloat16().float().numpy() for k, v in rows.items()})
        )
        assert own(Embedder(rows, torch.bfloat16)) == wide
        return
    embeddings = documents if kind == "array" else torch.from_numpy(documents)
    found = own(model, corpus_embeddings=embeddings)
    assert found == theirs(model, corpus_embeddings=torch.from_numpy(documents))
    assert found == own(model)
    with pytest.raises(ValueError, match="corpus_embeddings: found 600 rows"):
        own(model, corpus_embeddings=embeddings[:600])


def test_prompts_other_corpus_model_and_files(tmp_path, caplog):
    given, model = problem(5)
    _, other = problem(5, ties=True)
    found = []
    for evaluator, name in zip(
        both(given, query_prompt="ask: ", corpus_prompt="say: ", write_predictions=True, name="x"),
        ("own", "theirs"),
        strict=True,
    ):
        with caplog.at_level(logging.INFO):
            evaluator(model, output_path=str(tmp_path / name), epoch=1, steps=2)
            scores = evaluator.compute_all_metrics(model, corpus_model=other)
        found.append((scores, caplog.messages[:]))
        caplog.clear()
    assert found[0] == found[1]
    assert set(model.asked) == {("query", "ask: "), ("document", "say: ")}
    assert set(other.asked) == {("document", "say: ")}
    files = sorted(path.name for path in (tmp_path / "own").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(files) == 2
    for file in files:
        texts = [(tmp_path / name / file).read_text() for name in ("own", "theirs")]
        if file.endswith("csv"):
            assert texts[0] == texts[1]
            continue
        lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
        for a, b in zip(*lines, strict=True):
            assert a["query_id"] == b["query_id"]
            assert a["query"] == b["query"]
            assert [hit["corpus_id"] for hit in a["results"]] == [
                hit["corpus_id"] for hit in b["results"]
            ]
            np.testing.assert_allclose(
                [hit["score"] for hit in a["results"]],
                [hit["score"] for hit in b["results"]],
                rtol=1e-5,
                atol=1e-6,
            )


def test_fewer_documents_than_places():
    given, model = problem(6, documents=6)
    own, theirs = both(given, corpus_chunk_size=4)
    assert own(model) == theirs(model)


def test_wrong_inputs():
    given, model = problem(7)
    for function in (manhattan_sim, lambda x, y: x @ y.T, "cosine"):
        own, _ = both(given, score_functions={"mine": function})
        with pytest.raises(ValueError, match=r"score_functions\['mine'\]: found"):
            own(model)
    own, _ = both((*given[:2], {}))
    with pytest.raises(ValueError, match="queries: found none with a relevant document"):
        own(model)
    own, _ = both(given)
    model.rows["ask 0"] = model.rows["ask 0"] * np.nan
    with pytest.raises(ValueError, match="NaN"):
        own(model)
    with pytest.raises(TypeError, match=r"corpus_embeddings: found a torch\.sparse_coo"):
        own(problem(7)[1], corpus_embeddings=torch.ones(90, 24).to_sparse())


def test_nano_beir_uses_it(monkeypatch):
    given, _ = problem(8)
    subsets = {
        "corpus": [{"_id": id, "text": text} for id, text in given[1].items()],
        "queries": [{"_id": id, "text": text} for id, text in given[0].items()],
        "qrels": [
            {"query-id": id, "corpus-id": document}
            for id, ids in given[2].items()
            for document in ids
        ],
    }
    monkeypatch.setattr(
        original.NanoBEIREvaluator,
        "_load_dataset_subset_split",
        lambda self, subset, split, required_columns: subsets[subset],
    )
    evaluator = ours.NanoBEIREvaluator(["msmarco"])
    assert type(evaluator.evaluators[0]) is ours.InformationRetrievalEvaluator
    _, model = problem(8)
    expected = original.NanoBEIREvaluator(["msmarco"])(model)
    assert evaluator(model) == expected


@given(
    queries=st.integers(1, 7),
    k=st.sampled_from([1, 3, 7, 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_metrics_of_rankings_are_those_of_the_evaluator(queries, k, seed):
    rng = np.random.default_rng(seed)
    documents = 30
    found = np.stack([rng.permutation(documents)[:k] for _ in range(queries)])
    found[:, k - int(rng.integers(0, k + 1)) :] = -1
    relevant = [set(rng.permutation(documents)[: rng.integers(1, 9)].tolist()) for _ in found]
    cutoffs = sorted({1, k})
    evaluator = original.InformationRetrievalEvaluator(
        {f"q{i}": "" for i in range(queries)},
        {f"{i:02}": "" for i in range(documents)},
        {f"q{i}": {f"{id:02}" for id in ids} for i, ids in enumerate(relevant)},
        mrr_at_k=cutoffs,
        ndcg_at_k=cutoffs,
        accuracy_at_k=cutoffs,
        precision_recall_at_k=cutoffs,
        map_at_k=[k],
    )
    theirs = evaluator.compute_metrics(
        [
            [{"corpus_id": f"{id:02}", "score": -i} for i, id in enumerate(row) if id >= 0]
            for row in found
        ]
    )
    kinds = ("accuracy", "precision", "recall", "mrr", "ndcg")
    ours = metrics.evaluate(found, relevant, [f"{kind}@{c}" for kind in kinds for c in cutoffs])
    for kind in kinds:
        for cutoff in cutoffs:
            assert ours[f"{kind}@{cutoff}"] == pytest.approx(theirs[f"{kind}@k"][cutoff], abs=1e-6)
    # MAP differs in what it divides by where there are more relevant documents than places.
    each = metrics.evaluate(found, relevant, [f"map@{k}"], per_query=True)[f"map@{k}"]
    sizes = np.array([len(ids) for ids in relevant])
    as_theirs = (each * sizes / np.minimum(sizes, k)).mean()
    assert as_theirs == pytest.approx(theirs["map@k"][k], abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_metrics_of_pairs_are_those_of_the_evaluator(metric):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 40, 12)).astype(np.float32)
    gold = rng.permutation(40) / 40
    names = [[f"{side}{i}" for i in range(40)] for side in "xy"]
    rows = dict(zip(names[0] + names[1], [*x, *y], strict=True))
    theirs_name = {"l2": "euclidean"}.get(metric, metric)
    theirs = original.EmbeddingSimilarityEvaluator(
        *names, gold.tolist(), main_similarity=theirs_name, show_progress_bar=False
    )(Embedder(rows))
    ours = metrics.similarity_correlation(x, y, gold, metric=metric)
    assert ours.spearman == pytest.approx(theirs[f"spearman_{theirs_name}"], abs=1e-6)
    assert ours.pearson == pytest.approx(theirs[f"pearson_{theirs_name}"], abs=1e-6)
    tensors = [torch.from_numpy(v).double() for v in (x, y)]
    assert metrics.similarity_correlation(*tensors, gold, metric=metric) == pytest.approx(ours)
