"""A trainable head on frozen embeddings in PyTorch, and its loss beside the usual PyTorch one."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

import simtile
from simtile.demo.retrieval import ranks

STEPS = 200
BATCH = 4096  # pairs a step; a corpus with fewer trains on all of them at once
LEARNING_RATE = 1e-4
TEMPERATURE = 0.05
EVALUATE_EVERY = 10


def widths_of(dim: int) -> tuple[int, ...]:
    """What is trained: the whole vector and its first two thirds, third and sixth (384, 256, …)."""
    return tuple(sorted({max(1, dim * part // 6) for part in (6, 4, 2, 1)}, reverse=True))


class Head(nn.Module):
    """One matrix for the queries and one for the documents, both the identity at first, and τ."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widths = widths_of(dim)
        self.query = nn.Parameter(torch.eye(dim))
        self.document = nn.Parameter(torch.eye(dim))
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())

    def loss(self, queries: Tensor, documents: Tensor, ids: Tensor, threads: int) -> Tensor:
        """Pairs, row by row; rows with the same id have the same document, which is then no
        negative of theirs."""
        return simtile.info_nce(
            queries @ self.query,
            documents @ self.document,
            temperature=self.log_temperature.exp(),
            query_ids=ids,
            document_ids=ids,
            matryoshka_dims=self.widths,
            threads=threads,
        )

    @torch.no_grad()
    def ranks(
        self,
        queries: Tensor,
        documents: Tensor,
        targets: npt.NDArray[np.int64],
        width: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Rank of each query's document among all documents, 0 for the best, by the first
        ``width`` numbers of every vector."""
        q, d = (queries @ self.query)[:, :width], (documents @ self.document)[:, :width]
        return ranks(q.numpy(), d.numpy(), targets)


@dataclass(frozen=True)
class Trained:
    """The head of the best validation step, that step (0: untrained), and every step's loss."""

    head: Head
    step: int
    losses: list[float]


def batch_of(
    rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query rows, the documents they point to, each once, and each row's place among these."""
    documents, places = np.unique(targets[rows], return_inverse=True)
    return torch.from_numpy(rows), torch.from_numpy(documents), torch.from_numpy(places)


def train_head(
    queries: Tensor,
    documents: Tensor,
    targets: npt.NDArray[np.int64],
    training: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    *,
    steps: int,
    seed: int,
    threads: int,
    on_step: Callable[[float], None],
) -> Trained:
    """Adam on ``simtile.info_nce``; keeps the step of the best validation mean reciprocal rank."""
    generator = np.random.default_rng(seed)
    head = Head(queries.shape[1])
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    best, best_step, best_score = copy.deepcopy(head), 0, -1.0
    losses = []
    for step in range(steps + 1):
        if step % EVALUATE_EVERY == 0 or step == steps:
            found = head.ranks(queries[validation], documents, targets[validation])
            score = float((1 / (1 + found)).mean())
            if score > best_score:
                best, best_step, best_score = copy.deepcopy(head), step, score
        if step == steps:
            break
        rows = training
        if len(training) > BATCH:
            rows = generator.choice(training, BATCH, replace=False)
        ids = torch.from_numpy(targets[rows])
        loss = head.loss(queries[torch.from_numpy(rows)], documents[ids], ids, threads)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        on_step(losses[-1])
    return Trained(best, best_step, losses)


def eager_loss(queries: Tensor, documents: Tensor, targets: Tensor) -> Tensor:
    """The same loss as PyTorch programs write it, with the matrix of logits."""
    logits = functional.normalize(queries) @ functional.normalize(documents).T / TEMPERATURE
    return functional.cross_entropy(logits, targets)


@dataclass(frozen=True)
class Timing:
    """Median seconds of forward and backward, of how many rounds, and how far results differ."""

    eager: float
    fused: float
    rounds: int
    difference: float


def time_losses(
    queries: Tensor, documents: Tensor, targets: Tensor, *, threads: int, budget_s: float = 3.0
) -> Timing:
    """Time both losses in turns, from 3 to 25 rounds within about ``budget_s``.

    ``difference`` is the largest one of any gradient value, as a share of the largest value.
    """
    queries = queries.clone().requires_grad_()
    documents = documents.clone().requires_grad_()

    def fused() -> Tensor:
        return simtile.info_nce(
            queries, documents, temperature=TEMPERATURE, targets=targets, threads=threads
        )

    def eager() -> Tensor:
        return eager_loss(queries, documents, targets)

    def once(loss: Callable[[], Tensor]) -> float:
        queries.grad = documents.grad = None
        start = time.perf_counter()
        loss().backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - start

    gradients = []
    for loss in (eager, fused):  # also the warm-up
        once(loss)
        assert queries.grad is not None
        assert documents.grad is not None
        gradients.append(torch.cat([queries.grad, documents.grad]))
    largest = gradients[0].abs().max().clamp(min=1e-30)
    difference = ((gradients[1] - gradients[0]).abs().max() / largest).item()

    times: list[tuple[float, float]] = []
    stop = time.perf_counter() + budget_s
    while len(times) < 3 or (len(times) < 25 and time.perf_counter() < stop):
        times.append((once(eager), once(fused)))
    return Timing(
        eager=statistics.median(pair[0] for pair in times),
        fused=statistics.median(pair[1] for pair in times),
        rounds=len(times),
        difference=difference,
    )
