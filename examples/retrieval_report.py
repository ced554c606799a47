"""report.html of the retrieval example: one file, with its plots in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from simtile import metrics

Floats = npt.NDArray[np.float32]
INK, FAINT, BLUE, ORANGE = "#22282e", "#6b7680", "#1769aa", "#d9822b"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #22282e; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d5dbe0; text-align: left; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
p.note { color: #6b7680; }
"""


class Section(NamedTuple):
    title: str
    text: str  # plain; what the reader should see in the table and the plot
    tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]] = ()  # header, rows
    figures: Sequence[Figure] = ()


def write(path: Path, title: str, note: str, sections: Sequence[Section]) -> None:
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{html.escape(note)}</p>']
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        body += [table(header, rows) for header, rows in section.tables]
        body += [image(figure, section.title) for figure in section.figures]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{lines}</table>"


def image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'


def geometry_plot(sets: dict[str, tuple[Floats, Floats]], pairs: int = 150) -> Figure:
    """Queries and documents of each set in its two main directions, pairs joined."""
    figure = Figure(figsize=(3.6 * len(sets), 3.6), layout="constrained")
    for axes, (name, both) in zip(
        np.atleast_1d(figure.subplots(1, len(sets))), sets.items(), strict=True
    ):
        points = np.concatenate([x[:pairs] for x in both])
        # The two directions in which they are spread most.
        _, _, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
        q, d = np.split(points @ directions[:2].T, 2)
        axes.plot(*np.stack([q, d]).transpose(2, 0, 1), color=FAINT, linewidth=0.4, alpha=0.5)
        axes.scatter(*q.T, s=8, color=ORANGE, label="queries", zorder=3)
        axes.scatter(*d.T, s=8, color=BLUE, label="documents", zorder=3)
        axes.set_title(name, color=INK, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def time_plot(milliseconds: dict[str, dict[str, float]]) -> Figure:
    """Where a query's time goes: a bar for each pipeline, in stages."""
    figure = Figure(figsize=(8, 0.6 * len(milliseconds) + 1.4), layout="constrained")
    axes = figure.subplots()
    names = list(milliseconds)
    left = np.zeros(len(names))
    stages = list(next(iter(milliseconds.values())))
    for stage, colour in zip(stages, (FAINT, BLUE, ORANGE), strict=False):
        widths = np.array([milliseconds[name][stage] for name in names])
        axes.barh(names, widths, left=left, color=colour, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds a query, median", color=FAINT)
    axes.legend(frameon=False, fontsize=9)
    return figure


def rows_of(found: Sequence[Any]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """A table of simtile.metrics' named tuples."""
    lines = [line.strip("| \n").split("|") for line in metrics.markdown(found).splitlines()]
    cells = [[cell.strip() for cell in line] for line in lines]
    return cells[0], cells[2:]
