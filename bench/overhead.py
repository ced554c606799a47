"""What a call costs, and an import: `python bench/overhead.py [--quick] [--output DIR]`.

Every public function with four vectors of eight dimensions, given as NumPy's arrays, as torch's
tensors, and forward and backward; then imports, each in a process of its own, in turn. Nothing is
timed unless arrays and tensors give the same. Results of a complete run go to
bench/results/<machine>/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

import _common
import numpy as np
import overhead_calls
import overhead_tables
import tables
import torch
from _common import GateFailed, Json, Run, Samples, Target, interleave
from overhead_calls import BACKWARD, Variants, numbers

import simtile

Result = tuple[Json, list[Target]]
CLOSE = 1e-5  # between arrays and tensors
ROUNDS = 9
SHOWN = 8  # modules of an import

# "simtile" has NumPy's import in it, and "simtile.nn" torch's.
IMPORTS = ("simtile", "numpy", "simtile.nn", "torch")
IMPORT = """
import sys, time
start = time.perf_counter()
import {}
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def check(name: str, variants: Variants) -> None:
    """Arrays and tensors give the same, and gradients are numbers, some of them not 0."""
    results = {variant: numbers(call()) for variant, call in variants.items()}
    for grad in results.get(BACKWARD, [])[1:]:
        if not (np.isfinite(grad).all() and grad.any()):
            raise GateFailed(f"{name}: a gradient is 0 or no number")
    if BACKWARD in results:
        results[BACKWARD] = results[BACKWARD][:1]
    first = next(iter(results.values()))
    for variant, found in results.items():
        if len(found) != len(first) or not all(
            np.allclose(a, b, CLOSE, CLOSE) for a, b in zip(found, first, strict=True)
        ):
            raise GateFailed(f"{name}: {variant} gives something else than the others")


def time_calls(run: Run, table: Mapping[str, Variants]) -> Json:
    """Seconds a call, by name and variant."""
    found: Json = {}
    for name, variants in table.items():
        times, _ = interleave(variants, rounds=run.rounds(ROUNDS), threads=run.threads)
        found[name] = {variant: samples.json() for variant, samples in times.items()}
    return found


def checked(run: Run, table: Mapping[str, Variants]) -> Result:
    for name, variants in table.items():
        check(name, variants)
    sizes = {"n": overhead_calls.N, "tokens": overhead_calls.TOKENS, "dim": overhead_calls.DIM}
    return {
        **sizes,
        "threads": run.threads,
        "calls": time_calls(run, table),
        "peers": time_calls(run, overhead_calls.floor()),
    }, []


def functions(run: Run) -> Result:
    table = overhead_calls.functions(run.threads)
    if left_out := overhead_calls.public_functions() - table.keys():
        raise GateFailed(f"public functions without a call here: {', '.join(sorted(left_out))}")
    return checked(run, table)


def objects(run: Run) -> Result:
    return checked(run, overhead_calls.objects(run.threads))


def imports(run: Run) -> Result:
    """Seconds inside the import statement of a process that has imported nothing else."""
    times = {name: Samples() for name in IMPORTS}
    for turn in range(run.rounds(ROUNDS) + 1):
        for i in range(len(IMPORTS)):
            name = IMPORTS[(turn + i) % len(IMPORTS)]
            seconds, with_torch = fresh("-c", IMPORT.format(name)).stdout.split()
            if name == "simtile" and with_torch == "True":
                raise GateFailed("import simtile imports torch")
            if turn > 0:  # the first finds files that are not in memory yet
                times[name].values.append(float(seconds))
    return {
        "times": {name: samples.json() for name, samples in times.items()},
        "slowest": slowest(fresh("-X", "importtime", "-c", "import simtile").stderr),
    }, []


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    # compiled modules are kept, as they are for everybody else
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment
    )


def slowest(importtime: str) -> dict[str, float]:
    """Seconds of the modules that took longest by themselves, of what -X importtime prints."""
    lines = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", importtime, re.MULTILINE)
    longest = sorted(lines, key=lambda line: -int(line[0]))[:SHOWN]
    return {module: int(microseconds) / 1e6 for microseconds, module in longest}


ENTRIES = {"functions": functions, "objects": objects, "imports": imports}


def main() -> int:
    arguments = _common.parser("Measure what a call costs, and an import.", ENTRIES).parse_args()
    torch.set_num_threads(arguments.threads)
    simtile.set_num_threads(arguments.threads)
    return _common.run_entries(
        "overhead",
        ENTRIES,
        arguments,
        _common.machine(),
        overhead_tables.entry,
        tables.targets,
    )


if __name__ == "__main__":
    sys.exit(main())
