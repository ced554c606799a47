"""Pooling beside torch's own operators: `python bench/pool.py`.

What is timed beside is sentence-transformers' way, eager: the tokens times the mask, a sum, a
division, `normalize`. Vectors and gradients are compared first, and nothing is timed unless they
agree. Right padding leaves three quarters of the tokens; the torch operators read all of them.
--quick is fewer rounds of the smaller sizes, and not stored among the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _common
import numpy as np
import pool_tables
import torch
import torch.nn.functional as F
from _common import GateFailed, Json
from rich.markdown import Markdown
from torch import Tensor

import simtile


class Entry(NamedTuple):
    """One call; `backward` with the gradient of the tokens."""

    how: str
    rows: int
    length: int
    width: int
    dim: int
    dtype: str = "float32"
    backward: bool = False

    def __str__(self) -> str:
        sizes = f"{self.rows} × {self.length} × {self.width}"
        dim = f", dim {self.dim}" if self.dim < self.width else ""
        return f"{self.how}, {self.dtype}, {sizes}{dim}{', backward' * self.backward}"


ENTRIES = (
    Entry("mean", 256, 128, 384, 384),
    Entry("mean", 256, 128, 384, 384, "bfloat16"),
    Entry("max", 256, 128, 384, 384),
    Entry("cls", 256, 128, 384, 384),
    Entry("mean", 256, 512, 1024, 256),
    Entry("mean", 1, 8192, 1024, 1024),
    Entry("mean", 37, 111, 389, 389),
    Entry("mean", 256, 128, 384, 384, backward=True),
    Entry("max", 256, 128, 384, 384, backward=True),
)
QUICK = (Entry("mean", 37, 111, 389, 389), Entry("max", 37, 111, 389, 200, backward=True))


def make(entry: Entry) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, a mask of right padding, and a gradient of the vectors."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((entry.rows, entry.length, entry.width), dtype=np.float32)
    lengths = rng.integers(entry.length // 2, entry.length + 1, (entry.rows, 1))
    mask = np.arange(entry.length) < lengths
    grad = rng.standard_normal((entry.rows, entry.dim), dtype=np.float32)
    dtype = getattr(torch, entry.dtype)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(mask), torch.from_numpy(grad).to(dtype)


def by_torch(x: Tensor, mask: Tensor, how: str, dim: int) -> Tensor:
    if how == "mean":
        kept = mask[..., None].to(x.dtype)
        total = kept.sum(1, dtype=torch.float32).clamp(min=1e-9)
        vectors = ((x * kept).sum(1, dtype=torch.float32) / total).to(x.dtype)
    elif how == "max":
        vectors = x.masked_fill(~mask[..., None], -torch.inf).max(1).values
    else:
        first = mask.int().argmax(1)[:, None, None].expand(-1, 1, x.shape[2])
        vectors = x.gather(1, first).squeeze(1)
    return F.normalize(vectors[:, :dim], dim=1)


def calls(entry: Entry, threads: int) -> dict[str, Callable[[], Any]]:
    x, mask, grad = make(entry)
    leaf = x.requires_grad_(entry.backward)

    def step(pool: Callable[[], Tensor]) -> Any:
        vectors = pool()
        if not entry.backward:
            return vectors
        (of_tokens,) = torch.autograd.grad(vectors, leaf, grad)
        return of_tokens

    def ours() -> Any:
        return step(
            lambda: simtile.pool(leaf, mask, entry.how, dim=entry.dim, threads=threads)  # type: ignore[arg-type]
        )

    return {
        "simtile": ours,
        "torch": lambda: step(lambda: by_torch(leaf, mask, entry.how, entry.dim)),
    }


def check(entry: Entry, found: dict[str, Callable[[], Any]]) -> float:
    """The largest difference, relative to the largest number; raises where it is too large."""
    ours, theirs = (found[name]().double() for name in ("simtile", "torch"))
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    # torch rounds to the element type before it normalises, and after.
    if not error <= (0.02 if entry.dtype == "bfloat16" else 1e-5):
        raise GateFailed(f"{entry}: the results differ by {error:.2g} of the largest; not timed")
    return error


def floor_bytes(entry: Entry) -> int:
    """What has to be read or written, by the README's formulas."""
    size = 2 if entry.dtype == "bfloat16" else 4
    kept = int(make(entry)[1].sum()) if entry.how in ("mean", "max") else entry.rows
    moved = size * entry.dim * (kept + entry.rows)
    if entry.backward:
        moved += size * entry.rows * entry.length * entry.width
    return moved


def measure(entries: tuple[Entry, ...], threads: int, rounds: int) -> Json:
    results: Json = {}
    for entry in entries:
        found = calls(entry, threads)
        error = check(entry, found)
        times, peaks = _common.interleave(
            found, rounds=rounds, threads=threads, peak_kinds=("read",)
        )
        ours, moved = times["simtile"].median, floor_bytes(entry)
        results[str(entry)] = {
            "error": error,
            "bytes": moved,
            "times": {who: samples.json() for who, samples in times.items()},
            "bytes_per_second": moved / ours,
            "read_peak": peaks["read"].json(),
            # Above 1 where the tokens stay in the caches.
            "share_of_read_peak": moved / ours / peaks["read"].median,
            "ratio": times["torch"].median / ours,
        }
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small sizes, 3 rounds")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="folder for pool.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds or (3 if arguments.quick else 11)
    entries = QUICK if arguments.quick else ENTRIES
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": True,
        "failures": [],
        "threads": arguments.threads,
        "rounds": rounds,
        "entries": measure(entries, arguments.threads, rounds),
        "targets": [],
    }
    _common.console().print(Markdown(pool_tables.markdown(results)))
    if not arguments.quick or arguments.output:
        print(_common.write_results("pool", results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
