"""What the files of bench/ptx that execute Triton kernels share: launches, counts, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import triton_launches
from _ptx import SECTOR, total

Launch = triton_launches.Launch


class Counts(NamedTuple):
    """Bytes and matrix operations of one launch by the README's formulas."""

    bytes: int
    operations: int


def up(x: int, step: int) -> int:
    return -(-x // step) * step


def row(size: int) -> int:
    """Bytes of a row that begins anywhere in a sector, if it is no whole number of them."""
    return up(size, SECTOR)


def options_of(launch: Launch) -> dict[str, Any]:
    """Arguments of a launch by name, those that are compiled in too."""
    compiled_in = {launch.kernel.arg_names[i]: x for (i,), x in launch.constexprs.items()}
    return {**compiled_in, **launch.arguments}


def as_argument(x: Any, kind: str) -> Any:
    if not isinstance(x, torch.Tensor):
        return {"i32": "i", "i64": "q", "fp32": "f"}[kind], x
    bits = {1: torch.uint8, 2: torch.uint16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    # All of its memory: kernels step over rows that a view leaves out.
    whole = x.new_empty(0).set_(x.untyped_storage())
    return whole[x.storage_offset() :].view(bits).numpy()


def on_sectors(interp: ModuleType, x: Any) -> Any:
    """An array, the arrays of a list, or None, where a GPU's memory could begin."""
    if isinstance(x, list):
        return [on_sectors(interp, part) for part in x]
    return interp.aligned(x.shape, x.dtype, x) if isinstance(x, np.ndarray) else x


class Launches:
    """The launches of a call in the interpreter, counted one by one."""

    def __init__(self, interp: ModuleType, arch: int, order: int):
        self.interp, self.arch, self.order = interp, arch, order
        self.done: list[tuple[Launch, dict[str, int]]] = []

    def __call__(self, launch: Launch) -> None:
        compiled = launch.compile(self.arch)
        arguments = [as_argument(x, launch.signature[name]) for name, x in launch.arguments.items()]
        self.interp.launch_triton(compiled, launch.grid, arguments, self.order)
        self.done.append((launch, dict(self.interp.stats())))

    def by_kernel(
        self, expected: Callable[[Launch], Counts]
    ) -> Iterator[tuple[str, dict[str, int], Counts]]:
        """Each kernel's name, counters and formula, summed over its launches."""
        for name in dict.fromkeys(launch.name for launch, _ in self.done):
            mine = [(launch, counters) for launch, counters in self.done if launch.name == name]
            counts = [expected(launch) for launch, _ in mine]
            summed = Counts(*(sum(x) for x in zip(*counts, strict=True)))
            yield name, total(counters for _, counters in mine), summed
