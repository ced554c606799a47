"""Matrices of tokens in every form that MaxSim takes, with shapes that are checked.

A padded batch [B, L, D], a list of [L_i, D], or packed tokens [T, D] with offsets; arrays or
tensors. `_maxsim_sides` makes of them what kernels on the CPU read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile import _tensors

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """The matrices of a list, of one type, where they are instead of in one matrix [T, D]."""

    items: Sequence[Any]
    shape: tuple[int, int]
    dtype: Any

    def together(self) -> Any:
        if not _tensors.is_tensor(self.items[0]):
            return np.concatenate(_of_one_type(self.items))
        import torch

        return torch.cat(list(self.items))


@dataclass(frozen=True)
class Given:
    """Queries or documents with shapes that have been checked.

    No NamedTuple: torch 2.6 does not compile properties of one, nor `replace` of either.
    """

    name: str
    # a batch [B, L, D], or tokens [T, D] that offsets divide, or their Parts; arrays or tensors
    x: Any
    offsets: Any  # int64 [B + 1], from 0 to T; an array, or a tensor while torch compiles
    mask: Any  # bool [B, L] or [T], or None

    @property
    def batch(self) -> int:
        """How many matrices."""
        return int(self.x.shape[0] if self.offsets is None else len(self.offsets) - 1)

    @property
    def dim(self) -> int:
        return int(self.x.shape[-1])

    @property
    def of_tensors(self) -> bool:
        return _tensors.is_tensor(self.x.items[0] if isinstance(self.x, Parts) else self.x)

    @property
    def device(self) -> Any:
        """Of tensors."""
        return (self.x.items[0] if isinstance(self.x, Parts) else self.x).device

    def together(self) -> Given:
        """Parts as one matrix."""
        if not isinstance(self.x, Parts):
            return self
        return Given(self.name, self.x.together(), self.offsets, self.mask)

    @property
    def width(self) -> int | None:
        """L of a batch."""
        return int(self.x.shape[1]) if self.offsets is None else None


def given(name: str, x: Any, mask: Any, mask_name: str, *, apart: bool = False) -> Given:
    """A batch [B, L, D] or a list of [L_i, D], with a mask [B, L] or a list of [L_i].

    `apart`: what is in a list stays in `Parts` if it is of one type.

    Raises
    ------
    ValueError, TypeError
        It has another shape, or no dimensions; the mask does not fit.
    """
    if isinstance(x, (list, tuple)):
        return _of_list(name, x, mask, mask_name, apart)
    x = x if _tensors.is_tensor(x) else _tensors.to_array(name, x)
    shape = list(x.shape)
    if len(shape) != 3:
        hint = "; one matrix of tokens is x[None]" if len(shape) == 2 else ""
        raise ValueError(
            f"{name}: found {_tensors.dtype_name(x)} {shape}, expected [B, L, D] or a list of "
            f"[L, D]{hint}"
        )
    _check_dim(name, x)
    if mask is not None:
        if isinstance(mask, (list, tuple)):
            mask = _stacked(mask_name, mask, shape)
        mask = _bools(mask_name, mask, shape[:2], f"{name} are {shape}")
    return Given(name, x, None, mask)


def given_packed(
    name: str, tokens: Any, offsets: Any, mask: Any, mask_name: str, offsets_name: str = "offsets"
) -> Given:
    """Tokens [T, D]; matrix i is ``tokens[offsets[i] : offsets[i + 1]]``. The mask is [T]."""
    x = tokens if _tensors.is_tensor(tokens) else _tensors.to_array(name, tokens)
    shape = list(x.shape)
    if len(shape) != 2:
        raise ValueError(
            f"{name}: found {_tensors.dtype_name(x)} {shape}, expected the tokens of all documents "
            "[T, D]"
        )
    _check_dim(name, x)
    if _tensors.is_tensor(x) and _is_compiling():  # the operator looks at their values
        bounds = _tensors.as_tensor(offsets, "cpu").long()
    else:
        bounds = check_offsets(offsets_name, offsets, shape[0], name)
    if mask is not None:
        mask = _bools(mask_name, mask, shape[:1], f"{name} are {shape}")
    return Given(name, x, bounds, mask)


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()


def check_offsets(name: str, offsets: Any, total: int, of: str) -> Int64s:
    """int64 [N + 1]: ascending, from 0 to the number of tokens."""
    array = _tensors.as_array(offsets, name)
    found = f"{name}: found {array.dtype} {list(array.shape)}"
    if array.ndim != 1 or len(array) < 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{found}, expected integers [N + 1] from 0 to the number of {of}")
    bounds = np.require(array, np.int64, ["C", "ALIGNED"])
    if bounds[0] != 0 or bounds[-1] != total:
        raise ValueError(
            f"{found} from {bounds[0]} to {bounds[-1]}, expected 0 to {total} because there are "
            f"{total} {of}; lengths become offsets by numpy.cumsum([0, *lengths])"
        )
    falls = np.flatnonzero(bounds[1:] < bounds[:-1])
    if len(falls):
        i = int(falls[0])
        raise ValueError(
            f"{found}, expected ascending ones, and [{i}] is {bounds[i]}, [{i + 1}] is "
            f"{bounds[i + 1]}"
        )
    return bounds


def _of_list(name: str, items: Sequence[Any], mask: Any, mask_name: str, apart: bool) -> Given:
    tensors = [_tensors.is_tensor(x) for x in items]
    if any(tensors) and not all(tensors):
        i = tensors.index(not tensors[0])
        raise TypeError(
            f"{name}[{i}]: found {type(items[i]).__name__}, expected {type(items[0]).__name__} "
            f"because {name}[0] is one"
        )
    if not any(tensors):
        items = [_tensors.to_array(f"{name}[{i}]", x) for i, x in enumerate(items)]
    for i, x in enumerate(items):
        if len(x.shape) != 2 or x.shape[1] != items[0].shape[1]:
            expected = f"[L, {items[0].shape[-1]}]" if i else "[L, D]"
            raise ValueError(
                f"{name}[{i}]: found {_tensors.dtype_name(x)} {list(x.shape)}, expected {expected}"
            )
        if x.shape[1] == 0:
            _check_dim(f"{name}[{i}]", x)
    lengths = [x.shape[0] for x in items]
    apart = apart and all(x.dtype == items[0].dtype for x in items)
    if any(tensors):
        for i, x in enumerate(items):
            if x.device != items[0].device:
                raise ValueError(
                    f"{name}[{i}]: found a tensor on {x.device}, expected {items[0].device} "
                    f"because {name}[0] is there"
                )
    if len(items) == 1:
        together: Any = items[0]
    elif items:
        together = Parts(items, (sum(lengths), items[0].shape[1]), items[0].dtype)
        together = together if apart else together.together()
    else:
        together = np.zeros((0, 0), np.float32)  # of the other side's dimensions and type
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    if mask is not None:
        mask = _list_mask(name, mask, mask_name, lengths)
    return Given(name, together, offsets, mask)


def _of_one_type(items: Sequence[Array]) -> Sequence[Array]:
    """Floats of several types as their sums are: NumPy knows no type for float16 and bfloat16."""
    types = {x.dtype for x in items}
    if len(types) < 2 or not all(t.kind == "f" or t.name == "bfloat16" for t in types):
        return items
    wide = np.float64 if np.dtype(np.float64) in types else np.float32
    return [x.astype(wide) for x in items]


def _list_mask(name: str, mask: Any, mask_name: str, lengths: list[int]) -> Any:
    if not isinstance(mask, (list, tuple)):
        raise TypeError(
            f"{mask_name}: found {type(mask).__name__}, expected a list of [L] because {name} are "
            "a list"
        )
    if len(mask) != len(lengths):
        raise ValueError(
            f"{mask_name}: found {len(mask)} masks, expected {len(lengths)} because there are "
            f"{len(lengths)} {name}"
        )
    parts = [
        _bools(f"{mask_name}[{i}]", own, [length], f"{name}[{i}] has {length} rows")
        for i, (own, length) in enumerate(zip(mask, lengths, strict=True))
    ]
    if any(map(_tensors.is_tensor, parts)):
        import torch

        return torch.cat([torch.as_tensor(part) for part in parts])
    return np.concatenate([*parts, np.zeros(0, bool)])


def _stacked(name: str, masks: Sequence[Any], shape: list[int]) -> Any:
    """A list of masks, one for each matrix of a batch, as one."""
    parts = _tensors.each(name, masks)
    if len({tuple(own.shape) for own in parts}) > 1:
        raise ValueError(
            f"{name}: found masks of different lengths, expected {shape[:2]}, one bool for each "
            "token, padding among them"
        )
    if any(map(_tensors.is_tensor, parts)):
        import torch

        return torch.stack([torch.as_tensor(own) for own in parts])
    return np.stack(parts) if parts else np.zeros(shape[:2], bool)


def _bools(name: str, mask: Any, shape: list[int], because: str) -> Any:
    """bool, or the integers of tokenizers, where 0 is no token."""
    array = mask if _tensors.is_tensor(mask) else _tensors.to_array(name, mask)
    kind = _tensors.dtype_name(array)
    if kind != "bool" and not kind.startswith(("int", "uint")):
        raise ValueError(
            f"{name}: found {kind} {list(array.shape)}, expected bool, or integers that are 0 for "
            "what is no token"
        )
    if list(array.shape) != shape:
        raise ValueError(f"{name}: found {kind} {list(array.shape)}, expected {shape}: {because}")
    given = array if kind == "bool" else array != 0
    return given if _tensors.is_tensor(given) else np.ascontiguousarray(given)


def _check_dim(name: str, x: Any) -> None:
    if x.shape[-1] == 0:
        raise ValueError(
            f"{name}: found {_tensors.dtype_name(x)} {list(x.shape)}, expected at least one "
            "dimension"
        )


def check_together(queries: Given, documents: Given) -> tuple[Given, Given]:
    """Raise unless both have as many dimensions; an empty list has those of the other."""
    if queries.dim == 0:
        queries = _empty_like(queries, documents)
    if documents.dim == 0:
        documents = _empty_like(documents, queries)
    if queries.dim != documents.dim:
        raise ValueError(
            f"{documents.name}: found {_described(documents)}, expected {queries.dim} dimensions "
            f"because queries are {_described(queries)}"
        )
    return queries, documents


def _empty_like(empty: Given, other: Given) -> Given:
    dim = max(other.dim, 1)
    x = other.x.items[0] if isinstance(other.x, Parts) else other.x
    if _tensors.is_tensor(x):
        return replace(empty, x=x.detach().new_empty((0, dim)))
    return replace(empty, x=np.empty((0, dim), x.dtype if other.dim else np.float32))


def _described(side: Given) -> str:
    return f"{_tensors.dtype_name(side.x)} {list(side.x.shape)}"
