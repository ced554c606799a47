"""Embeddings kept on disk, so that only the first run embeds.

One ``.npz`` file a corpus and model in ``$XDG_CACHE_HOME/simtile`` (default ``~/.cache/simtile``).
Its key is a hash of the model's weights and of every text; whatever does not match is made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

FORMAT = "simtile-embeddings-1"


class BadCache(ValueError):
    """A cache file cannot be used; the message says why."""


def cache_folder() -> Path:
    """Where embeddings are kept; a relative ``XDG_CACHE_HOME`` is ignored, as it has to be."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "simtile"


def cache_key(model: str, *texts: Sequence[str]) -> str:
    """A hash of the model's digest and every text of every list, in order."""
    digest = hashlib.sha256(f"{FORMAT} {model}".encode())
    for side in texts:
        digest.update(f"\n{len(side)}".encode())
        for text in side:
            encoded = text.encode()
            digest.update(f"\n{len(encoded)} ".encode() + encoded)
    return digest.hexdigest()


def load(
    path: Path, key: str, queries: int, documents: int
) -> tuple[FloatArray, FloatArray] | None:
    """Query and document embeddings of :func:`save`; None if there is no such file.

    Raises
    ------
    BadCache
        The file is damaged, or holds something else than its name says.
    """
    try:
        # by way of memory: np.load leaves the file of a damaged archive open
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            found_key = str(archive["key"])
            sides = (archive["queries"], archive["documents"])
    except FileNotFoundError:
        return None
    except Exception as error:  # zip, header, pickle and key errors of a damaged file alike
        raise BadCache(f"not readable ({error})") from error
    if found_key != key:
        raise BadCache("made from other texts or weights")
    for array, count in zip(sides, (queries, documents), strict=True):
        if array.dtype != np.float32 or array.ndim != 2 or len(array) != count:
            raise BadCache(
                f"holds {array.dtype} {list(array.shape)}, expected float32 [{count}, D]"
            )
        if not np.allclose(np.linalg.norm(array, axis=1), 1, atol=1e-3):
            raise BadCache("holds vectors that are not of length 1")
    if sides[0].shape[1] != sides[1].shape[1]:
        raise BadCache("holds queries and documents of different dimensions")
    return sides


def save(path: Path, key: str, queries: FloatArray, documents: FloatArray) -> None:
    """Write the embeddings at once or not at all: readers never see half a file.

    Raises
    ------
    OSError
        The folder cannot be written to, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, key=np.array(key), queries=queries, documents=documents)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
