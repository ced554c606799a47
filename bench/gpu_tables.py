"""Markdown from what was found out about the GPU kernels without a GPU."""

from __future__ import annotations

from typing import Any

import tables

Json = dict[str, Any]

NOT_ON_A_GPU = "Executed by a PTX interpreter on a CPU, not by a GPU."


def ptx(results: Json) -> str:
    """One kernel's runs and what was compiled with what."""
    compilers = ", ".join(
        f"{name} {version}" for name, version in results["compilers"].items() if version
    )
    return f"{ptx_runs(results)}\n{NOT_ON_A_GPU} {compilers}; {results['date']}\n"


def ptx_runs(results: Json) -> str:
    """A row for the same launch on all architectures in all orders, with the worst figures."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for run in results["runs"]:
        groups.setdefault((run["name"], run["kernel"]), []).append(run)
    rows = []
    for (name, kernel), runs in groups.items():
        arches = sorted({run["arch"] for run in runs})
        held = runs[0]["requirements"]
        rows.append(
            [
                name,
                f"`{kernel}`",
                ", ".join(f"sm_{arch}" for arch in arches),
                str(len({run["order"] for run in runs})),
                _result(runs),
                _size(max(_bytes(run) for run in runs)),
                f"{max(run['traffic'] for run in runs):.2f}" if held else "–",
                f"{min(run['load_efficiency'] for run in runs):.0%}" if held else "–",
                _flops(runs) if held else "–",
            ]
        )
    header = [
        "run",
        "kernel",
        "PTX",
        "orders",
        "result, largest error",
        "global memory",
        "/ formula",
        "load efficiency",
        "matrix operations / algorithm's",
    ]
    return tables.table(header, rows)


def _bytes(run: Json) -> int:
    return round(run["traffic"] * run["expected_global_bytes"])


def _size(value: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{tables.digits(value / scale)} {unit}"
    return f"{tables.digits(value / 1e3)} kB"


def _result(runs: list[Json]) -> str:
    if not all(run["ok"] for run in runs):
        return "**wrong**"
    error = max(run["error"] for run in runs)
    return "exact" if error == 0 else f"{error:.1e}"


def _flops(runs: list[Json]) -> str:
    if runs[0]["expected_flops"] == 0:
        return "none"
    return f"{max(run['flops'] for run in runs):.2f}"
