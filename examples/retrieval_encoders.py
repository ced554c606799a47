"""From texts to vectors in the retrieval example: prompts, MiniLM's tokens, trained heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import simtile
from simtile.demo.adapter import Adam

Floats = npt.NDArray[np.float32]
BATCH = 64


class Prompts(NamedTuple):
    """What a model wants around its texts; sentence-transformers' ``prompts`` are prefixes too."""

    query: str = ""
    document: str = ""

    def queries(self, texts: Sequence[str]) -> list[str]:
        return [self.query + text for text in texts]

    def documents(self, texts: Sequence[str]) -> list[str]:
        return [self.document + text for text in texts]


MINILM = Prompts()  # was trained without
# E5 (Wang et al. 2022, arXiv:2212.03533) was trained with these; without them it finds less.
E5 = Prompts("query: ", "passage: ")


def instructor(instruction: str, texts: Sequence[str]) -> list[list[str]]:
    """What INSTRUCTOR (Su et al. 2023, arXiv:2212.09741) encodes: pairs of instruction and text."""
    return [[instruction, text] for text in texts]


class Encoded(NamedTuple):
    """Of some texts: MiniLM's token vectors, and two ways to pool them, of length 1."""

    tokens: list[Floats]  # [L, 384] each, of length 1
    mean: Floats  # [N, 384]; what MiniLM was trained for
    cls: Floats  # [N, 384]; the first token, which it was not


@torch.no_grad()
def encode(
    model: Any, texts: Sequence[str], on_done: Callable[[int], None] = lambda count: None
) -> Encoded:
    """One pass of the model for all three; ``on_done(n)`` after n further texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    tokens: dict[int, Floats] = {}
    pooled: dict[str, Floats] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        features = model(model.preprocess([texts[i] for i in rows]))
        vectors, mask = features["token_embeddings"], features["attention_mask"]
        for how in ("mean", "cls"):
            some = simtile.pool(vectors, mask, how).numpy()
            pooled.setdefault(how, np.empty((len(texts), some.shape[1]), np.float32))[rows] = some
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        for row, own, there in zip(rows, unit, mask.bool(), strict=True):
            tokens[row] = own[there].numpy()
        on_done(len(rows))
    return Encoded([tokens[i] for i in range(len(texts))], pooled["mean"], pooled["cls"])


def train_adapter(
    queries: Floats, documents: Floats, steps: int = 120, learning_rate: float = 1e-3
) -> tuple[Floats, list[float]]:
    """One matrix W for both sides, by InfoNCE over all pairs: the encoder stays as it is.

    float32 [D, D], and the loss of every step. W starts at the identity.
    """
    weight = np.eye(queries.shape[1], dtype=np.float32)
    optimizer = Adam(weight, learning_rate)
    losses = []
    for _ in range(steps):
        loss, grad_queries, grad_documents = simtile.info_nce_grad(
            queries @ weight, documents @ weight, temperature=0.05
        )
        optimizer.step(queries.T @ grad_queries + documents.T @ grad_documents)
        losses.append(float(loss))
    return weight, losses


def unit(x: Floats) -> Floats:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-12))


class JointEncoder:
    """A cross-encoder of the same MiniLM: query and document in one pass, a head on top.

    No trained cross-encoder comes as a Python package, so its head is trained here, on few pairs:
    what a pair costs is that of a real one, what it finds is not. Give `Pipeline` another callable,
    ``sentence_transformers.CrossEncoder(...).predict`` for one, where you have it.
    """

    def __init__(self, model: Any, max_tokens: int = 96) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.head = np.zeros(0, np.float32)

    @torch.no_grad()
    def features(self, queries: Sequence[str], documents: Sequence[str]) -> Floats:
        """[N, D]: the product of both halves' means, each token having read both texts."""
        transformer = self.model[0]
        found = []
        for start in range(0, len(queries), BATCH):
            part = slice(start, start + BATCH)
            tokens = self.model.tokenizer(
                list(queries[part]),
                list(documents[part]),
                padding=True,
                truncation="longest_first",
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            vectors = transformer(dict(tokens))["token_embeddings"]
            of_document = tokens["token_type_ids"].bool()
            there = tokens["attention_mask"].bool()
            halves = [simtile.pool(vectors, there & side) for side in (~of_document, of_document)]
            found.append((halves[0] * halves[1]).numpy())
        return np.concatenate(found)

    def fit(self, queries: Sequence[str], documents: Sequence[str], seed: int = 0) -> None:
        """Logistic regression: each query with its document, and with another one."""
        other = np.random.default_rng(seed).permutation(len(queries))
        wrong = [documents[j] for j in other]
        x = np.concatenate([self.features(queries, documents), self.features(queries, wrong)])
        x *= np.sqrt(x.shape[1], dtype=np.float32)
        y = np.concatenate([np.ones(len(queries)), (other == np.arange(len(queries)))])
        self.head = np.ones(x.shape[1], np.float32)
        optimizer = Adam(self.head, 0.02)
        for _ in range(200):
            p = 1.0 / (1.0 + np.exp(-(x @ self.head)))
            optimizer.step((x.T @ (p - y) / len(y) + 1e-3 * self.head).astype(np.float32))

    def __call__(self, query: str, documents: Sequence[str]) -> Floats:
        scores: Floats = self.features([query] * len(documents), documents) @ self.head
        return scores
