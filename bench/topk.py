"""Exact search: `python bench/topk.py [--quick] [--only NAME] [--output DIR]`.

simtile beside what people use today, in one run: speed, share of the machine's peaks, larger k,
the cascade, odd sizes, memory, and what was promised. Every entry first checks results against the
definition and the peers; if that fails nothing is timed and the exit code is 1, as it is when a
share of a peak exceeds 100 %. Results of a complete run go to bench/results/<machine>/; of --quick
and --only nowhere, unless --output says where. A complete run takes about five minutes and 6 GB.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import _common
import numpy as np
import plots.topk
import tables
import topk_contenders as contenders
import topk_tables
from _common import GateFailed, Json, Run, Target, interleave
from topk_compare import gate, measure
from topk_contenders import FAISS, NUMKONG, SIMTILE, TORCH, USEARCH

import simtile
from simtile.cascade_index import CascadeIndex

SCRIPT = Path(__file__).resolve()
COUNTS = (1, 10, 100)
K = 10
Result = tuple[Json, list[Target]]

# Times a contender's speed that were promised, by entry and number of queries.
SPEED: Mapping[str, Mapping[int, Mapping[str, float]]] = {
    "binary": {1: {FAISS: 1.35}, 100: {FAISS: 4.5, NUMKONG: 10}},
    "int8": {1: {FAISS: 1.3}, 100: {FAISS: 10, NUMKONG: 5}},
    "float32": {1: {FAISS: 1.7}, 100: {FAISS: 8, TORCH: 2.5}},
}
READ = 0.8
FMA = 0.65
# Bytes beyond index and results: a part for each thread, query and place of k, and a fixed one.
MEMORY_EACH, MEMORY_FIXED = 32, 2e6


def by_count(run: Run, name: str, corpus: contenders.Corpus, rounds: Mapping[int, int]) -> Result:
    """1, 10 and 100 queries."""
    entry: Json = {"counts": {}}
    targets = []
    for count in COUNTS:
        # usearch's time is for information; by 100 queries it would be most of the run's.
        without = (USEARCH,) if count == 100 else ()
        one, times = measure(run, corpus, count, run.rounds(rounds[count]), k=K, without=without)
        entry["counts"][str(count)] = one
        where = f"{name} {corpus.n} x {corpus.dim}, {topk_tables.queries(count)}"
        for other, limit in SPEED[name].get(count, {}).items():
            ratio = times[other].median / times[SIMTILE].median
            targets.append(Target(f"{where}: times {other}'s speed", ratio, "at least", limit, "x"))
        if count == 1:
            share = one["share"]["read_again"]
            targets.append(Target(f"{where}: share of read bandwidth", share, "at least", READ))
        elif count == 100 and name == "float32":
            share = one["share"]["fma_f32"]
            targets.append(Target(f"{where}: share of the FMA peak", share, "at least", FMA))
    return entry, targets


def binary(run: Run) -> Result:
    corpus = contenders.Bits(run.size(1_000_000, 20_000), 1024, 100, run.threads)
    return by_count(run, "binary", corpus, {1: 9, 10: 5, 100: 7})


def int8(run: Run) -> Result:
    corpus = contenders.Int8(run.size(500_000, 8_000), 768, 100, run.threads)
    return by_count(run, "int8", corpus, {1: 9, 10: 5, 100: 5})


def float32(run: Run) -> Result:
    documents = contenders.normal(run.size(500_000, 8_000), 768, 9, run.threads)
    corpus = contenders.Floats(documents, 100, run.threads)
    return by_count(run, "float32", corpus, {1: 7, 10: 5, 100: 5})


def large_k(run: Run) -> Result:
    """k = 1000 beside k = 10, and faiss's."""
    corpus = contenders.Bits(run.size(1_000_000, 20_000), 1024, 100, run.threads)
    entry: Json = {"n": corpus.n, "dim": corpus.dim, "counts": {}}
    targets = []
    for count, limit in ((1, 1.3), (100, 1.6)):
        check_prefix(corpus, count)
        calls: dict[str, Callable[[], object]] = {}
        for k in (10, 1000):
            of_k = corpus.calls(count, k)
            calls |= {f"{name}, k = {k}": of_k[name] for name in (SIMTILE, FAISS)}
        times, _ = interleave(calls, rounds=run.rounds(9), threads=run.threads)
        entry["counts"][str(count)] = {name: samples.json() for name, samples in times.items()}
        ratio = times[f"{SIMTILE}, k = 1000"].median / times[f"{SIMTILE}, k = 10"].median
        where = f"binary {corpus.n} x {corpus.dim}, {topk_tables.queries(count)}"
        targets.append(Target(f"{where}: time at k = 1000, at k = 10 = 1", ratio, "at most", limit))
    return entry, targets


