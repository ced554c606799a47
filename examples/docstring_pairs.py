"""What the SimCSE and Trainer examples share: MiniLM, texts, and how well they are found.

The texts are the docstrings of Python's own standard library: a first paragraph, which says what a
thing does, and the rest, which explains it.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

import simtile
from simtile.demo import docstrings, minilm

HELD_OUT = 200


class Triple(NamedTuple):
    query: str  # a docstring's first paragraph
    document: str  # the rest of it
    negative: str  # the rest of another docstring of the same file


def read_triples() -> tuple[list[Triple], list[Triple]]:
    """For training, and every k-th held out.

    The negative is what follows in the same file: near in subject, in words and in style, and yet
    an explanation of something else. (In SimCSE it is a sentence that contradicts the first; no
    such sentences come with Python.) A file with one docstring has none and is left out.
    """
    by_file: dict[str, list[docstrings.Pair]] = {}
    for pair in docstrings.clean(docstrings.docstring_pairs(docstrings.standard_library())):
        by_file.setdefault(pair.source.partition(":")[0], []).append(pair)
    triples = [
        Triple(pair.query, pair.document, pairs[(i + 1) % len(pairs)].document)
        for pairs in by_file.values()
        if len(pairs) > 1
        for i, pair in enumerate(pairs)
    ]
    every = max(2, len(triples) // HELD_OUT)
    held_out = triples[::every]
    return [triple for i, triple in enumerate(triples) if i % every], held_out


def load_model(max_tokens: int = 48) -> Any:
    """MiniLM as a SentenceTransformer; texts are cut to a few tokens to keep the example short."""
    try:
        model = minilm.load_model(minilm.find_model())
    except minilm.MissingModel as error:
        sys.exit(f"{error}")
    model.max_seq_length = max_tokens
    return model


def embed(model: Any, texts: list[str]) -> Tensor:
    """Embeddings of length 1, with gradients; dropout if the model is in training mode."""
    features = model(model.preprocess(texts))
    return torch.nn.functional.normalize(features["sentence_embedding"], dim=-1)


def report(name: str, model: Any, triples: list[Triple]) -> None:
    """How many first paragraphs find their rest, and the two properties of Wang & Isola 2020."""
    q, d = (
        torch.from_numpy(minilm.embed(model, list(texts)))
        for texts in ([t.query for t in triples], [t.document for t in triples])
    )
    nearest = simtile.topk(q, d, 10)[1]
    found = (nearest == torch.arange(len(q))[:, None]).float()
    print(
        f"{name:7} recall@1 {found[:, 0].mean():.3f}  recall@10 {found.sum(1).mean():.3f}  "
        f"alignment {simtile.alignment(q, d):.3f}  uniformity {simtile.uniformity(d):.3f}",
        flush=True,
    )
