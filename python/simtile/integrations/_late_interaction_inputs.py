"""Arguments of late-interaction-kernels' functions as tensors, or an error that says what was
expected."""

from __future__ import annotations

from typing import Any

from simtile.integrations._late_interaction import Tensor, check_shape, to_mask, to_tensor, torch

BACKWARDS = ("auto", "unified", "lowmem")


def check_backward(backward: str | None) -> None:
    if backward is not None and backward not in BACKWARDS:
        raise ValueError(
            f"backward: found {backward!r}, expected one of {', '.join(map(repr, BACKWARDS))}"
        )


def to_bool_mask(name: str, mask: Any, x: Tensor) -> Tensor | None:
    given = to_mask(name, mask, *x.shape[:-1])
    return None if given is None else given.bool()


def sequence_lengths(
    name: str, packed: Tensor, offsets: Any, offsets_name: str, longest: int | None
) -> list[int]:
    check_shape(name, packed, "T", "D")
    bounds = torch.as_tensor(offsets).to("cpu", torch.int64)
    lengths: list[int] = bounds.diff().tolist()
    ends = (int(bounds[0]), int(bounds[-1])) if bounds.ndim == 1 and len(bounds) else None
    if ends != (0, len(packed)) or min(lengths, default=0) < 0:
        raise ValueError(
            f"{offsets_name}: found {list(bounds.shape)} from {ends}, expected ascending offsets "
            f"from 0 to {len(packed)}, the number of tokens"
        )
    if longest is not None and max(lengths, default=0) > longest:
        raise ValueError(
            f"{offsets_name}: found a sequence of {max(lengths)}, expected no more than {longest}"
        )
    return lengths


def split(name: str, x: Any, offsets: Any, offsets_name: str, longest: int | None) -> list[Tensor]:
    packed = to_tensor(name, x)
    return list(torch.split(packed, sequence_lengths(name, packed, offsets, offsets_name, longest)))


def indices(name: str, x: Any, count: int) -> Tensor:
    indices = torch.as_tensor(x)
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(
            f"{name}: found {indices.dtype} {list(indices.shape)}, expected integers [P]"
        )
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < count):
        raise ValueError(f"{name}: found a number that is not from 0 to {count - 1}")
    return indices.long()
