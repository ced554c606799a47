"""The definition of the contrastive family beside the losses that people train with.

sentence-transformers' own, and the formulas of open_clip's ClipLoss and SigLipLoss, which is not a
development requirement. In float64, losses and gradients.
"""

import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contrastive_cases import (
    SUBSETS,
    Case,
    cases,
    option_tuples,
    pairs_of,
    pairwise,
    possible_pairs,
)
from hypothesis import given
from hypothesis import strategies as st

from simtile.reference import contrastive

# Nothing is asked of the network by what imports transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as peer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


class Encoder(torch.nn.Module):
    """A model that is given its embeddings, as one of the features."""

    max_seq_length = 8

    def __init__(self, feature, dimensions=None):
        super().__init__()
        self.feature, self.dimensions = feature, dimensions
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        )

    def __getitem__(self, module):  # a pipeline of one module
        return [self][module]

    def get_embedding_dimension(self):
        return self.dimensions

    def forward(self, features):
        features["sentence_embedding"] = features[self.feature]
        return features


def columns(case, prefix=""):
    """What sentence-transformers calls its columns: queries, documents, each k-th negative."""
    names = [f"{prefix}{name}" for name in ("queries", "documents", "negatives")]
    queries, documents, negatives = (case[name] for name in names)
    rest = [] if case["negatives"] is None else list(negatives.transpose(1, 0, 2))
    return [torch.from_numpy(x.copy()) for x in (queries, documents, *rest)]


def check(case, loss, embeddings, normalize=True, times=1.0, **replaced):
    """Compare a loss, and its gradients at the columns, with `times` the mean of ours."""
    options = case.options._replace(normalize=normalize, **replaced)
    n = len(case["queries"])
    inputs = [None if x is None else x.tolist() for x in case.inputs]
    ours = contrastive.info_nce_grad(*inputs, options, [times / n] * n)
    assert times * sum(ours.losses) / n == pytest.approx(loss.item(), rel=1e-10, abs=1e-12)
    loss.backward()
    negatives = [] if case["negatives"] is None else zip(*ours.negatives, strict=True)
    for mine, theirs in zip([ours.queries, ours.documents, *negatives], embeddings, strict=True):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-8, atol=1e-9)


# Of every option what sentence-transformers has, too.
RANKING = {
    "directions": tuple(s for s in SUBSETS if "query_to_doc" in s),
    "partition": ("joint", "per_direction"),
    "negatives_per_query": (None, 1, 3),
    "hardness": (None, "in_batch_negatives", "hard_negatives", "all_negatives"),
    "matryoshka": (None, "dims", "dims and weights"),
    "normalize": (True, False),
    "temperature": (0.05, 0.3, 2.0),
}


def ranking_is_valid(drawn):
    return drawn["partition"] == "joint" or set(drawn["directions"]) <= {
        "query_to_doc",
        "doc_to_query",
    }


def check_ranking(case):
    options = case.options
    model = Encoder("model", case.dimensions)
    loss = peer.MultipleNegativesRankingLoss(
        model,
        scale=1.0 / options.temperature,
        similarity_fct=util.cos_sim if options.normalize else util.dot_score,
        directions=options.directions,
        partition_mode=options.partition,
        hardness_mode=options.hardness,
        hardness_strength=options.hardness_strength,
    )
    embeddings = [x.requires_grad_() for x in columns(case)]
    if options.matryoshka_dims is None:
        value = loss.compute_loss_from_embeddings(embeddings, None)
        check(case, value, embeddings, options.normalize)
        return
    check_matryoshka(case, model, loss, [{"model": x} for x in embeddings])


def check_matryoshka(case, model, loss, features):
    """MatryoshkaLoss adds widths up where ours averages, and normalises them whatever the loss."""
    dims, weights = case.options.matryoshka_dims, case.options.matryoshka_weights
    sums = peer.MatryoshkaLoss(model, loss, dims, weights)
    embeddings = [f["model"] for f in features]
    value = sums(features, None)
    check(case, value, embeddings, True, times=sum(weights or [1.0] * len(dims)))


RANKING_COVERING = pairwise(RANKING, ranking_is_valid, ("directions", "partition"))


@pytest.mark.parametrize("number", range(len(RANKING_COVERING)))
def test_multiple_negatives_ranking_loss(number):
    check_ranking(Case(drawn=RANKING_COVERING[number], seed=number))


# A vector of zeros and its gradient depend on how each library avoids dividing by nothing.
@given(cases(option_tuples(RANKING, ranking_is_valid), special=("duplicates",)))
def test_multiple_negatives_ranking_loss_with_any_options(case):
    check_ranking(case)


@pytest.mark.parametrize("negatives", [None, 2])
@pytest.mark.filterwarnings("ignore:The MultipleNegativesSymmetricRankingLoss is deprecated")
def test_symmetric_ranking_loss(negatives):
    case = Case(drawn={"negatives_per_query": negatives})
    embeddings = [x.requires_grad_() for x in columns(case)]
    loss = peer.MultipleNegativesSymmetricRankingLoss(Encoder("model"))
    both = ("query_to_doc", "doc_to_query")
    check(
        case,
        loss.compute_loss_from_embeddings(embeddings, None),
        embeddings,
        directions=both,
        partition="per_direction",
    )


GIST = {
    "directions": tuple(s for s in SUBSETS if "query_to_doc" in s and "doc_to_query" not in s),
    "negatives_per_query": (None, 1, 3),
    "negatives_scope": ("queries",),  # positives are not contrasted with negatives
    "guide": (("absolute", 0.0), ("absolute", 0.1), ("relative", 0.0), ("relative", 0.3)),
    "matryoshka": (None, "dims", "dims and weights"),
    "temperature": (0.01, 0.3),
}


