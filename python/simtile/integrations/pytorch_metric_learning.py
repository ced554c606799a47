"""pytorch-metric-learning's NT-Xent loss over simtile: change the import, nothing else.

``from simtile.integrations.pytorch_metric_learning import NTXentLoss`` in place of the import from
``pytorch_metric_learning.losses``. The class is a subclass of the original, so that reducers,
regularisers and wrappers such as ``SelfSupervisedLoss`` work as before.

With P positive pairs the original stores P × (all negative pairs) numbers; here it is O(P D).
Differences:

* the loss is float32 unless the embeddings are float64;
* the original adds the smallest number to the quotient inside the logarithm, which caps a loss at
  87 in float32; here it goes on.

What is not served raises ValueError, and nothing falls back to the original: distances other than
CosineSimilarity and DotProductSimilarity, and `indices_tuple` (a miner's pairs).
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.losses import NTXentLoss as _NTXentLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

import simtile

__all__ = ["NTXentLoss"]


class NTXentLoss(_NTXentLoss):  # type: ignore[misc]
    """``pytorch_metric_learning.losses.NTXentLoss`` by :func:`simtile.info_nce`.

    Parameters
    ----------
    temperature : float
        Divides the similarities.
    **kwargs
        `distance`, `reducer`, `embedding_regularizer`, … as in the original.

    Raises
    ------
    ValueError
        A distance that is neither CosineSimilarity nor DotProductSimilarity with power 1 and p 2.
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)
        distance = self.distance
        served = type(distance) in (CosineSimilarity, DotProductSimilarity)
        if not served or distance.p != 2 or distance.power != 1:
            raise ValueError(
                f"distance: found {type(distance).__name__}(p={distance.p}, "
                f"power={distance.power}), expected CosineSimilarity or DotProductSimilarity with "
                "p=2 and power=1; for others use the original loss"
            )

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple: found pairs or triplets, expected None: every row's negatives are "
                "those with another label; for a miner's use the original loss"
            )
        if labels is None or ref_labels is None:
            raise ValueError("labels: found None, expected one label for each embedding")
        same = ref_labels is labels
        # Numbers from 0 for labels of any type.
        both = labels if same else torch.cat([labels, ref_labels])
        numbers = torch.unique(both, return_inverse=True)[1]
        numbers, ref_numbers = (
            (numbers, numbers) if same else numbers.split([len(labels), len(ref_labels)])
        )
        anchors, positives, negative_pairs = positive_pairs(numbers, ref_numbers, same)
        few = len(anchors) <= 1 and negative_pairs <= 1  # where the original has no loss either
        if few or not len(anchors) or not negative_pairs:
            return self.zero_losses()  # type: ignore[no-any-return]
        # A subclass may do anything with the losses of the pairs.
        reduced = type(self.reducer) is MeanReducer
        losses = simtile.info_nce(
            embeddings.index_select(0, anchors),
            ref_emb,
            temperature=self.temperature,
            normalize=self.distance.normalize_embeddings,
            targets=positives,
            query_ids=numbers[anchors],
            document_ids=ref_numbers,
            reduction="mean" if reduced else "none",
        )
        return {
            "loss": {
                "losses": losses,
                "indices": None if reduced else (anchors, positives),
                "reduction_type": "already_reduced" if reduced else "pos_pair",
            }
        }


def positive_pairs(labels: Tensor, ref_labels: Tensor, same: bool) -> tuple[Tensor, Tensor, int]:
    """Rows of equal labels, without the N × M matrix of comparisons.

    Parameters
    ----------
    labels, ref_labels : int [N] and [M], from 0
    same : bool
        Whether both are of the same rows, none of which is its own pair.

    Returns
    -------
    anchors, positives : int64 [P], by anchor and then by positive
    negative_pairs : int
        How many pairs have different labels.
    """
    order = ref_labels.argsort(stable=True)
    counts = ref_labels.bincount(minlength=int(labels.max()) + 1 if len(labels) else 0)
    own = counts[labels]
    first = (counts.cumsum(0) - counts)[labels]
    anchors = torch.arange(len(labels), device=labels.device).repeat_interleave(own)
    # the place of each pair among those of its anchor
    place = torch.arange(len(anchors), device=labels.device) - (own.cumsum(0) - own)[anchors]
    positives = order[first[anchors] + place]
    negative_pairs = len(labels) * len(ref_labels) - len(anchors)
    if same:
        others = anchors != positives
        anchors, positives = anchors[others], positives[others]
    return anchors, positives, negative_pairs
