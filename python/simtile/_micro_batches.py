"""Inputs of an encoder cut into micro-batches, and the random state under which one was encoded."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

# Of an EmbeddingBag's inputs, what has an element for every token and none for every row.
_BAG_TOKENS = ("input_ids", "per_sample_weights")


def count_rows(name: str, batch: object) -> int:
    """How many rows a batch has; raises where it cannot be cut into rows."""
    if isinstance(batch, Tensor):
        if batch.ndim == 0:
            raise ValueError(f"{name}: found a tensor of shape [], expected rows on the first axis")
        return int(batch.shape[0])
    if isinstance(batch, str):
        raise TypeError(f"{name}: found a str, expected a list of strings")
    if isinstance(batch, Mapping):
        return _count_rows_of_dict(name, batch)
    if isinstance(batch, Sequence):
        return len(batch)
    raise TypeError(
        f"{name}: found {type(batch).__name__}, expected a tensor, a dict of tensors or a list"
    )


def _count_rows_of_dict(name: str, batch: Mapping[str, Any]) -> int:
    if "cu_seq_lens_q" in batch:
        raise ValueError(
            f"{name}: found sequences that are packed one after the other (cu_seq_lens_q), "
            "expected padded ones, [rows, tokens]"
        )
    bag = _is_bag(batch)
    if bag:
        count = int(batch["offsets"].shape[0])
    else:
        counts = [len(x) for x in batch.values() if isinstance(x, Tensor) and x.ndim > 0]
        if not counts:
            raise ValueError(f"{name}: found no tensor in a dict of {sorted(batch)}, expected one")
        count = counts[0]
    for key, value in batch.items():
        if bag and key in _BAG_TOKENS:
            continue
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) != count:
            raise ValueError(
                f"{name}[{key!r}]: found shape {list(value.shape)}, expected {count} rows on the "
                "first axis, as the dict's other tensors have"
            )
    return count


def _is_bag(batch: Mapping[str, Any]) -> bool:
    """Whether these are an EmbeddingBag's inputs: all tokens, and where each row begins."""
    tokens, offsets = batch.get("input_ids"), batch.get("offsets")
    return (
        isinstance(tokens, Tensor)
        and isinstance(offsets, Tensor)
        and tokens.ndim == 1
        and offsets.ndim == 1
    )


def cut(batch: Any, begin: int, end: int) -> Any:
    """Rows begin to end of a batch. A dict is a new one, which the encoder may write to."""
    if not isinstance(batch, Mapping):
        return batch[begin:end]
    rows = count_rows("inputs", batch)
    tokens = slice(begin, end)
    bag = _is_bag(batch)
    if bag:
        offsets = batch["offsets"]
        last = int(offsets[end]) if end < rows else batch["input_ids"].shape[0]
        tokens = slice(int(offsets[begin]), last)
    part = {}
    for key, value in batch.items():
        if bag and key == "offsets":
            part[key] = value[begin:end] - value[begin]
        elif bag and key in _BAG_TOKENS:
            part[key] = None if value is None else value[tokens]
        elif (isinstance(value, Tensor) and value.ndim > 0) or (
            isinstance(value, (list, tuple)) and len(value) == rows
        ):
            part[key] = value[begin:end]
        else:
            part[key] = value
    return part


def tensors_of(batch: object) -> Iterator[Tensor]:
    values: Iterable[object] = (batch,)
    if isinstance(batch, Mapping):
        values = batch.values()
    elif isinstance(batch, (list, tuple)):
        values = batch
    for value in values:
        if isinstance(value, Tensor):
            yield value


class RandomState:
    """The state of torch's random numbers, on the CPU and on `devices`."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = [(device, _get_rng_state(device)) for device in devices]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, random numbers are drawn from this state; afterwards as if none had been."""
        outside = RandomState([device for device, _ in self._devices])
        self._set()
        try:
            yield
        finally:
            outside._set()

    def _set(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            module = torch.get_device_module(device)
            if device.type == "mps":  # of which there is one
                module.set_rng_state(state)
            else:
                module.set_rng_state(state, device)


def _get_rng_state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def devices_in_use(tensors: Iterable[Tensor], *, unknown: bool) -> list[torch.device]:
    """The devices besides the CPU; if there may be `unknown` tensors, the current GPU as well."""
    found = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    if unknown and torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.add(torch.device("cuda", torch.cuda.current_device()))
    return sorted(found, key=str)


class AutocastState:
    """Which autocasts are on, to have the same on during a backward."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._states = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", *(device.type for device in devices)})
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Without the cache of cast weights.

        Weights that were cast without a graph would serve, without a graph, whoever uses the
        encoder next under the same autocast (pytorch issue 48049).
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self._states:
                stack.enter_context(
                    torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False)
                )
            yield


def module_of(function: object) -> torch.nn.Module | None:
    """The module that a callable is, or is a method or `functools.partial` of."""
    while not isinstance(function, torch.nn.Module):
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__self__
        else:
            return None
    return function
