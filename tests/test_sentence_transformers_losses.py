"""The drop-ins of sentence-transformers' contrastive losses beside the originals."""

import random

import numpy as np
import pytest
import torch
from contrastive_cases import Case, cases, option_tuples
from contrastive_kernel import CLOSE, run_oracle
from hypothesis import assume, given
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as peer
from test_contrastive_peers import (
    GIST,
    GIST_COVERING,
    RANKING,
    RANKING_COVERING,
    Encoder,
    columns,
    gist_is_valid,
    ranking_is_valid,
)

import simtile
from simtile.integrations import sentence_transformers_losses as ours


def compare(run, case, rtol=1e-8):
    """Loss and gradients of `run(library, embeddings)` with both libraries."""
    results = []
    for library in (peer, ours):
        embeddings = [x.requires_grad_() for x in columns(case)]
        loss = run(library, embeddings)
        assert loss.dtype == torch.float64
        if loss.requires_grad:
            loss.backward()
        results.append([loss.detach().numpy(), *(x.grad.numpy() for x in embeddings)])
    for theirs, mine in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-9)


def widths(case, library, model, loss, features):
    """The loss, by way of MatryoshkaLoss where the case has widths."""
    if case["matryoshka"] is None:
        return loss(features, None)
    dims, weights = case.options.matryoshka_dims, case.options.matryoshka_weights
    return library.MatryoshkaLoss(model, loss, dims, weights)(features, None)


def compare_ranking(case, name="MultipleNegativesRankingLoss", **more):
    options = case.options

    def run(library, embeddings):
        model = Encoder("model", case.dimensions)
        loss = getattr(library, name)(
            model,
            scale=1.0 / options.temperature,
            similarity_fct=util.cos_sim if options.normalize else util.dot_score,
            directions=options.directions,
            partition_mode=options.partition,
            hardness_mode=options.hardness,
            hardness_strength=options.hardness_strength,
            **more,
        )
        if name.startswith("Cached"):
            return loss.calculate_loss([list(x.split(2)) for x in embeddings], with_backward=False)
        return widths(case, library, model, loss, [{"model": x} for x in embeddings])

    compare(run, case)


@pytest.mark.parametrize("number", range(len(RANKING_COVERING)))
def test_multiple_negatives_ranking_loss(number):
    compare_ranking(Case(drawn=RANKING_COVERING[number], seed=number))


@given(cases(option_tuples(RANKING, ranking_is_valid), special=("duplicates",)))
def test_multiple_negatives_ranking_loss_with_any_options(case):
    compare_ranking(case)


@pytest.mark.parametrize("number", range(len(RANKING_COVERING)))
def test_cached_multiple_negatives_ranking_loss(number):
    drawn = {**RANKING_COVERING[number], "matryoshka": None}
    case = Case(drawn=drawn, seed=number)
    compare_ranking(case, "CachedMultipleNegativesRankingLoss", mini_batch_size=2)


@pytest.mark.filterwarnings("ignore:The MultipleNegativesSymmetricRankingLoss is deprecated")
@pytest.mark.parametrize("similarity", [util.cos_sim, util.dot_score])
def test_symmetric_ranking_loss(similarity):
    def run(library, embeddings):
        loss = library.MultipleNegativesSymmetricRankingLoss(Encoder("model"), 10.0, similarity)
        return loss([{"model": x} for x in embeddings], None)

    compare(run, Case(drawn={"negatives_per_query": 2}))


def is_clear(case):
    """Whether no similarity is next to its threshold."""
    return run_oracle(case).closest_call > CLOSE["float64"]


def compare_gist(case):
    strategy, margin = case["guide"]
    options = {
        "temperature": case["temperature"],
        "margin_strategy": strategy,
        "margin": margin,
        "contrast_anchors": "query_to_query" in case["directions"],
        "contrast_positives": "doc_to_doc" in case["directions"],
    }

    def run(library, embeddings):
        model, guide = Encoder("model", case.dimensions), Encoder("guide")
        guides = columns(case, "guide_")
        if case["negatives_per_query"] == 3:
            cached = library.CachedGISTEmbedLoss(model, guide, mini_batch_size=2, **options)
            reps = [list(x.split(2)) for x in embeddings]
            return cached.calculate_loss(reps, [list(x.split(2)) for x in guides])
        loss = library.GISTEmbedLoss(model, guide, **options)
        features = [{"model": x, "guide": g} for x, g in zip(embeddings, guides, strict=True)]
        return widths(case, library, model, loss, features)

    compare(run, case)


@pytest.mark.parametrize("number", range(len(GIST_COVERING)))
def test_gist_embed_loss(number):
    cases = (Case(drawn=GIST_COVERING[number], seed=seed) for seed in range(number, 100))
    compare_gist(next(case for case in cases if is_clear(case)))


@given(cases(option_tuples(GIST, gist_is_valid), special=()))
def test_gist_embed_loss_with_any_options(case):
    assume(is_clear(case))
    compare_gist(case)


WIDTHS = Case(drawn={"negatives_per_query": 1, "matryoshka": "dims and weights"}, seed=3)


