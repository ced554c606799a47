"""InfoNCE in plain Python: the definition that every backend of `simtile.info_nce` is held to.

For a query q_i, its document d_t (t = targets[i]) and the other candidates c_j,

    s_j = q_i · c_j / temperature
    p_j = exp(s_j) / Σ_k exp(s_k)
    loss_i = −log p_t = log Σ_j exp(s_j) − s_t

which is van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
2018, arXiv:1807.03748, eq. 4. With normalised vectors and a temperature it is the NT-Xent loss of
Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
arXiv:2002.05709, eq. 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Vector = Sequence[float]

# What torch.nn.functional.normalize divides a shorter vector by.
SMALLEST_NORM = 1e-12


class Gradients(NamedTuple):
    """Row losses, and the gradients of L = Σ_i row_weights[i] · losses[i]."""

    losses: list[float]
    queries: list[list[float]]
    documents: list[list[float]]
    negatives: list[list[list[float]]] | None
    temperature: float


class Candidate(NamedTuple):
    """One document or hard negative that a query is compared with."""

    vector: Vector
    grad: list[float]  # where the gradient with respect to the vector is summed up


def info_nce(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    *,
    temperature: float = 0.05,
    normalize: bool = True,
    targets: Sequence[int] | None = None,
    negatives_scope: Literal["all", "own"] = "all",
    query_ids: Sequence[int] | None = None,
    document_ids: Sequence[int] | None = None,
) -> list[float]:
    """The loss of every query; their mean is what one trains on.

    Parameters
    ----------
    queries : [N][D]
    documents : [M][D]
    negatives : [N][K][D], optional
        Hard negatives: candidates that are no query's document.
    temperature : float
        Divides the similarities.
    normalize : bool
        Divide every vector by its length first, so that similarities are cosines.
    targets : [N], optional
        The document of each query; document i for query i when not given.
    negatives_scope : "all" or "own"
        Whether a query is compared with every query's negatives or only with its own K.
    query_ids, document_ids : [N] and [M], optional
        A document with the id of a query is not one of its negatives.

    Returns
    -------
    [N] losses, each at least 0.
    """
    return info_nce_grad(
        queries,
        documents,
        negatives,
        temperature=temperature,
        normalize=normalize,
        targets=targets,
        negatives_scope=negatives_scope,
        query_ids=query_ids,
        document_ids=document_ids,
    ).losses


def info_nce_grad(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    *,
    temperature: float = 0.05,
    normalize: bool = True,
    targets: Sequence[int] | None = None,
    negatives_scope: Literal["all", "own"] = "all",
    query_ids: Sequence[int] | None = None,
    document_ids: Sequence[int] | None = None,
    row_weights: Sequence[float] | None = None,
) -> Gradients:
    """The losses, and the gradients of Σ_i row_weights[i] · losses[i], 1 being the default weight.

    With p as above, ∂loss_i/∂s_j = p_j for every candidate but the query's own document, whose
    derivative p_t − 1 is minus the sum of the others. Everything else is the chain rule:
    s_j = q_i · c_j / temperature.
    """
    unit_queries = [unit(q) if normalize else list(q) for q in queries]
    document_candidates = [as_candidate(d, normalize) for d in documents]
    negative_candidates = [[as_candidate(c, normalize) for c in own] for own in negatives or ()]

    losses = []
    grad_unit_queries = []
    grad_temperature = 0.0
    for i, query in enumerate(unit_queries):
        target = targets[i] if targets is not None else i
        weight = row_weights[i] if row_weights is not None else 1.0

        positive = document_candidates[target]
        others = [
            document
            for j, document in enumerate(document_candidates)
            if j != target and not same_id(query_ids, document_ids, i, j)
        ]
        if negatives_scope == "all":
            others += [c for own in negative_candidates for c in own]
        elif negative_candidates:
            others += negative_candidates[i]

        candidates = [positive, *others]
        logits = [dot(query, c.vector) / temperature for c in candidates]
        # Shifted by the largest logit no exponential overflows and the sum is at least 1.
        largest = max_or_nan(logits)
        exponentials = [math.exp(s - largest) for s in logits]
        total = math.fsum(exponentials)
        losses.append(math.log(total) - (logits[0] - largest))

        coefficients = [e / total for e in exponentials]
        coefficients[0] = -math.fsum(coefficients[1:])

        grad_query = [0.0] * len(query)
        for candidate, logit, coefficient in zip(candidates, logits, coefficients, strict=True):
            step = weight * coefficient / temperature
            add_scaled(grad_query, step, candidate.vector)
            add_scaled(candidate.grad, step, query)
            grad_temperature -= step * logit
        grad_unit_queries.append(grad_query)

    def grad_input(vector: Vector, grad: list[float]) -> list[float]:
        return unit_backward(vector, grad) if normalize else grad

    grad_negatives = None
    if negatives is not None:
        grad_negatives = [
            [grad_input(c, candidate.grad) for c, candidate in zip(own, candidates, strict=True)]
            for own, candidates in zip(negatives, negative_candidates, strict=True)
        ]
    return Gradients(
        losses=losses,
        queries=[grad_input(q, g) for q, g in zip(queries, grad_unit_queries, strict=True)],
        documents=[
            grad_input(d, c.grad) for d, c in zip(documents, document_candidates, strict=True)
        ],
        negatives=grad_negatives,
        temperature=grad_temperature,
    )


def same_id(
    query_ids: Sequence[int] | None, document_ids: Sequence[int] | None, i: int, j: int
) -> bool:
    """Whether document j carries the id of query i."""
    if query_ids is None or document_ids is None:
        return False
    return query_ids[i] == document_ids[j]


def as_candidate(vector: Vector, normalize: bool) -> Candidate:
    return Candidate(unit(vector) if normalize else vector, [0.0] * len(vector))


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def add_scaled(total: list[float], scale: float, vector: Vector) -> None:
    for k, value in enumerate(vector):
        total[k] += scale * value


def max_or_nan(values: Vector) -> float:
    """The largest value, or NaN if there is one: Python's max would skip it."""
    return math.nan if any(math.isnan(v) for v in values) else max(values)


def norm(vector: Vector) -> float:
    return math.sqrt(dot(vector, vector))


def unit(vector: Vector) -> list[float]:
    """The vector divided by its length; by SMALLEST_NORM if it is shorter than that."""
    length = norm(vector)
    divisor = SMALLEST_NORM if length < SMALLEST_NORM else length  # a NaN length stays NaN
    return [x / divisor for x in vector]


def unit_backward(vector: Vector, grad: Vector) -> list[float]:
    """The gradient with respect to a vector from the gradient with respect to `unit(vector)`.

    Only the part of the gradient that is orthogonal to the vector can move a unit vector. A vector
    shorter than SMALLEST_NORM was divided by a constant.
    """
    length = norm(vector)
    if length < SMALLEST_NORM:
        return [g / SMALLEST_NORM for g in grad]
    direction = [x / length for x in vector]
    along = dot(direction, grad)
    return [(g - along * u) / length for g, u in zip(grad, direction, strict=True)]
