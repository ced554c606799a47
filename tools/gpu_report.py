"""Compile every GPU kernel for every architecture and record what the machine code takes:
`python tools/gpu_report.py [--check | --changed] [--only triton|cuda] [--require triton,cuda]`.

No GPU is needed and none is used; the result is bench/results/gpu_report.json and
docs/gpu-report.md. A spill, too much shared memory or an instruction that is not the one meant is
an error. With --check nothing is written, it is also an error when a kernel is worse than in the
stored report or is not in it, and most of what did not change is not compiled (gpu_sources.py).
With --changed what did not change stays in the report as it is stored.
Where a compiler is missing, its half stays as it is stored, and a message says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import ahead_of_time
import gpu_code
import gpu_cuda
import gpu_page
import gpu_sources
import gpu_triton
from gpu_jobs import SHARED_LIMIT, Job, Json

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "bench" / "results" / "gpu_report.json"
PAGE = ROOT / "docs" / "gpu-report.md"

# Registers are given to a thread in eights; a kernel that grows by less may run as before.
REGISTER_TOLERANCE = 8

HALVES: dict[str, tuple[Callable[[], list[Job]], Callable[[], str]]] = {
    "triton": (gpu_triton.jobs, ahead_of_time.triton_version),
    "cuda": (gpu_cuda.jobs, ahead_of_time.nvcc_version),
}


WORK = {"triton": gpu_triton.rows, "cuda": gpu_cuda.rows, "launches": gpu_cuda.launches}


def title(row: Json) -> str:
    return f"{row['source']} {row['operation']} {row['variant']} {row['dtype']} {row['arch']}"


def place(row: Json) -> tuple[str, str, str, int]:
    """In the report."""
    return row["operation"], row["variant"], row["dtype"], list(SHARED_LIMIT).index(row["arch"])


def faults(row: Json) -> list[str]:
    """What may not be, whatever was before."""
    found = []
    if any(row["spills"].values()):
        found.append("spills " + ", ".join(f"{k} {v}" for k, v in row["spills"].items() if v))
    if row["shared_dynamic"] is None:
        found.append(f"no arguments in tools/gpu_launches/{row['operation']}.cu launch it")
    shared, limit = row["shared_static"] + (row["shared_dynamic"] or 0), row["shared_limit"]
    if shared > limit:
        found.append(f"{shared} bytes of shared memory, a block can have {limit}")
    if why := gpu_code.problem(row["instructions"], row["expects"]):
        found.append(why)
    return [f"{title(row)}: {what}" for what in found]


def worse(row: Json, before: Json) -> list[str]:
    """How a kernel is worse than the stored one."""
    found = []
    if row["registers"] > before["registers"] + REGISTER_TOLERANCE:
        found.append(f"{row['registers']} registers, {before['registers']} stored")
    if row["stack"] > before["stack"]:
        found.append(f"{row['stack']} bytes of stack, {before['stack']} stored")
    for what, count in row["spills"].items():
        if count > before["spills"].get(what, 0):
            found.append(f"spills {what} {count}, {before['spills'].get(what, 0)} stored")
    return [f"{title(row)}: {what}" for what in found]


def compare(rows: Sequence[Json], stored: Sequence[Json]) -> list[str]:
    """Everything that is worse than stored; both of the same halves."""
    new, old = ({title(row): row for row in side} for side in (rows, stored))
    found = [f"{name}: not in the stored report" for name in new if name not in old]
    found += [f"{name}: in the stored report, but not compiled" for name in old if name not in new]
    for name in new.keys() & old.keys():
        found += worse(new[name], old[name])
    return sorted(found)


def work(job: Job) -> list[Json]:
    return WORK[job.source](job)


def make(jobs: Sequence[Job], workers: int) -> tuple[list[Json], list[str]]:
    """The rows of all jobs, and what the compilers refused."""
    rows: list[Json] = []
    failed: list[str] = []
    # spawn: neither Triton nor its LLVM is made to be forked
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(running):
            try:
                rows += done.result()
            except Exception as error:  # a compiler's; the others go on
                failed.append(f"{running[done]}: {type(error).__name__}: {error}")
    rows = gpu_cuda.merge(rows)
    rows.sort(key=place)
    names = [title(row) for row in rows]
    failed += [f"{name}: two kernels" for name in sorted({n for n in names if names.count(n) > 1})]
    return rows, failed


def make_half(
    half: str, workers: int, stored: Json, draw: bool = True
) -> tuple[Json, list[str]] | None:
    """Version of the compiler, digests of the sources and rows, those that are as `stored` among
    them; None, with a message, where there is no compiler."""
    jobs_of, version_of = HALVES[half]
    try:
        version, jobs = version_of(), jobs_of()
    except ahead_of_time.CompilerMissing as error:
        print(f"the {half} half was not made: {error}")
        return None
    start = time.monotonic()
    sources = gpu_sources.digests(jobs)
    skip = gpu_sources.skipped(jobs, version, sources, stored, draw)
    rows, failed = make(
        [job for job in jobs if (job.operation, gpu_sources.arch(job)) not in skip], workers
    )
    print(f"{half} {version}: {len(rows)} kernels in {time.monotonic() - start:.0f} s")
    if skip:
        kept = [row for row in stored["kernels"] if (row["operation"], row["arch"]) in skip]
        print(f"{half}: {len(kept)} kernels of sources as they were stored, not compiled")
        rows = sorted(rows + kept, key=place)
    return {"compiler": version, "sources": sources, "kernels": rows}, failed


def check(half: str, made: Json, stored: Json) -> list[str]:
    if half not in stored:
        return [f"{half}: the stored report has no such half; run make gpu-report"]
    if made["compiler"] != stored[half]["compiler"]:
        print(
            f"{half}: compiled by {made['compiler']}, the stored report by "
            f"{stored[half]['compiler']}; compared all the same"
        )
    return compare(made["kernels"], stored[half]["kernels"])


def store(report: Json) -> None:
    for path, text in (
        (REPORT, json.dumps(report, indent=1) + "\n"),
        (PAGE, gpu_page.page(report)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"stored in {path.relative_to(ROOT)}")


def listed(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(HALVES):
        raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is neither triton nor cuda")
    return names


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the GPU kernels and report on the code.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when worse")
    parser.add_argument("--changed", action="store_true", help="compile only what changed")
    parser.add_argument("--only", choices=[*HALVES], help="one half")
    parser.add_argument(
        "--require", type=listed, default=[], help="halves whose compiler must be there"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    options = parser.parse_args(None if arguments is None else list(arguments))
    stored: Json = json.loads(REPORT.read_text()) if REPORT.is_file() else {}
    report = dict(stored)
    problems = []
    for half in [options.only] if options.only else [*HALVES]:
        known = stored.get(half, {}) if options.check or options.changed else {}
        result = make_half(half, options.workers, known, draw=not options.changed)
        if result is None:
            problems += [f"{half}: required, but not made"] if half in options.require else []
            continue
        report[half], failed = result
        problems += failed
        problems += [what for row in report[half]["kernels"] for what in faults(row)]
        if options.check:
            problems += check(half, report[half], stored)
    if not options.check:
        store(report)
    for what in problems:
        print(f"FAILED {what}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
