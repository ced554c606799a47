"""One corpus: results checked first, then everybody and the peaks measured in turn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _common import GateFailed, Json, Run, Samples, interleave, share_of_peak
from topk_contenders import SIMTILE, Array, Corpus, Int8

import simtile
from simtile import _core
from simtile.reference import topk_numpy

READ_SAMPLE = 0.1  # seconds
# What multiplies, or counts, in a kind: the peaks that may bound it.
UNITS = {
    "packed": ("popcount",),
    "int8": ("dot_int8", "matrix_int8"),
    "uint8": ("dot_int8", "matrix_int8"),
    "int4": ("dot_int8", "matrix_int8"),
    "bits": ("dot_int8", "matrix_int8"),
    "float32": ("fma_f32", "dot_int8", "matrix_bf16"),
    "bfloat16": ("fma_f32", "dot_int8", "matrix_bf16"),
}
# Where floats of many queries are multiplied as small integers (kernels/topk/coded_tiles.hpp), the
# FMA peak bounds nothing; the products of these levels before avx512_vnni have no measured peak.
CODED_LEVELS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16")
CODED_QUERIES = 48


def gate(corpus: Corpus, count: int, k: int) -> None:
    """simtile's results: the definition's for one query, a peer's for all of them.

    Some of many queries also give the same bits when they are searched alone.
    """
    scores, ids = corpus.simtile(count, k)
    name = f"{corpus.kind} {corpus.n} x {corpus.dim}, {count} queries, k = {k}"
    exact = corpus.oracle()
    best = topk_numpy.best_first(corpus.metric, exact, np.arange(corpus.n), None)[:k]
    if not np.array_equal(ids[0], best):
        raise GateFailed(f"{name}: finds other documents than the definition")
    if scores[0].tobytes() != exact[best].tobytes():
        raise GateFailed(f"{name}: has other scores than the definition")
    for query in {count // 2, count - 1} - {0}:
        alone = corpus.search(corpus.queries[query : query + 1], k)
        if not all(
            one.tobytes() == every[query].tobytes()
            for one, every in zip(alone, (scores, ids), strict=True)
        ):
            raise GateFailed(f"{name}: query {query} finds something else when alone")
    if (theirs := corpus.theirs(count, k)) is not None:
        agree(name, scores, ids, *theirs, corpus.tolerance)
    if isinstance(corpus, Int8):
        scores, ids = corpus.int8_query(count, k)
        exact = corpus.integer_scores(count)
        wanted = -np.sort(-np.partition(exact, corpus.n - k, axis=1)[:, corpus.n - k :], axis=1)
        found = np.take_along_axis(exact, ids, axis=1)
        if not (np.array_equal(scores, wanted) and np.array_equal(found, wanted)):
            raise GateFailed(f"{name}: int8 queries have other scores than NumKong's")


def agree(
    name: str, scores: Array, ids: Array, their_scores: Array, their_ids: Array, tolerance: float
) -> None:
    """Scores rank by rank within the tolerance; other documents only where scores are that near."""
    ours, theirs = scores.astype(np.float64), their_scores.astype(np.float64)
    near = tolerance * np.abs(theirs).max(initial=0)
    difference = float(np.abs(ours - theirs).max(initial=0))
    if not difference <= near:
        raise GateFailed(f"{name}: a score is {difference:.3g} off the peer's, allowed {near:.3g}")
    for row, (mine, other) in enumerate(zip(ids, their_ids, strict=True)):
        alone = ~np.isin(mine, other)
        if not (np.abs(ours[row, alone] - ours[row, -1]) <= 2 * near).all():
            raise GateFailed(f"{name}: query {row} finds other documents than the peer")


def operations(corpus: Corpus, count: int) -> float:
    """Multiply-adds counted as 2, whatever is really done; bytes that meet for bits with bits."""
    if corpus.metric == "hamming":
        return float(count) * corpus.bytes
    return 2.0 * count * corpus.n * corpus.dim


def shares(
    corpus: Corpus, count: int, seconds: float, peaks: dict[str, Samples], refuse: bool
) -> Json:
    """Of every peak that was measured.

    Refused where the search is faster than the fastest sample of what bounds it: it may well be as
    fast as the peak's median.
    """
    result: Json = {}
    for kind, peak in peaks.items():
        done = corpus.bytes if kind.startswith("read") else operations(corpus, count)
        result[kind] = done / seconds / peak.median
    if not refuse:
        return result
    what = f"topk {corpus.kind} {corpus.n} x {corpus.dim}, {count} queries"
    if count == 1:
        # Where the documents fit into the last cache, reading as many bytes again is the bound.
        bounds = [peak for kind, peak in peaks.items() if kind.startswith("read")]
        done = corpus.bytes
    else:
        coded = count >= CODED_QUERIES and simtile.cpu_info()["level"] in CODED_LEVELS
        bounds = [
            peak
            for kind, peak in peaks.items()
            if not kind.startswith("read") and not (coded and kind == "fma_f32")
        ]
        done = operations(corpus, count)
    fastest = max((max(peak.values) for peak in bounds), default=np.inf)
    share_of_peak(done / seconds, fastest, what)
    return result


def measure(
    run: Run,
    corpus: Corpus,
    count: int,
    rounds: int,
    *,
    k: int = 10,
    without: tuple[str, ...] = (),
) -> tuple[Json, dict[str, Samples]]:
    """Gate, then time everybody: the entry and the times."""
    gate(corpus, count, k)
    kinds = [kind for kind in _core.peak_kinds() if kind in UNITS[corpus.kind]]
    rates: dict[str, Callable[[], float]] = {}
    if count == 1:  # bound by reading the documents
        if not run.quick:  # of twice the last cache's bytes, which take a while to allocate
            rates["read"] = lambda: _core.peak("read", run.threads, READ_SAMPLE)
        rates["read_again"] = lambda: _core.peak("read", run.threads, READ_SAMPLE, corpus.bytes)
        kinds = []
    calls = {name: call for name, call in corpus.calls(count, k).items() if name not in without}
    times, peaks = interleave(
        calls, rounds=rounds, threads=run.threads, peak_kinds=kinds, rates=rates
    )
    entry: Json = {
        "kind": corpus.kind,
        "metric": corpus.metric,
        "n": corpus.n,
        "dim": corpus.dim,
        "queries": count,
        "k": k,
        "bytes": corpus.bytes,
        "threads": run.threads,
        "contenders": {name: samples.json() for name, samples in times.items()},
        "peaks": {kind: samples.json() for kind, samples in peaks.items()},
        # Small sizes stay in the caches, and a peak of few samples means little.
        "share": shares(corpus, count, times[SIMTILE].median, peaks, refuse=not run.quick),
    }
    return entry, times


__all__ = ["agree", "gate", "measure"]
