"""`simtile doctor`: every check of every kernel, repeated on the machine that has the question.

On any machine: what was found, what cannot be checked and why, and the CPU kernels beside the
float64 reference, with their speed as a share of what this CPU was measured to reach. With a GPU
the same for its kernels. A part that cannot be examined is reported and does not end the run.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import simtile
from simtile.doctor import found, report, show
from simtile.doctor.report import CheckResult, Half, Report
from simtile.doctor.results import Check, describe, failed_part, run_check

GPU_BACKENDS = ("triton", "cuda")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    quick: bool = False
    all_levels: bool = False
    threads: int | None = None
    output: Path | None = None


def run(options: Options) -> int:
    """Examine this machine, show and store what was found; 1 if a check failed.

    Raises
    ------
    simtile.doctor.report.OutputError
        ``options.output`` cannot be written.
    """
    if options.output is not None:
        report.check_writable(options.output)
    screen = show.screen()
    start = time.perf_counter()
    result = _empty(options)
    try:
        _examine(result, options, screen)
        result["complete"] = True
    finally:  # what was found before Ctrl-C is worth keeping
        result["failures"] = report.failures(result)
        result["seconds"] = time.perf_counter() - start
        if options.output is not None:
            report.write(options.output, result)
    show.verdict(screen, result)
    if options.output is not None:
        screen.line(f"report in {options.output}")
    return 1 if result["failures"] else 0


def _empty(options: Options) -> Report:
    now = datetime.datetime.now(datetime.timezone.utc)
    output = None if options.output is None else str(options.output)
    return {
        "format": report.FORMAT,
        "simtile": simtile.__version__,
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": 0.0,
        "options": {**asdict(options), "output": output},
        "complete": False,
        "found": [],
        "environment": {},
        "not_checked": [],
        "cpu": _half(),
        "levels": [],
        "gpu": _half(),
        "failures": [],
    }


def _half() -> Half:
    return {"device": "", "checks": [], "peaks": [], "timings": []}


def _examine(result: Report, options: Options, screen: show.Screen) -> None:
    with screen.busy("looking around"):
        result["found"] = found.facts()
        result["environment"] = found.environment()
    show.found(screen, result)
    _cpu(result, options, screen)
    if options.all_levels:
        _levels(result, options, screen)
    _gpu(result, options, screen)
    show.not_checked(screen, result)


def _cpu(result: Report, options: Options, screen: show.Screen) -> None:
    half, threads, quick = result["cpu"], options.threads or 0, options.quick

    def examine() -> None:
        from simtile.doctor import cpu

        half["device"] = simtile.cpu_info()["level"]
        _run(half["checks"], cpu.checks(threads, quick=quick), screen)
        for timing in cpu.timings(threads, quick=quick):
            with _measuring(result, timing.name, screen):
                half["timings"].append(cpu.measure(timing, threads, quick=quick))
        with _measuring(result, "what this CPU reaches", screen):
            half["peaks"] += cpu.peaks(threads, quick=quick)

    _guard(half, "cpu", examine)
    show.checks(screen, f"CPU, level {half['device'] or 'unknown'}", half["checks"])
    show.speed(screen, half)


def _levels(result: Report, options: Options, screen: show.Screen) -> None:
    """Every level that was detected but the one in use."""
    half = result["cpu"]

    def examine() -> None:
        from simtile.doctor import levels

        for level in simtile.cpu_info()["detected"]:
            if level == half["device"]:
                continue
            with screen.busy(f"checking level {level}"):
                done = levels.run_level(level, options.threads or 0, quick=options.quick)
            result["levels"].append(done)
            show.checks(screen, f"CPU, level {level}", done["checks"])

    _guard(half, "cpu", examine)


def _gpu(result: Report, options: Options, screen: show.Screen) -> None:
    half = result["gpu"]
    backends = []
    for backend, why in _gpu_backends().items():
        if why:
            result["not_checked"].append({"what": f"backend {backend!r}", "why": why})
        else:
            backends.append(backend)
    if not backends:
        return

    def examine() -> None:
        from simtile.doctor import gpu
        from simtile.doctor.device import TorchDevice

        device = TorchDevice()
        half["device"] = device.description()
        result["not_checked"] += gpu.left_out(device, quick=options.quick)
        _run(half["checks"], gpu.checks(device, backends, quick=options.quick), screen)
        with _measuring(result, "what this GPU reaches", screen):
            half["peaks"] += device.peaks()
        for timing in gpu.timings(device, backends, quick=options.quick):
            with _measuring(result, timing.name, screen):
                half["timings"].append(gpu.measure(device, timing, half["peaks"]))

    _guard(half, "gpu", examine)
    show.checks(screen, f"GPU, {half['device'] or 'unknown'}", half["checks"])
    show.speed(screen, half)


def _gpu_backends() -> dict[str, str]:
    """For each backend why it cannot be checked here; "" if it can."""
    why = found.why_no_gpu()
    if why:
        return dict.fromkeys(GPU_BACKENDS, why)
    return {"triton": found.why_no_triton(), "cuda": found.why_no_cuda()}


def _run(results: list[CheckResult], checks: Sequence[Check], screen: show.Screen) -> None:
    for number, check in enumerate(checks):
        with screen.busy(f"check {number + 1} of {len(checks)}: {check.name}"):
            results.append(run_check(check))


@contextlib.contextmanager
def _measuring(result: Report, what: str, screen: show.Screen) -> Iterator[None]:
    """A measurement that cannot be made is missing, and no failure: checks are for those."""
    try:
        with screen.busy(f"timing {what}"):
            yield
    except Exception as error:
        result["not_checked"].append({"what": f"time of {what}", "why": describe(error)})


def _guard(half: Half, backend: str, examine: Callable[[], None]) -> None:
    """Run one part; what it raises becomes a failed check, and the next part goes on."""
    try:
        examine()
    except Exception as error:
        half["checks"].append(failed_part(backend, "this part", describe(error)))
