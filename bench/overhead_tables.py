"""Markdown from the results of bench/overhead.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]

COLUMNS = {"NumPy": "NumPy", "torch": "torch", "forward + backward": "torch, forward + backward"}


def entry(name: str, value: Json) -> str:
    return imports(value) if name == "imports" else calls(value)


def overhead(results: Json) -> str:
    """Calls of every kind in one table, imports in another, the machine."""
    entries = results["entries"]
    both = {
        **entries["functions"],
        "calls": {**entries["functions"]["calls"], **entries["objects"]["calls"]},
    }
    return f"{calls(both)}\n{imports(entries['imports'])}\n{tables.machine(results)}\n"


def calls(value: Json) -> str:
    """A row for each function; the cheapest calls of NumPy and torch are the last one."""
    size = f"{value['n']} vectors of {value['dim']} dimensions, {value['threads']} threads"
    rows = [
        [f"`{name}`", *cells(variants)]
        for name, variants in {**value["calls"], **value["peers"]}.items()
    ]
    return f"{tables.table(['a call', *COLUMNS.values()], rows)}\n{size}\n"


def cells(variants: Json) -> list[str]:
    """By column; a variant is named "simtile, NumPy" of ours, "NumPy" of a peer's."""
    found = {}
    for variant, samples in variants.items():
        first, _, rest = variant.partition(", ")
        found[rest or first] = tables.time(samples)
    return [found.get(column, "") for column in COLUMNS]


def imports(value: Json) -> str:
    rows = [[f"`import {name}`", tables.time(samples)] for name, samples in value["times"].items()]
    longest = ", ".join(
        f"`{name}` {tables.seconds(seconds)}" for name, seconds in value["slowest"].items()
    )
    return (
        f"{tables.table(['in a new process', 'time'], rows)}\n"
        f"Of `import simtile` most is in: {longest}\n"
    )
