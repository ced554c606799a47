"""Markdown of the stored results of `contrastive.py`."""

from __future__ import annotations

from tables import Json, machine, megabytes, table, targets, time

THEIRS = "sentence-transformers"


def row_table(entries: list[Json]) -> str:
    rows = []
    for entry in entries:
        times, memory = entry["times"], entry["memory"]
        ours = times["simtile"]["median"]
        beside = {name: samples["median"] for name, samples in entry["times_beside"].items()}
        rows.append(
            [
                entry["loss"],
                time(times["simtile"]),
                f"{ours / times['simtile, plain']['median']:.2f}",
                f"{beside[THEIRS] / beside['simtile']:.1f}×, N = {entry['beside']['n']}",
                megabytes(memory["simtile"]),
                megabytes(memory[THEIRS]),
                f"{entry['error']:.0e}",
            ]
        )
    header = [
        "loss",
        "simtile",
        "plain loss = 1",
        "than sentence-transformers",
        "memory",
        "sentence-transformers'",
        "error",
    ]
    first = entries[0]
    what = (
        f"float32, N = {first['n']}, D = {first['dim']}, guide {first['guide_dim']} wide, "
        f"{first['threads']} threads, forward and backward"
    )
    return f"{what}\n\n" + table(header, rows)


def contrastive(results: Json) -> str:
    """Every entry and every target of one run."""
    entries = list(results["entries"].values())
    parts = [machine(results), row_table(entries), targets(results["targets"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
