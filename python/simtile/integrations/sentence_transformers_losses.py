"""sentence-transformers' contrastive losses over simtile: same classes, arguments and results.

``from simtile.integrations.sentence_transformers_losses import MultipleNegativesRankingLoss`` in
place of the import from ``sentence_transformers.losses`` (or
``sentence_transformers.sentence_transformer.losses``). Each class is a subclass of the original,
so that trainers, model cards and loss modifiers see what they expect; only the loss of given
embeddings is computed here, without the matrix of similarities. Nothing falls back to the original.

A loss is in float32 unless an embedding is float64. ``docs/sentence-transformers.md`` has every
difference.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as original
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

from simtile.integrations._sentence_transformers_contrast import WIDTHS, gist_loss, ranking_loss

__all__ = [
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MatryoshkaLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]


class MultipleNegativesRankingLoss(original.MultipleNegativesRankingLoss):
    """``sentence_transformers.losses.MultipleNegativesRankingLoss``.

    Raises
    ------
    ValueError
        `similarity_fct` is neither ``util.cos_sim`` nor ``util.dot_score``; with
        `gather_across_devices`, the ranks have different numbers of rows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_similarity(self)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        return ranking_loss(self, embeddings)


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """``sentence_transformers.losses.MultipleNegativesSymmetricRankingLoss``.

    Raises
    ------
    ValueError
        As :class:`MultipleNegativesRankingLoss`.
    """

    def __init__(
        self,
        model: Any,
        scale: float = 20.0,
        similarity_fct: Any = cos_sim,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )


class CachedMultipleNegativesRankingLoss(original.CachedMultipleNegativesRankingLoss):
    """``sentence_transformers.losses.CachedMultipleNegativesRankingLoss``.

    Embeddings are cached as in the original; their loss is computed at once, not in mini-batches.

    Raises
    ------
    ValueError
        As :class:`MultipleNegativesRankingLoss`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_similarity(self)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        return _backward_if(with_backward, ranking_loss(self, [torch.cat(r) for r in reps]))


class GISTEmbedLoss(original.GISTEmbedLoss):
    """``sentence_transformers.losses.GISTEmbedLoss``.

    Nothing is compared with itself. The original leaves that to the guide, which lets it happen
    where the guide's similarity of a pair less the margin is at least 1.

    Raises
    ------
    ValueError
        With `gather_across_devices`, the ranks have different numbers of rows.
    """

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        if len(features) not in (2, 3):
            raise ValueError(f"sentence_features: found {len(features)} columns, expected 2 or 3")
        # A model writes into the features it is given.
        for_guide = [dict(column) for column in features]
        embeddings = embed_columns(self.model, features)
        with torch.no_grad():
            guide = embed_columns(self.guide, [_retokenized(self, column) for column in for_guide])
        return gist_loss(self, embeddings, guide)


class CachedGISTEmbedLoss(original.CachedGISTEmbedLoss):
    """``sentence_transformers.losses.CachedGISTEmbedLoss``, with any number of hard negatives.

    Embeddings are cached as in the original; their loss is computed at once. See
    :class:`GISTEmbedLoss`.
    """

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        reps_guided: list[list[Tensor]],
        *,
        with_backward: bool = False,
    ) -> Tensor:
        if len(reps) != len(reps_guided):
            raise ValueError(
                f"reps_guided: found {len(reps_guided)} columns, expected {len(reps)} as in reps"
            )
        embeddings, guide = ([torch.cat(r) for r in columns] for columns in (reps, reps_guided))
        return _backward_if(with_backward, gist_loss(self, embeddings, guide))


class MatryoshkaLoss(original.MatryoshkaLoss):
    """``sentence_transformers.losses.MatryoshkaLoss``: Σ_k weight_k · loss of the first dim_k.

    Around a loss of this module the texts are encoded once and the widths are computed together;
    around any other loss it is the original. As there, what is cut off is normalised, so that
    ``dot_score`` too compares cosines.

    Raises
    ------
    ValueError
        As the original; weights below 0 around a loss of this module.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.loss, _OURS):
            return
        if min(self.matryoshka_weights) < 0:
            raise ValueError(
                f"matryoshka_weights: found {self.matryoshka_weights}, expected numbers of at "
                "least 0"
            )
        if self.uses_gradient_cache:
            del self.loss.calculate_loss  # the original's, one width after the other

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        if not isinstance(self.loss, _OURS):
            return super().forward(sentence_features, labels)
        chosen = list(range(len(self.matryoshka_dims)))
        if 0 < self.n_dims_per_step < len(chosen):
            # The generator and the draw of the original: the same widths from the same seed.
            chosen = random.sample(chosen, self.n_dims_per_step)
        dims = [self.matryoshka_dims[i] for i in chosen]
        weights = [self.matryoshka_weights[i] for i in chosen]
        setattr(self.loss, WIDTHS, (dims, weights))
        try:
            return cast(Tensor, self.loss(sentence_features, labels))
        finally:
            delattr(self.loss, WIDTHS)


_OURS = (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
)


def _check_similarity(loss: Any) -> None:
    if loss.similarity_fct not in (cos_sim, dot_score):
        name = getattr(loss.similarity_fct, "__name__", repr(loss.similarity_fct))
        raise ValueError(
            f"similarity_fct: found {name}, expected cos_sim or dot_score of "
            "sentence_transformers.util"
        )


def _retokenized(loss: Any, column: dict[str, Tensor]) -> dict[str, Tensor]:
    """A column of features for the guide, whose tokens may be others."""
    if not loss.must_retokenize:
        return column
    ids = column["input_ids"]
    if "cu_seq_lens_q" in column:  # texts one after the other, in one row
        ends = column["cu_seq_lens_q"].tolist()
        rows = [ids[0, a:b].tolist() for a, b in pairwise(ends)]
    else:
        rows = ids.tolist()
    texts = loss.tokenizer.batch_decode(rows, skip_special_tokens=True)
    device = loss.guide.device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in loss.guide.preprocess(texts).items()
    }


def _backward_if(with_backward: bool, loss: Tensor) -> Tensor:
    if not with_backward:
        return loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
