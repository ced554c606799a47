"""Indexes beside faiss's: `python bench/indexes.py [--quick] [--only NAME] [--output DIR]`.

What bench/topk.py does not time: range search, `FlatIndex` and `CascadeIndex` as they are filled,
searched, scored and changed, and merged results. faiss's exact indexes do the same with the same
vectors; results are compared first and nothing is timed unless they agree. Results of a complete
run go to bench/results/<machine>/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import _beside
import _common
import numpy as np
import tables
from _beside import SIMTILE
from _common import GateFailed, Json, Run, Target
from topk_compare import agree
from topk_contenders import normal

import simtile

FAISS = "faiss"
DIM, QUERIES, K = 389, 11, 10
CLOSE = 1e-4  # of the largest score: both add floats in some order

Result = tuple[Json, list[Target]]
Calls = dict[str, Callable[[], Any]]


def vectors(run: Run, seed: int = 0) -> Any:
    return normal(run.size(100_003, 5_003), DIM, seed, run.threads)


def range_search(run: Run) -> Result:
    """By inner product, at a threshold that about 1 in 1000 documents reaches."""
    import faiss

    documents, queries = vectors(run), normal(QUERIES, DIM, 1, run.threads)
    threshold = float(np.quantile(queries @ documents.T, 0.999))
    index = faiss.IndexFlatIP(DIM)
    index.add(documents)
    calls: Calls = {
        SIMTILE: lambda: simtile.range_search(
            queries, documents, threshold, metric="dot", threads=run.threads
        ),
        FAISS: lambda: index.range_search(queries, threshold),
    }
    (offsets, scores, ids), (limits, _, their_ids) = (call() for call in calls.values())
    near = CLOSE * float(np.abs(scores).max())
    for i in range(QUERIES):
        mine = slice(*offsets[i : i + 2])
        others = their_ids[limits[i] : limits[i + 1]]
        alone = np.setdiff1d(ids[mine], others), np.setdiff1d(others, ids[mine])
        missing = np.concatenate(alone).astype(np.int64)
        if not (np.abs(documents[missing] @ queries[i] - threshold) <= near).all():
            raise GateFailed(f"range_search: query {i} finds other documents than faiss")
        exact = documents[ids[mine]].astype(np.float64) @ queries[i].astype(np.float64)
        if not (np.abs(scores[mine] - exact) <= near).all():
            raise GateFailed(f"range_search: query {i} has other scores than the definition")
    return _beside.beside(
        run, calls, 9, {}, what="float32", n=len(documents), dim=DIM, queries=QUERIES,
        found=len(ids),
    ), []  # fmt: skip


def flat_add(run: Run) -> Result:
    """A new index of all documents."""
    import faiss

    documents = vectors(run)

    def ours() -> Any:
        index = simtile.FlatIndex(DIM, metric="dot")
        index.add(documents)
        return index

    def theirs() -> Any:
        index = faiss.IndexFlatIP(DIM)
        index.add(documents)
        return index

    compare_search("flat_add", ours(), theirs(), run)
    calls: Calls = {SIMTILE: ours, FAISS: theirs}
    return _beside.beside(run, calls, 9, {}, what="float32", n=len(documents), dim=DIM), []


def flat_search(run: Run) -> Result:
    """The index beside a search of the array it was filled from."""
    import faiss

    documents, queries = vectors(run), normal(QUERIES, DIM, 1, run.threads)
    index = simtile.FlatIndex(DIM, metric="dot")
    index.add(documents)
    other = faiss.IndexFlatIP(DIM)
    other.add(documents)
    compare_search("flat_search", index, other, run)
    calls: Calls = {
        SIMTILE: lambda: index.search(queries, K, threads=run.threads),
        "simtile, topk": lambda: simtile.topk(
            queries, documents, K, metric="dot", threads=run.threads
        ),
        FAISS: lambda: other.search(queries, K),
    }
    for own, wanted in zip(calls[SIMTILE](), calls["simtile, topk"](), strict=True):
        if own.tobytes() != wanted.tobytes():
            raise GateFailed("flat_search: the index finds something else than topk")
    return _beside.beside(
        run, calls, 9, {}, what="float32", n=len(documents), dim=DIM, queries=QUERIES, k=K
    ), []


def flat_score(run: Run) -> Result:
    """1000 given documents for each query."""
    documents, queries = vectors(run), normal(QUERIES, DIM, 1, run.threads)
    index = simtile.FlatIndex(DIM, metric="dot")
    index.add(documents)
    chosen = np.random.default_rng(2).integers(0, len(documents), (QUERIES, 1000))
    calls: Calls = {
        SIMTILE: lambda: index.score(queries, chosen, threads=run.threads),
        "NumPy": lambda: np.einsum("qkd,qd->qk", documents[chosen], queries),
    }
    exact = np.einsum(
        "qkd,qd->qk", documents[chosen].astype(np.float64), queries.astype(np.float64)
    )
    errors = {who: float(np.abs(call() - exact).max()) for who, call in calls.items()}
    if not errors[SIMTILE] <= CLOSE * float(np.abs(exact).max()):
        raise GateFailed(f"flat_score: a score is {errors[SIMTILE]:.2g} off")
    return _beside.beside(
        run, calls, 9, errors, what="float32", n=len(documents), dim=DIM, queries=QUERIES,
        documents=1000,
    ), []  # fmt: skip


def flat_change(run: Run) -> Result:
    """A hundredth of the documents removed and added again, under the ids they had."""
    import faiss

    documents = vectors(run)
    ids = np.arange(len(documents))
    index = simtile.FlatIndex(DIM, metric="dot")
    index.add(documents, ids)
    other = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    other.add_with_ids(documents, ids)
    some = np.sort(np.random.default_rng(2).choice(ids, len(ids) // 100, replace=False))
    again = documents[some]

    def ours() -> None:
        index.remove(some)
        index.add(again, some)

    def theirs() -> None:
        other.remove_ids(some)
        other.add_with_ids(again, some)

    ours()
    theirs()
    if not len(index) == other.ntotal == len(documents):
        raise GateFailed("flat_change: not as many documents as before")
    compare_search("flat_change", index, other, run)
    calls: Calls = {SIMTILE: ours, FAISS: theirs}
    return _beside.beside(
        run, calls, 9, {}, what="float32", n=len(documents), dim=DIM, changed=len(some)
    ), []


def cascade_add(run: Run) -> Result:
    """Codes of both stages from the floats, beside the codes alone."""
    documents = vectors(run)

    def ours() -> Any:
        index = simtile.CascadeIndex(DIM, ("binary", "int8_vector"))
        index.add(documents)
        return index

    def codes() -> Any:
        return [
            simtile.quantize(documents, kind, threads=run.threads)
            for kind in ("binary", "int8_vector")
        ]

    queries = normal(QUERIES, DIM, 1, run.threads)
    scores, ids = ours().search(queries, K)
    wanted = simtile.topk(queries, codes()[1], len(documents))
    for i in range(QUERIES):
        places = np.argsort(wanted[1][i])[ids[i]]
        if wanted[0][i, places].tobytes() != scores[i].tobytes():
            raise GateFailed("cascade_add: other scores than those of the last stage's codes")
    calls: Calls = {SIMTILE: ours, "simtile, quantize": codes}
    return _beside.beside(run, calls, 9, {}, what="binary, int8", n=len(documents), dim=DIM), []


def merge(run: Run) -> Result:
    """The results of several parts of a corpus."""
    import faiss

    parts, queries, k = 7, run.size(1_003, 101), 101
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.standard_normal((parts, queries, k), dtype=np.float32), axis=2)
    ids = rng.permutation(parts * queries * k).reshape(parts, queries, k)
    results = list(zip(scores, ids, strict=True))
    calls: Calls = {
        SIMTILE: lambda: simtile.merge_topk(results, metric="dot"),
        FAISS: lambda: faiss.merge_knn_results(scores, ids, keep_max=True),
    }
    for mine, theirs in zip(*(call() for call in calls.values()), strict=True):
        if not np.array_equal(mine, theirs):
            raise GateFailed("merge: other results than faiss")
    return _beside.beside(run, calls, 9, {}, parts=parts, queries=queries, k=k), []


def compare_search(name: str, index: simtile.FlatIndex, other: Any, run: Run) -> None:
    """Both find the same in what they hold."""
    queries = normal(QUERIES, DIM, 3, run.threads)
    agree(name, *index.search(queries, K), *other.search(queries, K), CLOSE)


ENTRIES = {
    "range_search": range_search,
    "flat_add": flat_add,
    "flat_search": flat_search,
    "flat_score": flat_score,
    "flat_change": flat_change,
    "cascade_add": cascade_add,
    "merge": merge,
}


def main() -> int:
    arguments = _common.parser("Benchmark indexes.", ENTRIES).parse_args()
    import faiss

    faiss.omp_set_num_threads(arguments.threads)
    simtile.set_num_threads(arguments.threads)  # what has no argument for it
    _common.limit_blas(arguments.threads)
    machine = _common.machine()
    machine["versions"] |= {"faiss-cpu": faiss.__version__}
    return _common.run_entries(
        "indexes", ENTRIES, arguments, machine, _beside.markdown, tables.targets
    )


if __name__ == "__main__":
    sys.exit(main())
