"""Losses over all pairs beside pytorch-metric-learning and plain torch: `python bench/pairwise.py`.

Forward and backward of batch-hard triplets (pytorch-metric-learning's BatchHardMiner with its
TripletMarginLoss, sentence-transformers' formula is the same) and of uniformity (torch.pdist). Loss
and gradient are first compared with the other library's in float64 (in float32 torch's own gradient
of uniformity is off by 5e-4); nothing is timed unless they are equal.
--quick is a smaller size, for trying the script out, and is not stored among the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import torch
from _common import Json, Target

import simtile

SHAPE, QUICK_SHAPE = (8192, 384), (512, 384)
CLASSES = 512
MARGIN = 0.3
TOLERANCE = 1e-4  # of a gradient, relative to its largest element: float32 distances from products
RATIO = 3.0  # of pytorch-metric-learning's time


def step(loss_of: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], Any]:
    """Loss and gradient of one training step."""

    def call() -> tuple[float, torch.Tensor]:
        leaf = x.detach().requires_grad_()
        loss = loss_of(leaf)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return loss.item(), leaf.grad

    return call


def batch_hard(x: torch.Tensor, labels: torch.Tensor, threads: int) -> dict[str, Any]:
    from pytorch_metric_learning import distances, losses, miners, reducers

    distance = distances.LpDistance(normalize_embeddings=False)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(
        margin=MARGIN, distance=distance, reducer=reducers.MeanReducer()
    )

    def ours(leaf: torch.Tensor) -> Any:
        return simtile.batch_hard_triplet_loss(leaf, labels, margin=MARGIN, threads=threads)

    def theirs(leaf: torch.Tensor) -> Any:
        return loss(leaf, labels, miner(leaf, labels))

    return {"simtile": step(ours, x), "pytorch_metric_learning": step(theirs, x)}


def uniformity(x: torch.Tensor, labels: torch.Tensor, threads: int) -> dict[str, Any]:
    def ours(leaf: torch.Tensor) -> Any:
        return simtile.uniformity(leaf, threads=threads)

    def plain(leaf: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(leaf, dim=1)
        return torch.pdist(unit).square().mul(-2).exp().mean().log()

    return {"simtile": step(ours, x), "torch": step(plain, x)}


ENTRIES = {"batch_hard_triplet": batch_hard, "uniformity": uniformity}


def check(
    name: str, calls: dict[str, Callable[[], Any]], exact: dict[str, Any]
) -> dict[str, float]:
    """The gradients' largest differences from float64; raises where ours is no rounding."""
    true_loss, truth = next(call for who, call in exact.items() if who != "simtile")()
    errors = {}
    for who, call in calls.items():
        loss, grad = call()
        errors[who] = float((grad - truth).abs().max() / truth.abs().max())
        if who == "simtile" and not (
            abs(loss - true_loss) <= TOLERANCE * (1 + abs(true_loss)) and errors[who] <= TOLERANCE
        ):
            raise SystemExit(
                f"{name}: losses {loss} and {true_loss}, gradients differ by {errors[who]:.3g}; "
                "not timed"
            )
    return errors


def measure(x: torch.Tensor, labels: torch.Tensor, threads: int, rounds: int) -> Json:
    results: Json = {}
    for name, make in ENTRIES.items():
        calls = make(x, labels, threads)
        errors = check(name, calls, make(x.double(), labels, threads))
        memory = {who: _common.extra_memory(call)[0] for who, call in calls.items()}
        times, _ = _common.interleave(calls, rounds=rounds, threads=threads)
        other = next(who for who in calls if who != "simtile")
        results[name] = {
            "errors": errors,
            "memory": memory,
            "times": {who: samples.json() for who, samples in times.items()},
            "beside": other,
            "ratio": times[other].median / times["simtile"].median,
        }
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHAPE} only, 3 rounds")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="folder for pairwise.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n, dim = QUICK_SHAPE if arguments.quick else SHAPE
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=1)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    measured = measure(x, labels, arguments.threads, rounds)
    ratio = measured["batch_hard_triplet"]["ratio"]
    targets = [Target("batch-hard, beside the miner", ratio, "at least", RATIO, "times")]
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": True,
        "failures": [],
        "shape": [n, dim],
        "threads": arguments.threads,
        "rounds": rounds,
        "entries": measured,
        "targets": [target.json() for target in targets if not arguments.quick],
    }
    for name, entry in measured.items():
        times = ", ".join(f"{who} {1e3 * t['median']:.1f} ms" for who, t in entry["times"].items())
        memory = ", ".join(f"{who} {m / 2**20:.0f} MiB" for who, m in entry["memory"].items())
        print(f"{name} [{n}, {dim}]: {times} ({entry['ratio']:.1f} times); memory {memory}")
    if not arguments.quick or arguments.output:
        print(_common.write_results("pairwise", results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
