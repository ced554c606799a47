"""A linear adapter on frozen embeddings, trained with ``info_nce_grad`` and NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import simtile

FloatArray = npt.NDArray[np.float32]

# Chosen by four-fold cross-validation on the training pairs of seed 0, by mean reciprocal rank:
# one matrix for the queries, one for both sides or one each, learning rates 1e-4 and 3e-4, and
# temperatures 0.03, 0.05 and 0.1. The held-out queries played no part. One matrix each scored 0.505
# and this 0.501, which is within the noise; with this the documents' embeddings stay as they are.
STEPS = 160
LEARNING_RATE = 1e-4
TEMPERATURE = 0.05
HELD_OUT = 800


class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) on one array, updated in place."""

    def __init__(
        self, parameter: FloatArray, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.parameter = parameter
        self.learning_rate = learning_rate
        self.betas = betas
        self.mean = np.zeros_like(parameter)
        self.square = np.zeros_like(parameter)
        self.steps = 0

    def step(self, gradient: FloatArray) -> None:
        self.steps += 1
        first, second = self.betas
        self.mean += (1 - first) * (gradient - self.mean)
        self.square += (1 - second) * (gradient * gradient - self.square)
        mean = self.mean / (1 - first**self.steps)
        root = np.sqrt(self.square / (1 - second**self.steps))
        self.parameter -= self.learning_rate * mean / (root + 1e-8)


def split(
    pairs: int, held_out: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers to train on and to hold out, both in random order."""
    order = np.random.default_rng(seed).permutation(pairs)
    return order[held_out:], order[:held_out]


def train_adapter(
    queries: FloatArray,
    documents: FloatArray,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    temperature: float = TEMPERATURE,
    threads: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[FloatArray, list[float]]:
    """Fit W so that ``queries @ W`` finds ``documents``; return W [D, D] and the loss of each step.

    W starts at the identity, so step 0 is the untouched model. Every step uses all pairs: document
    i is query i's positive, and all the others are its negatives.
    """
    weight = np.eye(queries.shape[1], dtype=np.float32)
    optimizer = Adam(weight, learning_rate)
    losses = []
    for step in range(1, steps + 1):
        loss, grad_queries, _ = simtile.info_nce_grad(
            queries @ weight, documents, temperature=temperature, threads=threads
        )
        optimizer.step(queries.T @ grad_queries)
        losses.append(float(loss))
        if on_step is not None:
            on_step(step, float(loss))
    return weight, losses
