"""Execute the GPU kernels' PTX without a GPU and count what they move:
`python bench/ptx_counts.py --interpreter FILE.py [KERNEL...]`.

Every KERNEL is a file of bench/ptx; all of them are the default. A run that is wrong or breaks a
requirement (bench/_ptx.py names them) fails; so does a kernel that was not run for both
architectures and in three orders. A complete run without failures is what the READMEs show.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import _ptx
import ahead_of_time  # _ptx has made it importable
import gpu_tables
from _ptx import Json, Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "ptx"
ARCHES = (80, 120)
ORDERS = 3


def kernels() -> list[str]:
    folder = Path(__file__).resolve().parent / "ptx"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def incomplete(runs: list[Run]) -> list[str]:
    """What the runs of one kernel lack, in words."""
    if not runs:
        return ["nothing was run"]
    found = []
    for arch in ARCHES:
        of_arch = [run for run in runs if run.arch == arch]
        orders = {run.order for run in of_arch}
        if len(orders) < ORDERS:
            found.append(f"sm_{arch}: orders {sorted(orders)}, at least {ORDERS} asked")
        if not any(run.requirements for run in of_arch):
            found.append(f"sm_{arch}: no run is held to the requirements")
    return found


def collect(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """All runs, and what failed; what the interpreter refuses ends the kernel's runs."""
    done: list[Run] = []
    try:
        for run in runs:
            done.append(run)
    except Exception:
        # an access out of bounds, a race, a deadlock, an unknown opcode, a compiler's error
        after = [f" after {run.name!r}, sm_{run.arch}, order {run.order}" for run in done[-1:]]
        return done, [f"stopped{''.join(after)}:\n{traceback.format_exc()}"]
    return done, [*incomplete(done), *[what for run in done for what in run.broken()]]


def compilers() -> Json:
    found: Json = {}
    for name, version in (
        ("nvcc", ahead_of_time.nvcc_version),
        ("triton", ahead_of_time.triton_version),
    ):
        try:
            found[name] = version()
        except ahead_of_time.CompilerMissing:
            found[name] = None
    return found


def write(folder: Path, kernel: str, results: Json) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kernel}.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)
    return path


def run_kernel(kernel: str, module: ModuleType, interp: ModuleType) -> Json:
    start = time.monotonic()
    runs, failures = collect(module.runs(interp))
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "bench": f"ptx/{kernel}",
        "compilers": compilers(),
        "date": date,
        "seconds": round(time.monotonic() - start, 1),
        "complete": True,
        "failures": failures,
        "runs": [run.json() for run in runs],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the GPU kernels' PTX and count.")
    parser.add_argument("--interpreter", help="a Python file; default: SIMTILE_PTX_INTERPRETER")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for KERNEL.json")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(kernels()))
    arguments = parser.parse_args()
    unknown = set(arguments.kernels) - set(kernels())
    if unknown:
        parser.error(f"no bench/ptx/{sorted(unknown)[0]}.py; there are: {', '.join(kernels())}")
    try:
        interp = _ptx.interpreter(arguments.interpreter)
    except _ptx.NoInterpreter as error:
        parser.error(str(error))
    names = arguments.kernels or kernels()
    if not names:
        parser.error("bench/ptx has no kernel")
    failed = False
    for kernel in names:
        results = run_kernel(kernel, importlib.import_module(f"ptx.{kernel}"), interp)
        path = write(arguments.output, kernel, results)
        print(f"{kernel}\n\n{gpu_tables.ptx_runs(results)}")
        for failure in results["failures"]:
            print(f"FAILED: {failure}", file=sys.stderr)
        failed |= bool(results["failures"])
        print(f"{results['seconds']} s, stored in {path}\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
