"""One shape: the result checked first, then simtile, the others and the peaks measured in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import info_nce_contenders as contenders
from _common import GateFailed, Json, Run, Samples, interleave, share_of_peak
from info_nce_contenders import EAGER, NUMPY, SIMTILE

from simtile import _core

# What the kernel multiplies with, by the name it gives: the peak that bounds it, and how many
# products of that unit make one multiply-add of the formula.
UNITS = {
    "float32": ("fma_f32", 1),
    "float64": ("fma_f64", 1),
    "bf16": ("dot_bf16", 1),
    "amx_bf16": ("matrix_bf16", 1),
    "amx_bf16x3": ("matrix_bf16", 6),
}
# An error up to this is rounding of the result itself and passes whatever eager torch's is.
ERROR_FLOOR = 1e-7


def flops(n: int, dim: int) -> float:
    """Similarities, and two matrix products for the gradients: 3 x 2 N^2 D."""
    return 6.0 * n * n * dim


def gate(ours: contenders.Errors, eager: contenders.Errors) -> float:
    """The largest ratio of our error to eager torch's; GateFailed if it is above 2."""
    ratios = []
    for what, error in ours.json().items():
        other = eager.json()[what]
        ratios.append(error / other)
        if not error <= 2 * other + ERROR_FLOOR:
            raise GateFailed(f"{what}: error {error:.2e} where eager torch has {other:.2e}")
    return max(ratios)


def shares(rate: float, peaks: Mapping[str, Samples], arithmetic: str, what: str) -> Json:
    """The rate as a share of each measured peak; the unit's own must not exceed 100 %."""
    unit, products = UNITS[arithmetic]
    result: Json = {kind: rate / peak.median for kind, peak in peaks.items()}
    share_of_peak(rate * products, peaks[unit].median, what)
    return {"unit": unit, "products": products, "of": result}


def peak_kinds(arithmetic: str) -> list[str]:
    """The float32 FMA peak, and those that matter for this arithmetic."""
    wanted = {"fma_f32", UNITS[arithmetic][0]}
    if "bf16" in arithmetic:
        wanted |= {"dot_bf16", "matrix_bf16"}
    return [kind for kind in _core.peak_kinds() if kind in wanted]


def compare(
    run: Run, n: int, dim: int, dtype: str, names: tuple[str, ...], rounds: int
) -> tuple[Json, dict[str, Samples], float]:
    """Gate, then time the named contenders; the entry, the times, and the error ratio."""
    queries, documents = contenders.embeddings(n, dim, dtype)
    exact = contenders.oracle(queries, documents)
    errors = {
        name: contenders.torch_errors(name, queries, documents, exact, run.threads)
        for name in (SIMTILE, EAGER)
    }
    ratio = gate(errors[SIMTILE], errors[EAGER])
    del exact
    calls: dict[str, Callable[[], object]] = {
        name: contenders.step(loss, queries, documents)
        for name, loss in contenders.losses(run.threads, names).items()
    }
    if NUMPY in names:
        arrays = [x.detach().numpy() for x in (queries, documents)]
        calls[NUMPY] = lambda: contenders.numpy_step(arrays[0], arrays[1])
    arithmetic = _core.info_nce_arithmetic(dtype)
    kinds = peak_kinds(arithmetic)
    times, peaks = interleave(calls, rounds=rounds, threads=run.threads, peak_kinds=kinds)
    rate = flops(n, dim) / times[SIMTILE].median
    entry: Json = {
        "n": n,
        "dim": dim,
        "dtype": dtype,
        "threads": run.threads,
        "arithmetic": arithmetic,
        "missing": [name for name in names if name not in times],
        "contenders": {name: samples.json() for name, samples in times.items()},
        "peaks": {kind: samples.json() for kind, samples in peaks.items()},
        "gflops": rate / 1e9,
        "share": shares(rate, peaks, arithmetic, f"info_nce {dtype} {n} x {dim}"),
        "errors": {name: error.json() for name, error in errors.items()},
        "error_ratio": ratio,
    }
    return entry, times, ratio
