"""Measure this machine's peaks: `python bench/peak.py [--quick] [--output DIR]`.

Rates of 1, 2, ... threads, median and spread; kernels/peak/README.md says what each kind counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _common
import tables
from rich.markdown import Markdown

from simtile import _core


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    counts = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*counts, most]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this machine's peaks.")
    parser.add_argument("--quick", action="store_true", help="few, short samples")
    parser.add_argument("--output", type=Path, help="folder for peak.json")
    arguments = parser.parse_args()
    samples, seconds = (3, 0.02) if arguments.quick else (9, _common.PEAK_SAMPLE)

    console = _common.console()
    machine = _common.machine()
    counts = thread_counts(machine["threads"])
    kinds = _core.peak_kinds()
    peaks = {kind: {threads: _common.Samples() for threads in counts} for kind in kinds}
    with console.status("measuring") as status:
        for i in range(samples):
            status.update(f"measuring, round {i + 1} of {samples}")
            for kind in kinds:
                for threads in counts:
                    peaks[kind][threads].values.append(_core.peak(kind, threads, seconds))
    results = {
        "machine": machine,
        "quick": arguments.quick,
        "peaks": {
            kind: {str(threads): value.json() for threads, value in by_threads.items()}
            for kind, by_threads in peaks.items()
        },
    }
    console.print(Markdown(tables.peak(results)))
    if not arguments.quick or arguments.output:
        path = _common.write_results("peak", results, arguments.output)
        console.print(f"stored in {path}")


if __name__ == "__main__":
    main()
