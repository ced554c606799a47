"""How many of the true neighbours a search of quantised embeddings finds, with nothing timed.

    python bench/quantized_overlap.py                  # the demo's docstrings, embedded by MiniLM
    python bench/quantized_overlap.py --more FILE.npy  # and again among further documents

The documents are quantised once, by sentence-transformers. Its searches and simtile's get the same
bytes, the same float queries and the ranges of the documents; overlap@10 is the share of the ten
nearest by exact dot products of the floats that is among the ten found, averaged over the queries.
FILE.npy is float32 [N, 384]; tools/embed_texts.py makes one of 60,000 real texts. Needs the `train`
extra (the weights of all-MiniLM-L6-v2), sentence-transformers, faiss-cpu and usearch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np
import overlap_tables
from rich.console import Console
from rich.markdown import Markdown

import simtile
from simtile.demo import minilm, train
from simtile.demo.corpus import load_corpus
from simtile.demo.texts import unrepeated
from simtile.integrations import sentence_transformers as look_alike

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from sentence_transformers.util import quantization as original

Json = dict[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]

K = 10
MULTIPLIERS = (2, 4)  # 2 is sentence-transformers' default
PACKAGES = ("sentence-transformers", "faiss-cpu", "usearch")
# sentence-transformers' search for each precision of its codes
SEARCHES = {"int8": "usearch", "uint8": "faiss", "ubinary": "faiss"}
OWN_KINDS = ("int8", "int8_vector", "int4", "int4_vector", "binary")


def embeddings(console: Console) -> tuple[Array, Array]:
    """Of the demo's texts, as the model makes them: those that are shipped have been quantised."""
    texts = unrepeated(load_corpus().pairs, "docstrings")
    return train.embeddings(console, texts, minilm.find_model())


def neighbours(queries: Array, documents: Array) -> Array:
    """The K nearest by dot product of the floats, added in float64: [Q, K]."""
    return np.asarray(simtile.topk(queries, documents, K, metric="dot")[1])


def overlap(exact: Array, found: Array) -> float:
    """The share of the exact neighbours that was found."""
    return float((exact[:, :, None] == found[:, None, :]).any(axis=2).mean())


def ids_of(results: list[list[Json]]) -> Array:
    return np.array([[hit["corpus_id"] for hit in hits] for hits in results])


def measure(queries: Array, documents: Array, report: Callable[[str], None]) -> Json:
    """The overlap of every search, and the bytes of a document."""
    exact = neighbours(queries, documents)
    ranges = np.stack([documents.min(axis=0), documents.max(axis=0)])
    rows: dict[str, Json] = {}
    for precision, library in SEARCHES.items():
        codes = original.quantize_embeddings(documents, precision=precision, ranges=ranges)
        own_codes = look_alike.quantize_embeddings(documents, precision, ranges)
        if own_codes.tobytes() != codes.tobytes():
            raise AssertionError(f"{precision}: the codes are not the same bytes")
        name = f"semantic_search_{library}"
        fixed = {"corpus_precision": precision, "top_k": K, "ranges": ranges}
        variants: dict[str, Json] = {"none": {"rescore": False}}
        variants |= {f"×{m}": {"rescore_multiplier": m} for m in MULTIPLIERS}
        found = {}
        for variant, options in variants.items():
            report(f"{precision}, rescoring {variant}, {library}")
            results = getattr(original, name)(queries, codes, **fixed, **options)[0]
            found[variant] = overlap(exact, ids_of(results))
        report(f"{precision}, simtile")
        results = getattr(look_alike, name)(queries, codes, **fixed)[0]
        rows[precision] = {
            "function": name,
            "bytes": codes.nbytes / len(codes),
            "original": found,
            "simtile": overlap(exact, ids_of(results)),
        }
    kinds = {}
    for kind in OWN_KINDS:
        report(f"{kind}, simtile.topk")
        quantized = simtile.quantize(documents, kind)
        found_ids = simtile.topk(queries, quantized, K, metric="dot")[1]
        kinds[kind] = {
            "bytes": quantized.nbytes / len(quantized),
            "overlap": overlap(exact, found_ids),
        }
    return {
        "documents": len(documents),
        "queries": len(queries),
        "dim": documents.shape[1],
        "k": K,
        "precisions": rows,
        "kinds": kinds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Overlap of quantised searches with exact search.")
    parser.add_argument("--more", type=Path, help="further documents, float32 [N, 384] in a .npy")
    parser.add_argument("--queries", type=int, help="only the first so many; nothing is stored")
    parser.add_argument("--output", type=Path, help="folder for the results")
    arguments = parser.parse_args()
    # The originals warn with every call that is not rescored.
    logging.getLogger(original.__name__).setLevel(logging.ERROR)

    console = _common.console()
    queries, documents = embeddings(console)
    queries = queries[: arguments.queries]
    corpora = {"docstrings": documents}
    if arguments.more:
        more = np.load(arguments.more).astype(np.float32, copy=False)
        corpora["docstrings and more"] = np.concatenate([documents, more])
    entries = {}
    with console.status("") as status:
        for name, documents in corpora.items():
            entries[name] = measure(
                queries, documents, lambda text, name=name: status.update(f"{name}: {text}")
            )
    machine = _common.machine()
    machine["versions"] |= {name: importlib.metadata.version(name) for name in PACKAGES}
    results = {
        "machine": machine,
        "complete": bool(arguments.more) and arguments.queries is None,
        "entries": entries,
    }
    console.print(Markdown(overlap_tables.quantized_overlap(results)))
    if results["complete"] or arguments.output:
        path = _common.write_results("quantized_overlap", results, arguments.output)
        console.print(f"stored: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
