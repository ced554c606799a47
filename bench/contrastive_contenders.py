"""The same losses and gradients by simtile and by sentence-transformers, on given embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import GateFailed
from torch import Tensor

import simtile
from simtile.reference import contrastive_numpy
from simtile.reference.contrastive_options import Options

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIMTILE = "simtile"
PLAIN = "simtile, plain"
SEPARATE = "simtile, a loss for each width"
SENTENCE_TRANSFORMERS = "sentence-transformers"

BOTH = ("query_to_doc", "doc_to_query")
GIST = ("query_to_doc", "query_to_query", "doc_to_doc")
FOUR = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
# Options of simtile.info_nce. GIST's temperature is its original's default.
LOSSES: dict[str, dict[str, Any]] = {
    "symmetric": {"directions": BOTH, "partition": "per_direction"},
    "gist, pairs alone": {"guide": True, "temperature": 0.01},
    "gist": {
        "guide": True,
        "temperature": 0.01,
        "directions": GIST,
        "negatives_scope": "queries",
    },
    "joint": {"directions": FOUR},
    "hardness": {"hardness": "in_batch_negatives", "hardness_strength": 3.0},
    "matryoshka": {"matryoshka_dims": True},
}

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, documents, and both by the guide


def embeddings(n: int, dim: int, guide_dim: int) -> Inputs:
    """That resemble trained ones: cosine about 0.45 for pairs, by the guide 0.7."""
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, dim, generator=generator) for _ in range(2))
    documents += 0.5 * queries
    guide, other = (torch.randn(n, guide_dim, generator=generator) for _ in range(2))
    return queries.requires_grad_(), documents.requires_grad_(), guide, guide + other


def options_of(name: str, inputs: Inputs) -> dict[str, Any]:
    options = dict(LOSSES.get(name, {}))
    if options.pop("guide", False):
        options["guide"] = inputs[2:]
    if "matryoshka_dims" in options:
        options["matryoshka_dims"] = widths(inputs[0].shape[1])
    return {"temperature": 0.05, **options}


def widths(dim: int) -> list[int]:
    """Of 768 dimensions 768, 512, 256, 128 and 64."""
    return [dim, dim * 2 // 3, dim // 3, dim // 6, dim // 12]


def step(name: str, library: str, inputs: Inputs, threads: int) -> Callable[[], Tensor]:
    """One forward and backward, as in a training loop after zero_grad(set_to_none=True)."""
    queries, documents, *_ = inputs
    loss = {SIMTILE: simtile_loss, SEPARATE: separate_losses}.get(library, original_loss)

    def run() -> Tensor:
        queries.grad = documents.grad = None
        value = loss(name, inputs, threads)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return run


def simtile_loss(name: str, inputs: Inputs, threads: int) -> Tensor:
    return simtile.info_nce(*inputs[:2], threads=threads, **options_of(name, inputs))


def separate_losses(name: str, inputs: Inputs, threads: int) -> Tensor:
    """The average over widths as the sum of a call for each."""
    options = options_of(name, inputs)
    dims = options.pop("matryoshka_dims")
    parts = [
        simtile.info_nce(*(x[:, :dim] for x in inputs[:2]), threads=threads, **options)
        for dim in dims
    ]
    return torch.stack(parts).mean()


class Given(torch.nn.Module):
    """A model of sentence-transformers that is given its embeddings."""

    def get_embedding_dimension(self) -> None:
        return None

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["given"]}


def original_loss(name: str, inputs: Inputs, threads: int) -> Tensor:
    """By sentence-transformers; of GIST the cached loss, which is the one that fits in memory."""
    from sentence_transformers.sentence_transformer import losses

    options = options_of(name, inputs)
    model = Given() if "matryoshka_dims" in options else torch.nn.Identity()
    directions = options.get("directions", ("query_to_doc",))
    if "guide" in options:
        loss = losses.CachedGISTEmbedLoss.__new__(losses.CachedGISTEmbedLoss)
        torch.nn.Module.__init__(loss)
        loss.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
        loss.temperature, loss.mini_batch_size = options["temperature"], 32
        loss.margin_strategy, loss.margin = "absolute", 0.0
        loss.contrast_anchors = "query_to_query" in directions
        loss.contrast_positives = "doc_to_doc" in directions
        loss.gather_across_devices = loss.show_progress_bar = False
        loss.cross_entropy_loss = torch.nn.CrossEntropyLoss()
        return loss.calculate_loss([[x] for x in inputs[:2]], [[x] for x in inputs[2:]])
    ranking = losses.MultipleNegativesRankingLoss(
        model,
        scale=1.0 / options["temperature"],
        directions=directions,
        partition_mode=options.get("partition", "joint"),
        hardness_mode=options.get("hardness"),
        hardness_strength=options.get("hardness_strength", 0.0),
    )
    if "matryoshka_dims" in options:
        # Its sum over the widths as an average.
        dims = options["matryoshka_dims"]
        prefixes = losses.MatryoshkaLoss(model, ranking, dims, [1 / len(dims)] * len(dims))
        return prefixes([{"given": x} for x in inputs[:2]], None)
    return ranking.compute_loss_from_embeddings(list(inputs[:2]), None)


def gate(name: str, threads: int) -> float:
    """The largest error of loss and gradients at a small size; GateFailed above 1e-5."""
    inputs = embeddings(130, 96, 40)
    value = step(name, SIMTILE, inputs, threads)()
    options = options_of(name, inputs)
    exact = [x.detach().double().numpy() for x in inputs]
    if "guide" in options:
        options["guide"] = tuple(x.tolist() for x in exact[2:])
    truth = contrastive_numpy.info_nce_grad(
        *exact[:2], None, Options(**options), np.full(130, 1 / 130)
    )
    worst = abs(value.item() - truth.losses.mean()) / truth.losses.mean()
    for x, wanted in zip(inputs[:2], (truth.queries, truth.documents), strict=True):
        assert x.grad is not None
        error = np.linalg.norm(x.grad.double().numpy() - wanted) / np.linalg.norm(wanted)
        worst = max(worst, float(error))
    if not worst <= 1e-5:
        raise GateFailed(f"{name}: relative error {worst:.1e}")
    return float(worst)
