"""Integers and bytes between the ranks of torch.distributed, with one time limit and one error."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from simtile import _tensors, _vectors

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

# How queries travel: float16 and bfloat16 as float32, in which they are searched anyway.
TRAVEL = ("float32", "float64", "uint8")

# Since torch 2.13 by new names.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Wire:
    """The collectives of one call, which all ranks must call alike.

    Raises
    ------
    RuntimeError
        By each collective: a rank has died, or did not answer within `timeout` seconds (None: the
        group's own limit).
    """

    def __init__(self, name: str, group: Any, device: torch.device, timeout: float | None) -> None:
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.device = device
        self._name, self._group = name, group
        self._timeout = None if timeout is None else datetime.timedelta(seconds=timeout)

    def gather_integers(self, row: Sequence[int]) -> list[list[int]]:
        """Every rank's row."""
        mine = torch.tensor(row, dtype=torch.int64, device=self.device)
        table = torch.empty(self.ranks * len(row), dtype=torch.int64, device=self.device)
        self._wait(lambda: all_gather(table, mine, group=self._group, async_op=True))
        rows: list[list[int]] = table.reshape(self.ranks, -1).tolist()
        return rows

    def exchange(self, parts: Sequence[Bytes], sizes: Sequence[int]) -> list[Bytes]:
        """Send part r to rank r; `sizes`: how many bytes come from each rank."""
        out = _tensors.as_tensor(np.concatenate(parts), self.device)
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        counts = [len(part) for part in parts]
        self._wait(
            lambda: dist.all_to_all_single(
                received, out, list(sizes), counts, group=self._group, async_op=True
            )
        )
        return np.split(received.numpy(force=True), np.cumsum(sizes)[:-1])

    def _wait(self, start: Callable[[], Any]) -> None:
        try:
            work = start()
            if self._timeout is None:
                work.wait()
            else:
                work.wait(self._timeout)
        except RuntimeError as error:
            limit = "the group's time limit"
            if self._timeout is not None:
                limit = f"{self._timeout.total_seconds():g} s"
            raise RuntimeError(
                f"{self._name}: one of {self.ranks} ranks has died or did not answer within {limit}"
                f" (seen by rank {self.rank}); nothing is returned, because its documents would be "
                f"missing. Make a new process group to go on. torch says: {error}"
            ) from error


def device_of(group: Any, *given: Any) -> torch.device:
    """Where messages lie: on the CPU, or on a GPU where the group's backend sends nothing else."""
    if "cpu" in str(dist.get_backend_config(group)):
        return torch.device("cpu")
    for x in given:
        gpu = _vectors.gpu_of(x)
        if gpu is not None:
            return torch.device(gpu)
    return torch.device("cuda", torch.cuda.current_device())


def check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout: found {timeout!r}, expected seconds or None")
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout: found {timeout}, expected seconds above 0, or None")
    return float(timeout)


def travelling(queries: Any) -> Array:
    """Queries as an array of one of the types in TRAVEL."""
    rows = _vectors.read("queries", queries, "Q")
    array = _tensors.as_array(rows.array)
    if rows.kind == "int8":
        raise ValueError(
            f"queries: found int8 {list(array.shape)}, expected floats, or uint8 for 'hamming'"
        )
    if rows.kind == "bfloat16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif rows.kind == "float16":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def message_size(queries: int, k: int) -> int:
    return 1 + queries * k * (4 + 8)


def message(scores: Array, ids: Array) -> Bytes:
    """That the search succeeded, and what it found: scores, ids."""
    parts = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (scores, ids)]
    return np.concatenate([np.ones(1, np.uint8), *parts])


def read_message(sent: Bytes, queries: int, k: int, dtype: Any) -> tuple[Array, Array]:
    middle = 1 + 4 * queries * k
    scores = sent[1:middle].copy().view(dtype).reshape(queries, k)
    ids = sent[middle:].copy().view(np.int64).reshape(queries, k)
    return scores, ids


def digest_of(*facts: Any) -> int:
    """A number of 62 bits for what must be the same on all ranks."""
    whole = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, np.ndarray) or _tensors.is_tensor(fact):
            array = _tensors.as_array(fact)
            whole.update(f"{array.dtype}{array.shape}".encode())
            whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        else:
            whole.update(repr(fact).encode())
    return int.from_bytes(whole.digest()[:8], "little") >> 2
