"""The report's figures as SVG, which goes into the page itself."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from simtile.bench.groups import Group
from simtile.bench.roofline import UNITS, Point, Roofs

Json = dict[str, Any]

# Okabe and Ito's palette, which colour-blind readers can tell apart; simtile is always the first.
OURS, OURS_TOO, OTHER, INK, FAINT = "#0072B2", "#56B4E9", "#E69F00", "#24292f", "#d0d7de"
COLUMNS = 3
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and can be searched
    "font.family": "sans-serif",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def bars(found: Sequence[Group]) -> str | None:
    """A panel for every group that has somebody beside simtile; simtile's time is 1."""
    shown = [group for group in found if group.ours is not None and len(group.samples) > 1]
    if not shown:
        return None
    rows = math.ceil(len(shown) / COLUMNS)
    most = max(len(group.samples) for group in shown)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, rows * (0.55 + 0.28 * most)), layout="constrained")
        panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes, group in zip(panels, shown, strict=False):
            _bars(axes, group)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        return _svg(figure, "bars")


def _bars(axes: Any, group: Group) -> None:
    assert group.ours is not None
    ours = group.samples[group.ours]["median"]
    for position, (name, samples) in enumerate(group.samples.items()):
        ratio = samples["median"] / ours
        mine = OURS if name == group.ours else OURS_TOO if name.startswith("simtile") else OTHER
        axes.barh(position, ratio, color=mine, height=0.8)
        axes.text(ratio * 1.05, position, f"{ratio:.3g}×", va="center", fontsize=7)
    axes.set_yticks(range(len(group.samples)), list(group.samples))
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), high * 3)
    axes.set_xticks([])  # the bars bear their numbers
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=INK, linewidth=0.6, linestyle=":")
    axes.invert_yaxis()
    axes.set_title(group.title)


def roofline(found: Sequence[Point], roofs: Roofs) -> str | None:
    """A panel for each unit with calls; they bear their numbers, from 1."""
    units = [unit for unit in roofs.units if any(point.unit == unit for point in found)]
    if not units:
        return None
    with matplotlib.rc_context(STYLE):
        across = min(len(units), 2)
        down = math.ceil(len(units) / across)
        figure = Figure(figsize=(5.5 * across, 3.4 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, unit in zip(panels, units, strict=False):
            _roofline(axes, unit, found, roofs)
        for axes in panels[len(units) :]:
            axes.set_axis_off()
        return _svg(figure, "roofline")


def _roofline(axes: Any, unit: str, found: Sequence[Point], roofs: Roofs) -> None:
    peak, ridge = roofs.units[unit], roofs.units[unit] / roofs.memory
    mine = {i: point for i, point in enumerate(found, 1) if point.unit == unit}
    intensities = [point.intensity for point in mine.values()]
    left, right = min(*intensities, ridge) / 3, max(*intensities, ridge) * 3
    axes.loglog(
        [left, ridge, right],
        [left * roofs.memory / 1e9, peak / 1e9, peak / 1e9],
        color=INK,
        linewidth=1,
    )
    for i, point in mine.items():
        axes.plot(point.intensity, point.rate / 1e9, "o", color=OURS, markersize=4)
        axes.annotate(
            str(i), (point.intensity, point.rate / 1e9), (3, 3), textcoords="offset points"
        )
    axes.set_title(f"{UNITS[unit]}: {peak / 1e9:,.0f} G/s, memory {roofs.memory / 1e9:,.0f} GB/s")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("G operations / s")


def lines(entry: Mapping[str, Any], name: str) -> str:
    """An operation of bench/scaling.py: a panel for every size that varies, both logarithmic."""
    axes_of: Mapping[str, Json] = entry["axes"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * len(axes_of), 2.1), layout="constrained")
        panels = figure.subplots(1, len(axes_of), squeeze=False)[0]
        for axes, (axis, measured) in zip(panels, axes_of.items(), strict=True):
            sizes = [int(size) for size in measured["times"]]
            times = [1e3 * samples["median"] for samples in measured["times"].values()]
            work = list(measured["work"].values())
            if axis == "threads":  # an equal share of the work each
                work = [amount / count for amount, count in zip(work, sizes, strict=True)]
            at = 0 if axis == "threads" else -1
            fair = [times[at] * amount / work[at] for amount in work]
            axes.loglog(sizes, fair, "--", color=OTHER)
            axes.loglog(sizes, times, "o-", color=OURS, markersize=3)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axes.set_xticks([], minor=True)
            _decades(axes, [*times, *fair])
            axes.set_xlabel(axis)
            axes.set_ylabel("ms")
        return _svg(figure, name)


def _decades(axes: Any, values: Sequence[float]) -> None:
    """Whole powers of ten, so that an axis has two numbers at least."""
    axes.set_ylim(
        10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")


def _svg(figure: Figure, salt: str) -> str:
    """The element, without what only a file of its own has."""
    text = io.StringIO()
    # the same results give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
