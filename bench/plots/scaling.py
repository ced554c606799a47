"""Times by size: `python -m plots.scaling RESULTS.json` in bench/."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tables

import plots


def draw(results: dict[str, Any], path: Path) -> Path:
    """A row for every operation, a panel for every size; both axes logarithmic."""
    plots.style()
    entries = results["entries"]
    most = max(len(entry["axes"]) for entry in entries.values())
    figure, panels = plt.subplots(
        len(entries),
        most,
        figsize=(2.6 * most, 2.2 * len(entries)),
        layout="constrained",
        squeeze=False,
    )
    for row, (name, entry) in zip(panels, entries.items(), strict=True):
        for axes in row[len(entry["axes"]) :]:
            axes.set_axis_off()
        for axes, (axis, measured) in zip(row, entry["axes"].items(), strict=False):
            draw_axis(axes, axis, measured)
        row[0].set_title(name.replace("_", " ") if name.startswith("topk") else name)
    facts = results["machine"]
    figure.suptitle(
        f"Times by size on {tables.cpu(facts)} (level {facts['level']}), up to "
        f"{results['threads']} threads; dashed: as much time as work",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return plots.save(figure, path)


def draw_axis(axes: Any, axis: str, measured: dict[str, Any]) -> None:
    sizes = [int(size) for size in measured["times"]]
    times = [1e3 * samples["median"] for samples in measured["times"].values()]
    # from the largest, where a call's own cost shows least; of threads an equal share each
    work = list(measured["work"].values())
    if axis == "threads":
        work = [amount / count for amount, count in zip(work, sizes, strict=True)]
    at = 0 if axis == "threads" else -1
    fair = [times[at] * amount / work[at] for amount in work]
    axes.loglog(sizes, fair, color=plots.OTHER, linewidth=1, linestyle="--")
    axes.loglog(sizes, times, color=plots.SIMTILE, marker="o", markersize=3.5)
    axes.set_xticks(sizes, [short(size) for size in sizes], fontsize=7)
    axes.set_xticks([], minor=True)
    shown = [*times, *fair]
    axes.set_ylim(10 ** math.floor(math.log10(min(shown))), 10 ** math.ceil(math.log10(max(shown))))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(axis, fontsize=8)
    axes.set_ylabel("ms", fontsize=8)


def short(size: int) -> str:
    return f"{size / 1e3:.0f}k" if size >= 10_000 else str(size)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
