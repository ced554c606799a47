"""info-nce-pytorch's loss over simtile: same arguments and results.

``from simtile.integrations.info_nce_pytorch import InfoNCE, info_nce`` in place of
``from info_nce import InfoNCE, info_nce``. The package itself is not needed. The loss is float32,
or float64 where an input is; nothing falls back to the original.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import simtile
from simtile import _inputs

__all__ = ["InfoNCE", "info_nce"]

Reduction = Literal["mean", "sum", "none"]
NegativeMode = Literal["unpaired", "paired"]

# The kernel multiplies a query with the positives of all queries that it is given, and with paired
# negatives these products are not used: of so many queries at a time they cost little.
PAIRED_ROWS = 64


class InfoNCE(torch.nn.Module):
    """:func:`info_nce` as a module.

    Parameters
    ----------
    temperature, reduction, negative_mode
        As in :func:`info_nce`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        negative_mode: NegativeMode = "unpaired",
    ) -> None:
        super().__init__()
        _check_choices(reduction, negative_mode)
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.negative_mode: NegativeMode = negative_mode

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            negative_mode=self.negative_mode,
        )


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    negative_mode: NegativeMode = "unpaired",
) -> Tensor:
    """``info_nce.info_nce`` of cosine similarities, without their matrix.

    Parameters
    ----------
    query, positive_key : Tensor [N, D]
    negative_keys : Tensor, optional
        [M, D], everybody's, if unpaired; [N, M, D], each query's own, if paired. With negative keys
        other queries' positives are no candidates; without, they are the negatives.
    temperature : float
        Divides the cosines.
    reduction : "mean", "sum" or "none"
    negative_mode : "unpaired" or "paired"

    Returns
    -------
    Tensor, scalar or [N] for "none"

    Raises
    ------
    ValueError
        Shapes that do not fit, no queries, or an unknown choice.

    Notes
    -----
    Unpaired negatives cost N (N + M) products where the original computes N (M + 1).
    """
    _check_choices(reduction, negative_mode)
    _check_shape("query", query, 2)
    _check_shape("positive_key", positive_key, 2)
    if positive_key.shape != query.shape:
        raise ValueError(
            f"positive_key: found {list(positive_key.shape)}, expected {list(query.shape)} as query"
        )
    if negative_keys is None:
        return simtile.info_nce(query, positive_key, temperature=temperature, reduction=reduction)
    paired = negative_mode == "paired"
    _check_shape("negative_keys", negative_keys, 3 if paired else 2)
    wanted = [query.shape[0], negative_keys.shape[1], query.shape[1]] if paired else query.shape[1:]
    if list(negative_keys.shape)[-len(wanted) :] != list(wanted):
        raise ValueError(
            f"negative_keys: found {list(negative_keys.shape)} with query {list(query.shape)}, "
            f"expected {'[N, M, D]' if paired else '[M, D]'}"
        )
    if not paired:
        return _unpaired(query, positive_key, negative_keys, temperature, reduction)
    parts = [
        _paired(*rows, temperature, "none" if reduction == "none" else "sum")
        for rows in zip(
            torch.split(query, PAIRED_ROWS),
            torch.split(positive_key, PAIRED_ROWS),
            torch.split(negative_keys, PAIRED_ROWS),
            strict=True,
        )
    ]
    if reduction == "none":
        return torch.cat(parts)
    total = torch.stack(parts).sum()
    return total / query.shape[0] if reduction == "mean" else total


def _unpaired(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    # All queries and positives have one id, so that no other query's positive is a negative.
    ids = torch.zeros(len(query) + len(negative_keys), dtype=torch.int64, device=query.device)
    ids[len(query) :] = 1
    return simtile.info_nce(
        query,
        torch.cat([positive_key, negative_keys]),
        temperature=temperature,
        query_ids=ids[: len(query)],
        document_ids=ids,
        reduction=reduction,
    )


def _paired(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor,
    temperature: float,
    reduction: Reduction,
) -> Tensor:
    return simtile.info_nce(
        query,
        positive_key,
        negative_keys,
        temperature=temperature,
        negatives_scope="own",
        query_ids=torch.zeros(len(query), dtype=torch.int64, device=query.device),
        reduction=reduction,
    )


def _check_choices(reduction: str, negative_mode: str) -> None:
    _inputs.check_choice("reduction", reduction, _inputs.REDUCTIONS)
    _inputs.check_choice("negative_mode", negative_mode, ("unpaired", "paired"))


def _check_shape(name: str, x: Tensor, dimensions: int) -> None:
    if x.ndim != dimensions:
        axes = "[N, M, D]" if dimensions == 3 else "[M, D]" if "keys" in name else "[N, D]"
        raise ValueError(f"{name}: found shape {list(x.shape)}, expected {axes}")
