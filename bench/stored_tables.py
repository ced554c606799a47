"""Markdown: which benchmark has been run where, and how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tables

Json = dict[str, Any]


def markdown(results: Path) -> str:
    """A row for each stored run, by machine; of what `simtile bench` runs and compares."""
    rows = []
    for path in sorted(results.glob("*/*.json")):
        stored = json.loads(path.read_text())
        if isinstance(stored, dict) and {"bench", "machine"} <= stored.keys():
            rows.append(row(path, stored))
    return tables.table(["machine", "benchmark", "date", "threads", "targets met"], rows)


def row(path: Path, stored: Json) -> list[str]:
    facts, targets = stored["machine"], stored.get("targets", [])
    met = sum(target["met"] for target in targets)
    failed = len(stored.get("failures", []))
    return [
        f"`{path.parent.name}`",
        f"`{path.stem}`",
        facts["date"].partition(" ")[0],
        str(stored.get("threads", facts["threads"])),
        f"{met} of {len(targets)}" * bool(targets) + f", **{failed} failed**" * bool(failed),
    ]
