"""The contrastive family: `python bench/contrastive.py [--quick] [--only NAME] [--output DIR]`.

Each loss, forward and backward, beside our own plain one and beside sentence-transformers' on the
same embeddings, in one run; and its memory. An entry first checks losses and gradients at a small
size against the float64 oracle; if that fails nothing is timed and the exit code is 1. Results of a
complete run go to bench/results/<machine>/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import _common
import contrastive_contenders as contenders
import contrastive_tables
import tables
import torch
from _common import Json, Run, Target, interleave
from contrastive_contenders import LOSSES, PLAIN, SENTENCE_TRANSFORMERS, SEPARATE, SIMTILE

SCRIPT = Path(__file__).resolve()
SIZE = {"n": 4096, "dim": 768, "guide_dim": 384}
QUICK = {"n": 512, "dim": 384, "guide_dim": 192}


def compare(name: str, run: Run, most: float) -> tuple[Json, list[Target]]:
    """One loss: at most `most` times our plain loss's time; with a guide 3 times theirs.

    sentence-transformers' guided losses take minutes at the full size: beside them a smaller one.
    """
    worst = contenders.gate(name, run.threads)
    size = QUICK if run.quick else SIZE
    guided = "guide" in LOSSES[name]
    beside = {**size, "n": run.size(512, 128)} if guided else size
    inputs = contenders.embeddings(**size)
    calls = {
        PLAIN: contenders.step("plain", SIMTILE, inputs, run.threads),
        SIMTILE: contenders.step(name, SIMTILE, inputs, run.threads),
    }
    times, _ = interleave(calls, rounds=run.rounds(7), threads=run.threads)
    inputs = contenders.embeddings(**beside)
    calls = {
        library: contenders.step(name, library, inputs, run.threads)
        for library in (SIMTILE, SENTENCE_TRANSFORMERS)
    }
    others, _ = interleave(calls, rounds=3 if guided else run.rounds(5), threads=run.threads)
    memory = {}
    for library in (SIMTILE, SENTENCE_TRANSFORMERS):
        task = {"loss": name, "library": library, "threads": run.threads, **beside}
        memory[library] = _common.in_child(SCRIPT, task)["bytes"]
    entry: Json = {
        **size,
        "loss": name,
        "threads": run.threads,
        "times": {key: samples.json() for key, samples in times.items()},
        "beside": beside,
        "times_beside": {key: samples.json() for key, samples in others.items()},
        "memory": memory,
        "error": worst,
    }
    ours = times[SIMTILE].median
    targets = [
        Target(f"{name}: time, our plain loss's = 1", ours / times[PLAIN].median, "at most", most)
    ]
    if guided:
        share = memory[SIMTILE] / memory[SENTENCE_TRANSFORMERS]
        speed = others[SENTENCE_TRANSFORMERS].median / others[SIMTILE].median
        targets += [
            Target(f"{name}: times sentence-transformers' speed", speed, "at least", 3.0, "x"),
            Target(f"{name}: memory, sentence-transformers' = 1", share, "at most", 0.05),
        ]
    return entry, targets


def compare_prefixes(
    run: Run, n: int, most: float, with_original: bool
) -> tuple[Json, list[Target]]:
    """Matryoshka: at most `most` times the plain loss of the whole vectors; 3 times theirs.

    Between the two a loss for each width, and beside the smaller size sentence-transformers'.
    """
    worst = contenders.gate("matryoshka", run.threads)
    size = {**(QUICK if run.quick else SIZE), "n": run.size(n, n // 8)}
    inputs = contenders.embeddings(**size)
    calls = {
        PLAIN: contenders.step("plain", SIMTILE, inputs, run.threads),
        SIMTILE: contenders.step("matryoshka", SIMTILE, inputs, run.threads),
        SEPARATE: contenders.step("matryoshka", SEPARATE, inputs, run.threads),
    }
    if with_original:
        calls[SENTENCE_TRANSFORMERS] = contenders.step(
            "matryoshka", SENTENCE_TRANSFORMERS, inputs, run.threads
        )
    times, _ = interleave(calls, rounds=run.rounds(5 if with_original else 3), threads=run.threads)
    memory = {}
    for library in calls.keys() - {PLAIN}:
        task = {"loss": "matryoshka", "library": library, "threads": run.threads, **size}
        memory[library] = _common.in_child(SCRIPT, task)["bytes"]
    entry: Json = {
        **size,
        "loss": "matryoshka",
        "widths": contenders.widths(size["dim"]),
        "threads": run.threads,
        "times": {key: samples.json() for key, samples in times.items()},
        "memory": memory,
        "error": worst,
    }
    ours = times[SIMTILE].median
    name = f"matryoshka, N = {size['n']}"
    targets = [
        Target(f"{name}: time, our plain loss's = 1", ours / times[PLAIN].median, "at most", most)
    ]
    if with_original:
        speed = times[SENTENCE_TRANSFORMERS].median / ours
        targets.append(
            Target(f"{name}: times sentence-transformers' speed", speed, "at least", 3.0, "x")
        )
    return entry, targets


def entry_of(name: str, most: float) -> Callable[[Run], tuple[Json, list[Target]]]:
    return lambda run: compare(name, run, most)


# By name of the loss, the most of our plain loss's time that it may take.
MOST = {"symmetric": 1.45, "gist, pairs alone": 1.4, "gist": 3.7, "joint": 4.3, "hardness": 1.1}
ENTRIES = {
    **{
        name.replace(", ", "_").replace(" ", "_"): entry_of(name, most)
        for name, most in MOST.items()
    },
    "matryoshka": lambda run: compare_prefixes(run, 4096, 1.25, True),
    "matryoshka_large": lambda run: compare_prefixes(run, 16384, 1.4, False),
}


def child(task: Json) -> Json:
    """The memory of one step beyond inputs and gradients."""
    torch.set_num_threads(task["threads"])
    inputs = contenders.embeddings(task["n"], task["dim"], task["guide_dim"])
    contenders.step(task["loss"], task["library"], contenders.embeddings(8, 16, 8), 1)()
    step = contenders.step(task["loss"], task["library"], inputs, task["threads"])
    used, _ = _common.extra_memory(step)
    return {"bytes": used - 2 * 4 * task["n"] * task["dim"]}


def main() -> int:
    arguments = _common.parser("Benchmark the contrastive family.", ENTRIES).parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return 0
    torch.set_num_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "contrastive",
        ENTRIES,
        arguments,
        _common.machine(),
        lambda _, entry: contrastive_tables.any_table([entry]),
        tables.targets,
    )


if __name__ == "__main__":
    sys.exit(main())
