"""The form of the report: what `simtile doctor --output FILE` writes as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, TypedDict

FORMAT = 1  # raised when a name or a meaning changes


class ComparisonResult(TypedDict):
    output: str
    error: float
    allowed: float


class CheckResult(TypedDict):
    kernel: str
    backend: str
    dtype: str
    sizes: str
    what: str
    status: str  # "passed" or "failed"
    message: str  # why it failed
    comparisons: list[ComparisonResult]
    seconds: float


class NotChecked(TypedDict):
    what: str
    why: str


class Share(TypedDict):
    of: str  # a peak's name
    products: int  # of its unit for one multiply-add of the formula
    share: float


class Peak(TypedDict):
    name: str
    rate: float | None  # operations or bytes a second; None: unknown
    unit: str  # "operations/s" or "bytes/s"
    measured: bool
    how: str


class TimingResult(TypedDict):
    kernel: str
    backend: str
    dtype: str
    sizes: str
    what: str
    median: float  # seconds, as are the samples
    spread: float
    samples: list[float]
    operations_per_second: float
    bytes_per_second: float
    shares: list[Share]


class Fact(TypedDict):
    name: str
    value: str  # "" where there is an error
    error: str  # what went wrong in finding it out


class Half(TypedDict):
    """The CPU's half of the report or the GPU's."""

    device: str  # "" where there is none
    checks: list[CheckResult]
    peaks: list[Peak]
    timings: list[TimingResult]


class LevelResult(TypedDict):
    level: str
    checks: list[CheckResult]


class Report(TypedDict):
    format: int
    simtile: str
    date: str  # UTC
    seconds: float
    options: dict[str, Any]
    complete: bool  # False: interrupted
    found: list[Fact]
    environment: dict[str, str]
    not_checked: list[NotChecked]
    cpu: Half
    levels: list[LevelResult]
    gpu: Half
    failures: list[str]


class OutputError(RuntimeError):
    """The report cannot be written where it was asked for."""


def failures(report: Report) -> list[str]:
    """Every failed check in one line."""
    checks = [*report["cpu"]["checks"], *report["gpu"]["checks"]]
    named = [(check, "") for check in checks]
    for level in report["levels"]:
        named += [(check, f"level {level['level']}, ") for check in level["checks"]]
    return [
        f"{where}{name(check)}: {check['message']}"
        for check, where in named
        if check["status"] != "passed"
    ]


def name(check: CheckResult) -> str:
    """A check in words."""
    parts = (check["kernel"], check["backend"], check["dtype"], check["sizes"])
    return f"{' '.join(parts)}, {check['what']}"


def check_writable(path: Path) -> None:
    """Raise OutputError now rather than when the work is done."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
    except OSError as error:
        raise _cannot_write(path, error) from error


def write(path: Path, report: Report) -> None:
    """Write the report as JSON: all of it or nothing."""
    text = json.dumps(_plain(report), indent=1, allow_nan=False) + "\n"
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise _cannot_write(path, error) from error


def _plain(value: Any) -> Any:
    """`value` with what JSON has no number for as text: "nan", "inf"."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"--output {path}: cannot write there ({error.strerror or error}); "
        "name a file in a folder that can be written to"
    )
