"""simtile.integrations.sentence_transformers_triplet beside sentence-transformers itself."""

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("HF_HUB_OFFLINE", "1")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "builtin type .*[Ss]wig", DeprecationWarning)
    from sentence_transformers.sentence_transformer import losses as peer

from simtile.integrations import sentence_transformers_triplet as ours

MODEL = torch.nn.Identity()
DISTANCES = peer.BatchHardTripletLossDistanceFunction
TRIPLET_METRICS = ("COSINE", "EUCLIDEAN", "MANHATTAN")
# float64, because the original's distances of float32 rows lose digits
sizes = st.sampled_from([1, 2, 3, 7, 33, 64])
dimensions = st.sampled_from([1, 2, 7, 65])
seeds = st.integers(0, 2**32 - 1)
margins = st.sampled_from([0.0, 0.1, 1.0, 5.0])


def both(own, theirs, embeddings, labels, tolerance=1e-8):
    """Loss and gradients of both losses, of equal embeddings."""
    results = []
    for loss in (own, theirs):
        leaves = [torch.tensor(x, requires_grad=True) for x in embeddings]
        value = loss.compute_loss_from_embeddings(leaves, labels)
        value.backward()
        results.append((value.item(), [leaf.grad.numpy() for leaf in leaves]))
    (value, grads), (expected, expected_grads) = results
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, rtol=tolerance, atol=tolerance)


@given(sizes, dimensions, st.sampled_from(TRIPLET_METRICS), margins, seeds)
def test_triplet_loss(n, dim, metric, margin, seed):
    rows = np.random.default_rng(seed).standard_normal((3, n, dim))
    pair = [
        module.TripletLoss(MODEL, getattr(peer.TripletDistanceMetric, metric), margin)
        for module in (ours, peer)
    ]
    both(*pair, list(rows), torch.zeros(n))
    assert pair[0].get_config_dict() == pair[1].get_config_dict()


@given(
    sizes,
    st.sampled_from([2, 7, 65]),
    st.sampled_from(["cosine_distance", "euclidean_distance"]),
    margins,
    st.sampled_from([1, 2, 5, 1000]),
    seeds,
)
def test_batch_hard_triplet_loss(n, dim, metric, margin, classes, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim))
    labels = torch.from_numpy(rng.integers(0, classes, n))
    pair = [
        module.BatchHardTripletLoss(MODEL, getattr(DISTANCES, metric), margin)
        for module in (ours, peer)
    ]
    # 0 is where the hinge has its corner: rounding decides.
    if classes == 1 and margin == 0:
        return
    both(*pair, [rows], labels)
    assert pair[0].get_config_dict() == pair[1].get_config_dict()


@pytest.mark.parametrize("metric", ["cosine_distance", "euclidean_distance"])
def test_float32(metric):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 48)).astype(np.float32)
    labels = torch.from_numpy(rng.integers(0, 20, 200))
    pair = [
        module.BatchHardTripletLoss(MODEL, getattr(DISTANCES, metric)) for module in (ours, peer)
    ]
    both(*pair, [rows], labels, 2e-5)


def test_defaults_are_the_originals():
    for name in ("TripletLoss", "BatchHardTripletLoss"):
        own, theirs = (getattr(module, name)(MODEL) for module in (ours, peer))
        assert own.triplet_margin == theirs.triplet_margin == 5
        assert own.distance_metric is theirs.distance_metric
        assert own.citation == theirs.citation
        assert isinstance(own, getattr(peer, name))


def test_forward_takes_features():
    class Encoder(torch.nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["x"] * 2.0}

    rows = torch.randn(3, 8, 5, dtype=torch.float64)
    labels = torch.arange(8) % 3
    features = [{"x": x} for x in rows]
    for name, given_features in (("TripletLoss", features), ("BatchHardTripletLoss", features[:1])):
        own, theirs = (getattr(module, name)(Encoder()) for module in (ours, peer))
        expected = theirs(given_features, labels).item()
        assert own(given_features, labels).item() == pytest.approx(expected, rel=1e-10)


def test_other_metrics_and_labels_are_refused():
    with pytest.raises(ValueError, match="distance_metric: found <function"):
        ours.TripletLoss(MODEL, lambda x, y: (x - y).sum(1))
    with pytest.raises(ValueError, match="distance_metric: found <function"):
        ours.BatchHardTripletLoss(MODEL, lambda x: x @ x.T)
    loss = ours.BatchHardTripletLoss(MODEL)
    with pytest.raises(ValueError, match=r"labels: found shape \[2\], expected \[3\]"):
        loss.compute_loss_from_embeddings([torch.zeros(3, 2)], torch.zeros(2, dtype=torch.int64))
