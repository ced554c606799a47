"""Markdown from the results of bench/scaling.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]


def scaling(results: Json) -> str:
    """Every operation, then the machine."""
    parts = [entry(name, value) for name, value in results["entries"].items()]
    return "\n".join([*parts, tables.machine(results) + "\n"])


def entry(name: str, value: Json) -> str:
    """A row for every size: time, and rate by what the work would be at best."""
    rows = []
    for axis, measured in value["axes"].items():
        for size, samples in measured["times"].items():
            rate = measured["work"][size] / samples["median"] / 1e9
            row = [f"{axis} = {int(size):,}", tables.time(samples)]
            rows.append([*row, f"{tables.digits(rate)} {UNITS[value['unit']]}"])
    fixed = ", ".join(f"{axis} = {size:,}" for axis, size in value["base"].items())
    header = [f"`{name}`", "time", "rate"]
    return f"{tables.table(header, rows)}\nwhere nothing else is said {fixed}\n"


UNITS = {"operations": "G/s", "bytes": "GB/s"}
