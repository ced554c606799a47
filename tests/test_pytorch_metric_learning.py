"""simtile.integrations.pytorch_metric_learning beside pytorch-metric-learning itself."""

import re

import numpy as np
import pytest
import torch
from contrastive_cases import option_tuples, pairwise
from drop_ins import check_equal, results, rows
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, reducers, regularizers

from simtile.integrations import pytorch_metric_learning as ours
from simtile.integrations.pytorch_metric_learning import positive_pairs

DISTANCES = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "normalized dot": distances.DotProductSimilarity,
}
REDUCERS = {
    "mean": lambda: None,
    "sum": reducers.SumReducer,
    "per anchor": reducers.PerAnchorReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.5),
    "none": reducers.DoNothingReducer,
}
LEVELS = {
    "labels": ("two views", "classes", "all equal", "all different", "floats"),
    "reference": (None, "others", "same labels"),
    "distance": tuple(DISTANCES),
    "reducer": tuple(REDUCERS),
    "temperature": (0.07, 0.5),
    "regularizer": (False, True),
}
COVERING = pairwise(LEVELS, lambda drawn: True, ())


def labels_of(kind, n, seed):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        {
            "two views": rng.permutation(np.arange(n) // 2),
            "classes": rng.integers(-2, 3, size=n),
            "all equal": np.full(n, 7),
            "all different": rng.permutation(n),
            "floats": rng.integers(0, 3, size=n) / 2,
        }[kind]
    )


def check(drawn, n, m, d, seed):
    labels = labels_of(drawn["labels"], n, seed)
    inputs = [rows(seed, n, d)]
    ref_labels = None
    if drawn["reference"] is not None:
        m = n if drawn["reference"] == "same labels" else m
        inputs.append(rows(seed + 1, m, d))
        ref_labels = labels_of(drawn["labels"], m, seed + 1)
        if drawn["reference"] == "same labels":
            ref_labels = labels.clone()

    def loss(library, embeddings, *others):
        function = library.NTXentLoss(
            temperature=drawn["temperature"],
            distance=DISTANCES[drawn["distance"]](),
            reducer=REDUCERS[drawn["reducer"]](),
            embedding_regularizer=regularizers.LpRegularizer() if drawn["regularizer"] else None,
        )
        value = function(
            embeddings, labels, ref_emb=others[0] if others else None, ref_labels=ref_labels
        )
        if drawn["reducer"] != "none":
            return value
        found = value["loss"]["losses"]  # 0 without a pair
        return found if isinstance(found, torch.Tensor) else embeddings.sum() * 0.0

    # Its reducer places pairs in a square of the embeddings, in which more references do not lie.
    if drawn["reducer"] == "per anchor" and drawn["reference"] == "others" and m > n:
        try:
            results(loss, losses, inputs)
        except IndexError as error:
            with pytest.raises(IndexError, match=re.escape(str(error))):
                results(loss, ours, inputs)
            return
    check_equal(loss, losses, ours, inputs)


def test_more_references_than_the_reducer_has_room_for():
    drawn = {**COVERING[0], "labels": "two views", "reference": "others", "reducer": "per anchor"}
    check(drawn, 1, 9, 2, 0)


@pytest.mark.parametrize("number", range(len(COVERING)))
def test_nt_xent(number):
    check(COVERING[number], 6, 5, 4, number)


@given(
    option_tuples(LEVELS, lambda drawn: True),
    st.sampled_from([1, 2, 3, 8, 21]),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([2, 17]),
    st.integers(0, 2**31),
)
def test_nt_xent_of_any_size(drawn, n, m, d, seed):
    check(drawn, n, m, d, seed)


@given(
    st.lists(st.integers(0, 4), max_size=9), st.lists(st.integers(0, 4), max_size=9), st.booleans()
)
def test_positive_pairs(labels, others, same):
    labels = torch.tensor(labels, dtype=torch.int64)
    others = labels if same else torch.tensor(others, dtype=torch.int64)
    equal = labels[:, None] == others
    negative_pairs = int((~equal).sum())
    if same:
        equal.fill_diagonal_(False)
    anchors, positives, found = positive_pairs(labels, others, same)
    expected = torch.where(equal)
    assert torch.equal(anchors, expected[0])
    assert torch.equal(positives, expected[1])
    assert found == negative_pairs


def test_wrapped_by_self_supervised_loss():
    def loss(library, embeddings, views):
        return losses.SelfSupervisedLoss(library.NTXentLoss())(embeddings, views)

    check_equal(loss, losses, ours, [rows(0, 5, 3), rows(1, 5, 3)])


def test_what_is_not_served_raises():
    for distance in (distances.LpDistance(), distances.CosineSimilarity(power=2)):
        with pytest.raises(ValueError, match=r"distance: found .*, expected CosineSimilarity or"):
            ours.NTXentLoss(distance=distance)
    x, labels = torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="indices_tuple: found pairs or triplets, expected None"):
        ours.NTXentLoss()(x, labels, indices_tuple=(labels, labels, labels))
    with pytest.raises(ValueError, match="labels: found None"):
        ours.NTXentLoss()(x)
