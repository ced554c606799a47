"""Markdown from the results of bench/quantize.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]


def markdown(results: Json) -> str:
    """A row for each kind of codes, then the targets and the machine."""
    rows = []
    for name, entry in results["entries"].items():
        times = {who: found["median"] for who, found in entry["times"].items()}
        theirs = times.get("sentence_transformers")
        rows.append(
            [
                name,
                str(entry["passes"]),
                f"**{1e3 * times['simtile']:.0f} ms**",
                "–" if theirs is None else f"{1e3 * theirs:.0f} ms ({entry['ratio']:.1f}×)",
                f"{entry['bytes_per_second'] / 1e9:.1f} GB/s",
                f"{share:.0%}" if (share := entry.get("share_of_read_peak")) else "–",
            ]
        )
    n, dim = results["shape"]
    title = f"float32, {n} × {dim}, {results['threads']} threads"
    header = [
        title,
        "passes",
        "simtile",
        "sentence_transformers",
        "read and written",
        "share of the read bandwidth",
    ]
    found = [tables.table(header, rows)]
    if results["targets"]:
        found.append(tables.targets(results["targets"]))
    version = results["sentence_transformers"]
    found.append(f"sentence-transformers {version}; {tables.machine(results)}\n")
    return "\n".join(found)
