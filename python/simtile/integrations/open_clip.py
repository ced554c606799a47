"""open_clip's contrastive losses over simtile: same constructors, arguments and results.

``from simtile.integrations.open_clip import ClipLoss, SigLipLoss`` in place of the import from
``open_clip`` (or ``open_clip.loss``). open_clip itself is not needed. As there, features are taken
as they are: normalise them before. The matrix of logits is never stored, so there are no
``get_logits`` and ``get_ground_truth`` to override.

A loss is float32, or float64 where the features are. With ``world_size`` above 1 features are
exchanged by torch.distributed; Horovod is not served. Nothing falls back to the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import simtile
from simtile import _inputs
from simtile.integrations import _gathered

__all__ = ["ClipLoss", "SigLipLoss"]

_BOTH = ("query_to_doc", "doc_to_query")
_EXCHANGES = ("bidir", "shift", "reduce", "gather")


class ClipLoss(torch.nn.Module):
    """``open_clip.ClipLoss``: cross entropy from images to texts and from texts to images.

    Parameters
    ----------
    local_loss : bool
        Of several ranks, each compares its own images and texts with everybody's. Otherwise every
        rank computes the loss of all.
    gather_with_grad : bool
        Whether features of other ranks are differentiated.
    cache_labels : bool
        No effect: there are no labels.
    rank, world_size : int
        As torch.distributed has them.
    use_horovod : bool
        Must be False.

    Raises
    ------
    ValueError
        `use_horovod`; a `rank` or `world_size` that is not torch.distributed's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError(
                "use_horovod: found True, expected False: features are exchanged by "
                "torch.distributed; for Horovod use the original loss"
            )
        _check_ranks(rank, world_size)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The loss of images [N, D] and their texts [N, D].

        Parameters
        ----------
        image_features, text_features : Tensor [N, D]
        logit_scale : float or Tensor with one element
            Above 0, multiplies the similarities; differentiated.
        logit_bias : float or Tensor with one element, optional
            Added to every logit, which changes no cross entropy: its gradient is 0.
        output_dict : bool
            Return ``{"contrastive_loss": loss}``.
        """
        _check_features(image_features, text_features)
        options = {
            "temperature": _temperature(logit_scale),
            "bias": logit_bias,
            "normalize": False,
        }
        if self.world_size > 1:
            loss = self._of_all_ranks(image_features, text_features, options)
        else:
            loss = _symmetric(image_features, text_features, options)
        return {"contrastive_loss": loss} if output_dict else loss

    def _of_all_ranks(self, images: Tensor, texts: Tensor, options: dict[str, Any]) -> Tensor:
        _gathered.check_equal_rows("image_features", images)
        all_images, all_texts = (
            _gathered.gather(x, self.gather_with_grad) for x in (images, texts)
        )
        own = _gathered.own_rows(all_images)
        if not self.local_loss:
            if not self.gather_with_grad:
                all_images, all_texts = (
                    torch.cat([others[: own.start], x, others[own.stop :]])
                    for others, x in ((all_images, images), (all_texts, texts))
                )
            return _symmetric(all_images, all_texts, options)
        targets = torch.arange(own.start, own.stop, device=images.device)
        to_texts = simtile.info_nce(images, all_texts, targets=targets, **options)
        to_images = simtile.info_nce(texts, all_images, targets=targets, **options)
        return (to_texts + to_images) / 2


class SigLipLoss(torch.nn.Module):
    """``open_clip.SigLipLoss``: every pair of an image and a text is a question of its own.

    Parameters
    ----------
    cache_labels : bool
        No effect: there are no labels.
    rank, world_size : int
        As torch.distributed has them. Of several ranks, each compares its own images with
        everybody's texts.
    dist_impl : "bidir", "shift", "reduce" or "gather", optional
        How the original exchanges texts, to one result. Here they are always gathered: O(N D) for
        the texts of all ranks.

    Raises
    ------
    ValueError
        An unknown `dist_impl`; a `rank` or `world_size` that is not torch.distributed's.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        self.dist_impl = dist_impl or "bidir"
        _inputs.check_choice("dist_impl", self.dist_impl, _EXCHANGES)
        _check_ranks(rank, world_size)
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """The loss of images [N, D] and their texts [N, D], divided by N.

        Parameters
        ----------
        image_features, text_features : Tensor [N, D]
        logit_scale : float or Tensor with one element
            Above 0, multiplies the similarities; differentiated.
        logit_bias : float or Tensor with one element, or None
            Added to every logit; differentiated.
        output_dict : bool
            Return ``{"contrastive_loss": loss}``.
        """
        _check_features(image_features, text_features)
        texts = text_features
        if self.world_size > 1:
            _gathered.check_equal_rows("image_features", image_features)
            texts = _gathered.own_first(_gathered.gather(text_features))
        loss = simtile.siglip_loss(
            image_features,
            texts,
            temperature=_temperature(logit_scale),
            bias=0.0 if logit_bias is None else logit_bias,
            normalize=False,
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _symmetric(images: Tensor, texts: Tensor, options: dict[str, Any]) -> Tensor:
    return simtile.info_nce(images, texts, directions=_BOTH, partition="per_direction", **options)


def _temperature(logit_scale: float | Tensor) -> float | Tensor:
    if isinstance(logit_scale, Tensor):
        return logit_scale.reciprocal()
    if not logit_scale > 0:
        raise ValueError(f"logit_scale: found {logit_scale}, expected a number above 0")
    return 1.0 / logit_scale


def _check_features(images: Tensor, texts: Tensor) -> None:
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"text_features: found {list(texts.shape)} with image_features {list(images.shape)}, "
            "expected [N, D] of both"
        )


def _check_ranks(rank: int, world_size: int) -> None:
    if world_size == 1 and rank == 0:
        return
    found = (torch.distributed.get_rank(), _gathered.ranks()) if _gathered.ranks() > 1 else (0, 1)
    if (rank, world_size) != found:
        raise ValueError(
            f"rank, world_size: found {rank} and {world_size}, expected {found[0]} and {found[1]} "
            "as torch.distributed has them"
        )
