"""Hard negatives beside sentence-transformers' with faiss: `python bench/mining.py`.

100,000 documents of 384 dimensions and 10,000 queries, embedded beforehand: both libraries get them
from a model that only hands them out, so mining alone is timed, datasets included. The drop-in
takes and returns the same datasets; `simtile.mine_hard_negatives` takes the arrays. The negatives
are compared first, and nothing is timed unless they are the same. --quick is a smaller size, for
trying the script out, and is not stored among the results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported

import _common
import numpy as np
import torch
from _common import Json, Target
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives as original

import simtile
from simtile.integrations.sentence_transformers_mining import mine_hard_negatives

DOCUMENTS, QUERIES, DIM = 100_000, 10_000, 384
QUICK_DOCUMENTS, QUICK_QUERIES = 5_000, 500
NEGATIVES = 5
MARGIN = 0.05  # NV-Retriever's
CLOSE = 1e-5  # of scores: where negatives differ, their scores must not
RATIO = 5.0  # of sentence-transformers' time

Rows = list[tuple[str, str, list[str], list[float]]]


class Embedded:
    """A model whose texts are the numbers of rows of these embeddings."""

    device = torch.device("cpu")
    similarity_fn_name = "cosine"

    def __init__(self, queries: Any, documents: Any) -> None:
        self._queries, self._documents = queries, documents

    def get_embedding_dimension(self) -> int:
        return int(self._documents.shape[1])

    def encode_query(self, texts: list[str], **options: Any) -> Any:
        return self._queries[[int(text[1:]) for text in texts]]

    def encode_document(self, texts: list[str], **options: Any) -> Any:
        return self._documents[[int(text[1:]) for text in texts]]

    def similarity_pairwise(self, a: Any, b: Any) -> torch.Tensor:
        return (torch.from_numpy(a) * torch.from_numpy(b)).sum(dim=1)


def unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embeddings(queries: int, documents: int) -> tuple[Any, Any]:
    """Documents around topics, and queries near the first of them."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((documents // 50, DIM))
    x = topics[rng.integers(0, len(topics), documents)] + rng.standard_normal((documents, DIM))
    return unit(x[:queries] + 0.7 * rng.standard_normal((queries, DIM))), unit(x)


def contenders(
    queries: Any, documents: Any, threads: int
) -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Calls that return a dataset each, and the one on arrays."""
    model: Any = Embedded(queries, documents)
    count = len(queries)
    pairs = Dataset.from_dict(
        {"query": [f"q{i}" for i in range(count)], "answer": [f"d{i}" for i in range(count)]}
    )
    corpus = [f"d{i}" for i in range(len(documents))]
    options: dict[str, Any] = {
        "corpus": corpus,
        "relative_margin": MARGIN,
        "num_negatives": NEGATIVES,
        "output_format": "n-tuple",
        "output_scores": True,
        "verbose": False,
    }

    def theirs() -> Any:
        return original(pairs, model, use_faiss=True, **options)

    def ours() -> Any:
        return mine_hard_negatives(pairs, model, threads=threads, **options)

    def arrays() -> Any:
        return simtile.mine_hard_negatives(
            queries,
            documents,
            np.arange(count),
            k=NEGATIVES,
            relative_margin=MARGIN,
            threads=threads,
        )

    return {"sentence-transformers, faiss": theirs, "simtile's drop-in": ours}, arrays


def check(calls: dict[str, Callable[[], Any]], arrays: Callable[[], Any]) -> Json:
    """How many negatives are the same; raises where others are not equally near."""
    (numbers, scores), (other, other_scores) = (as_arrays(call()) for call in calls.values())
    found = arrays()
    full = (found.indices >= 0).all(axis=1)
    same = numbers.shape == other.shape and bool((numbers[:, 0] == other[:, 0]).all())
    same &= bool((other[:, 1:] == found.indices[full]).all())
    if not same or not np.allclose(scores, other_scores, rtol=0, atol=CLOSE):
        raise SystemExit("the negatives are not those of sentence-transformers; not timed")
    return {
        "rows": len(numbers),
        "negatives_that_are_equal": float((numbers == other)[:, 1:].mean()),
        "error": float(np.abs(scores - other_scores).max()),
    }


def as_arrays(dataset: Any) -> tuple[Any, Any]:
    """The query and its negatives as numbers, [n, 1 + k]; scores [n, 1 + k]."""
    names = ["query", *(f"negative_{i + 1}" for i in range(NEGATIVES))]
    columns = [[int(text[1:]) for text in dataset[name]] for name in names]
    return np.array(columns).T, np.array(dataset["scores"][:])


def measure(queries: Any, documents: Any, threads: int, rounds: int) -> Json:
    calls, arrays = contenders(queries, documents, threads)
    checked = check(calls, arrays)
    every = {**calls, "simtile, arrays": arrays}
    memory = {who: _common.extra_memory(call)[0] for who, call in every.items()}
    times, _ = _common.interleave(every, rounds=rounds, threads=threads)
    theirs, ours, _ = times
    return {
        **checked,
        "memory": memory,
        "times": {who: samples.json() for who, samples in times.items()},
        "beside": theirs,
        "ratio": times[theirs].median / times[ours].median,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DOCUMENTS} documents only")
    parser.add_argument("--threads", type=int, default=simtile.cpu_info()["threads"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="folder for mining.json")
    arguments = parser.parse_args()
    import faiss

    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    sizes = (QUICK_QUERIES, QUICK_DOCUMENTS) if arguments.quick else (QUERIES, DOCUMENTS)
    queries, documents = embeddings(*sizes)
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    entry = measure(queries, documents, arguments.threads, rounds)
    targets = [Target("beside faiss", entry["ratio"], "at least", RATIO, "times")]
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": True,
        "failures": [],
        "shape": [*sizes, DIM],
        "threads": arguments.threads,
        "rounds": rounds,
        "entries": {"mining": entry},
        "targets": [target.json() for target in targets if not arguments.quick],
    }
    print(f"{sizes[0]} queries, {sizes[1]} documents; the same negatives, {entry['rows']} rows")
    for who, t in entry["times"].items():
        print(f"{who}: {t['median']:.3f} s ({entry['memory'][who] / 2**20:.0f} MiB)")
    print(f"{entry['ratio']:.1f} times")
    if not arguments.quick or arguments.output:
        print(_common.write_results("mining", results, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
