"""What the benchmarks share: the machine described, contenders timed fairly, peaks, memory, files.

Contenders of one entry take turns in one process, round after round, so that a machine that slows
down slows all of them down; a ratio is a ratio of medians over the same rounds. The machine's peak
is measured in every round too. Import this before NumPy, for what `_environment` does.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import _environment
from rich.console import Console
from rich.markdown import Markdown

import simtile
from simtile import _core

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

# A sample of a fast call repeats it for this long: the clock and the scheduler's ticks do not show.
SHORTEST_SAMPLE = 0.02  # seconds
PEAK_SAMPLE = 0.1  # seconds
# A slower call is not run once more, untimed, before each of its samples.
LONGEST_WARM_UP = 2.0  # seconds

Call = Callable[[], object]
Json = dict[str, Any]


@dataclass
class Samples:
    """Repeated measurements of one quantity: seconds, or a rate."""

    values: list[float] = field(default_factory=list)
    # CPU time of the process / elapsed time: how many cores were busy, spinning included
    cores: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def json(self) -> Json:
        result: Json = {"median": self.median, "spread": self.spread, "samples": self.values}
        if self.cores:
            result["cores"] = statistics.median(self.cores)
        return result


def interleave(
    contenders: Mapping[str, Call],
    *,
    rounds: int,
    threads: int,
    peak_kinds: Sequence[str] = (),
    rates: Mapping[str, Callable[[], float]] = MappingProxyType({}),
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Time the contenders in turn, `rounds` times; seconds a call, and peaks in the same rounds.

    Each round starts with another contender. Before a sample its contender runs once untimed, so
    that it finds its own data in the caches and its own threads awake. `rates` are further peaks.
    """
    names = list(contenders)
    repeats = {}
    for name in names:
        contenders[name]()
        start = clock()
        contenders[name]()
        once = max(clock() - start, 1e-9)
        repeats[name] = max(1, math.ceil(SHORTEST_SAMPLE / once)) if once < LONGEST_WARM_UP else 0
    times = {name: Samples() for name in names}
    measured = {
        kind: functools.partial(_core.peak, kind, threads, PEAK_SAMPLE) for kind in peak_kinds
    }
    measured |= rates
    peaks = {kind: Samples() for kind in measured}
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for kind, rate in measured.items():
                peaks[kind].values.append(rate())
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                call = contenders[name]
                if repeats[name]:
                    call()
                count = max(1, repeats[name])
                cpu = time.process_time()
                start = clock()
                for _ in range(count):
                    call()
                elapsed = clock() - start
                times[name].values.append(elapsed / count)
                times[name].cores.append((time.process_time() - cpu) / max(elapsed, 1e-9))
                gc.collect()
    finally:
        if gc_was_enabled:
            gc.enable()
    return times, peaks


@dataclass(frozen=True)
class Target:
    """One number that the project promised, and the one that was measured."""

    what: str
    measured: float
    relation: str  # "at least" or "at most"
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.relation == "at least":
            return self.measured >= self.limit
        return self.measured <= self.limit

    def json(self) -> Json:
        return {**self.__dict__, "met": self.met}


@dataclass(frozen=True)
class Run:
    """How thorough this run is."""

    threads: int
    quick: bool

    def rounds(self, full: int) -> int:
        return 3 if self.quick else full

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


class GateFailed(Exception):
    """A result is wrong, so its time means nothing."""


class ShareAbovePeak(Exception):
    """More than the machine can do: the peak or the count of operations is wrong."""


Entry = Callable[[Run], tuple[Json, list[Target]]]


def share_of_peak(rate: float, peak: float, what: str) -> float:
    """rate / peak, refused above 1."""
    share = rate / peak
    if share > 1:
        raise ShareAbovePeak(
            f"{what}: {rate / 1e9:.1f} G/s is {share:.0%} of a peak of {peak / 1e9:.1f} G/s; "
            "either the peak or the count of operations is wrong"
        )
    return share


