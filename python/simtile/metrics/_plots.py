"""Measured rows as plots. Figures are made without pyplot, so no display is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from simtile import _inputs
from simtile.metrics._geometry import Geometry
from simtile.metrics._optional import optional
from simtile.metrics._quality import Quality

INK, FAINT, BLUE = "#22282e", "#6b7680", "#1769aa"


def plot_quality(
    rows: Sequence[Quality],
    *,
    against: Literal["bytes", "width"] = "bytes",
    measure: str = "overlap",
    axes: Any = None,
) -> Any:
    """What was found, against bytes a document or dimensions, on a logarithmic axis.

    Parameters
    ----------
    rows : list of Quality
        From :func:`quality_by_bytes`, whose points get their names, or :func:`quality_by_width`,
        whose points are joined.
    against : "bytes" or "width"
    measure : str
        "overlap", or one of the rows' ``measures``.
    axes : matplotlib.axes.Axes, optional
        Where to draw; a new figure's if not given.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("quality.png")`` writes it.

    Raises
    ------
    ValueError, TypeError
        There are no rows, or they lack the measure.
    ModuleNotFoundError
        matplotlib is not installed.

    Examples
    --------
    >>> import simtile
    >>> rows = [simtile.metrics.Quality("int8", 64, 64.0, 0.99, {"ndcg@10": 0.7})]
    >>> figure = simtile.metrics.plot_quality(rows, measure="ndcg@10")
    >>> figure.axes[0].get_xlabel()
    'bytes a document'
    """
    _inputs.check_choice("against", against, ("bytes", "width"))
    _check_rows(rows, Quality)
    heights = []
    for i, row in enumerate(rows):
        if measure != "overlap" and measure not in row.measures:
            known = ", ".join(["overlap", *row.measures])
            raise ValueError(f"measure: found {measure!r}, expected one of rows[{i}]: {known}")
        heights.append(row.overlap if measure == "overlap" else row.measures[measure])
    figure, axes = _axes(axes, "plot_quality", 1)
    places = [row.bytes if against == "bytes" else row.width for row in rows]
    if against == "width":
        axes.plot(places, heights, color=BLUE, marker="o", linewidth=1.8)
        axes.set_xticks(places, [str(place) for place in places])
    else:
        axes.scatter(places, heights, color=BLUE, zorder=3)
        # Names go up and down in turn: of two points side by side both can be read.
        for turn, i in enumerate(sorted(range(len(rows)), key=places.__getitem__)):
            axes.annotate(
                rows[i].name,
                (places[i], heights[i]),
                xytext=(0, 7 if turn % 2 == 0 else -7),
                textcoords="offset points",
                ha="center",
                va="bottom" if turn % 2 == 0 else "top",
                fontsize=8.5,
                color=INK,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("bytes a document" if against == "bytes" else "dimensions", color=FAINT)
    axes.set_ylabel(measure, color=FAINT)
    axes.margins(x=0.15, y=0.15)
    axes.grid(axis="y", linewidth=0.5, color=FAINT, alpha=0.3)
    return figure


def plot_geometry(rows: Sequence[Geometry], *, axes: Sequence[Any] | None = None) -> Any:
    """Alignment, uniformity and anisotropy side by side, a bar for each set of embeddings.

    Parameters
    ----------
    rows : list of Geometry
        From :func:`geometry`, such as before and after.
    axes : three matplotlib.axes.Axes, optional
        Where to draw; a new figure's if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError
        There are no rows.
    ModuleNotFoundError
        matplotlib is not installed.

    Examples
    --------
    >>> import simtile
    >>> rows = [simtile.metrics.Geometry("before", 1.0, -0.1, 0.9)]
    >>> [axes.get_title() for axes in simtile.metrics.plot_geometry(rows).axes]
    ['alignment', 'uniformity', 'anisotropy']
    """
    _check_rows(rows, Geometry)
    figure, axes = _axes(axes, "plot_geometry", 3)
    if len(axes) != 3:
        raise ValueError(f"axes: found {len(axes)}, expected 3")
    for each, name in zip(axes, ("alignment", "uniformity", "anisotropy"), strict=True):
        values = [getattr(row, name) for row in rows]
        bars = each.bar(range(len(rows)), values, width=0.55, color=BLUE)
        each.bar_label(bars, [f"{value:.3f}" for value in values], padding=2, fontsize=9, color=INK)
        each.set_xticks(range(len(rows)), [row.name for row in rows])
        each.set_title(name, loc="center", color=INK)
        each.margins(y=0.15)
        each.axhline(0, color=FAINT, linewidth=0.8)
    return figure


def _check_rows(rows: Any, of: type) -> None:
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(r, of) for r in rows):
        raise TypeError(f"rows: found {rows!r}, expected a list of at least one {of.__name__}")


def _axes(axes: Any, function: str, count: int) -> tuple[Any, Any]:
    """The figure and its axes: those given, or new ones side by side."""
    if axes is not None:
        return (axes if count == 1 else axes[0]).figure, axes
    figures = optional("matplotlib.figure", "matplotlib", function)
    agg = optional("matplotlib.backends.backend_agg", "matplotlib", function)
    figure = figures.Figure(figsize=(2 + 3.5 * count, 4), layout="constrained")
    agg.FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count)
