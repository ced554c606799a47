"""The k best of scores that have been computed, as arrays or tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _tensors

Array = npt.NDArray[Any]


def best(scores: Any, candidates: Any, allowed: Any, k: int) -> tuple[Any, Any]:
    """The k best documents of every query, where the scores are.

    Parameters
    ----------
    scores : [Q, C]
    candidates : int64 [Q, C], or None
        Which documents they are of, -1 for none; 0 to C - 1 where None.
    allowed : bool [N] or [Q, N], or None
    k : int

    Returns
    -------
    scores : [Q, k]
        Best first. A NaN is not found.
    ids : int64 [Q, k]
        Of equal scores the lowest first, and each once; -1, with the score -inf, where there are
        no more.
    """
    if _tensors.is_tensor(scores) and scores.device.type != "cpu":
        return _best_of_tensors(scores, candidates, allowed, k)
    if _tensors.is_tensor(scores):
        found = _best_of_arrays(
            scores.detach().numpy(),
            None if candidates is None else _tensors.as_array(candidates),
            allowed,
            k,
        )
        return _tensors.as_tensor(found[0], "cpu"), _tensors.as_tensor(found[1], "cpu")
    return _best_of_arrays(
        scores, None if candidates is None else _tensors.as_array(candidates), allowed, k
    )


def _best_of_arrays(
    scores: Array, candidates: Array | None, allowed: Array | None, k: int
) -> tuple[Array, Array]:
    shape = (len(scores), k)
    found, found_ids = np.full(shape, -np.inf, scores.dtype), np.full(shape, -1, np.int64)
    for q, values in enumerate(scores):
        there = ~np.isnan(values)
        if candidates is not None:
            there &= candidates[q] >= 0
        values = values[there]
        if candidates is None:
            ids = np.flatnonzero(there)
        else:  # each once, by rising id
            ids, first = np.unique(candidates[q][there], return_index=True)
            values = values[first]
        if allowed is not None:
            may = (allowed if allowed.ndim == 1 else allowed[q])[ids]
            ids, values = ids[may], values[may]
        if len(ids) > k:
            last = np.partition(values, len(ids) - k)[len(ids) - k]
            ids, values = ids[values >= last], values[values >= last]
        order = np.argsort(-values, kind="stable")[:k]
        found[q, : len(order)], found_ids[q, : len(order)] = values[order], ids[order]
    return found, found_ids


def _best_of_tensors(scores: Any, candidates: Any, allowed: Any, k: int) -> tuple[Any, Any]:
    """The same on a GPU, by stable sorts."""
    import torch

    scores = scores.detach()
    shape, device = scores.shape, scores.device
    if candidates is None:
        ids = torch.arange(shape[1], device=device).expand(shape)
    else:
        ids, places = torch.as_tensor(candidates, device=device).sort(1)
        scores = scores.gather(1, places)
    out = scores.isnan() | (ids < 0)
    if candidates is not None:
        out[:, 1:] |= ids[:, 1:] == ids[:, :-1]
    if allowed is not None and allowed.shape[-1]:
        rows = _tensors.as_tensor(allowed, device).expand(shape[0], -1)
        out |= ~rows.gather(1, ids.clamp(min=0))
    places = scores.masked_fill(out, float("-inf")).argsort(dim=1, descending=True, stable=True)
    places = places.gather(1, out.gather(1, places).to(torch.uint8).argsort(dim=1, stable=True))
    places = places[:, :k]
    out = out.gather(1, places)
    found = scores.new_full((shape[0], k), float("-inf"))
    found_ids = ids.new_full((shape[0], k), -1)
    kept = places.shape[1]
    found[:, :kept] = scores.gather(1, places).masked_fill(out, float("-inf"))
    found_ids[:, :kept] = ids.gather(1, places).masked_fill(out, -1)
    return found, found_ids
