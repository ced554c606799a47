"""The drop-ins of sentence-transformers' multi-vector losses beside the originals."""

from functools import partial

import numpy as np
import pytest
import torch
from contrastive_cases import option_tuples, pairwise
from hypothesis import given
from hypothesis import strategies as st
from late_interaction_cases import close
from sentence_transformers.multi_vector_encoder import losses as peer
from sentence_transformers.multi_vector_encoder import scoring
from test_sentence_transformers_multivector import Encoder

from simtile.integrations import sentence_transformers_multivector as our_scoring
from simtile.integrations import sentence_transformers_multivector_losses as ours

RANKING = (
    "MultiVectorMultipleNegativesRankingLoss",
    "CachedMultiVectorMultipleNegativesRankingLoss",
)
VOCABULARY = 500
# What each loss is given as `similarity_fct`.
SCORES = {
    "default": lambda names: None,
    "plain": lambda names: getattr(scoring, names[0]),
    "ours": lambda names: getattr(our_scoring, names[0]),
    "mean": lambda names: getattr(scoring, names[1]),
    "partial": lambda names: partial(getattr(scoring, names[0]), chunk_elements=50),
    "xtr": lambda names: getattr(scoring, names[2]),
    "XTR": lambda names: getattr(scoring, names[3])(top_k=7),
}
LEVELS = {
    "loss": (*RANKING, "MultiVectorDistillKLDivLoss", "MultiVectorMarginMSELoss"),
    "scores": tuple(SCORES),
    "negatives": (0, 1, 3),
    "scale": (1.0, 5.0),
    "mini_batch_size": (None, 2, 3),
    "score_mini_batch_size": (None, 2),
}
NAMES = {
    **dict.fromkeys(RANKING, ours._ALL),
    "MultiVectorDistillKLDivLoss": ours._OWN,
    "MultiVectorMarginMSELoss": ours._PAIRS,
}


def valid(drawn):
    if drawn["loss"] == "MultiVectorMarginMSELoss" and drawn["scores"] == "XTR":
        return False
    return drawn["loss"] in RANKING or drawn["negatives"] > 0


COVERING = pairwise(LEVELS, valid, ("loss", "scores", "negatives"))


def features_of(rng, rows, columns):
    found = []
    # No token twice: of equal similarities each library's top_k takes others.
    unused = torch.from_numpy(rng.permutation(VOCABULARY))
    for _ in range(columns):
        length = int(rng.integers(1, 9))
        there = torch.from_numpy(rng.integers(0, 2, (rows, length)))
        there[:, 0] = 1
        ids, unused = unused[: rows * length].reshape(rows, length), unused[rows * length :]
        found.append({"input_ids": ids, "attention_mask": there})
    return found


def check(drawn, rows, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    name, ranking = drawn["loss"], drawn["loss"] in RANKING
    model = Encoder(VOCABULARY)
    features = features_of(rng, rows, 2 + drawn["negatives"])
    options = {"similarity_fct": SCORES[drawn["scores"]](NAMES[name])}
    if not (name == RANKING[1] and drawn["mini_batch_size"] is None):
        options["mini_batch_size"] = drawn["mini_batch_size"]
    if ranking:
        options["scale"] = drawn["scale"]
        options["score_mini_batch_size"] = drawn["score_mini_batch_size"]
    distill = name == "MultiVectorDistillKLDivLoss"
    labels = None if ranking else torch.randn(rows, drawn["negatives"] + distill)
    found = []
    for library in (ours, peer):
        model.zero_grad()
        value = getattr(library, name)(model, **options)(features, labels)
        value.backward()
        found.append((value.detach(), model.embedding.weight.grad.clone()))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


@pytest.mark.parametrize("number", range(len(COVERING)))
def test_loss(number):
    check(COVERING[number], 4, number)


@given(option_tuples(LEVELS, valid), st.integers(1, 5), st.integers(0, 2**31))
def test_loss_of_any_size(drawn, rows, seed):
    check(drawn, rows, seed)


@pytest.mark.parametrize("name", LEVELS["loss"])
def test_config_and_what_is_not_served(name):
    given = SCORES["mean"](NAMES[name])
    configs = [
        getattr(library, name)(Encoder(), similarity_fct=given).get_config_dict()
        for library in (ours, peer)
    ]
    assert configs[0] == configs[1]
    assert issubclass(getattr(ours, name), getattr(peer, name))
    for function in (torch.matmul, partial(torch.matmul)):
        with pytest.raises(ValueError, match="similarity_fct: found matmul, expected one of "):
            getattr(ours, name)(Encoder(), similarity_fct=function)
    loss = getattr(ours, name)(Encoder())
    assert loss.similarity_fct is getattr(our_scoring, NAMES[name][0])


def test_every_loss_is_there():
    assert set(ours.__all__) == set(peer.__all__)
