"""How the doctor's findings look: plain text, with colour and a spinner where rich is installed."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

from simtile.doctor.report import CheckResult, Half, Peak, Report, Share, TimingResult, name
from simtile.doctor.results import Comparison

# of the styles of rich; the words say the same without it
STYLES = {"passed": "green", "failed": "bold red", "note": "dim", "title": "bold"}
PREFIXES = ("", "k", "M", "G", "T", "P")


class Screen(Protocol):
    """Where the findings go."""

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line."""

    def busy(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Say what is going on while it is."""


class Plain:
    """Lines of text."""

    def line(self, text: str = "", style: str = "") -> None:
        print(text)

    def busy(self, text: str) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class Rich:
    """The same lines by rich."""

    def __init__(self, console: Any) -> None:
        self.console = console

    def line(self, text: str = "", style: str = "") -> None:
        self.console.print(text, style=STYLES.get(style), markup=False, soft_wrap=True)

    def busy(self, text: str) -> contextlib.AbstractContextManager[object]:
        status: contextlib.AbstractContextManager[object] = self.console.status(text)
        return status


def screen() -> Screen:
    """rich's console on a terminal, if it is installed; else plain lines."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            return Rich(importlib.import_module("rich.console").Console(highlight=False))
    return Plain()


def found(to: Screen, report: Report) -> None:
    """What the machine has, and what therefore cannot be checked."""
    to.line(f"simtile {report['simtile']}, {report['date']}", "title")
    to.line()
    for fact in report["found"]:
        failed = f"failed: {fact['error']}" if fact["error"] else ""
        to.line(f"  {fact['name']:<12} {fact['value'] or failed}", "failed" if failed else "")
    for variable, value in report["environment"].items():
        to.line(f"  {variable}={value}", "note")


def not_checked(to: Screen, report: Report) -> None:
    """What this machine cannot say, and why."""
    if report["not_checked"]:
        to.line()
        to.line("Not checked here", "title")
        for item in report["not_checked"]:
            to.line(f"  {item['what']}: {item['why']}")


def checks(to: Screen, title: str, results: Sequence[CheckResult]) -> None:
    """One line for each kernel and element type, then every failure."""
    if not results:
        return
    to.line()
    to.line(title, "title")
    rows = [("", "element type", "passed", "worst error", "allowed", "output")]
    for (kernel, backend, dtype), group in groupby(results, _key):
        members = list(group)
        passed = sum(check["status"] == "passed" for check in members)
        worst = _worst(members)
        numbers = ("-", "-", "-") if worst is None else _numbers(worst)
        kernel = kernel if backend == "cpu" else f"{kernel} ({backend})"
        rows.append((kernel, dtype, f"{passed} of {len(members)}", *numbers))
    _table(to, rows)
    for check in results:
        if check["status"] != "passed":
            to.line(f"  FAILED {name(check)}: {check['message']}", "failed")


def speed(to: Screen, half: Half) -> None:
    """Times with their shares, and the peaks that these are shares of."""
    if half["timings"]:
        to.line()
        to.line("Speed", "title")
        heading = ("", "element type", "size", "", "time", "rate", "share of")
        _table(to, [heading, *map(_timing_row, half["timings"])])
        if any(share["share"] > 1 for timing in half["timings"] for share in timing["shares"]):
            to.line("  A share above 100%: something else ran while the peak was measured.", "note")
    if half["peaks"]:
        to.line()
        to.line("Peaks", "title")
        _table(to, [("", "rate", ""), *map(_peak_row, half["peaks"])])


def verdict(to: Screen, report: Report) -> None:
    """The last lines: how many checks passed, which did not."""
    results = [*report["cpu"]["checks"], *report["gpu"]["checks"]]
    results += [check for level in report["levels"] for check in level["checks"]]
    passed = sum(check["status"] == "passed" for check in results)
    to.line()
    text = f"{passed} of {len(results)} checks passed in {report['seconds']:.0f} s"
    if report["not_checked"]:
        text += f"; not checked: {len(report['not_checked'])}, listed above"
    to.line(text, "failed" if report["failures"] else "passed")


def quantity(value: float, unit: str) -> str:
    """Three digits with a prefix: 428 GB/s."""
    step = 0
    while value >= 999.5 and step < len(PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {PREFIXES[step]}{unit}"


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _key(check: CheckResult) -> tuple[str, str, str]:
    return check["kernel"], check["backend"], check["dtype"]


def _worst(checks: Sequence[CheckResult]) -> Comparison | None:
    """The comparison that took most of what it may; None if all are exact and right."""
    every = [Comparison(**c) for check in checks for c in check["comparisons"]]
    measured = [c for c in every if c.allowed > 0 or not c.ok]
    return max(measured, key=lambda c: c.used, default=None)


def _numbers(worst: Comparison) -> tuple[str, str, str]:
    return f"{worst.error:.2g}", f"{worst.allowed:.2g}", worst.output


def _timing_row(timing: TimingResult) -> tuple[str, ...]:
    kernel = timing["kernel"]
    return (
        kernel if timing["backend"] == "cpu" else f"{kernel} ({timing['backend']})",
        timing["dtype"],
        timing["sizes"],
        timing["what"],
        f"{duration(timing['median'])} ± {timing['spread']:.0%}",
        quantity(timing["operations_per_second"], "op/s"),
        ", ".join(map(_share, timing["shares"])),
    )


def _share(share: Share) -> str:
    products = f" at {share['products']} products" if share["products"] > 1 else ""
    return f"{share['of']} {share['share']:.0%}{products}"


def _peak_row(peak: Peak) -> tuple[str, ...]:
    unit = "B/s" if peak["unit"] == "bytes/s" else "op/s"
    rate = "unknown" if peak["rate"] is None else quantity(peak["rate"], unit)
    return peak["name"], rate, peak["how"]


def _table(to: Screen, rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        to.line(f"  {'  '.join(cells)}".rstrip(), "note" if number == 0 else "")
