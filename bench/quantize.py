"""quantize beside sentence_transformers' quantize_embeddings: `python bench/quantize.py`.

Both are given the same float32 vectors; the codes are compared first, byte for byte, and nothing is
timed unless they are equal. --quick is a smaller size, for trying the script out: it stays in the
caches, so it has no share of the bandwidth, and is not stored among the results.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np
import quantize_tables
from _common import Json, Target
from rich.markdown import Markdown

import simtile

SHAPE, QUICK_SHAPE = (1_000_000, 384), (50_000, 384)

# How often the original's time, by the name of an entry.
TARGETS = {"int8": 15.0, "int8, ranges given": 15.0, "binary": 2.0}


def entries(x: Any, original: Callable[..., Any], threads: int) -> dict[str, Json]:
    """By name: the two calls and the bytes that ours has to read and write."""
    ranges = np.stack([x.min(axis=0), x.max(axis=0)])
    found: dict[str, Json] = {}
    for name, kind, precision, options in (
        ("int8", "int8", "int8", {}),
        ("int8, ranges given", "int8", "int8", {"ranges": ranges}),
        ("uint8", "uint8", "uint8", {}),
        ("binary", "binary", "ubinary", {}),
        ("int4", "int4", None, {}),
        ("int4, ranges given", "int4", None, {"ranges": ranges}),
        ("int8_vector", "int8_vector", None, {}),
        ("int4_vector", "int4_vector", None, {}),
    ):
        passes = 2 if kind in ("int8", "uint8", "int4") and not options else 1

        def ours(kind: Any = kind, options: Any = options) -> Any:
            return simtile.quantize(x, kind, threads=threads, **options)

        calls: dict[str, Callable[[], Any]] = {"simtile": ours}
        if precision is not None:

            def theirs(precision: str = precision, options: Any = options) -> Any:
                return original(x, precision, **options)

            calls["sentence_transformers"] = theirs
        found[name] = {"calls": calls, "passes": passes, "read": passes * x.nbytes}
    return found


def check(name: str, calls: dict[str, Callable[[], Any]]) -> int:
    """Bytes of codes; raises where the two differ."""
    codes = calls["simtile"]().codes
    if "sentence_transformers" in calls:
        theirs = calls["sentence_transformers"]()
        if codes.dtype != theirs.dtype or not np.array_equal(codes, theirs):
            raise SystemExit(f"{name}: the codes differ from sentence_transformers'; not timed")
    return int(codes.nbytes)


def measure(
    x: Any, original: Callable[..., Any], threads: int, rounds: int, with_peak: bool
) -> Json:
    results: Json = {}
    for name, entry in entries(x, original, threads).items():
        written = check(name, entry["calls"])
        times, peaks = _common.interleave(
            entry["calls"],
            rounds=rounds,
            threads=threads,
            peak_kinds=("read",) if with_peak else (),
        )
        ours = times["simtile"].median
        moved = entry["read"] + written
        results[name] = {
            "passes": entry["passes"],
            "bytes_read": entry["read"],
            "bytes_written": written,
            "times": {who: samples.json() for who, samples in times.items()},
            "bytes_per_second": moved / ours,
        }
        if with_peak:
            peak, rate = peaks["read"], entry["read"] / ours
            results[name]["read_peak"] = peak.json()
            results[name]["share_of_read_peak"] = _common.share_of_peak(rate, peak.median, name)
        if "sentence_transformers" in times:
            results[name]["ratio"] = times["sentence_transformers"].median / ours
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SHAPE} only, 3 rounds")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="folder for quantize.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("error")
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies deprecate
        from sentence_transformers.util.quantization import quantize_embeddings

    n, dim = QUICK_SHAPE if arguments.quick else SHAPE
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    x = np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)
    measured = measure(x, quantize_embeddings, arguments.threads, rounds, not arguments.quick)
    targets = [
        Target(name, measured[name]["ratio"], "at least", limit, "times")
        for name, limit in TARGETS.items()
        if not arguments.quick
    ]
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": True,
        "failures": [],
        "shape": [n, dim],
        "threads": arguments.threads,
        "rounds": rounds,
        "sentence_transformers": _common._version("sentence-transformers"),
        "entries": measured,
        "targets": [target.json() for target in targets],
    }
    _common.console().print(Markdown(quantize_tables.markdown(results)))
    if not arguments.quick or arguments.output:
        print(_common.write_results("quantize", results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
