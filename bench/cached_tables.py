"""Markdown of the stored results of `cached.py`."""

from __future__ import annotations

from tables import Json, machine, megabytes, targets, time


def markdown(results: Json) -> str:
    """What a step with a cached loss consists of, and its memory."""
    count = results["batch"] // results["micro_batch"]
    memory = [(int(rows), size) for rows, size in results["memory"].items()]
    (few, small), (many, large) = min(memory), max(memory)
    what = (
        f"MiniLM, a batch of {results['batch']:,} pairs of {results['tokens']} tokens in {count} "
        f"micro-batches, {results['threads']} threads: the loss of all takes "
        f"{time(results['times']['loss'])}, a micro-batch's encoding and its gradients "
        f"{time(results['times']['micro_batch'])}. A step of {few} pairs takes {megabytes(small)}, "
        f"one of {many} {megabytes(large)}."
    )
    parts = [machine(results), what, targets(results["targets"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
