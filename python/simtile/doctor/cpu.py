"""The CPU's half: every kernel and element type beside the reference, and the speed of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from simtile import _core
from simtile.doctor import limits
from simtile.doctor.info_nce import (
    SMALL,
    Array,
    Case,
    compare,
    exact,
    exact_by_cpu,
    make_inputs,
    run_cpu,
)
from simtile.doctor.report import Peak, TimingResult
from simtile.doctor.results import Check, Comparison, Timing, timing_result

# Beside the float64 kernel, itself checked on small sizes: more rows than one chunk has.
LARGE = Case(2048, 2048, 768, seed=5)
REPEATED = Case(989, 997, 111, ids=True, seed=6)
REPEATS = 3

STANDARD = Case(4096, 4096, 768, seed=7)
STANDARD_QUICK = Case(1024, 1024, 384, seed=7)
SMALL_STEP = Case(64, 64, 384, seed=8)
SHORTEST_SAMPLE = 0.02  # seconds; a faster call is repeated
LONGEST_WARM_UP = 0.5  # seconds; a slower call is not run untimed before each sample
TIMED = 2.0  # seconds, about, for the rounds of one timing
PEAK_SAMPLE = 0.05  # seconds

# What a kernel multiplies with, by the name it gives: the peak that bounds it, and how many
# products of that unit make one multiply-add of the formula.
UNITS = {
    "float32": ("fma_f32", 1),
    "float64": ("fma_f64", 1),
    "bf16": ("dot_bf16", 1),
    "amx_bf16": ("matrix_bf16", 1),
    "amx_bf16x3": ("matrix_bf16", 6),
}


def checks(threads: int, *, quick: bool) -> list[Check]:
    """The registry: a later operation adds its lines here."""
    most = threads or _core.num_threads()
    found = []
    for dtype in limits.CPU:
        for case in SMALL[:4] if quick else SMALL:
            values = partial(_values, case, dtype, threads)
            found.append(Check("info_nce", "cpu", dtype, str(case), "values", values))
        for count in sorted({1, 2, most}):
            bits = partial(_same_bits, dtype, count)
            what = f"same bits, {count} thread{'s' if count > 1 else ''}"
            found.append(Check("info_nce", "cpu", dtype, str(REPEATED), what, bits))
        if dtype != "float64" and not quick:
            large = partial(_values, LARGE, dtype, threads, exact_by_cpu)
            found.append(
                Check("info_nce", "cpu", dtype, str(LARGE), "beside the float64 kernel", large)
            )
    return found


def _values(
    case: Case, dtype: str, threads: int, reference: Callable[..., Any] = exact
) -> Iterator[Comparison]:
    inputs = make_inputs(case, dtype)
    outputs = run_cpu(case, inputs, dtype, threads)
    yield from compare(outputs, reference(case, inputs), limits.CPU[dtype])


def _same_bits(dtype: str, threads: int) -> Iterator[Comparison]:
    inputs = make_inputs(REPEATED, dtype)
    yield from differing_bits(lambda: run_cpu(REPEATED, inputs, dtype, threads), REPEATS)


def differing_bits(call: Callable[[], dict[str, Array]], repeats: int) -> Iterator[Comparison]:
    """How many of the repeats differ from the first call in any bit, for each output."""
    first = call()
    different = dict.fromkeys(first, 0)
    for _ in range(repeats):
        for name, value in call().items():
            different[name] += value.tobytes() != first[name].tobytes()
    for name, count in different.items():
        yield Comparison(f"{name}, repeats that differ", count, 0)


def timings(threads: int, *, quick: bool) -> list[Timing]:
    """The standard step, and a small one that shows what a call costs."""
    standard = STANDARD_QUICK if quick else STANDARD
    cases = (("float32", standard), ("bfloat16", standard), ("float32", SMALL_STEP))
    return [_timing(case, dtype, threads) for dtype, case in cases]


def _timing(case: Case, dtype: str, threads: int) -> Timing:
    def prepare() -> Callable[[], object]:
        inputs = replace(make_inputs(case, dtype), values={})  # without the large float64 copies
        return lambda: run_cpu(case, inputs, dtype, threads)

    size = 2 if dtype == "bfloat16" else 4  # bytes of an element; those of gradients have 4
    return Timing(
        "info_nce",
        "cpu",
        dtype,
        str(case),
        "forward + backward",
        prepare,
        6.0 * case.queries * case.documents * case.dimensions,
        (size + 4.0) * (case.queries + case.documents) * case.dimensions,
        *UNITS[_core.info_nce_arithmetic(dtype)],
    )


def measure(timing: Timing, threads: int, *, quick: bool) -> TimingResult:
    """Time one call in turn with the peak of the unit it multiplies with."""
    call = timing.prepare()
    call()
    once = max(_elapsed(call), 1e-9)
    inner = max(1, round(SHORTEST_SAMPLE / once))
    rounds = 3 if quick else int(np.clip(TIMED / (once * inner + PEAK_SAMPLE), 3, 11))
    samples, peaks = [], []
    for _ in range(rounds):
        peaks.append(_core.peak(timing.unit, threads, PEAK_SAMPLE))
        if once < LONGEST_WARM_UP:
            call()  # finds its data in the caches and its threads awake
        start = time.perf_counter()
        for _ in range(inner):
            call()
        samples.append((time.perf_counter() - start) / inner)
    rate = timing.operations / float(np.median(samples))
    share = timing.products * rate / float(np.median(peaks))
    return timing_result(
        timing, samples, [{"of": timing.unit, "products": timing.products, "share": share}]
    )


def _elapsed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peaks(threads: int, *, quick: bool) -> list[Peak]:
    """Every peak that this level has, and the rate at which memory is read."""
    result: list[Peak] = []
    for kind in _core.peak_kinds():
        rates = [_core.peak(kind, threads, PEAK_SAMPLE) for _ in range(1 if quick else 3)]
        unit = "bytes/s" if kind in ("popcount", "read") else "operations/s"
        result.append(
            {
                "name": "memory read" if kind == "read" else kind,
                "rate": float(np.median(rates)),
                "unit": unit,
                "measured": True,
                "how": f"simtile._core.peak({kind!r})",
            }
        )
    return result
