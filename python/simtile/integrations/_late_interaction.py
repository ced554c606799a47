"""What the look-alikes of late-interaction libraries share: their inputs, as `simtile.maxsim` takes
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from simtile import _tensors

try:
    import torch as torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "this look-alike works on tensors, and torch is not installed: pip install "
        "'simtile[torch]', or use simtile.maxsim with NumPy arrays",
        name="torch",
    ) from None
from torch import Tensor as Tensor

Matrices: TypeAlias = Tensor | list[Tensor]  # [B, L, D], or [L, D] of each length


def to_tensor(name: str, x: Any) -> Tensor:
    """A dense tensor of floats; a list is stacked, integers become float32, as Python's numbers."""
    if isinstance(x, (list, tuple)):
        if x and all(map(_tensors.is_tensor, x)):
            x = torch.stack(list(x))
        elif x and all(isinstance(item, np.ndarray) for item in x):
            x = _tensors.as_tensor(np.stack(x), "cpu")
        else:
            x = torch.tensor(x)
    elif not _tensors.is_tensor(x):
        x = _tensors.as_tensor(np.asarray(x), "cpu")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: found a {x.layout} tensor, expected a dense one: to_dense()")
    tensor: Tensor = x if x.is_floating_point() else x.float()
    return tensor


def check_shape(name: str, x: Tensor, *axes: str) -> None:
    if x.ndim != len(axes):
        raise ValueError(
            f"{name}: found {_tensors.dtype_name(x)} {list(x.shape)}, expected [{', '.join(axes)}]"
        )


def to_matrices(name: str, x: Any) -> Matrices:
    """A batch [B, L, D], or a list of [L, D]; a single [L, D] becomes a batch of one."""
    if isinstance(x, (list, tuple)):
        items = [to_tensor(f"{name}[{i}]", item) for i, item in enumerate(x)]
        for i, item in enumerate(items):
            check_shape(f"{name}[{i}]", item, "L", "D")
        return items
    batch = to_tensor(name, x)
    if batch.ndim == 2:
        batch = batch[None]
    check_shape(name, batch, "B", "L", "D")
    return batch


def lengths_of(matrices: Matrices) -> list[int]:
    if isinstance(matrices, Tensor):
        return [matrices.shape[1]] * len(matrices)
    return [len(matrix) for matrix in matrices]


def device_of(x: Any) -> torch.device | None:
    """Where tensors are; None for arrays."""
    if isinstance(x, (list, tuple)):
        x = x[0] if len(x) else None
    return x.device if _tensors.is_tensor(x) else None


def moved(matrices: Matrices, device: torch.device) -> Matrices:
    if isinstance(matrices, Tensor):
        return matrices.to(device)
    return [matrix.to(device) for matrix in matrices]


def needs_gradients(*sides: Matrices) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(
        matrix.requires_grad for side in sides for matrix in (side if len(side) else ())
    )


def nonzero_rows(x: Tensor) -> Tensor:
    """[..., L] of [..., L, D]: which rows have an element that is not 0."""
    return x.any(dim=-1)


def to_mask(name: str, mask: Any, *shape: int) -> Tensor | None:
    """A mask of this shape; leading axes of size 1, or none, are repeated."""
    if mask is None:
        return None
    if isinstance(mask, (list, tuple)):
        parts = [part if _tensors.is_tensor(part) else torch.as_tensor(part) for part in mask]
        mask = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) if parts else torch.empty(0)
    elif isinstance(mask, np.ndarray):
        mask = _tensors.as_tensor(mask, "cpu")
    elif not _tensors.is_tensor(mask):
        raise TypeError(
            f"{name}: found {type(mask).__name__}, expected a tensor, an array or a list of masks"
        )
    found: Tensor = mask
    try:
        if found.shape[-1] == shape[-1]:  # one of size 1 would be repeated too
            return found.expand(*shape)
    except RuntimeError:
        pass
    raise ValueError(
        f"{name}: found {_tensors.dtype_name(found)} {list(found.shape)}, expected {list(shape)}"
    )


def weights_of(mask: Tensor) -> Tensor | None:
    """What a mask multiplies similarities by, where it has more than 0 and 1; else None."""
    if mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all()):
        return None
    return mask


def weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows [..., D] times weights [...], in no less than float32."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows.to(dtype) * weights.to(rows.device, dtype)[..., None]


def own_masks(mask: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """A mask [B, W] as one of its own length for each of a list of matrices."""
    return [row[:length] for row, length in zip(mask, lengths, strict=True)]


def as_zero_rows(documents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Documents [..., L, D] whose masked rows count as rows of zeros, with similarity 0.

    Returns them with those rows zeroed, and the mask with the first of them set: one does for all,
    so that no other is multiplied.
    """
    absent = ~mask
    first = absent & (absent.cumsum(-1) == 1)
    return documents.masked_fill(absent[..., None], 0), mask | first


def own_documents(groups: Tensor) -> Tensor:
    """The numbers [B, N] of the documents [B, N, L, D] of each query."""
    count, group = groups.shape[:2]
    return torch.arange(count * group, device=groups.device).view(count, group)
