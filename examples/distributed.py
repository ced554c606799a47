"""One batch on several processes: `torchrun --nproc-per-node=2 examples/distributed.py`.

Trains a small encoder of character trigrams, on the docstrings of Python's own standard library, to
find the description that belongs to a function's name. Each process encodes its part of the batch
with CachedLoss, in micro-batches; the loss is that of all parts together, its documents travelling
around the ring of processes. Without torchrun it runs as one process and reaches the same loss up
to rounding: the batch is the same, however many share it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import itertools
import os
import zlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import simtile

MODULES = (
    *("argparse", "asyncio", "base64", "collections", "contextlib", "csv", "datetime", "decimal"),
    *("difflib", "email", "fractions", "functools", "heapq", "html", "inspect", "itertools"),
    *("json", "logging", "math", "os", "pathlib", "pickle", "platform", "random", "re", "shutil"),
    *("socket", "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "time"),
    *("typing", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "zipfile"),
)
BUCKETS = 2**13


def pairs() -> list[tuple[str, str]]:
    """Names, and the first lines of what they document."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
                continue
            lines = (inspect.getdoc(value) or "").strip().splitlines()
            if lines and len(lines[0]) > 20:
                found.setdefault(lines[0], f"{module_name} {name}")
    return [(name, line) for line, name in found.items()]


class Trigrams(nn.Module):
    """Mean of the embeddings of a text's trigrams, of a list of strings."""

    def __init__(self, dimensions: int = 64) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, dimensions, mode="mean")

    def forward(self, texts: list[str]) -> torch.Tensor:
        rows = []
        for text in texts:
            text = f" {text.lower().replace('_', ' ')} "
            rows.append([zlib.crc32(text[i : i + 3].encode()) % BUCKETS for i in range(len(text))])
        offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)[:-1]
        embeddings: torch.Tensor = self.table(torch.tensor(list(itertools.chain(*rows))), offsets)
        return embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=("all_gather", "ring"), default="ring")
    parser.add_argument("--batch", type=int, default=256, help="of all processes together")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()

    together = "RANK" in os.environ  # set by torchrun
    if together:
        dist.init_process_group("gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    torch.manual_seed(0)  # the same first weights everywhere
    encoder = Trigrams()
    loss = functools.partial(simtile.info_nce, temperature=0.05)
    model = encoder
    if together:
        loss = functools.partial(
            simtile.distributed.info_nce, temperature=0.05, mode=arguments.mode
        )
        model = DistributedDataParallel(encoder)  # averages the gradients, which the loss expects
    step_loss = simtile.nn.CachedLoss(model, loss, mini_batch_size=32)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)

    data = pairs()
    order = torch.Generator().manual_seed(1)
    for step in range(1, arguments.steps + 1):
        batch = torch.randperm(len(data), generator=order)[: arguments.batch].tolist()
        names, lines = zip(*(data[i] for i in batch[rank::ranks]), strict=True)
        optimizer.zero_grad()
        value = step_loss(list(names), list(lines))
        value.backward()
        optimizer.step()
        if rank == 0 and (step == 1 or step % 10 == 0):
            print(f"step {step:3d}  loss {value.item():.4f}", flush=True)
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
