"""How many of the nearest texts a cascade finds, and a search of codes, on real embeddings.

    python tools/embed_texts.py                             # makes some 60,000; needs MiniLM
    python bench/cascade_quality.py --texts FILE.npy

Documents are the demo's docstrings and FILE.npy, float32 [N, 384] of the same model
(all-MiniLM-L6-v2); queries are the docstrings' first paragraphs. overlap@10 is the share of the ten
nearest by exact cosine of the floats that is among the ten found, averaged over the queries.
Nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _common
import cascade_tables
import numpy as np
import numpy.typing as npt
from _common import Json
from rich.markdown import Markdown

import simtile
from simtile.cascade_index import CascadeIndex
from simtile.demo.corpus import load_corpus
from simtile.demo.search import overlap

K = 10
WANTED = 0.98
LEAST_TEXTS = 50_000
# Candidates for each of the k, of the first stage; the stages after it hand on as many as the
# index does by default.
OVERSAMPLES = (1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80)
STAGES = (
    ("binary", "int8"),
    ("binary", "float32"),
    ("binary", "int8", "float32"),
    ("int4", "int8"),
    ("int4", "float32"),
    ("int4_vector", "float32"),
    ("int8", "float32"),
)
DTYPES = (
    ("float32", "cosine"),
    ("float16", "cosine"),
    ("bfloat16", "cosine"),
    ("int8", "cosine"),
    ("uint8", "cosine"),
    ("int8_vector", "cosine"),
    ("int4", "cosine"),
    ("int4_vector", "cosine"),
    ("binary", "cosine"),
    ("binary", "hamming"),
)

Floats = npt.NDArray[np.float32]


def corpora(texts: Path, quick: bool) -> tuple[Floats, dict[str, Floats]]:
    """Queries, and the documents: the docstrings alone and with all the texts."""
    corpus = load_corpus()
    more = np.load(texts, mmap_mode="r")
    if more.ndim != 2 or more.shape[1] != corpus.documents.shape[1]:
        expected = f"[N, {corpus.documents.shape[1]}]"
        raise SystemExit(f"--texts {texts}: found {list(more.shape)}, expected {expected}")
    few = more[: len(more) // 6]
    parts = {"a sixth": few} if quick else {"a sixth": few, "all": more}
    documents = {
        name: np.concatenate([corpus.documents, np.asarray(part, np.float32)])
        for name, part in parts.items()
    }
    return corpus.queries[:200] if quick else corpus.queries, documents


def measure(queries: Floats, documents: Floats, threads: int) -> Json:
    exact = simtile.topk(queries, documents, K, threads=threads)[1]
    single = []
    for dtype, metric in DTYPES:
        index = simtile.FlatIndex(documents.shape[1], dtype, metric=metric)  # type: ignore[arg-type]
        index.add(documents)
        found = index.search(queries, K, threads=threads)[1]
        single.append(
            {
                "dtype": dtype,
                "metric": metric,
                "bytes": index.nbytes / len(documents),
                "overlap": overlap(exact, found),
            }
        )
    cascades = []
    for stages in STAGES:
        # One index of each: to search with another oversample needs no other codes.
        index = CascadeIndex(documents.shape[1], stages)
        index.add(documents)
        default = index.oversample
        by_first = {}
        for first in sorted({*OVERSAMPLES, default[0]}):
            index._oversample = (first, *default[1:])
            found = index.search(queries, K, threads=threads)[1]
            by_first[f"{first:g}"] = overlap(exact, found)
        last = simtile.FlatIndex(documents.shape[1], stages[-1])  # type: ignore[arg-type]
        last.add(documents)
        cascades.append(
            {
                "stages": list(stages),
                "default": list(default),
                "bytes": index.nbytes / len(documents),
                "overlap": by_first,
                "most": overlap(exact, last.search(queries, K, threads=threads)[1]),
            }
        )
    return {
        "documents": len(documents),
        "queries": len(queries),
        "dim": documents.shape[1],
        "k": K,
        "wanted": WANTED,
        "single": single,
        "cascades": cascades,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Overlap of cascades with exact search.")
    parser.add_argument("--texts", type=Path, required=True, help="float32 [N, 384] in a .npy")
    parser.add_argument("--quick", action="store_true", help="fewer queries and documents")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    console = _common.console()
    queries, documents = corpora(arguments.texts, arguments.quick)
    entries = {}
    for name, part in documents.items():
        with console.status(f"{len(part):,} documents"):
            entries[name] = measure(queries, part, arguments.threads)
    most = max(entry["documents"] for entry in entries.values())
    results: Json = {
        "machine": _common.machine(),
        "quick": arguments.quick,
        "complete": most >= LEAST_TEXTS,
        "failures": [],
        "entries": entries,
    }
    console.print(Markdown(cascade_tables.markdown(results)))
    if arguments.output or (results["complete"] and not arguments.quick):
        path = _common.write_results("cascade_quality", results, arguments.output)
        console.print(f"stored in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
