"""How the demos look: the console, progress, tables, and where the plot is written."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from simtile.demo.retrieval import paired_standard_error, recall_at

LOG_WIDTH = 100  # columns where the output is not a terminal
Advance = Callable[[int, str], None]


class OutputError(RuntimeError):
    """The plot cannot be written where it was asked for."""


def make_console() -> Console:
    """A console on standard output that survives pipes, narrow windows and ASCII-only encodings."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else LOG_WIDTH
    return Console(width=width, highlight=False)


@contextlib.contextmanager
def progress(console: Console, description: str, total: int) -> Iterator[Advance]:
    """A bar on a terminal, a line each quarter elsewhere; yields ``advance(n, note)``."""
    if console.is_terminal:
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        with bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda n, note: bar.update(task, advance=n, note=note)
        return

    done = 0

    def advance(n: int, note: str) -> None:
        nonlocal done
        before, done = done, done + n
        if 4 * done // total > 4 * before // total:
            console.print(f"{description} {done:,}/{total:,}  {note}".rstrip())

    yield advance


def section(console: Console, number: int, title: str) -> None:
    console.print()
    console.rule(f"[bold]{number}[/]  {title}", align="left", style="dim")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and the others numbers; the last column stands out."""
    made = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for number, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if number else "left",
            overflow="fold",
            style="bold green" if number == len(columns) - 1 else None,
        )
    for row in rows:
        made.add_row(*row)
    return made


def print_table(console: Console, made: Table, note: str) -> None:
    """The table, and under it what its numbers were measured on."""
    console.print(made)
    console.print()
    console.print(note, style="dim")


def recall_table(before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]) -> Table:
    """recall@1 and recall@10 of two rankings of the same queries, and how sure the change is."""
    rows = []
    for k in (1, 10):
        error = paired_standard_error(before < k, after < k)
        change = recall_at(k, after) - recall_at(k, before)
        rows.append(
            (
                f"recall@{k}",
                f"{recall_at(k, before):.3f}",
                f"{recall_at(k, after):.3f}",
                f"{change:+.3f} ± {error:.3f}",
            )
        )
    return table("Finding the right document", ("", "before", "after", "change"), rows)


def sparkline(values: Sequence[float], console: Console, width: int = 40) -> str:
    """The course of the values, from zero up, in one line; only first and last without Unicode."""
    ends = f"{values[0]:.3f} {{}} {values[-1]:.3f}"
    if not console.encoding.lower().startswith("utf"):
        return ends.format("to")
    places = np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)
    top = max(values) or 1.0
    return ends.format("".join("▁▂▃▄▅▆▇█"[min(7, int(8 * values[i] / top))] for i in places))


def output_folder(asked: Path | None) -> tuple[Path, str]:
    """A folder that can be written to, and a notice if it is not the one expected.

    Without ``asked`` it is the current folder, or a temporary one where that is read-only.

    Raises
    ------
    OutputError
        ``asked`` cannot be made or written to.
    """
    folder = Path.cwd() if asked is None else asked
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if asked is not None:
            raise OutputError(
                f"--output {asked}: cannot write there ({error.strerror or error}); "
                "name a folder that can be written to"
            ) from error
        fallback = Path(tempfile.mkdtemp(prefix="simtile-"))
        return fallback, f"{folder} is not writable: the plot goes to {fallback}"
    return folder, ""


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def compared(other: float, ours: float, better: str, worse: str) -> str:
    """How ``ours`` compares with ``other`` where less is better: "4.7× faster", "1.2× slower"."""
    if ours <= 0 or other <= 0:
        return "not measured"
    value, word = (other / ours, better) if ours <= other else (ours / other, worse)
    return f"{value:.0f}× {word}" if value >= 10 else f"{value:.1f}× {word}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
