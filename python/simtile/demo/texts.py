"""The texts of ``simtile demo --train``: where they come from, and how they are split."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from simtile.demo import docstrings, jsonl, show
from simtile.demo.docstrings import Pair
from simtile.demo.jsonl import CorpusError

MINIMUM_DOCUMENTS = 100
HELD_OUT, HELD_OUT_SHARE = 800, 0.3  # documents, whichever is fewer
VALIDATION_SHARE = 0.15  # of what is not held out


@dataclass(frozen=True)
class Texts:
    """Queries [N] and documents [M] without repetition, and which document answers each query."""

    queries: list[str]
    documents: list[str]
    targets: npt.NDArray[np.int64]
    label: str


def read_texts(console: Console, corpus: Path | None) -> Texts:
    """The pairs of ``corpus``, or of this Python's docstrings.

    Raises
    ------
    CorpusError
        The corpus cannot be read, or has fewer than MINIMUM_DOCUMENTS different documents.
    """
    if corpus is None:
        source = f"the standard library of Python {platform.python_version()}"
        library = docstrings.standard_library()
        files = len(docstrings.source_files(library))
        with show.progress(console, "reading docstrings", max(1, files)) as advance:
            pairs = docstrings.clean(
                docstrings.docstring_pairs(library, lambda done, total: advance(1, ""))
            )
        label = f"python-{platform.python_version()}"
    else:
        source = str(corpus)
        pairs = jsonl.read_pairs(corpus)
        label = "corpus"
    texts = unrepeated(pairs, label)
    if len(texts.documents) < MINIMUM_DOCUMENTS:
        raise CorpusError(
            f"{source}: found {len(texts.documents)} different documents, expected at least "
            f"{MINIMUM_DOCUMENTS} to train on some and search for others"
        )
    repeated = len(pairs) - len(texts.queries)
    console.print(
        f"{len(texts.queries):,} pairs from {source}"
        + (f" ({repeated:,} repeated ones left out)" if repeated else ""),
        soft_wrap=True,
    )
    return texts


def unrepeated(pairs: list[Pair], label: str) -> Texts:
    """Pairs without exact repetitions; equal documents become one that several queries point to."""
    places: dict[str, int] = {}
    kept: dict[tuple[str, int], None] = {}
    for pair in pairs:
        kept[pair.query, places.setdefault(pair.document, len(places))] = None
    return Texts(
        queries=[query for query, _ in kept],
        documents=list(places),
        targets=np.fromiter((target for _, target in kept), np.int64, len(kept)),
        label=label,
    )


def shortened(texts: Texts, documents: int) -> Texts:
    """Only the first documents, and the queries that point to them."""
    rows = np.flatnonzero(texts.targets < documents)
    return Texts(
        queries=[texts.queries[row] for row in rows],
        documents=texts.documents[:documents],
        targets=texts.targets[rows],
        label=f"{texts.label}-quick",
    )


def split(
    texts: Texts, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to train on, to validate on, and held out; no document is in two of them."""
    count = len(texts.documents)
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(HELD_OUT, int(HELD_OUT_SHARE * count))
    validation = held_out + int(VALIDATION_SHARE * (count - held_out))
    part = np.full(count, 0)
    part[order[:held_out]] = 2
    part[order[held_out:validation]] = 1
    rows = part[texts.targets]
    return np.flatnonzero(rows == 0), np.flatnonzero(rows == 1), np.flatnonzero(rows == 2)
