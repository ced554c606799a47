"""Rows of all ranks of torch.distributed, for losses of this rank's rows against everybody's."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from simtile.distributed import _all_gather, _gather


def ranks() -> int:
    """How many ranks there are; 1 where torch.distributed is not initialised."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size()


def check_equal_rows(name: str, x: Tensor) -> None:
    """ValueError on all ranks unless `x` has as many rows on each."""
    mine = torch.tensor([x.shape[0]], dtype=torch.int64, device=x.device)
    table = mine.new_empty(dist.get_world_size())
    _all_gather(table, mine)
    rows = table.tolist()
    if len(set(rows)) > 1:
        raise ValueError(f"{name}: found {rows} rows on the ranks, expected as many on each")


def gather(x: Tensor, with_grad: bool = True) -> Tensor:
    """The rows of all ranks, rank 0's first: [N, …] → [ranks N, …].

    With gradients the backward adds up what all ranks return for a row, so all must call it.
    """
    if not with_grad:
        x = x.detach()
    return _gather(x, [x.shape[0]] * dist.get_world_size(), None)


def own_rows(x: Tensor) -> slice:
    """Where this rank's part of the gathered rows `x` is."""
    n, rank = x.shape[0] // dist.get_world_size(), dist.get_rank()
    return slice(rank * n, (rank + 1) * n)


def own_first(x: Tensor) -> Tensor:
    """Gathered rows in another order: this rank's, then the others'."""
    own = own_rows(x)
    return torch.cat([x[own], x[: own.start], x[own.stop :]])


def of_others(x: Tensor) -> Tensor:
    """Gathered rows without this rank's."""
    own = own_rows(x)
    return torch.cat([x[: own.start], x[own.stop :]])
