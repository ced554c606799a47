"""Markdown from the results of bench/dtypes.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]

TORCH = "torch"
SIZES = ("n", "rows", "length", "documents", "dim", "queries", "k", "threads")


def dtypes(results: Json) -> str:
    """Every operation, then the machine."""
    parts = [entry(name, value) for name, value in results["entries"].items()]
    return "\n".join([*parts, tables.machine(results) + "\n"])


def entry(name: str, value: Json) -> str:
    """A row for each type, beside float32 and beside torch in the same type."""
    times = value["times"]
    first = times["simtile, float32"]["median"]
    rows = []
    for who, samples in times.items():
        library, _, kind = who.partition(", ")
        if library != "simtile":
            continue
        theirs = times.get(f"{TORCH}, {kind}")
        beside = ""
        if theirs is not None:
            beside = f"{tables.time(theirs)} ({theirs['median'] / samples['median']:.2f}×)"
        errors = [value["errors"].get(f"{library}, {kind}") for library in ("simtile", TORCH)]
        rows.append(
            [
                kind,
                tables.time(samples),
                f"{samples['median'] / first:.2f}",
                beside,
                *("" if error is None else f"{error:.1e}" for error in errors),
            ]
        )
    header = [name, "simtile", "its float32 = 1", "torch", "error", "torch's error"]
    sizes = ", ".join(f"{key} = {value[key]:,}" for key in SIZES if key in value)
    return f"{tables.table(header, rows)}\n{sizes}\n"
