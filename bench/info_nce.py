"""InfoNCE, forward and backward: `python bench/info_nce.py [--quick] [--only NAME] [--output DIR]`.

simtile beside what people use today, in one run: speed, share of the machine's peak, errors,
memory, scaling, and what was promised. Every entry first checks the result against the float64
oracle; if that fails nothing is timed and the exit code is 1, as it is when a share of a peak
exceeds 100 %. Results of a complete run go to bench/results/<machine>/; of --quick and --only
nowhere, unless --output says where.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import _common
import info_nce_contenders as contenders
import numpy as np
import plots.info_nce
import tables
import torch
from _common import GateFailed, Json, Run, Samples, Target, interleave
from info_nce_compare import compare, flops
from info_nce_contenders import CHUNKED, COMPILED, EAGER, NUMPY, SIMTILE

import simtile

SCRIPT = Path(__file__).resolve()


def speedups(times: Mapping[str, Samples], limits: Mapping[str, float], where: str) -> list[Target]:
    ours = times[SIMTILE].median
    return [
        Target(f"{where}: times {name}'s speed", times[name].median / ours, "at least", limit, "x")
        for name, limit in limits.items()
        if name in times
    ]


def error_target(ratio: float, where: str) -> Target:
    return Target(f"{where}: error, eager torch's = 1", ratio, "at most", 2.0)


def float32(run: Run) -> tuple[Json, list[Target]]:
    n, dim = (1024, 768) if run.quick else (4096, 768)
    names = (SIMTILE, EAGER, NUMPY) if run.quick else (SIMTILE, EAGER, COMPILED, CHUNKED, NUMPY)
    entry, times, ratio = compare(run, n, dim, "float32", names, run.rounds(11))
    where = f"float32 {n} x {dim}"
    fma = Target(
        f"{where}: share of the float32 FMA peak", entry["share"]["of"]["fma_f32"], "at least", 0.75
    )
    limits = {EAGER: 2.5, COMPILED: 2.0}
    return entry, [*speedups(times, limits, where), fma, error_target(ratio, where)]


def small(run: Run) -> tuple[Json, list[Target]]:
    n, dim = 1024, 384
    names = (SIMTILE, EAGER, NUMPY) if run.quick else (SIMTILE, EAGER, COMPILED, CHUNKED, NUMPY)
    entry, times, ratio = compare(run, n, dim, "float32", names, run.rounds(21))
    where = f"float32 {n} x {dim}"
    limits = {EAGER: 2.2, COMPILED: 1.7}
    return entry, [*speedups(times, limits, where), error_target(ratio, where)]


def odd(run: Run) -> tuple[Json, list[Target]]:
    """An odd shape beside the round one next to it and the one of `float32`, per operation."""
    n, dim = (1001, 515) if run.quick else (3001, 515)
    names = (SIMTILE, EAGER)
    entry, _, ratio = compare(run, n, dim, "float32", names, run.rounds(7))
    shapes = (
        [(n, dim), (1024, 512), (1024, 768)] if run.quick else [(n, dim), (3072, 512), (4096, 768)]
    )
    loss = contenders.simtile_loss(run.threads)
    calls = {
        f"{n} x {dim}": contenders.step(loss, *contenders.embeddings(n, dim)) for n, dim in shapes
    }
    times, _ = interleave(calls, rounds=run.rounds(11), threads=run.threads)
    rates = [
        flops(*shape) / samples.median
        for shape, samples in zip(shapes, times.values(), strict=True)
    ]
    entry["rates"] = {name: rate / 1e9 for name, rate in zip(times, rates, strict=True)}
    where = f"float32 {n} x {dim}"
    reference = "{} x {}".format(*shapes[2])
    return entry, [
        Target(f"{where}: rate, that of {reference} = 1", rates[0] / rates[2], "at least", 0.85),
        error_target(ratio, where),
    ]


def overhead(run: Run) -> tuple[Json, list[Target]]:
    entry, times, ratio = compare(run, 64, 384, "float32", (SIMTILE, EAGER), run.rounds(31))
    where = "float32 64 x 384"
    return entry, [
        Target(f"{where}: one call", times[SIMTILE].median * 1e6, "at most", 110, "us"),
        error_target(ratio, where),
    ]


def bfloat16(run: Run) -> tuple[Json, list[Target]]:
    """bfloat16 inputs beside our own float32, eager and compiled bfloat16."""
    n, dim = (1024, 768) if run.quick else (4096, 768)
    names = (SIMTILE, EAGER) if run.quick else (SIMTILE, EAGER, COMPILED)
    entry, _, ratio = compare(run, n, dim, "bfloat16", names, run.rounds(11))
    loss = contenders.simtile_loss(run.threads)
    calls = {
        dtype: contenders.step(loss, *contenders.embeddings(n, dim, dtype))
        for dtype in ("bfloat16", "float32")
    }
    times, _ = interleave(calls, rounds=run.rounds(11), threads=run.threads)
    entry["by_dtype"] = {dtype: samples.json() for dtype, samples in times.items()}
    of = entry["share"]["of"]
    best = max(entry["peaks"], key=lambda kind: entry["peaks"][kind]["median"])
    where = f"bfloat16 {n} x {dim}"
    return entry, [
        Target(
            f"{where}: times our float32's speed",
            times["float32"].median / times["bfloat16"].median,
            "at least",
            1.8,
            "x",
        ),
        Target(f"{where}: share of the {best} peak", of[best], "at least", 0.65),
        error_target(ratio, where),
    ]


def threads(run: Run) -> tuple[Json, list[Target]]:
    n, dim = (1024, 768) if run.quick else (4096, 768)
    counts = sorted({1, 2, run.threads})
    queries, documents = contenders.embeddings(n, dim)
    calls = {
        str(count): contenders.step(contenders.simtile_loss(count), queries, documents)
        for count in counts
    }
    times, _ = interleave(calls, rounds=run.rounds(11), threads=run.threads)
    entry: Json = {
        "n": n,
        "dim": dim,
        "dtype": "float32",
        "times": {count: samples.json() for count, samples in times.items()},
    }
    gain = times["1"].median / times["2"].median
    return entry, [Target(f"float32 {n} x {dim}: from 1 to 2 threads", gain, "at least", 1.8, "x")]


def large(run: Run) -> tuple[Json, list[Target]]:
    """N = 32768: time beside that of N = 4096, and a sample of the result checked."""
    n, dim = (4096, 768) if run.quick else (32768, 768)
    base = n // 8
    loss = contenders.simtile_loss(run.threads)
    queries, documents = contenders.embeddings(n, dim)
    step = contenders.step(loss, queries, documents)
    step()
    worst = contenders.sampled_error(queries, documents, run.threads)
    if not worst <= 1e-5:
        raise GateFailed(f"N = {n}: relative error {worst:.1e} in a sample of rows")
    calls = {
        str(base): contenders.step(loss, *contenders.embeddings(base, dim)),
        str(n): step,
    }
    times, _ = interleave(calls, rounds=3, threads=run.threads)
    scaling = times[str(n)].median / (64 * times[str(base)].median)
    entry: Json = {
        "n": n,
        "dim": dim,
        "dtype": "float32",
        "times": {size: samples.json() for size, samples in times.items()},
        "scaling": scaling,
        "sampled_error": worst,
    }
    what = f"float32 {n} x {dim}: time, 64 times that of N = {base} = 1"
    return entry, [Target(what, scaling, "at most", 1.05)]


def memory(run: Run) -> tuple[Json, list[Target]]:
    """Peak memory beyond inputs and returned gradients, every size in a process of its own."""
    dim = 768
    sizes = [1024, 2048] if run.quick else [2048, 4096, 8192, 16384, 32768]
    kinds = (
        ("simtile", "info_nce_grad", EAGER)
        if run.quick
        else ("simtile", "info_nce_grad", EAGER, COMPILED, CHUNKED)
    )
    extra: Json = {}
    for kind in kinds:
        extra[kind] = {}
        for n in sizes:
            if kind in (EAGER, COMPILED) and 20 * n * n > _common.available_memory():
                extra[kind][str(n)] = {"failed": "not run: needs more memory than is available"}
                continue
            task = {"do": "memory", "kind": kind, "n": n, "dim": dim, "threads": run.threads}
            extra[kind][str(n)] = _common.in_child(SCRIPT, task)
    entry: Json = {"dim": dim, "dtype": "float32", "extra": extra}
    largest = str(sizes[-1])
    return entry, [
        Target(
            f"float32 {largest} x {dim}: extra memory of {name}",
            extra[kind][largest].get("bytes", float("nan")) / 1e6,
            "at most",
            220,
            "MB",
        )
        for kind, name in (("simtile", "info_nce"), ("info_nce_grad", "info_nce_grad"))
    ]


def levels(run: Run) -> tuple[Json, list[Target]]:
    """Every ISA level this machine has, forced, each in a process of its own."""
    n, dim = (1024, 768) if run.quick else (4096, 768)
    entry: Json = {"n": n, "dim": dim, "levels": {}}
    targets = []
    for level in simtile.cpu_info()["detected"]:
        task = {"do": "level", "n": n, "dim": dim, "threads": run.threads, "quick": run.quick}
        result = _common.in_child(SCRIPT, task, {"SIMTILE_ISA": level})
        if "failed" in result:
            raise GateFailed(f"level {level}: {result['failed']}")
        entry["levels"][level] = result
        for dtype, value in result.items():
            targets.append(error_target(value["error_ratio"], f"{level}, {dtype} {n} x {dim}"))
    return entry, targets


def child(task: Json) -> Json:
    torch.set_num_threads(task["threads"])
    n, dim = task["n"], task["dim"]
    if task["do"] == "level":
        run = Run(task["threads"], task["quick"])
        return {
            dtype: compare(run, n, dim, dtype, (SIMTILE,), run.rounds(5))[0]
            for dtype in ("float32", "bfloat16")
        }
    queries, documents = contenders.embeddings(n, dim)
    kind = task["kind"]
    if kind == "info_nce_grad":
        arrays = [x.detach().numpy() for x in (queries, documents)]

        def measured() -> object:
            return simtile.info_nce_grad(
                *arrays, temperature=contenders.TEMPERATURE, threads=task["threads"]
            )

        tiny = np.ones((64, dim), np.float32)
        simtile.info_nce_grad(tiny, tiny, threads=task["threads"])
    else:
        loss = contenders.losses(task["threads"], (kind,))[kind]
        measured = contenders.step(loss, queries, documents)
        if kind == COMPILED:  # compiling takes memory too, but only once
            measured()
            queries.grad = documents.grad = None
        else:
            contenders.step(loss, *contenders.embeddings(64, dim))()
    used, result = _common.extra_memory(measured)
    returned = 2 * n * dim * 4
    del result
    return {"bytes": used - returned}


ENTRIES: dict[str, Callable[[Run], tuple[Json, list[Target]]]] = {
    "float32": float32,
    "small": small,
    "odd": odd,
    "overhead": overhead,
    "bfloat16": bfloat16,
    "threads": threads,
    "levels": levels,
    "large": large,
    "memory": memory,
}


def main() -> int:
    arguments = _common.parser("Benchmark info_nce, forward and backward.", ENTRIES).parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return 0

    torch.set_num_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "info_nce",
        ENTRIES,
        arguments,
        _common.machine(),
        tables.info_nce_entry,
        tables.targets,
        plots.info_nce.draw,
    )


if __name__ == "__main__":
    sys.exit(main())
