"""Measured rows as tables: Markdown, which a terminal shows as well, or rich's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simtile.metrics._optional import optional


def markdown(rows: Sequence[Any]) -> str:
    """A table of measured rows, in Markdown with aligned columns.

    Parameters
    ----------
    rows : sequence of named tuples
        All of one class, such as `Quality` or `Geometry`. A field that is a dictionary becomes a
        column for each of its keys; a field that is an empty dictionary everywhere is left out.

    Returns
    -------
    str
        With a line for each row, ending in a newline.

    Raises
    ------
    ValueError, TypeError
        There are no rows, or they are no named tuples of one class.

    Examples
    --------
    >>> import simtile
    >>> row = simtile.metrics.Geometry("before", 1.0, -0.12345, 0.9)
    >>> print(simtile.metrics.markdown([row]), end="")
    | name   | alignment | uniformity | anisotropy |
    | ------ | --------: | ---------: | ---------: |
    | before |     1.000 |     -0.123 |      0.900 |
    """
    header, cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rule = ["-" * (w if i == 0 else w - 1) + ("" if i == 0 else ":") for i, w in enumerate(widths)]
    lines = [_aligned(header, widths), rule, *(_aligned(row, widths) for row in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(rows: Sequence[Any], title: str | None = None) -> Any:
    """The table of :func:`markdown` as a ``rich.table.Table``, to be printed by rich's Console.

    Parameters
    ----------
    rows : sequence of named tuples
        As in :func:`markdown`.
    title : str, optional

    Raises
    ------
    ValueError, TypeError
        As :func:`markdown`.
    ModuleNotFoundError
        rich is not installed.

    Examples
    --------
    >>> import simtile
    >>> row = simtile.metrics.Geometry("before", 1.0, -0.12345, 0.9)
    >>> simtile.metrics.rich_table([row]).row_count
    1
    """
    header, cells = _cells(rows)
    table = optional("rich.table", "rich", "rich_table").Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*row)
    return table


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        c.ljust(w) if i == 0 else c.rjust(w)
        for i, (c, w) in enumerate(zip(row, widths, strict=True))
    ]


def _cells(rows: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the cells of every row."""
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)) or not rows:
        raise ValueError(f"rows: found {rows!r}, expected a list of at least one named tuple")
    if any(not hasattr(row, "_asdict") or type(row) is not type(rows[0]) for row in rows):
        classes = ", ".join(sorted({type(row).__name__ for row in rows}))
        raise TypeError(f"rows: found {classes}, expected named tuples of one class")
    flat = [_flat(row._asdict()) for row in rows]
    header = list(dict.fromkeys(name for row in flat for name in row))
    return header, [[_cell(name, row.get(name)) for name in header] for row in flat]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if name == "bytes" else f"{value:.3f}"
