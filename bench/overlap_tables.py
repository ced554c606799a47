"""Markdown from the stored results of bench/quantized_overlap.py."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]


def quantized_overlap(results: Json) -> str:
    """Both tables for every corpus."""
    parts = []
    for entry in results["entries"].values():
        parts += [same_bytes(entry), kinds(entry)]
    return "\n".join(parts) + "\n" + versions(results)


def quantized_overlap_short(results: Json) -> str:
    """The same bytes, in each corpus; for the README."""
    parts = [same_bytes(entry) for entry in results["entries"].values()]
    return "\n".join(parts) + "\n" + versions(results)


def same_bytes(entry: Json) -> str:
    variants = list(next(iter(entry["precisions"].values()))["original"])
    header = [
        f"overlap@{entry['k']}, {entry['documents']:,} documents",
        *[
            {"none": "sentence-transformers, not rescored", "×2": "×2, its default"}.get(v, v)
            for v in variants
        ],
        "simtile, one pass",
    ]
    rows = [
        [
            f"{precision}, `{row['function']}`",
            *[f"{row['original'][variant]:.3f}" for variant in variants],
            f"**{row['simtile']:.3f}**",
        ]
        for precision, row in entry["precisions"].items()
    ]
    return tables.table(header, rows)


def kinds(entry: Json) -> str:
    header = [f"`simtile.topk`, {entry['documents']:,} documents", "bytes a document", "overlap"]
    rows = [
        [f"`{kind}`", f"{row['bytes']:.0f}", f"{row['overlap']:.3f}"]
        for kind, row in entry["kinds"].items()
    ]
    return tables.table(header, rows)


def versions(results: Json) -> str:
    facts = results["machine"]
    names = ("simtile", "sentence-transformers", "faiss-cpu", "usearch")
    found = ", ".join(f"{name} {facts['versions'][name]}" for name in names)
    return f"{found}; {facts['date']}, commit {(facts['commit'] or 'unknown')[:10]}\n"
