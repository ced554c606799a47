"""Markdown from the results of bench/mining.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]


def markdown(results: Json) -> str:
    """A row for each contender, then the machine."""
    entry = results["entries"]["mining"]
    queries, documents, dim = results["shape"]
    sizes = f"{queries:,} queries, {documents:,} documents of {dim} dimensions"
    header = [f"{sizes}, {results['threads']} threads", "time", "memory"]
    beside = entry["times"][entry["beside"]]["median"]
    rows = []
    for who, samples in entry["times"].items():
        faster = "" if who == entry["beside"] else f" ({beside / samples['median']:.1f}×)"
        rows.append(
            [
                who,
                f"{samples['median']:.2f} s{faster}",
                f"{entry['memory'][who] / 2**20:.0f} MiB",
            ]
        )
    return f"{tables.table(header, rows)}\n{tables.machine(results)}\n"
