"""Search, then late interaction over token vectors for the best: recall and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from simtile import FlatIndex, MultiVectorIndex
from simtile.demo import show
from simtile.demo.retrieval import paired_standard_error, recall_at

FloatArray = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

CANDIDATES = 100  # of a query, which late interaction puts in a new order
TIMED_QUERIES = 100


class Reranked(NamedTuple):
    """Places of the right documents, 0 for the best, and the median time of a query."""

    searched: Ids
    reranked: Ids
    everything: Ids  # late interaction with all documents, no search before
    search_seconds: float
    rerank_seconds: float
    everything_seconds: float


def places(ids: Ids, targets: Ids, worst: int) -> Ids:
    """Where each query's target stands in its row of ids [Q, k]; `worst` where it does not."""
    hits = ids == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), worst).astype(np.int64)


def measure(
    queries: FloatArray,
    query_tokens: Sequence[FloatArray],
    targets: Ids,
    documents: FloatArray,
    tokens: MultiVectorIndex,
    *,
    threads: int | None,
) -> Reranked:
    """Search single vectors, rerank with tokens, one query at a time.

    Parameters
    ----------
    queries : float32 [Q, D], documents : float32 [N, D]
        One vector each.
    query_tokens : Q of float32 [L, T]
    targets : int64 [Q]
        The right document of each query.
    tokens
        The documents' tokens under the ids 0 to N - 1.
    """
    index = FlatIndex(documents.shape[1])
    index.add(documents)
    count = min(CANDIDATES, len(documents))
    found: dict[str, list[Ids]] = {"searched": [], "reranked": [], "everything": []}
    seconds: dict[str, list[float]] = {"search": [], "rerank": [], "everything": []}
    for query, own in zip(queries, query_tokens, strict=True):
        start = time.perf_counter()
        ids = index.search(query[None], count, threads=threads)[1]
        searched = time.perf_counter()
        scores = tokens.score([own], ids=ids, threads=threads)
        order = np.argsort(-scores, axis=1, kind="stable")
        reranked = np.take_along_axis(ids, order, axis=1)
        done = time.perf_counter()
        everything = tokens.search([own], count, threads=threads)[1]
        seconds["search"].append(searched - start)
        seconds["rerank"].append(done - searched)
        seconds["everything"].append(time.perf_counter() - done)
        for name, row in zip(found, (ids, reranked, everything), strict=True):
            found[name].append(row)
    ranks = {
        name: places(np.concatenate(rows), targets, len(documents)) for name, rows in found.items()
    }
    # The first ones touch the documents for the first time.
    middle = {
        name: float(np.median(values[len(values) // 10 :])) for name, values in seconds.items()
    }
    return Reranked(
        ranks["searched"],
        ranks["reranked"],
        ranks["everything"],
        middle["search"],
        middle["rerank"],
        middle["everything"],
    )


def error(result: Reranked) -> float:
    """One standard error of the change in recall@1."""
    return paired_standard_error(result.searched < 1, result.reranked < 1)


def line(result: Reranked) -> str:
    """The end of a demo's last line."""
    return (
        f"; reranked by MaxSim, recall@1 goes from {recall_at(1, result.searched):.3f} to "
        f"{recall_at(1, result.reranked):.3f}"
    )


def report(console: Console, number: int, result: Reranked, note: str) -> str:
    """Show it; what is wrong, "" if nothing is."""
    show.section(console, number, "Late interaction: what a search found, reranked by MaxSim")
    rows = []
    for name, found, seconds in (
        ("search, one vector each", result.searched, result.search_seconds),
        (f"its best {CANDIDATES}, reranked", result.reranked, result.rerank_seconds),
        ("MaxSim with every document", result.everything, result.everything_seconds),
    ):
        recall = [f"{recall_at(k, found):.3f}" for k in (1, 10)]
        rows.append((name, f"{seconds * 1e3:.2f} ms", *recall))
    columns = ("", "time a query", "recall@1", "recall@10")
    show.print_table(console, show.table("Finding the right document", columns, rows), note)
    # Who is among the candidates keeps its place among them.
    both = (result.reranked < CANDIDATES) & (result.everything < CANDIDATES)
    if (result.reranked > result.everything)[both].any():
        return "a reranked document stands behind where MaxSim with every document puts it"
    return ""
