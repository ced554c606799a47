"""Time by size and by threads: `python bench/scaling.py [--quick] [--only NAME] [--output DIR]`.

Every main operation while one size varies, none of them a round number, and with 1, 2, … threads.
Each size is first checked against the definition in float64; an operation that fails is not timed
and the exit code is 1. Results of a complete run go to bench/results/<machine>/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import _common
import plots.scaling
import scaling_tables
import tables
from _common import Json, Run, Target, interleave
from scaling_calls import OPERATIONS, THREADS, Operation

ROUNDS = 5
Result = tuple[Json, list[Target]]


def thread_counts(most: int) -> tuple[int, ...]:
    """1, 2, 4, … and `most` itself."""
    return tuple(sorted({*(1 << i for i in range(most.bit_length()) if 1 << i < most), most}))


def measure(run: Run, operation: Operation) -> Result:
    """Sizes of one axis take turns; at the same work the threads do."""
    quick_base = {name: values[-1] for name, values in operation.quick.items()}
    base = quick_base if run.quick else operation.base
    axes = {
        **(operation.quick if run.quick else operation.axes),
        THREADS: thread_counts(run.threads),
    }
    entry: Json = {"base": {**base, THREADS: run.threads}, "unit": operation.unit, "axes": {}}
    for axis, values in axes.items():
        points = {str(value): operation.make({**entry["base"], axis: value}) for value in values}
        for point in points.values():
            point.check()
        times, _ = interleave(
            {value: point.call for value, point in points.items()},
            rounds=run.rounds(ROUNDS),
            threads=run.threads,
        )
        entry["axes"][axis] = {
            "work": {value: point.work for value, point in points.items()},
            "times": {value: samples.json() for value, samples in times.items()},
        }
    return entry, []


def entry_of(operation: Operation) -> Callable[[Run], Result]:
    return lambda run: measure(run, operation)


# by what --only can be told
ENTRIES = {name.replace(", ", "_"): entry_of(operation) for name, operation in OPERATIONS.items()}


def main() -> int:
    arguments = _common.parser("Measure how times grow.", ENTRIES).parse_args()
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "scaling",
        ENTRIES,
        arguments,
        _common.machine(),
        scaling_tables.entry,
        tables.targets,
        plots.scaling.draw,
    )


if __name__ == "__main__":
    sys.exit(main())
