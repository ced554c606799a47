"""The demos' plots. Figures are made without pyplot, so no display is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

GREY, BLUE = "#9aa3ad", "#1769aa"
INK, FAINT = "#22282e", "#6b7680"


def new_figure(width: float, height: float, title: str, facts: str) -> Figure:
    """A figure with its title on the left and what it was measured on, smaller, on the right."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.text(0.99, 0.98, facts, fontsize=8.5, color=FAINT, ha="right", va="top")
    return figure


def recall_bars(axes: Axes, before: Sequence[float], after: Sequence[float], note: str) -> None:
    """recall@1 and recall@10, grey before and blue after training."""
    _style(axes, "Held-out recall", note)
    for offset, values, colour, label in (
        (-0.19, before, GREY, "before"),
        (0.19, after, BLUE, "after"),
    ):
        bars = axes.bar(
            [0 + offset, 1 + offset], list(values), width=0.36, color=colour, label=label
        )
        axes.bar_label(bars, [f"{v:.3f}" for v in values], padding=2, fontsize=9, color=INK)
    axes.set_xticks([0, 1], ["recall@1", "recall@10"])
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.legend(frameon=False, loc="upper left", fontsize=9, labelcolor=INK)


def comparison_bars(
    axes: Axes,
    title: str,
    note: str,
    names: Sequence[str],
    values: Sequence[float | None],
    unit: str,
) -> None:
    """One bar a method, the last in blue; a None value is written as "not run"."""
    _style(axes, title, note)
    heights = [value or 0.0 for value in values]
    colours = [GREY] * (len(names) - 1) + [BLUE]
    bars = axes.bar(range(len(names)), heights, width=0.55, color=colours)
    labels = [_number(value, unit) for value in values]
    axes.bar_label(bars, labels, padding=2, fontsize=9, color=INK)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1.18 * max(heights) or 1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def loss_curve(axes: Axes, losses: Sequence[float], kept_step: int | None, note: str) -> None:
    _style(axes, "Training loss", note)
    axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=1.8)
    if kept_step:
        axes.axvline(kept_step, color=FAINT, linewidth=1, linestyle="--")
        axes.annotate(
            f"kept: step {kept_step}",
            (kept_step, max(losses)),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
            color=FAINT,
        )
    axes.set_xlabel("step", color=FAINT)
    axes.set_ylim(bottom=0)


def quality_and_bytes(
    axes: Axes, points: Sequence[tuple[str, float, float]], k: int, note: str
) -> None:
    """(name, bytes of a vector, overlap): a labelled point each, the last in blue."""
    _style(axes, f"overlap@{k} with exact search, by bytes of a vector", note)
    for number, (name, size, overlap) in enumerate(points):
        last = number == len(points) - 1
        axes.scatter(
            [size], [overlap], s=60 if last else 36, color=BLUE if last else GREY, zorder=3
        )
        # Names go up and down in turn; beside the last point, away from it.
        above = number % 2 == 0 and not last
        beside = not last and abs(size / points[-1][1] - 1) < 0.3
        axes.annotate(
            name,
            (size, overlap),
            xytext=(8 if last else -4 if beside else 0, 8 if above else -8),
            textcoords="offset points",
            ha="left" if last else "right" if beside else "center",
            va="bottom" if above else "top",
            fontsize=8.5,
            color=BLUE if last else INK,
        )
    axes.set_xscale("log", base=2)
    sizes = sorted({round(size) for _, size, _ in points})
    axes.set_xlim(0.6 * sizes[0], 1.6 * sizes[-1])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("bytes of a vector", color=FAINT)
    lowest = min(overlap for _, _, overlap in points)
    axes.set_ylim(lowest - 0.12 * (1.05 - lowest), 1 + 0.12 * (1.05 - lowest))
    axes.grid(axis="y", linewidth=0.5, color=FAINT, alpha=0.3)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not run"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _style(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left", pad=20)
    axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=8.5, color=FAINT, va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.tick_params(axis="x", length=0, labelcolor=INK)