def check_prefix(corpus: contenders.Bits, count: int) -> None:
    """The best 10 of 1000 are the best 10; the distances are faiss's."""
    few, many = corpus.simtile(count, 10), corpus.simtile(count, 1000)
    theirs = corpus.theirs(count, 1000)[0]
    if not all(np.array_equal(a, b[:, :10]) for a, b in zip(few, many, strict=True)):
        raise GateFailed(f"k = 1000, {count} queries: the first 10 differ from those of k = 10")
    if not np.array_equal(many[0], theirs):
        raise GateFailed(f"k = 1000, {count} queries: other distances than faiss's")


def cascade(run: Run) -> Result:
    """The default cascade beside its first stage alone, which hands on as many, or returns k."""
    n, dim = run.size(1_000_000, 20_000), 768
    index = CascadeIndex(dim)
    step = 250_000
    first = simtile.FlatIndex(dim, "binary", metric="hamming")
    for begin in range(0, n, step):
        block = contenders.normal(min(step, n - begin), dim, 10 + begin, run.threads)
        index.add(block)
        first.add(block)
    del block
    queries = contenders.normal(100, dim, 11, run.threads)
    handed_on = int(np.ceil(K * index.oversample[0]))
    entry: Json = {
        "n": n,
        "dim": dim,
        "k": K,
        "stages": list(index.stages),
        "oversample": list(index.oversample),
        "handed_on": handed_on,
        "bytes": index.nbytes / n,
        "counts": {},
    }
    targets = []
    for count in (1, 100):
        few = queries[:count]
        check_cascade(index, first, few, handed_on, run.threads)
        alone = f"first stage, k = {handed_on}"
        calls: dict[str, Callable[[], object]] = {
            "cascade": lambda few=few: index.search(few, K, threads=run.threads),
            alone: lambda few=few: first.search(few, handed_on, threads=run.threads),
            f"first stage, k = {K}": lambda few=few: first.search(few, K, threads=run.threads),
        }
        times, _ = interleave(calls, rounds=run.rounds(9), threads=run.threads)
        entry["counts"][str(count)] = {name: samples.json() for name, samples in times.items()}
        if count == 1:
            what = f"cascade {n} x {dim}, 1 query: time, of its first stage alone = 1"
            ratio = times["cascade"].median / times[alone].median
            targets.append(Target(what, ratio, "at most", 1.4))
    return entry, targets


def check_cascade(
    index: CascadeIndex,
    first: simtile.FlatIndex,
    queries: contenders.Array,
    handed_on: int,
    threads: int,
) -> None:
    """The cascade's results are the best of the last stage's scores of what the first hands on."""
    scores, ids = index.search(queries, K, threads=threads)
    candidates = np.sort(first.search(queries, handed_on, threads=threads)[1], axis=1)
    scored = index.score(queries, candidates, threads=threads)
    order = np.argsort(-scored, axis=1, kind="stable")[:, :K]
    wanted = np.take_along_axis(candidates, order, axis=1)
    if not (
        np.array_equal(ids, wanted)
        and np.array_equal(scores, np.take_along_axis(scored, order, axis=1))
    ):
        raise GateFailed("cascade: not the best of what its first stage hands on")


