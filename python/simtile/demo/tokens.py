"""The token vectors of a checkout or sdist: of all documents, and of some held-out queries.

A wheel leaves them out, which are more bytes than all of its kernels.
``tools/build_demo_tokens.py`` makes the files; ``data/README.md`` says from what.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simtile import MultiVectorIndex
from simtile.demo.corpus import DATA
from simtile.demo.jsonl import CorpusError

DOCUMENTS_FILE = "document_tokens.simtile"
QUERIES_FILE = "query_tokens.npz"
MANIFEST_FILE = "tokens.json"
FORMAT = 1

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tokens:
    """Documents under the numbers of their pairs, and the tokens of the queries of some pairs."""

    documents: MultiVectorIndex
    queries: list[FloatArray]
    rows: npt.NDArray[np.int64]  # the pairs that the queries are of
    dim: int


def are_here(folder: Path = DATA) -> bool:
    """Whether this is not a wheel."""
    return (folder / MANIFEST_FILE).exists()


def load_tokens(pairs: int, folder: Path = DATA) -> Tokens:
    """Read and check the shipped tokens of a corpus of so many pairs.

    Raises
    ------
    CorpusError
        A file is missing, does not match its SHA-256 in the manifest, or disagrees with the others.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
        for name in (DOCUMENTS_FILE, QUERIES_FILE):
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if digest != manifest["sha256"][name]:
                raise ValueError(f"{name} has another SHA-256 than the manifest says")
        documents = MultiVectorIndex.load(folder / DOCUMENTS_FILE)
        with np.load(
            io.BytesIO((folder / QUERIES_FILE).read_bytes()), allow_pickle=False
        ) as archive:
            codes, scales = archive["codes"], archive["scales"]
            lengths, rows = archive["lengths"], archive["rows"]
        if len(documents) != pairs or rows.min(initial=0) < 0 or rows.max(initial=0) >= pairs:
            raise ValueError(f"{len(documents)} documents, expected {pairs}")
        vectors = codes.astype(np.float32) * scales[:, None]
        queries = np.split(vectors, np.cumsum(lengths)[:-1])
        if len(queries) != len(rows) or lengths.sum() != len(codes):
            raise ValueError(f"{len(rows)} queries of {lengths.sum()} tokens, found {len(codes)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{folder}: {error}; the shipped token vectors are damaged, reinstall simtile"
        ) from error
    return Tokens(documents, queries, rows, int(manifest["dim"]))