class Cached(Encoder):
    """Texts are numbers of rows: a cached loss encodes them twice, in mini-batches."""

    def __init__(self, embeddings):
        super().__init__("model", embeddings[0].shape[-1])
        self.rows = torch.cat(embeddings)

    def forward(self, features):
        return {**features, "sentence_embedding": self.rows[features["input_ids"][:, 0]]}


@pytest.mark.parametrize("name", ["CachedMultipleNegativesRankingLoss", "CachedGISTEmbedLoss"])
@pytest.mark.parametrize("steps", [-1, 2])
def test_matryoshka_loss_around_cached_losses(name, steps):
    def run(library, embeddings):
        random.seed(5)  # which widths a step has
        model = Cached(embeddings)
        guide = [Cached(columns(WIDTHS, "guide_"))] if "GIST" in name else []
        loss = getattr(library, name)(model, *guide, mini_batch_size=2)
        dims, weights = WIDTHS.options.matryoshka_dims, WIDTHS.options.matryoshka_weights
        matryoshka = library.MatryoshkaLoss(model, loss, dims, weights, steps)
        ids = torch.arange(sum(map(len, embeddings)))[:, None]
        return matryoshka([{"input_ids": x} for x in ids.split([5] * len(embeddings))], None)

    compare(run, WIDTHS)


@pytest.mark.parametrize("inner", ["CosineSimilarityLoss", "MultipleNegativesRankingLoss"])
@pytest.mark.parametrize("steps", [-1, 2, 3, 50])
def test_matryoshka_loss_around_any_loss(inner, steps):
    labels = torch.linspace(0, 1, 5, dtype=torch.float64)

    def run(library, embeddings):
        random.seed(5)
        model = Encoder("model", 6)
        # ours is the original around a loss that is not ours, and fits into the original
        own = library if inner.startswith("Multiple") else peer
        loss = getattr(own, inner)(model)
        matryoshka = library.MatryoshkaLoss(model, loss, [3, 6, 1, 5], n_dims_per_step=steps)
        value = matryoshka([{"model": x} for x in embeddings], labels)
        assert matryoshka.get_config_dict()["loss"] == inner
        return value

    compare(run, Case())


def test_the_original_matryoshka_loss_around_ours():
    dims, weights = WIDTHS.options.matryoshka_dims, WIDTHS.options.matryoshka_weights

    def run(library, embeddings):
        model = Encoder("model", 6)
        loss = library.MultipleNegativesRankingLoss(model)
        features = [{"model": x} for x in embeddings]
        return peer.MatryoshkaLoss(model, loss, dims, weights)(features, None)

    compare(run, WIDTHS)


def test_matryoshka_loss_refuses():
    model = Encoder("model", 6)
    loss = ours.MultipleNegativesRankingLoss(model)
    with pytest.raises(ValueError, match=r"matryoshka_weights: found .*, expected numbers of at"):
        ours.MatryoshkaLoss(model, loss, [6, 3], [1, -1])
    wide = ours.MatryoshkaLoss(Encoder("model"), loss, [7, 3])
    with pytest.raises(ValueError, match="matryoshka_dims: found 7 for vectors of 6 dimensions"):
        wide([{"model": torch.ones(2, 6)}, {"model": torch.ones(2, 6)}], None)
    # and leaves the loss as it was
    features = [{"model": torch.eye(6)}, {"model": torch.eye(6)}]
    assert torch.equal(loss(features, None), simtile.info_nce(torch.eye(6), torch.eye(6)))


@pytest.mark.parametrize("name", [name for name in ours.__all__ if name != "MatryoshkaLoss"])
def test_what_is_not_served_raises(name):
    given = [Encoder("model")] + [Encoder("guide")] * ("GIST" in name)
    if "GIST" not in name:
        with pytest.raises(ValueError, match="similarity_fct: found euclidean_sim, expected cos_"):
            getattr(ours, name)(*given, similarity_fct=util.euclidean_sim)
    assert issubclass(getattr(ours, name), torch.nn.Module)


def test_prefixes_beside_matryoshka_loss():
    # Its sum over widths is our average times the sum of the weights.
    results = []
    for at_once in (False, True):
        generator = torch.Generator().manual_seed(0)
        q, d, x = (
            torch.randn(7, 24, generator=generator, dtype=torch.float64).requires_grad_()
            for _ in range(3)
        )
        dims, weights = [24, 5, 16], [1.0, 0.25, 2.0]
        if at_once:
            loss = sum(weights) * simtile.info_nce(
                q,
                d,
                x[:, None],
                temperature=0.05,
                matryoshka_dims=dims,
                matryoshka_weights=weights,
            )
        else:
            model = Encoder("model", 24)
            ranking = peer.MultipleNegativesRankingLoss(model, scale=20.0)
            features = [{"model": y} for y in (q, d, x)]
            loss = peer.MatryoshkaLoss(model, ranking, dims, weights)(features, None)
        loss.backward()
        results.append((loss.detach(), q.grad, d.grad, x.grad))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
