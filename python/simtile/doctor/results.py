"""What a check and a timing are, and how they are run: nothing that goes wrong ends the doctor."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from simtile.doctor.report import CheckResult, Share, TimingResult


class Comparison(NamedTuple):
    """One output beside what it should be; exact results have ``allowed`` 0."""

    output: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed  # not when it is NaN

    @property
    def used(self) -> float:
        """The share of what is allowed that the error takes; NaN sorts as the worst."""
        if self.ok:
            return self.error / self.allowed if self.allowed else 0.0
        return float("inf")


@dataclass(frozen=True)
class Check:
    """One line of a registry: what runs on what, and how the result is compared."""

    kernel: str  # "info_nce"
    backend: str  # "cpu", "triton", "cuda"
    dtype: str  # "float32", "float32 (tf32)"
    sizes: str
    what: str  # "values", "same bits", "beyond 2^31 elements"
    compare: Callable[[], Iterable[Comparison]]

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.backend} {self.dtype} {self.sizes}, {self.what}"


@dataclass(frozen=True)
class Timing:
    """A call worth timing, and what it does at least."""

    kernel: str
    backend: str
    dtype: str
    sizes: str
    what: str  # "forward + backward"
    prepare: Callable[[], Callable[[], object]]  # makes the inputs and gives the call
    operations: float  # multiplications and additions of the formula
    traffic: float  # bytes: inputs read once, outputs written once
    unit: str = ""  # the arithmetic peak that bounds it; "" if memory does
    products: int = 1  # of that unit for one multiply-add of the formula

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.backend} {self.dtype} {self.sizes}, {self.what}"


def run_check(check: Check) -> CheckResult:
    """Run one check; what it raises is its result."""
    start = time.perf_counter()
    comparisons: list[Comparison] = []
    message = ""
    try:
        comparisons = list(check.compare())
        if not comparisons:
            raise RuntimeError("the check compared nothing")
    except Exception as error:
        message = describe(error)
    wrong = [comparison for comparison in comparisons if not comparison.ok]
    if wrong:
        message = "; ".join(
            f"{c.output}: error {c.error:.3g}, allowed {c.allowed:.3g}" for c in wrong
        )
    return {
        "kernel": check.kernel,
        "backend": check.backend,
        "dtype": check.dtype,
        "sizes": check.sizes,
        "what": check.what,
        "status": "failed" if message else "passed",
        "message": message,
        "comparisons": [
            {"output": c.output, "error": float(c.error), "allowed": float(c.allowed)}
            for c in comparisons
        ],
        "seconds": time.perf_counter() - start,
    }


def failed_part(backend: str, what: str, message: str) -> CheckResult:
    """A part of the report that could not be made, as one failed check."""
    return {
        "kernel": "all",
        "backend": backend,
        "dtype": "all",
        "sizes": "all",
        "what": what,
        "status": "failed",
        "message": message,
        "comparisons": [],
        "seconds": 0.0,
    }


def timing_result(timing: Timing, samples: list[float], shares: list[Share]) -> TimingResult:
    """The samples of a timing with their median and spread, and the rates that follow."""
    median = statistics.median(samples)
    return {
        "kernel": timing.kernel,
        "backend": timing.backend,
        "dtype": timing.dtype,
        "sizes": timing.sizes,
        "what": timing.what,
        "median": median,
        "spread": spread(samples),
        "samples": samples,
        "operations_per_second": timing.operations / median,
        "bytes_per_second": timing.traffic / median,
        "shares": shares,
    }


def spread(samples: list[float]) -> float:
    """Half the distance between the quartiles, relative to the median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / 2 / middle


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its text, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
