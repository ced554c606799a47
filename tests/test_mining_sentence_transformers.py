"""The drop-in of sentence-transformers' mining beside the original: the same rows."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.util import mine_hard_negatives as original
from static_model import WordScores, pairs, static_model, texts

from simtile.integrations.sentence_transformers_mining import mine_hard_negatives

FORMATS = ["triplet", "n-tuple", "labeled-pair", "labeled-list"]
LIMITS = {
    "none": {},
    "max": {"max_score": 0.4},
    "min": {"min_score": 0.1},
    "absolute": {"absolute_margin": 0.05},
    "relative": {"relative_margin": 0.1},
    "all": {"max_score": 0.7, "min_score": -0.3, "absolute_margin": 0.01, "relative_margin": 0.02},
    "old": {"margin": 0.05},
}
MODELS = {name: static_model(similarity=name) for name in ("cosine", "dot", "euclidean")}


def mined(function, dataset, model, options, cross_encoder=None):
    random.seed(3)
    torch.manual_seed(3)
    return function(dataset, model, cross_encoder=cross_encoder, verbose=False, **options)


def check_equal(ours, theirs):
    assert ours.column_names == theirs.column_names
    assert ours.features == theirs.features
    for name in theirs.column_names:
        if name in ("score", "scores"):
            for mine, other in zip(ours[name], theirs[name], strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
        else:
            assert list(ours[name]) == list(theirs[name])


def compare(dataset, options, similarity="cosine", rescored=False):
    model = MODELS[similarity]

    def run(function):
        return mined(function, dataset, model, options, WordScores() if rescored else None)

    mine = run(mine_hard_negatives)
    try:
        theirs = run(original)
    except ZeroDivisionError:  # where limits have left nothing it divides by that
        return mine
    check_equal(mine, theirs)
    return mine


@st.composite
def options(draw):
    limits = draw(st.sampled_from(list(LIMITS)))
    chosen = {
        "range_min": draw(st.integers(0, 2)),
        "num_negatives": draw(st.integers(1, 4)),
        "sampling_strategy": draw(st.sampled_from(["top", "random"])),
        "output_format": draw(st.sampled_from(FORMATS)),
        "output_scores": draw(st.booleans()),
        **LIMITS[limits],
    }
    if draw(st.booleans()):
        chosen["range_max"] = (
            chosen["range_min"] + chosen["num_negatives"] + draw(st.integers(0, 9))
        )
    if draw(st.booleans()):
        chosen["corpus"] = texts(np.random.default_rng(draw(st.integers(0, 99))), 15)
    return chosen


@given(
    options(),
    st.integers(0, 999),
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 25),
    st.booleans(),
)
def test_any_options(options, seed, rows, queries, documents, rescored):
    compare(pairs(seed, rows, queries, documents), options, rescored=rescored)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scores", [False, True])
def test_formats(form, scores):
    found = compare(
        pairs(1, 12, 5, 20),
        {"output_format": form, "output_scores": scores, "num_negatives": 2, "max_score": 0.3},
    )
    assert len(found) > 0


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("limits", ["none", "relative", "absolute"])
def test_other_similarities(similarity, limits):
    chosen = {"output_scores": True, **LIMITS[limits]}
    assert len(compare(pairs(2, 12, 5, 20), chosen, similarity)) > 0


def test_positives_among_the_negatives():
    compare(pairs(4, 12, 5, 20), {"include_positives": True, "num_negatives": 6})
    chosen = {"include_positives": True, "output_format": "triplet", "relative_margin": 0.1}
    compare(pairs(4, 12, 5, 20), chosen, rescored=True)


def test_old_names():
    dataset = pairs(5, 8, 5, 20)
    compare(dataset, {"as_triplets": False})
    compare(dataset, {"as_triplets": True, "output_format": "n-tuple"})
    compare(dataset, {"output_format": "n-tuple-scores"})


def test_columns_and_prompts():
    rng = np.random.default_rng(0)
    words = texts(rng, 20)
    dataset = Dataset.from_dict(
        {"other": ["x"] * 10, "answer": words[:10], "question": words[10:], "more": [1] * 10}
    )
    chosen = {
        "anchor_column_name": "question",
        "positive_column_name": "answer",
        "query_prompt": "w0 ",
        "corpus_prompt": "w1 w2 ",
        "output_scores": True,
    }
    assert compare(dataset, chosen).column_names == ["question", "answer", "negative", "scores"]
    unknown = {"anchor_column_name": "nothing", "positive_column_name": "answer"}
    assert compare(dataset, unknown).column_names[0] == "other"


def test_faiss():
    pytest.importorskip("faiss")
    dataset = pairs(6, 30, 20, 60)
    compare(dataset, {"use_faiss": True, "relative_margin": 0.05, "output_scores": True})


def test_cached_embeddings_are_the_original_s(tmp_path):
    """Either reads what the other wrote: the model of the second call has other vectors."""
    dataset = pairs(7, 12, 5, 20)
    chosen = {"cache_folder": str(tmp_path / "new"), "output_scores": True}
    first = mined(mine_hard_negatives, dataset, static_model(), chosen)
    assert len(list((tmp_path / "new").iterdir())) == 2
    check_equal(mined(original, dataset, static_model(1), chosen), first)
    check_equal(mined(mine_hard_negatives, dataset, static_model(1), chosen), first)
    uncached = mined(mine_hard_negatives, dataset, static_model(1), {"output_scores": True})
    assert uncached["scores"] != first["scores"]


def test_a_cross_encoder_is_asked_only_for_limits():
    encoder = WordScores()
    dataset = pairs(8, 12, 5, 20)
    mined(mine_hard_negatives, dataset, MODELS["cosine"], {}, encoder)
    assert encoder.calls == 0
    mined(mine_hard_negatives, dataset, MODELS["cosine"], {"max_score": 1.0}, encoder)
    assert encoder.calls > 0


def test_what_it_prints(capsys):
    mine_hard_negatives(
        pairs(9, 12, 5, 20), MODELS["cosine"], max_score=0.3, num_negatives=5, verbose=True
    )
    printed = capsys.readouterr().out
    assert "range_max is" in printed
    assert "Median" in printed
    assert "by max_score=0.3." in printed
    assert "have too few negatives" in printed
    mine_hard_negatives(pairs(9, 12, 5, 20), MODELS["cosine"], max_score=-2.0)
    assert "0 candidates" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"num_negatives": 0}, ValueError, "num_negatives: found 0, expected at least 1"),
        ({"range_min": -1}, ValueError, "range_min: found -1, expected at least 0"),
        ({"range_min": 5, "range_max": 5}, ValueError, "range_min: found 5, expected less than"),
        ({"range_max": 2}, ValueError, "num_negatives: found 3, expected at most 2"),
        ({"output_format": "pairs"}, ValueError, "output_format: found 'pairs', expected one of"),
        ({"sampling_strategy": "best"}, ValueError, "sampling_strategy: found 'best'"),
        ({"faiss_batch_size": 0}, ValueError, "faiss_batch_size: found 0, expected at least 1"),
        ({"threads": 0}, ValueError, "threads: found 0"),
    ],
)
def test_wrong_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        mine_hard_negatives(pairs(1, 5, 3, 6), MODELS["cosine"], verbose=False, **wrong)


def test_wrong_datasets():
    with pytest.raises(ValueError, match="dataset: found no rows"):
        mine_hard_negatives(Dataset.from_dict({"a": [], "b": []}), MODELS["cosine"])
    with pytest.raises(ValueError, match=r"dataset: found the columns \['a'\], expected at"):
        mine_hard_negatives(Dataset.from_dict({"a": ["x"]}), MODELS["cosine"])
    manhattan = static_model(similarity="manhattan")
    with pytest.raises(ValueError, match="model: found the similarity function 'manhattan'"):
        mine_hard_negatives(pairs(1, 5, 3, 6), manhattan, verbose=False)
