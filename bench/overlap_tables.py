"""Markdown from the stored results of bench/quantized_overlap.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]

ORIGINAL = {"none": "sentence-transformers, not rescored", "×2": "×2, its default"}


def quantized_overlap(results: Json) -> str:
    """The same bytes searched by both libraries, and simtile's kinds of codes."""
    return f"{same_bytes(results)}\n{kinds(results)}\n{versions(results)}"


def quantized_overlap_short(results: Json) -> str:
    """The same bytes alone."""
    return f"{same_bytes(results)}\n{versions(results)}"


def same_bytes(results: Json) -> str:
    entries = list(results["entries"].values())
    precisions = entries[0]["precisions"]
    variants = list(next(iter(precisions.values()))["original"])
    header = [
        f"overlap@{entries[0]['k']} with exact search",
        "documents",
        *[ORIGINAL.get(variant, variant) for variant in variants],
        "simtile, one pass",
    ]
    rows = []
    for precision in precisions:
        for entry in entries:
            row = entry["precisions"][precision]
            rows.append(
                [
                    f"{precision}, `{row['function']}`",
                    f"{entry['documents']:,}",
                    *[f"{row['original'][variant]:.3f}" for variant in variants],
                    f"**{row['simtile']:.3f}**",
                ]
            )
    return tables.table(header, rows)


def kinds(results: Json) -> str:
    entries = list(results["entries"].values())
    header = [
        "`simtile.topk`, dot product",
        "bytes a document",
        *[f"overlap, {entry['documents']:,} documents" for entry in entries],
    ]
    rows = [
        [
            f"`{kind}`",
            f"{entries[-1]['kinds'][kind]['bytes']:.0f}",
            *[f"{entry['kinds'][kind]['overlap']:.3f}" for entry in entries],
        ]
        for kind in entries[0]["kinds"]
    ]
    return tables.table(header, rows)


def versions(results: Json) -> str:
    facts = results["machine"]
    names = ("simtile", "sentence-transformers", "faiss-cpu", "usearch")
    found = ", ".join(f"{name} {facts['versions'][name]}" for name in names)
    queries = next(iter(results["entries"].values()))["queries"]
    commit = (facts["commit"] or "unknown")[:10]
    return f"{queries:,} queries; {found}; {facts['date']}, commit {commit}\n"
