"""`simtile bench --report DIR`: what a folder of stored results says, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtile.bench import page
from simtile.bench.compare import load
from simtile.bench.groups import Group, groups, without_times
from simtile.bench.roofline import Point, Roofs, points, roofs

Json = dict[str, Any]

NAME = "report.html"


class CannotReport(RuntimeError):
    """Nothing to report on, or nothing to draw it with."""


def run(folder: Path) -> int:
    """Write `report.html` into the folder.

    Raises
    ------
    CannotReport
        It is no folder, matplotlib is missing, or the file cannot be written.
    CannotCompare
        It has no results.
    """
    if not folder.is_dir():
        raise CannotReport(f"{folder}: found no folder, expected one with stored results")
    results = load(folder)
    text = html(results)
    path = folder / NAME
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotReport(f"{path}: cannot be written ({error})") from error
    print(f"{', '.join(results)}: reported in {path}")
    return 0


def html(results: dict[str, Json]) -> str:
    """The page; of results by benchmark."""
    try:
        from simtile.bench import charts
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise CannotReport("the report's figures need matplotlib: pip install matplotlib") from None
    body = [page.contents(["targets", "roofline", *results])]
    body += [page.heading(2, "Targets", "targets"), *_targets(results)]
    body += [page.heading(2, "Roofline", "roofline"), *_roofline(results, charts)]
    for bench, result in results.items():
        body += [page.heading(2, bench, bench), page.paragraph(machine(result), "small")]
        body += [page.paragraph(f"FAILED: {text}", "bad") for text in result.get("failures", [])]
        if result.get("quick"):
            body.append(page.paragraph("Small sizes and few rounds: these say little.", "bad"))
        body += _peaks(result) if "peaks" in result else _times(bench, result, charts)
    first = next(iter(results.values()))["machine"]
    return page.document(f"simtile on {first['cpu']}", body)


def machine(result: Json) -> str:
    """On what, and with what."""
    facts = result["machine"]
    named = {
        "level": facts.get("level"),
        "threads": result.get("threads", facts.get("threads")),
        "system": facts.get("system"),
        "Python": facts.get("python"),
        **facts.get("versions", {}),
        "commit": (facts.get("commit") or "unknown")[:10] + " with changes" * facts["modified"]
        if "modified" in facts
        else None,
        "on": facts.get("date"),
    }
    parts = [f"{name} {value}" for name, value in named.items() if value is not None]
    return ", ".join([f"{facts['cpu']}, {facts.get('cpus')} CPUs", *parts])


def _targets(results: dict[str, Json]) -> list[str]:
    rows = [
        [
            bench,
            target["what"],
            f"{target['measured']:.3g} {target.get('unit', '')}".rstrip(),
            f"{target['relation']} {target['limit']:.3g}",
            "met" if target["met"] else "NOT met",
        ]
        for bench, result in results.items()
        for target in result.get("targets", [])
    ]
    if not rows:
        return [page.paragraph("These results have none.")]
    missed = sum(row[-1] != "met" for row in rows)
    header = ["benchmark", "target", "measured", "asked", ""]
    return [page.paragraph(f"{len(rows) - missed} of {len(rows)} met"), page.table(header, rows)]


def _roofline(results: dict[str, Json], charts: Any) -> list[str]:
    if "peak" not in results:
        return [page.paragraph("Needs the machine's peaks: simtile bench --only peak.")]
    found: list[Point] = []
    under: Roofs | None = None
    for result in results.values():
        threads = result.get("threads", result["machine"].get("threads"))
        same = roofs(results["peak"], threads)
        if same is None:  # the peaks are of another number of threads
            continue
        under = under or same
        if same == under:
            found += [point for point in points(result) if point.unit in same.units]
    if under is None or not found:
        return [page.paragraph("No call here has known operations and the peaks of its threads.")]
    rows = [
        [
            f"{i} {point.name}",
            f"{point.intensity:.3g}",
            f"{point.rate / 1e9:.3g} G/s",
            f"{under.bound(point) / 1e9:.3g} G/s",
            f"{point.rate / under.bound(point):.0%}",
        ]
        for i, point in enumerate(found, 1)
    ]
    return [
        page.paragraph(
            "Operations by the formula, bytes as if each were moved once. Above the roof: operands "
            "were in a cache, or another unit did the work (AMX, bf16 for float32)."
        ),
        charts.roofline(found, under),
        page.table(["call", "operations a byte", "rate", "roof", "share"], rows),
    ]


def _peaks(result: Json) -> list[str]:
    counts = list(next(iter(result["peaks"].values())))
    rows = [
        [kind]
        + [
            f"{samples['median'] / 1e9:,.1f} G/s ± {samples['spread']:.1%}"
            for samples in by_threads.values()
        ]
        for kind, by_threads in result["peaks"].items()
    ]
    return [page.table(["peak", *(f"{count} threads" for count in counts)], rows)]


def _times(bench: str, result: Json, charts: Any) -> list[str]:
    found = groups(result)
    parts: list[str] = []
    if bench == "scaling":
        for name, entry in result["entries"].items():
            parts += [page.heading(3, name), charts.lines(entry, name)]
    elif (drawn := charts.bars(found)) is not None:
        parts.append(drawn)
    if bench == "overhead":
        grids = [group for group in found if group.path[1:2] in (("calls",), ("peers",))]
        parts.append(grid(grids))
        found = [group for group in found if group not in grids]
    for group in found:
        parts += [page.heading(3, group.title or bench), contenders(group)]
        if group.facts:
            said = ", ".join(f"{name} {shown(value)}" for name, value in group.facts.items())
            parts.append(page.paragraph(said, "small"))
    for name, entry in without_times(result).items():
        parts.append(page.details(f"{name}: nothing timed", json.dumps(entry, indent=1)))
    return parts


def contenders(group: Group) -> str:
    """A row for each, with columns only for what is known of one of them."""
    columns: dict[str, list[str]] = {"": [], "time": [], "spread": [], "simtile is": []}
    optional: dict[str, list[str]] = {"cores": [], "memory": [], "error": [], "share of a peak": []}
    for name, samples in group.samples.items():
        ratio, error = group.ratio(name), group.errors.get(name)
        columns[""].append(name)
        columns["time"].append(seconds(samples["median"]))
        columns["spread"].append(f"± {samples['spread']:.1%}")
        columns["simtile is"].append("" if ratio is None else f"{ratio:.2f}×")
        optional["cores"].append(f"{samples['cores']:.2f}" if "cores" in samples else "")
        memory = group.memory.get(name)
        optional["memory"].append("" if memory is None else f"{memory / 1e6:,.1f} MB")
        optional["error"].append("" if error is None else f"{error:.1e}")
        shares = ", ".join(f"{share:.0%} of {kind}" for kind, share in group.shares.items())
        optional["share of a peak"].append(shares if name == "simtile" else "")
    columns |= {name: cells for name, cells in optional.items() if any(cells)}
    ours = [i for i, name in enumerate(group.samples) if name == group.ours]
    return page.table(list(columns), list(zip(*columns.values(), strict=True)), ours)


def grid(found: Sequence[Group]) -> str:
    """One table of many calls; their variants, the last part of a name, are the columns."""
    variants = list(dict.fromkeys(variant(name) for group in found for name in group.samples))
    rows = []
    for group in found:
        times = {
            variant(name): f"{seconds(samples['median'])} ± {samples['spread']:.1%}"
            for name, samples in group.samples.items()
        }
        rows.append([group.path[-1], *(times.get(column, "") for column in variants)])
    return page.table(["a call", *variants], rows)


def variant(name: str) -> str:
    """ "simtile, NumPy" is called with NumPy's arrays; "NumPy" is NumPy's own call."""
    return name.partition(", ")[2] or name


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
