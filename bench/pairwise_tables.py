"""Markdown of the stored results of `pairwise.py`."""

from __future__ import annotations

from tables import Json, machine, megabytes, table, targets, time


def markdown(results: Json) -> str:
    """Every entry and every target of one run."""
    rows = []
    for name, entry in results["entries"].items():
        other = entry["beside"]
        rows.append(
            [
                f"`{name}`",
                time(entry["times"]["simtile"]),
                f"{other.replace('_', '-')} {time(entry['times'][other])}",
                f"{entry['ratio']:.1f}×",
                megabytes(entry["memory"][other]),
                f"{entry['errors']['simtile']:.0e}",
                f"{entry['errors'][other]:.0e}",
            ]
        )
    header = ["", "simtile", "beside", "faster by", "memory it takes", "error", "error beside"]
    n, dim = results["shape"]
    what = f"float32, N = {n:,}, D = {dim}, {results['threads']} threads, forward and backward"
    parts = [machine(results), f"{what}\n\n" + table(header, rows), targets(results["targets"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
