"""Search on Ray actors, one shard of the documents in each: `python examples/ray_search.py`.

Writes shards by id range to files, starts an actor for each, and merges what they find: the result
of one index of all documents, bit for bit. Then kills an actor while it searches: its shard is
loaded from its file by another, and the result is the same. If that fails too, `LostShards` says
which documents are missing; there is no result without them.

On a cluster, files must be where every node finds them. Needs `pip install ray`.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

import simtile


class Range(NamedTuple):
    """What a shard holds, by ids: `count` of them, from `lowest` to `highest`."""

    count: int
    lowest: int
    highest: int


def range_of(index: simtile.FlatIndex) -> Range:
    ids = index.ids
    return Range(len(ids), int(ids.min()), int(ids.max()))


class LostShards(RuntimeError):
    """Shards that could not be searched, nor loaded again: a result would lack their documents."""


class Shard:
    """What runs in an actor: an index, mapped from its file."""

    def __init__(self, path: str, threads: int) -> None:
        self.index = simtile.FlatIndex.load(path)
        self.threads = threads

    def describe(self) -> tuple[Range, int]:
        """What it holds, and its process."""
        return range_of(self.index), os.getpid()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(queries, k, threads=self.threads)


class ShardedSearch:
    """One index in many processes.

    Parameters
    ----------
    files : paths
        A `FlatIndex` each, whose ranges of ids do not overlap, and whose dtype, metric and ranges
        of codes are the same.
    reloads : int
        How often a shard that is lost is loaded from its file during one search.
    timeout : float
        Seconds for one search, or for the start of one actor.
    threads : int
        Of each shard, and as many of Ray's CPUs.
    """

    def __init__(
        self, files: Sequence[Path], *, reloads: int = 1, timeout: float = 60.0, threads: int = 1
    ) -> None:
        self.files = [str(Path(file).resolve()) for file in files]
        self.reloads, self.timeout, self.threads = reloads, timeout, threads
        self.ranges = [range_of(simtile.FlatIndex.load(file)) for file in self.files]
        for i, j in pairwise(sorted(range(len(files)), key=lambda i: self.ranges[i].lowest)):
            if self.ranges[i].highest >= self.ranges[j].lowest:
                raise ValueError(f"ids overlap: {self.files[i]} and {self.files[j]}")
        # Several may share a CPU: what they do is limited by `threads`.
        self._remote = ray.remote(num_cpus=0, max_restarts=0)(Shard)
        self._actors: list[Any] = [self._start(file) for file in self.files]
        self.pids = [0] * len(files)
        for i, file in enumerate(self.files):
            self._check(i)
            print(f"{Path(file).name}: {self.ranges[i].count} documents in process {self.pids[i]}")

    def __len__(self) -> int:
        return sum(found.count for found in self.ranges)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """What one index of all documents would find; as `FlatIndex.search`.

        Raises
        ------
        LostShards
            A shard died or did not answer in time, and could not be loaded again.
        """
        shared = ray.put(queries)
        results: dict[int, Any] = {}
        for attempt in range(self.reloads + 1):
            asked = {
                i: self._actors[i].search.remote(shared, k)
                for i in range(len(self.files))
                if i not in results
            }
            reasons = {}
            until = time.monotonic() + self.timeout
            for i, answer in asked.items():
                try:
                    results[i] = ray.get(answer, timeout=max(0.0, until - time.monotonic()))
                except RayTaskError as error:
                    raise error.as_instanceof_cause() from None  # wrong queries, not a lost shard
                except (RayActorError, GetTimeoutError) as error:
                    reasons[i] = error
            if not reasons:
                return simtile.merge_topk([results[i] for i in range(len(self.files))], k=k)
            for i, error in reasons.items():
                if attempt < self.reloads:
                    self._reload(i, error)
        raise self._lost(reasons)

    def _start(self, file: str) -> Any:
        return self._remote.remote(file, self.threads)

    def _reload(self, i: int, reason: Exception) -> None:
        """Another actor for a shard, from its file."""
        name = Path(self.files[i]).name
        print(f"{name}: lost ({type(reason).__name__}), loaded again from its file")
        ray.kill(self._actors[i])
        self._actors[i] = self._start(self.files[i])
        self._check(i)

    def _check(self, i: int) -> None:
        """Ask a new actor what it holds; one that does not hold the shard is not kept."""
        try:
            found, self.pids[i] = ray.get(self._actors[i].describe.remote(), timeout=self.timeout)
        except (RayActorError, GetTimeoutError) as error:
            ray.kill(self._actors[i])
            raise self._lost({i: error}) from error
        if found != self.ranges[i]:
            ray.kill(self._actors[i])
            name = Path(self.files[i]).name
            raise LostShards(f"{name}: holds {found} now, {self.ranges[i]} before")

    def _lost(self, reasons: dict[int, Exception]) -> LostShards:
        missing = sum(self.ranges[i].count for i in reasons)
        lines = [
            f"{self.files[i]} (ids {self.ranges[i].lowest} to {self.ranges[i].highest}): {error}"
            for i, error in reasons.items()
        ]
        return LostShards(
            f"{missing} of {len(self)} documents cannot be searched; no result is returned without "
            "them\n" + "\n".join(lines)
        )


def write_shards(documents: np.ndarray, count: int, folder: Path, dtype: str) -> list[Path]:
    """Cut documents into ranges of ids, a file each, all with the ranges of codes of the whole."""
    ranges = None
    if dtype in ("int8", "uint8", "int4"):
        ranges = np.stack([documents.min(axis=0), documents.max(axis=0)])
    files = []
    for ids in np.array_split(np.arange(len(documents)), count):
        index = simtile.FlatIndex(documents.shape[1], dtype, ranges=ranges)
        index.add(documents[ids], ids=ids)
        files.append(folder / f"documents-{ids[0]:09}-{ids[-1]:09}.simtile")
        index.save(files[-1])
    return files


def kill_while_searching(search: ShardedSearch, i: int, queries: np.ndarray, k: int) -> Any:
    """Search, and kill the process of shard i before it can answer."""
    os.kill(search.pids[i], signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (search.pids[i], signal.SIGKILL)).start()
    return search.search(queries, k)


def main() -> None:
    parser = argparse.ArgumentParser(description="Search shards on Ray actors.")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", default="int8", help="of FlatIndex")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    documents = rng.standard_normal((arguments.documents, arguments.dim), np.float32)
    queries = documents[:100] + 0.5 * rng.standard_normal((100, arguments.dim), np.float32)
    # A cluster of this machine alone; elsewhere ray.init(address="auto").
    ray.init(include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        files = write_shards(documents, arguments.shards, Path(folder), arguments.dtype)
        search = ShardedSearch(files)
        (whole,) = write_shards(documents, 1, Path(folder), arguments.dtype)
        expected = simtile.FlatIndex.load(whole).search(queries, 10)
        found = search.search(queries, 10)
        same = all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
        print(f"{len(search)} documents in {len(files)} shards; as one index: {same}")
        found = kill_while_searching(search, 1, queries, 10)
        same = all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
        print(f"after an actor was killed; as one index: {same}")
    ray.shutdown()


if __name__ == "__main__":
    main()
