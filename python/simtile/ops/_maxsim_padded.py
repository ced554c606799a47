"""Queries and documents of different lengths as batches, for kernels that take nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simtile._maxsim_inputs import Given


class Padded(NamedTuple):
    """A batch, and where in it the rows are that it was made of."""

    side: Given
    there: Any  # bool [B, L], an array: what is no padding; None where it was a batch before

    def from_rows(self, rows: Tensor, candidates: int, missing: float) -> Tensor:
        """Details of queries of different lengths, one query after the other, as [Q, C, L]."""
        if self.there is None:
            return rows
        count, width = self.there.shape
        whole = rows.new_full((count * candidates * width,), missing)
        whole[self._places(candidates, rows.device)] = rows
        return whole.view(count, candidates, width)

    def to_rows(self, details: Tensor | None, candidates: int) -> Tensor | None:
        """The reverse."""
        if self.there is None or details is None:
            return details
        return details.reshape(-1)[self._places(candidates, details.device)]

    def grad_rows(self, grad: Tensor | None) -> Tensor | None:
        """The gradient of the rows from that of the batch."""
        if self.there is None or grad is None:
            return grad
        places = torch.from_numpy(np.flatnonzero(self.there))
        return grad.reshape(-1, grad.shape[-1])[places.to(grad.device)]

    def _places(self, candidates: int, device: torch.device) -> Tensor:
        count, width = self.there.shape
        each = np.broadcast_to(self.there[:, None], (count, candidates, width))
        return torch.from_numpy(np.flatnonzero(each)).to(device)


def padded(side: Given) -> Padded:
    """Padding is masked; a batch stays as it is."""
    if side.offsets is None:
        return Padded(side, None)
    offsets = np.asarray(side.offsets)
    starts, lengths = offsets[:-1, None], np.diff(offsets)[:, None]
    places = np.arange(lengths.max(initial=0))
    there = places < lengths
    rows = torch.from_numpy(np.where(there, starts + places, 0)).to(side.x.device)
    x: Tensor = side.x
    if len(x) == 0:
        x = x.new_zeros((1, side.dim))
    mask = torch.from_numpy(there).to(x.device)
    if side.mask is not None and len(side.x):
        mask = mask & side.mask[rows]
    return Padded(Given(side.name, x[rows], None, mask), there)
