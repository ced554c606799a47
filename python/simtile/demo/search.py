"""Search of real text in every form that an index stores: quality, bytes and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from simtile import CascadeIndex, FlatIndex
from simtile.demo import show
from simtile.demo.retrieval import unit_rows

FloatArray = npt.NDArray[np.float32]

K = 10
COPIES = 96  # of the documents, for the times: some 200,000 vectors
TIMED_QUERIES = 20
CASCADE = ("binary", "int8")
# (name, dtype, metric) of the indexes
FORMS: tuple[tuple[str, Any, Any], ...] = (
    ("float32", "float32", "cosine"),
    ("bfloat16", "bfloat16", "cosine"),
    ("float16", "float16", "cosine"),
    ("int8", "int8", "cosine"),
    ("int8_vector", "int8_vector", "cosine"),
    ("int4", "int4", "cosine"),
    ("binary, float query", "binary", "cosine"),
    ("binary, Hamming", "binary", "hamming"),
)


@dataclass(frozen=True)
class Found:
    """What one form of the documents gave."""

    name: str
    bytes: float  # for each vector
    overlap: float  # with the exact search of the floats
    seconds: float  # for one query among `COPIES` times the documents


def overlap(exact: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> float:
    """The share of the exact neighbours, [Q, k], that is among those found, [Q, k]."""
    return float((exact[:, :, None] == found[:, None, :]).any(axis=2).mean())


def exact_ids(queries: FloatArray, documents: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """The k nearest by cosine, in NumPy and float64."""
    scores = unit_rows(queries).astype(np.float64) @ unit_rows(documents).astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def cascade_name() -> str:
    return "cascade " + " → ".join(CASCADE)


def measure(
    queries: FloatArray,
    documents: FloatArray,
    *,
    threads: int | None,
    copies: int = COPIES,
    on_form: Callable[[int, str], None] = lambda _, __: None,
) -> list[Found]:
    """Search every form of the documents for every query, then time single queries."""
    exact = exact_ids(queries, documents, K)
    many = np.tile(documents, (copies, 1))
    dim = documents.shape[1]

    def flat(dtype: Any, metric: Any) -> Callable[[], FlatIndex | CascadeIndex]:
        return lambda: FlatIndex(dim, dtype, metric=metric)

    made = [(name, flat(dtype, metric)) for name, dtype, metric in FORMS]
    made.append((cascade_name(), lambda: CascadeIndex(dim, CASCADE)))
    results = []
    for name, make in made:
        index, large = make(), make()
        index.add(documents)
        large.add(many)
        ids = index.search(queries, K, threads=threads)[1]
        seconds = []
        for query in queries[: TIMED_QUERIES + 1]:
            start = time.perf_counter()
            large.search(query[None, :], K, threads=threads)
            seconds.append(time.perf_counter() - start)
        # The first one touches the documents for the first time.
        results.append(
            Found(
                name,
                index.nbytes / len(documents),
                overlap(exact, ids),
                float(np.median(seconds[1:])),
            )
        )
        on_form(1, name)
    return results


def report(
    console: Console,
    queries: FloatArray,
    documents: FloatArray,
    *,
    threads: int | None,
    quick: bool,
) -> tuple[list[Found], str]:
    """Measure and show it; what was found, and what is wrong ("" if nothing is)."""
    show.section(console, 3, "Search, in floats and in fewer bytes")
    copies = 2 if quick else COPIES
    with show.progress(console, "searching", len(FORMS) + 1) as advance:
        results = measure(queries, documents, threads=threads, copies=copies, on_form=advance)
    rows = [
        (
            found.name,
            f"{found.bytes:,.0f}",
            show.seconds(found.seconds)
            if found.seconds >= 1e-4
            else f"{found.seconds * 1e6:.0f} µs",
            f"{found.overlap:.3f}",
        )
        for found in results
    ]
    columns = ("documents", "bytes a vector", "time a query", f"overlap@{K}")
    show.print_table(
        console,
        show.table(f"The {K} nearest of each query", columns, rows),
        f"{len(queries):,} queries against {len(documents):,} documents, embeddings as they are. "
        f"Overlap: the share of the {K} nearest by exact cosine of the floats that is found. Time: "
        f"one query among {copies * len(documents):,} (the documents, {copies} times), the median "
        f"of {min(TIMED_QUERIES, len(queries) - 1)}.",
    )
    if not results[0].overlap > 0.999:
        return results, f"float32 search finds {results[0].overlap:.3f} of the nearest documents"
    return results, ""
