"""sentence-transformers' triplet losses on simtile's kernels: change the import, nothing else.

``from simtile.integrations.sentence_transformers_triplet import BatchHardTripletLoss, TripletLoss``
in place of the import from ``sentence_transformers.losses``. The classes are subclasses of the
originals with the same arguments, and work with their trainer.

`BatchHardTripletLoss` compares all rows in tiles, in O(N D) memory where the original keeps several
N × N matrices. As there, every row counts in the mean: a missing positive has distance 0, and where
all labels are equal the loss is the margin. (:func:`simtile.batch_hard_triplet_loss` leaves such
rows out.) Differences, all of rounding:

* distances of the chosen rows are computed from their differences, where the original's
  |a|² - 2 a·b + |b|² loses the digits of close rows;
* of distances that are equal up to rounding, another may be chosen;
* the loss is float32 also for float16 and bfloat16 embeddings.

A distance metric that is not one of the original's own raises ValueError.
"""

from __future__ import annotations

from typing import Any, cast

from sentence_transformers.sentence_transformer.losses import (
    BatchHardTripletLoss as _BatchHardTripletLoss,
)
from sentence_transformers.sentence_transformer.losses import (
    BatchHardTripletLossDistanceFunction,
    TripletDistanceMetric,
)
from sentence_transformers.sentence_transformer.losses import TripletLoss as _TripletLoss
from torch import Tensor

from simtile import _inputs, _pairwise
from simtile.ops.pairwise import batch_hard_triplet_tensors
from simtile.triplet import triplet_loss

__all__ = [
    "BatchHardTripletLoss",
    "BatchHardTripletLossDistanceFunction",
    "TripletDistanceMetric",
    "TripletLoss",
]

_METRICS: dict[Any, str] = {
    TripletDistanceMetric.COSINE: "cosine",
    TripletDistanceMetric.EUCLIDEAN: "euclidean",
    TripletDistanceMetric.MANHATTAN: "manhattan",
}
_BATCH_METRICS: dict[Any, str] = {
    BatchHardTripletLossDistanceFunction.cosine_distance: "cosine",
    BatchHardTripletLossDistanceFunction.euclidean_distance: "euclidean",
}


def _metric(function: Any, metrics: dict[Any, str], owner: str) -> str:
    if function not in metrics:
        names = ", ".join(metrics.values())
        raise ValueError(
            f"distance_metric: found {function!r}, expected one of {owner}'s own ({names}); for "
            "others use the original loss"
        )
    return metrics[function]


class TripletLoss(_TripletLoss):
    """``sentence_transformers.losses.TripletLoss`` by :func:`simtile.triplet_loss`.

    Parameters
    ----------
    model : SentenceTransformer
    distance_metric : a member of TripletDistanceMetric
    triplet_margin : float
    """

    def __init__(
        self,
        model: Any,
        distance_metric: Any = TripletDistanceMetric.EUCLIDEAN,
        triplet_margin: float = 5,
    ) -> None:
        super().__init__(model, distance_metric, triplet_margin)
        self._metric = _metric(distance_metric, _METRICS, "TripletDistanceMetric")

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        anchor, positive, negative = embeddings
        loss = triplet_loss(
            anchor,
            positive,
            negative,
            margin=self.triplet_margin,
            metric=cast(Any, self._metric),
        )
        return cast(Tensor, loss)


class BatchHardTripletLoss(_BatchHardTripletLoss):
    """``sentence_transformers.losses.BatchHardTripletLoss`` in O(N D) memory.

    Parameters
    ----------
    model : SentenceTransformer
    distance_metric : a function of BatchHardTripletLossDistanceFunction
    margin : float
    backend, threads
        As in :func:`simtile.batch_hard_triplet_loss`.
    """

    def __init__(
        self,
        model: Any,
        distance_metric: Any = BatchHardTripletLossDistanceFunction.euclidean_distance,
        margin: float = 5,
        *,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        super().__init__(model, distance_metric, margin)
        self._metric = _metric(
            distance_metric, _BATCH_METRICS, "BatchHardTripletLossDistanceFunction"
        )
        _inputs.check_choice("backend", backend, _inputs.BACKENDS)
        self._backend, self._threads = backend, _inputs.check_threads(threads)

    def batch_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        if labels.numel() != embeddings.shape[0]:
            _pairwise.check_labels(labels.shape, embeddings.shape[0])
        return batch_hard_triplet_tensors(
            embeddings,
            labels.reshape(-1),
            _pairwise.check_number("margin", self.triplet_margin),
            self._metric,
            False,
            False,
            self._backend,
            self._threads,
        )
