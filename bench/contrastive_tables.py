"""Markdown of the stored results of `contrastive.py`."""

from __future__ import annotations

from tables import Json, machine, megabytes, table, targets, time

THEIRS = "sentence-transformers"
SEPARATE = "simtile, a loss for each width"


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


def prefix_table(entries: list[Json]) -> str:
    """Losses of several widths."""
    rows = []
    for entry in entries:
        times, memory = entry["times"], entry["memory"]
        ours, plain = times["simtile"]["median"], times["simtile, plain"]["median"]
        theirs = f"{times[THEIRS]['median'] / ours:.1f}×" if THEIRS in times else "–"
        rows.append(
            [
                str(entry["n"]),
                time(times["simtile"]),
                f"{ours / plain:.2f}",
                f"{times[SEPARATE]['median'] / plain:.2f}",
                theirs,
                megabytes(memory["simtile"]),
                megabytes(memory[THEIRS]) if THEIRS in memory else "–",
                f"{entry['error']:.0e}",
            ]
        )
    header = [
        "N",
        "simtile",
        "plain loss = 1",
        "a loss for each width",
        "than sentence-transformers",
        "memory",
        "sentence-transformers'",
        "error",
    ]
    first = entries[0]
    what = (
        f"Matryoshka of {', '.join(map(str, first['widths']))} dimensions, float32, "
        f"{first['threads']} threads, forward and backward"
    )
    return f"{what}\n\n" + table(header, rows)


def any_table(entries: list[Json]) -> str:
    """Both kinds of entries."""
    prefixes = [entry for entry in entries if "widths" in entry]
    others = [entry for entry in entries if "widths" not in entry]
    parts = [row_table(others)] if others else []
    parts += [prefix_table(prefixes)] if prefixes else []
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def contrastive(results: Json) -> str:
    """Every entry and every target of one run."""
    entries = list(results["entries"].values())
    parts = [machine(results), any_table(entries), targets(results["targets"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