def odd(run: Run) -> Result:
    """Odd sizes in every kind, beside the round size next to them, per operation."""
    n, shapes = run.size(333_333, 3_333), (515, 512)
    entry: Json = {"n": n, "dims": list(shapes), "k": K, "kinds": {}}
    kinds = ("float32", "bfloat16", "int8", "int4", "bits", "packed")
    for kind in kinds:
        corpora = [contenders.OfKind(kind, n, dim, 100, run.threads) for dim in shapes]
        by_count: Json = {}
        for count in (1, 100):
            gate(corpora[0], count, K)
            calls = {str(corpus.dim): corpus.calls(count, K)[SIMTILE] for corpus in corpora}
            times, _ = interleave(calls, rounds=run.rounds(5), threads=run.threads)
            per_dim = [times[str(dim)].median / dim for dim in shapes]
            by_count[str(count)] = {
                "times": {dim: samples.json() for dim, samples in times.items()},
                "ratio": per_dim[1] / per_dim[0],
            }
        entry["kinds"][kind] = by_count
        del corpora, calls
        gc.collect()
    return entry, []


def memory(run: Run) -> Result:
    """Peak memory beyond documents and results, every case in a process of its own."""
    cases = []
    kinds = [
        ("packed", run.size(1_000_000, 20_000), 1024),
        ("int8", 500_000, 768),
        ("float32", 500_000, 768),
    ]
    for kind, n, dim in kinds[: 1 if run.quick else None]:
        cases += [(kind, n // 4, dim, 100, 10), (kind, n, dim, 100, 10), (kind, n, dim, 1, 10)]
        cases.append((kind, n, dim, 100, 1000))
    rows = []
    targets = []
    for kind, n, dim, count, k in cases:
        task = {
            "kind": kind,
            "n": n,
            "dim": dim,
            "queries": count,
            "k": k,
            "threads": run.threads,
        }
        result = _common.in_child(SCRIPT, task)
        if "failed" in result:
            raise GateFailed(f"memory, {kind}: {result['failed']}")
        rows.append({**task, **result})
        where = f"{kind} {n} x {dim}, {topk_tables.queries(count)}, k = {k}"
        limit = (MEMORY_FIXED + MEMORY_EACH * run.threads * count * k) / 1e6
        what = f"{where}: memory beyond documents and results"
        targets.append(Target(what, result["bytes"] / 1e6, "at most", limit, "MB"))
    entry: Json = {"each": MEMORY_EACH, "fixed": MEMORY_FIXED, "cases": rows}
    return entry, targets


def child(task: Json) -> Json:
    """Bytes by which a search grows the process, results not counted."""
    count, k, dim, threads = task["queries"], task["k"], task["dim"], task["threads"]
    corpus: contenders.Corpus
    if task["kind"] == "packed":
        corpus = contenders.Bits(task["n"], dim, count, threads, peers=False)
    else:
        corpus = contenders.OfKind(task["kind"], task["n"], dim, count, threads)
    # Code, threads and the documents' pages are there before.
    simtile.topk(corpus.queries[:1], corpus.documents, 1, metric=corpus.metric, threads=threads)
    used, result = _common.extra_memory(lambda: corpus.simtile(count, k))
    return {"bytes": used - sum(array.nbytes for array in result)}


ENTRIES: dict[str, Callable[[Run], Result]] = {
    "binary": binary,
    "int8": int8,
    "float32": float32,
    "large_k": large_k,
    "cascade": cascade,
    "odd": odd,
    "memory": memory,
}


def main() -> int:
    arguments = _common.parser("Benchmark exact search.", ENTRIES).parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return 0

    limit_threads(arguments.threads)
    machine = _common.machine()
    machine["versions"] |= contenders.versions()
    return _common.run_entries(
        "topk",
        ENTRIES,
        arguments,
        machine,
        lambda name, entry: topk_tables.ENTRIES[name](entry),
        tables.targets,
        plots.topk.draw,
    )


def limit_threads(count: int) -> None:
    """Of the peers; each call of simtile says how many it wants."""
    import faiss
    import torch

    faiss.omp_set_num_threads(count)
    torch.set_num_threads(count)
    _common.limit_blas(count)


if __name__ == "__main__":
    sys.exit(main())
