"""Markdown from the reports that `simtile doctor --output` wrote on machines with a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tables

Json = dict[str, Any]

HEADER = ["call", "element type", "size", "time", "rate", "share of a rate measured there"]


def load(results: Path) -> list[Json]:
    """The stored reports that have a GPU's half."""
    found = [json.loads(path.read_text()) for path in sorted((results / "doctor").glob("*.json"))]
    return [report for report in found if report["gpu"]["device"]]


def device(report: Json) -> str:
    """The GPU's name alone."""
    name: str = report["gpu"]["device"].partition(",")[0]
    return name


def machine(report: Json) -> str:
    """One line on what was measured, where and when."""
    facts = {fact["name"]: fact["value"] for fact in report["found"]}
    checks = report["gpu"]["checks"]
    passed = sum(check["status"] == "passed" for check in checks)
    return (
        f"{report['gpu']['device']}; torch {facts['torch'].partition(',')[0]}, triton "
        f"{facts['triton']}, CUDA module {facts['CUDA module'].partition(';')[0]}; "
        f"{report['date']}. {passed} of the {len(checks)} checks on the GPU passed."
    )


def row(timing: Json) -> list[str]:
    name = f"{timing['kernel']} ({timing['backend']}), {timing['what']}"
    time = f"{tables.seconds(timing['median'])} ± {timing['spread']:.0%}"
    if timing["what"] == "search":  # of the documents: population counts are no multiplications
        rate = f"{timing['bytes_per_second'] / 1e12:.2f} TB/s"
    else:
        rate = f"{tables.digits(timing['operations_per_second'] / 1e12)} Top/s"
    sizes = timing["sizes"].replace(" x ", " × ")
    return [name, timing["dtype"], sizes, time, rate, share(timing["shares"])]


def share(shares: Sequence[Json]) -> str:
    """The largest, of those whose rate was measured and not taken from a publication."""
    measured = [share for share in shares if not share["of"].endswith("mma.sync")]
    if not measured:
        return "–"
    best = max(measured, key=lambda share: share["share"])
    products = f" at {best['products']} products" * (best["products"] > 1)
    return f"{best['share']:.0%} of {best['of']}{products}"


def is_large(timing: Json) -> bool:
    """Whether the short table has it: steps and searches that keep a GPU busy."""
    return timing["what"] == "search" or not timing["sizes"].startswith(("64 ", "1024 "))


def peaks(report: Json) -> str:
    found = [
        f"{peak['name']} {peak['rate'] / 1e12:.{2 if peak['unit'] == 'bytes/s' else 0}f} T"
        f"{'B' if peak['unit'] == 'bytes/s' else 'op'}/s"
        for peak in report["gpu"]["peaks"]
        if peak["measured"]
    ]
    return f"Measured there with torch's own kernels: {', '.join(found)}."


def markdown(results: Path, *, short: bool = True) -> str:
    """For each report its table; the short one has what keeps a GPU busy."""
    parts = []
    for report in load(results):
        timings = [t for t in report["gpu"]["timings"] if is_large(t) or not short]
        parts += [machine(report), "", tables.table(HEADER, [row(t) for t in timings])]
        parts += [peaks(report), ""]
    return "\n".join(parts) if parts else "Nothing has been measured on a GPU yet.\n"
