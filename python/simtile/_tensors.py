"""Tensors of torch beside arrays, without importing torch before there is a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch.Tensor, or of a class derived from it."""
    if type(x) is np.ndarray:
        return False
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in type(x).__mro__)


def dtype_name(x: Any) -> str:
    """Of an array or a tensor: "float32", "int8", …"""
    return str(x.dtype).removeprefix("torch.")


def to_array(name: str, x: Any) -> Array:
    """An argument that is no tensor as an array.

    Raises
    ------
    TypeError, ValueError
        Of NumPy's type, with the argument's name: lists of different lengths, for example.
    """
    if x is None:
        raise TypeError(f"{name}: found None, expected an array")
    try:
        array: Array = np.asarray(x)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: found {type(x).__name__} that is no array: {error}") from None
    return array


def each(name: str, items: Sequence[Any]) -> list[Any]:
    """What a list holds as arrays, and tensors as they are."""
    return [x if is_tensor(x) else to_array(f"{name}[{i}]", x) for i, x in enumerate(items)]


def as_array(x: Any, name: str = "an argument") -> Array:
    """The elements as an array, those of bfloat16 as uint16; what lies on the CPU is not copied."""
    if not is_tensor(x):
        return to_array(name, x)
    x = x.detach()
    if dtype_name(x) == "bfloat16":
        import torch

        x = x.view(torch.uint16)
    return x.numpy(force=True)  # type: ignore[no-any-return]


def as_tensor(x: Any, device: Any) -> Any:
    """The elements on a torch device; an array's memory is shared where that is the CPU."""
    import torch

    if is_tensor(x):
        return x.to(device)
    array = np.asarray(x)
    if not array.flags.writeable:  # torch warns, because it cannot keep anyone from writing
        array = array.copy()
    return torch.from_numpy(array).to(device)
