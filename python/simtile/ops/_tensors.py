"""Checks of tensors; each error names the argument, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simtile import _inputs

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_PLAIN_TYPES = frozenset((torch.Tensor, torch.nn.Parameter, type(None), float))


def check_floats(name: str, tensor: object, arrays_go_to: str = "") -> torch.dtype:
    """The element type of a dense floating-point tensor.

    `arrays_go_to` is another function, for the hint.
    """
    if not isinstance(tensor, Tensor):
        hint = ""
        if isinstance(tensor, np.ndarray):
            hint = "; torch.from_numpy(x) makes it one"
            if arrays_go_to:
                hint += f", or use {arrays_go_to} with arrays alone"
        raise TypeError(f"{name}: found {type(tensor).__name__}, expected a torch.Tensor{hint}")
    dtype = tensor.dtype
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"{name}: found {dtype}, expected float32, float64, bfloat16 or float16")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: found layout {tensor.layout}, expected a dense (strided) tensor")
    return dtype


def as_integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    """Integers as a tensor."""
    if isinstance(values, Tensor):
        tensor = values
    elif torch.compiler.is_compiling():
        tensor = torch.as_tensor(values, device="cpu")
    else:  # NumPy's errors are turned into ours
        tensor = torch.from_numpy(_inputs.int_array(name, values))
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"{name}: found {tensor.dtype}, expected an integer tensor, e.g. int64")
    return tensor


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """What sums over such elements are kept in, and gradients."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def address(x: Tensor | None) -> int:
    """Where a kernel finds the elements; 0 for none."""
    return 0 if x is None else x.data_ptr()


def check_one_number(name: str, tensor: Tensor) -> None:
    """Raise unless a tensor is one floating-point number."""
    if tensor.numel() != 1 or tensor.ndim > 1:
        raise ValueError(
            f"{name}: found shape {list(tensor.shape)}, expected a tensor with one element"
        )
    if tensor.dtype not in DTYPE_NAMES:
        raise ValueError(f"{name}: found {tensor.dtype}, expected a floating-point tensor")


def are_plain(*values: object) -> bool:
    """Whether these are ordinary tensors and no dispatch mode wants to see the operators."""
    return _PLAIN_TYPES.issuperset(map(type, values)) and torch._C._len_torch_dispatch_stack() == 0


def check_devices(
    queries: Tensor, vectors: dict[str, Tensor | None], others: dict[str, object]
) -> None:
    """Raise unless all are where the queries are; `others` may be on the CPU beside a GPU."""
    device = queries.device
    for name, tensor in {**vectors, **others}.items():
        if not isinstance(tensor, Tensor) or tensor.device == device:
            continue
        if name in others and tensor.device.type == "cpu":
            continue
        raise ValueError(
            f"{name}: found a tensor on {tensor.device}, expected {device} because queries are "
            "there"
        )


def as_index(values: Tensor | None, device: torch.device) -> Tensor | None:
    """Indices as kernels take them: int64, side by side, on the inputs' device."""
    return None if values is None else values.to(device, torch.int64).contiguous()


def complete_ids(
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    targets: Tensor | None,
    n: int,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Both ids from either: a query's document has the query's id."""
    query_ids, document_ids = as_index(query_ids, device), as_index(document_ids, device)
    if document_ids is None:
        return query_ids, query_ids
    if query_ids is None and targets is None:
        query_ids = document_ids[:n]
    elif query_ids is None:
        # A target out of range makes the row NaN later; here it must only stay in bounds.
        own = targets.to(device, torch.int64).clamp(0, document_ids.shape[0] - 1)  # type: ignore[union-attr]
        query_ids = document_ids[own]
    return query_ids, document_ids


def temperature_on(temperature: Tensor, device: torch.device) -> Tensor:
    """float32 [1] on a device; NaN where it is not a finite number above 0, which nobody reads."""
    number = temperature.detach().to(device, torch.float32).reshape(1)
    return torch.where((number > 0) & torch.isfinite(number), number, torch.nan)
