"""The contrastive family in plain Python: InfoNCE with every option, and the sigmoid loss.

For pair i, query q_i and its document d_t, and the negatives c of the chosen directions
(`contrastive_options.py` says which there are, `contrastive_candidates.py` which are left out):

    s_c    = anchor · candidate                                similarity
    l_c    = s_c / temperature + bias (+ hardness)             logit
    InfoNCE   loss_i = log(n e^l₊ + Σ_c e^l_c) − l₊            n: how often the pair is a candidate
    sigmoid   loss_i = −log σ(l₊) − Σ_c log σ(−l_c)

InfoNCE: van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
2018, arXiv:1807.03748; with all four directions in one log-sum-exp Li et al., "Towards General Text
Embeddings with Multi-stage Contrastive Learning", 2023, arXiv:2308.03281. Sigmoid: Zhai et al.,
"Sigmoid Loss for Language Image Pre-Training", 2023, arXiv:2303.15343.

`info_nce.py` is the same with one direction and fewer options, and shorter to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from simtile.reference.contrastive_candidates import (
    Batch,
    Item,
    add_gradient,
    input_gradient,
    logit,
    make_batch,
    make_pair,
    negative_logit,
    negatives_of,
)
from simtile.reference.contrastive_options import (
    SIGLIP_DEFAULTS,
    WITH_POSITIVE,
    Direction,
    Options,
    Vector,
    check_options,
    check_siglip,
)
from simtile.reference.info_nce import add_scaled, max_or_nan

Reduction = Literal["mean", "sum", "none"]


class Gradients(NamedTuple):
    """Losses of the pairs, and the gradients of L = Σ_i row_weights[i] · losses[i]."""

    losses: list[float]
    queries: list[list[float]]
    documents: list[list[float]]
    negatives: list[list[list[float]]] | None
    temperature: float
    bias: float


class PairLoss(NamedTuple):
    """The loss of one pair and its derivatives with respect to the logits."""

    loss: float
    positive: float
    negatives: list[float]


def info_nce(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
    reduction: Reduction = "mean",
) -> float | list[float]:
    """InfoNCE of queries [N][D], documents [M][D] and hard negatives [N][K][D]."""
    return reduced(info_nce_grad(queries, documents, negatives, options).losses, reduction)


def info_nce_grad(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
    row_weights: Sequence[float] | None = None,
) -> Gradients:
    """The losses, and the gradients of Σ_i row_weights[i] · losses[i], 1 being the default weight.

    Raises ValueError for options that do not go together.
    """
    options = options or Options()
    return over_widths(
        options.groups(), softmax, queries, documents, negatives, options, row_weights
    )


def siglip_loss(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
    reduction: Reduction = "mean",
) -> float | list[float]:
    """The sigmoid loss of queries [N][D], documents [M][D] and hard negatives [N][K][D]."""
    return reduced(siglip_loss_grad(queries, documents, negatives, options).losses, reduction)


def siglip_loss_grad(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
    row_weights: Sequence[float] | None = None,
) -> Gradients:
    """The losses of the queries, and the gradients of Σ_i row_weights[i] · losses[i].

    Every candidate is a question of its own, so there is one direction and no hardness. The
    default temperature and bias are what Zhai et al. start from.
    """
    options = options or SIGLIP_DEFAULTS
    check_siglip(options)
    return over_widths(
        [("query_to_doc",)],
        sigmoid_cross_entropy,
        queries,
        documents,
        negatives,
        options,
        row_weights,
    )


def softmax(copies: int, positive: float, negatives: list[float]) -> PairLoss:
    """log Σ exp(logit) − positive, where the positive is among the candidates `copies` times."""
    # Shifted by the largest logit no exponential overflows and the sum is at least 1.
    largest = max_or_nan([positive, *negatives])
    exponentials = [math.exp(s - largest) for s in negatives]
    total = copies * math.exp(positive - largest) + math.fsum(exponentials)
    shares = [e / total for e in exponentials]
    # The shares of all candidates sum up to 1, so the positive's, less 1, is minus the others'.
    return PairLoss(math.log(total) - (positive - largest), -math.fsum(shares), shares)


def sigmoid_cross_entropy(copies: int, positive: float, negatives: list[float]) -> PairLoss:
    """−log σ(positive) − Σ log σ(−negative)."""
    loss = softplus(-positive) + math.fsum(softplus(s) for s in negatives)
    return PairLoss(loss, -sigmoid(-positive), [sigmoid(s) for s in negatives])


def over_widths(
    groups: list[tuple[Direction, ...]],
    pair_loss: Callable[[int, float, list[float]], PairLoss],
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None,
    options: Options,
    row_weights: Sequence[float] | None,
) -> Gradients:
    """The weighted average over the prefix widths; without Matryoshka the one full width."""
    dimensions = len(queries[0])
    check_options(options, len(queries), len(documents), dimensions, negatives is not None)

    def zeros(vectors: Sequence[Vector]) -> list[list[float]]:
        return [[0.0] * dimensions for _ in vectors]

    losses = [0.0] * len(queries)
    grad_queries, grad_documents = zeros(queries), zeros(documents)
    grad_negatives = [zeros(own) for own in negatives or []]
    grad_temperature = grad_bias = 0.0
    for width, share in options.widths(dimensions):
        batch = make_batch(queries, documents, negatives, options, width)
        weights = [share * (row_weights[i] if row_weights else 1.0) for i in range(len(queries))]
        width_losses, steps = batch_loss(groups, pair_loss, batch, weights)
        add_scaled(losses, share, width_losses)
        grad_temperature += steps.temperature
        grad_bias += steps.bias
        add_gradients(grad_queries, batch.queries, options)
        add_gradients(grad_documents, batch.documents, options)
        for grads, items in zip(grad_negatives, batch.negatives, strict=True):
            add_gradients(grads, items, options)
    return Gradients(
        losses=losses,
        queries=grad_queries,
        documents=grad_documents,
        negatives=None if negatives is None else grad_negatives,
        temperature=grad_temperature,
        bias=grad_bias,
    )


class Scalars(NamedTuple):
    temperature: float
    bias: float


def batch_loss(
    groups: list[tuple[Direction, ...]],
    pair_loss: Callable[[int, float, list[float]], PairLoss],
    batch: Batch,
    weights: Sequence[float],
) -> tuple[list[float], Scalars]:
    """The losses of one width; the gradients of Σ_i weights[i] · losses[i] are added to the items.

    A logit is s / temperature + bias + constant, so ∂l/∂s = 1 / temperature and
    ∂l/∂temperature = −s / temperature².
    """
    options = batch.options
    losses = []
    grad_temperature = grad_bias = 0.0
    for i, weight in enumerate(weights):
        pair = make_pair(batch, i)
        loss = 0.0
        for group in groups:
            negatives = [c for direction in group for c in negatives_of(batch, pair, direction)]
            result = pair_loss(
                sum(direction in WITH_POSITIVE for direction in group),
                logit(options, pair.positive),
                [negative_logit(options, pair, c) for c in negatives],
            )
            loss += result.loss / len(groups)
            candidates = [pair.positive, *negatives]
            derivatives = [result.positive, *result.negatives]
            for candidate, derivative in zip(candidates, derivatives, strict=True):
                step = weight / len(groups) * derivative
                add_gradient(candidate, step / options.temperature)
                grad_temperature -= step * candidate.similarity() / options.temperature**2
                grad_bias += step
        losses.append(loss)
    return losses, Scalars(grad_temperature, grad_bias)


def add_gradients(totals: list[list[float]], items: list[Item], options: Options) -> None:
    """Add the gradients of one width to the first dimensions of `totals`."""
    for total, item in zip(totals, items, strict=True):
        for k, value in enumerate(input_gradient(item, options)):
            total[k] += value


def reduced(losses: list[float], reduction: Reduction) -> float | list[float]:
    if reduction == "none":
        return losses
    total = math.fsum(losses)
    return total / len(losses) if reduction == "mean" else total


def softplus(x: float) -> float:
    """log(1 + exp(x)) = −log σ(−x)"""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    e = math.exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)