def gist_is_valid(drawn):
    # Only the cached loss takes several negatives, and of a call with a graph it is not the one
    # that MatryoshkaLoss decorates.
    return drawn["negatives_per_query"] != 3 or drawn["matryoshka"] is None


def check_gist(case):
    strategy, margin = case["guide"]
    embeddings = [x.requires_grad_() for x in columns(case)]
    guides = columns(case, "guide_")
    model, guide = Encoder("model", case.dimensions), Encoder("guide")
    options = {
        "temperature": case["temperature"],
        "margin_strategy": strategy,
        "margin": margin,
        "contrast_anchors": "query_to_query" in case["directions"],
        "contrast_positives": "doc_to_doc" in case["directions"],
    }
    if case["negatives_per_query"] == 3:
        cached = peer.CachedGISTEmbedLoss(model, guide, mini_batch_size=2, **options)
        check(
            case,
            cached.calculate_loss([[x] for x in embeddings], [[g] for g in guides]),
            embeddings,
        )
        return
    loss = peer.GISTEmbedLoss(model, guide, **options)
    features = [{"model": x, "guide": g} for x, g in zip(embeddings, guides, strict=True)]
    if case["matryoshka"] is None:
        check(case, loss(features, None), embeddings)
    else:
        check_matryoshka(case, model, loss, features)


GIST_COVERING = pairwise(GIST, gist_is_valid, ("negatives_per_query", "matryoshka"))


@pytest.mark.parametrize("number", range(len(GIST_COVERING)))
def test_gist_embed_loss(number):
    check_gist(Case(drawn=GIST_COVERING[number], seed=number))


@given(cases(option_tuples(GIST, gist_is_valid), special=()))
def test_gist_embed_loss_with_any_options(case):
    check_gist(case)


def test_nothing_is_compared_with_itself():
    # GISTEmbedLoss leaves it to the guide to mask an anchor's similarity with itself, 1. Where the
    # guide finds the pair as similar as that, less a negative margin, it stays: a logit of 1 / t.
    case = Case(
        drawn={"directions": ("query_to_doc", "query_to_query"), "guide": ("absolute", -3.0)}
    )
    embeddings, guides = columns(case), columns(case, "guide_")
    loss = peer.GISTEmbedLoss(
        Encoder("model"), Encoder("guide"), 0.05, margin=-3.0, contrast_positives=False
    )
    theirs = loss([{"model": x, "guide": g} for x, g in zip(embeddings, guides, strict=True)], None)
    ours = contrastive.info_nce_grad(
        *[x.tolist() for x in case.inputs[:2]], None, case.options
    ).losses
    positives = F.cosine_similarity(*embeddings)
    with_itself = [
        math.log(math.exp(row) + math.exp((1.0 - s) / 0.05))
        for row, s in zip(ours, positives.tolist(), strict=True)
    ]
    assert theirs.item() == pytest.approx(sum(with_itself) / 5)
    assert theirs.item() > sum(ours) / 5


def leaves(case):
    inputs = [torch.from_numpy(x.copy()).requires_grad_() for x in case.inputs[:2]]
    scalars = [
        torch.tensor(case[x], dtype=torch.float64, requires_grad=True)
        for x in ("temperature", "bias")
    ]
    return inputs, scalars


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_clip_loss(n, seed):
    case = Case(n, drawn={"temperature": 0.07}, seed=seed)
    (images, texts), (temperature, _) = leaves(case)
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    labels = torch.arange(n)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    options = {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"}
    check(case, loss, [images, texts], **options)
    ours = contrastive.info_nce_grad(
        *[x.tolist() for x in case.inputs[:2]], None, case.options._replace(**options), [1 / n] * n
    )
    assert ours.temperature == pytest.approx(temperature.grad.item(), rel=1e-8, abs=1e-9)


@given(st.integers(1, 7), st.booleans(), st.integers(0, 2**32 - 1))
def test_siglip_loss(n, normalize, seed):
    case = Case(n, drawn={"temperature": 0.1, "bias": -10.0, "normalize": normalize}, seed=seed)
    (images, texts), (temperature, bias) = leaves(case)
    if normalize:
        logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T / temperature + bias
    else:
        logits = images @ texts.T / temperature + bias
    labels = 2 * torch.eye(n, dtype=torch.float64) - 1
    loss = -F.logsigmoid(labels * logits).sum() / n
    loss.backward()
    inputs = [x.tolist() for x in case.inputs[:2]]
    ours = contrastive.siglip_loss_grad(*inputs, None, case.options, [1 / n] * n)
    assert sum(ours.losses) / n == pytest.approx(loss.item(), rel=1e-10)
    assert contrastive.siglip_loss(*inputs, None, case.options) == pytest.approx(loss.item())
    for mine, theirs in zip(
        [ours.queries, ours.documents, ours.temperature, ours.bias],
        [images, texts, temperature, bias],
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("covering", "levels", "rule", "constrained"),
    [
        (RANKING_COVERING, RANKING, ranking_is_valid, ("directions", "partition")),
        (GIST_COVERING, GIST, gist_is_valid, ("negatives_per_query", "matryoshka")),
    ],
)
def test_every_possible_pair_of_options_occurs(covering, levels, rule, constrained):
    found = set().union(*map(pairs_of, covering))
    assert possible_pairs(levels, rule, constrained) == found