def machine() -> Json:
    """What the numbers were measured on and with."""
    info = simtile.cpu_info()
    facts: Json = {
        "cpu": info["brand"] or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": info["threads"],
        "threads_source": info["threads_source"],
        "level": info["level"],
        "levels": info["detected"],
        "caches": {name: info[name] for name in ("l1d", "l2", "l3")},
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        # without what a distribution or a cloud calls its build
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "virtual_machine": "hypervisor" in _read("/proc/cpuinfo"),
        "python": platform.python_version(),
        "versions": {
            name: version
            for name in ("simtile", "numpy", "torch")
            if (version := _version(name)) is not None
        },
        "blas": _blas(),
        "OPENBLAS_CORETYPE_removed": _environment.OPENBLAS_CORETYPE,
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return facts


def machine_name(facts: Json) -> str:
    """A folder's name for the machine: the CPU, its ISA level, how many CPUs there are.

    Virtual machines tell little of the CPU: one name covers generations of different levels.
    """
    cpu = re.sub(r"\((r|tm)\)", "", f"{facts['cpu']} {facts['level']}".lower())
    return "-".join(re.findall(r"[a-z0-9]+", cpu)) + f"-{facts['cpus']}cpu"


def write_results(bench: str, results: Json, output: Path | None) -> Path:
    """Store `results` as <output or results/<machine>>/<bench>.json."""
    folder = output or RESULTS / machine_name(results["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}.json"
    path.write_text(json.dumps({"bench": bench, **results}, indent=1) + "\n")
    return path


def console() -> Console:
    """Wide enough for the tables where the output is a file."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def parser(description: str, entries: Mapping[str, Entry]) -> argparse.ArgumentParser:
    """The options of every benchmark that consists of entries."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument(
        "--only",
        action="append",
        choices=entries,
        metavar="NAME",
        help=f"only this entry, may be repeated: {', '.join(entries)}",
    )
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser


def run_entries(
    bench: str,
    entries: Mapping[str, Entry],
    arguments: argparse.Namespace,
    facts: Json,
    markdown: Callable[[str, Json], str],
    targets_markdown: Callable[[list[Json]], str],
    draw: Callable[[Json, Path], Path] | None = None,
) -> int:
    """Run the entries that were asked for, show and store what they give; the exit code.

    Results of a complete run are stored, others only where --output says. An entry that fails its
    gate is reported, and the others still run.
    """
    shown = console()
    run = Run(arguments.threads, arguments.quick)
    results: Json = {
        "machine": facts,
        "quick": arguments.quick,
        "complete": not arguments.only,
        "threads": arguments.threads,
        "entries": {},
        "targets": [],
    }
    failures = []
    for name in arguments.only or entries:
        with shown.status(f"{name} ({list(entries).index(name) + 1} of {len(entries)})"):
            try:
                entry, targets = entries[name](run)
            except (GateFailed, ShareAbovePeak) as error:
                failures.append(f"{name}: {error}")
                shown.print(f"[red]{name}: {error}[/red]")
                continue
            finally:
                gc.collect()
        results["entries"][name] = entry
        results["targets"] += [target.json() for target in targets]
        shown.print(Markdown(markdown(name, entry)))
        if targets:
            shown.print(Markdown(targets_markdown([target.json() for target in targets])))
    results["failures"] = failures
    if arguments.output or not (arguments.quick or arguments.only):
        path = write_results(bench, results, arguments.output)
        shown.print(f"stored in {path}")
        if draw and not arguments.only and not failures:
            shown.print(f"plotted in {draw(results, path.with_suffix('.png'))}")
    missed = sum(not target["met"] for target in results["targets"])
    shown.print(f"{len(results['targets'])} targets, {missed} not met, {len(failures)} failures")
    return 1 if failures else 0


def limit_blas(count: int) -> None:
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return
    threadpool_limits(limits=count, user_api="blas")


def in_child(script: Path, task: Json, environment: Mapping[str, str] | None = None) -> Json:
    """`python script --child TASK` in a fresh process; what it printed last, as JSON."""
    done = subprocess.run(
        [sys.executable, str(script), "--child", json.dumps(task)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"failed": reason[0]}
    answer: Json = json.loads(done.stdout.splitlines()[-1])
    return answer


def extra_memory(call: Call) -> tuple[int, Any]:
    """Bytes by which the process grows at most while `call` runs, and what it returned."""
    gc.collect()
    # Linux: 5 resets the peak of the resident set (proc_pid_clear_refs(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = call()
    return _resident("VmHWM") - before, result


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    return int(match[1]) * 1024 if match else 0


def _resident(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", _read("/proc/self/status"))
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only")
    return int(match[1]) * 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _blas() -> list[Json]:
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        return []
    keys = ("user_api", "internal_api", "version", "architecture", "num_threads")
    return [{key: pool.get(key) for key in keys} for pool in threadpool_info()]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
