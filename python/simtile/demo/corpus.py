"""The corpus that ships with simtile: docstring pairs and their MiniLM embeddings as int8.

``tools/build_demo_corpus.py`` makes the files in ``data/``; ``data/README.md`` says where they come
from and under which licences.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.demo.docstrings import Pair
from simtile.demo.jsonl import CorpusError, read_pairs

FloatArray = npt.NDArray[np.float32]

DATA = Path(__file__).resolve().parent / "data"
PAIRS_FILE = "pairs.jsonl"
EMBEDDINGS_FILE = "embeddings.npz"
MANIFEST_FILE = "manifest.json"
LICENCE_FILE = "LICENSE-PSF.txt"
FORMAT = 1


@dataclass(frozen=True)
class Corpus:
    """N pairs of texts with their embeddings, float32 [N, D] and of length 1."""

    pairs: list[Pair]
    queries: FloatArray
    documents: FloatArray
    manifest: dict[str, Any]


def encode_int8(
    embeddings: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Symmetric int8 codes [N, D] and one float32 scale a vector: x ≈ code · scale."""
    largest = np.abs(embeddings).max(axis=1)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    codes = np.rint(embeddings / scales[:, None]).clip(-127, 127).astype(np.int8)
    return codes, scales


def decode_int8(codes: npt.NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """The vectors of :func:`encode_int8` again, scaled to length 1."""
    vectors = codes.astype(np.float32) * scales[:, None]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = vectors / np.maximum(length, np.float32(1e-12))
    return unit


def load_corpus(folder: Path = DATA) -> Corpus:
    """Read and check the shipped corpus.

    Raises
    ------
    CorpusError
        A file is missing, does not match its SHA-256 in the manifest, or disagrees with the others.
    """
    try:
        manifest = json.loads(_read(folder / MANIFEST_FILE))
        count, dim = int(manifest["pairs"]), int(manifest["dim"])
        checksums = dict(manifest["sha256"])
        found_format = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / MANIFEST_FILE, f"not a corpus manifest ({error!r})") from error
    if found_format != FORMAT:
        raise _damaged(folder / MANIFEST_FILE, f"format {found_format!r}, expected {FORMAT}")
    for name in (PAIRS_FILE, EMBEDDINGS_FILE, LICENCE_FILE):
        digest = hashlib.sha256(_read(folder / name)).hexdigest()
        if digest != checksums.get(name):
            raise _damaged(
                folder / name, f"SHA-256 {digest[:12]}…, expected {str(checksums.get(name))[:12]}…"
            )

    pairs = read_pairs(folder / PAIRS_FILE)
    if len(pairs) != count:
        raise _damaged(folder / PAIRS_FILE, f"{len(pairs)} pairs, expected {count}")
    arrays = _read_arrays(folder / EMBEDDINGS_FILE)
    sides = []
    for side in ("query", "document"):
        codes = _expect(arrays, f"{side}_codes", np.int8, (count, dim), folder)
        scales = _expect(arrays, f"{side}_scales", np.float32, (count,), folder)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise _damaged(folder / EMBEDDINGS_FILE, f"{side}_scales are not all positive")
        sides.append(decode_int8(codes, scales))
    return Corpus(pairs, sides[0], sides[1], manifest)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(io.BytesIO(_read(path)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, header and value errors of a damaged file alike
        raise _damaged(path, f"not a readable .npz file ({error})") from error


def _expect(
    arrays: dict[str, npt.NDArray[Any]],
    name: str,
    dtype: type[np.generic],
    shape: tuple[int, ...],
    folder: Path,
) -> npt.NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise _damaged(folder / EMBEDDINGS_FILE, f"the array {name} is missing")
    if array.dtype != dtype or array.shape != shape:
        raise _damaged(
            folder / EMBEDDINGS_FILE,
            f"{name} is {array.dtype} {list(array.shape)}, "
            f"expected {np.dtype(dtype)} {list(shape)}",
        )
    return array


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror or error}") from error


def _damaged(path: Path, what: str) -> CorpusError:
    return CorpusError(f"{path}: {what}; the shipped corpus is damaged, reinstall simtile")
