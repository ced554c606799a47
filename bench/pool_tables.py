"""Markdown from the results of bench/pool.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]


def markdown(results: Json) -> str:
    """A row for each call, then the machine."""
    header = [
        f"{results['threads']} threads",
        "simtile",
        "torch",
        "read and written at least",
        "share of the read bandwidth",
    ]
    rows = []
    for name, entry in results["entries"].items():
        ours, theirs = (1e3 * entry["times"][who]["median"] for who in ("simtile", "torch"))
        rows.append(
            [
                name,
                f"**{ours:.2f} ms**",
                f"{theirs:.2f} ms ({entry['ratio']:.1f}×)",
                f"{entry['bytes_per_second'] / 1e9:.1f} GB/s",
                f"{entry['share_of_read_peak']:.0%}",
            ]
        )
    return f"{tables.table(header, rows)}\n{tables.machine(results)}\n"
