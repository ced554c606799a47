"""MaxSim in plain Python: the definition that late-interaction scoring is held to.

A query is a matrix of tokens q_i, a document one of tokens d_j, and

    score = Σ_i max_j q_i · d_j

over the tokens that are there: Khattab and Zaharia, "ColBERT: Efficient and Effective Passage
Search via Contextualized Late Interaction over BERT", 2020, arXiv:2004.12832, eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from simtile.reference.info_nce import Vector, add_scaled, dot, unit, unit_backward

Tokens = Sequence[Vector]
Mask = Sequence[bool]
ZeroRows = Literal["score", "pad"]

NO_TOKEN = -1


class Pair(NamedTuple):
    """A query and a document, and for each token of the query what it matched."""

    score: float
    argmax: list[int]  # the document's token, the first of equals; NO_TOKEN where there is none
    token_scores: list[float]  # the similarity to it, 0 where there is none


class Gradients(NamedTuple):
    """Scores, and the gradients of L = Σ grad_scores[q][n] · scores[q][n]."""

    scores: list[list[float]]
    queries: list[list[list[float]]]
    documents: list[list[list[float]]]


def maxsim(
    queries: Sequence[Tokens],
    documents: Sequence[Tokens],
    query_mask: Sequence[Mask] | None = None,
    document_mask: Sequence[Mask] | None = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
) -> list[list[Pair]]:
    """Every query with every document.

    Parameters
    ----------
    queries : [Q][Lq][D]
    documents : [N][Ld][D]
        Lengths may differ from one to the next.
    query_mask, document_mask : [Q][Lq] and [N][Ld], optional
        False for what is no token. It may stand anywhere, and never takes part in a maximum: not
        even if all similarities are negative.
    normalize : bool
        Divide every token by its length first.
    length_normalize : bool
        Divide a score by the number of the query's tokens (MeanMaxSim).
    empty_score : float
        The score of a document without a token, whatever the query. A query without one has the
        score 0 with all others.
    zero_rows : "score" or "pad"
        Whether a row of zeros is a token with similarity 0 to all, or none.
    temperature : float, optional
        Not the maximum but its smooth bound t · log Σ_j exp(q_i · d_j / t).

    Returns
    -------
    [Q][N] pairs.
    """
    results = []
    for q, query in enumerate(queries):
        own = tokens_there(query, query_mask[q] if query_mask else None, zero_rows)
        row = []
        for n, document in enumerate(documents):
            theirs = tokens_there(document, document_mask[n] if document_mask else None, zero_rows)
            pair = score_pair(query, own, document, theirs, normalize, temperature)
            if length_normalize:
                pair = pair._replace(score=pair.score / max(len(own), 1))
            if not theirs:
                pair = pair._replace(score=empty_score)
            row.append(pair)
        results.append(row)
    return results


def maxsim_grad(
    queries: Sequence[Tokens],
    documents: Sequence[Tokens],
    grad_scores: Sequence[Vector],
    query_mask: Sequence[Mask] | None = None,
    document_mask: Sequence[Mask] | None = None,
    *,
    normalize: bool = False,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
    temperature: float | None = None,
) -> Gradients:
    """The scores, and the gradients of Σ grad_scores[q][n] · scores[q][n].

    A maximum passes its gradient to the first token that attains it; the smooth one to each token
    in proportion to exp(q_i · d_j / t).
    """
    pairs = maxsim(
        queries,
        documents,
        query_mask,
        document_mask,
        normalize=normalize,
        length_normalize=length_normalize,
        empty_score=empty_score,
        zero_rows=zero_rows,
        temperature=temperature,
    )
    grad_queries = [[[0.0] * len(token) for token in query] for query in queries]
    grad_documents = [[[0.0] * len(token) for token in document] for document in documents]
    for q, query in enumerate(queries):
        count = len(tokens_there(query, query_mask[q] if query_mask else None, zero_rows))
        for n, document in enumerate(documents):
            mask = document_mask[n] if document_mask else None
            theirs = tokens_there(document, mask, zero_rows)
            weight = grad_scores[q][n] / (max(count, 1) if length_normalize else 1)
            for i, best in enumerate(pairs[q][n].argmax):
                if best == NO_TOKEN:
                    continue
                token = as_scored(query[i], normalize)
                for j in theirs if temperature else [best]:
                    other = as_scored(document[j], normalize)
                    share = weight
                    if temperature:
                        smooth = pairs[q][n].token_scores[i]
                        share *= math.exp((dot(token, other) - smooth) / temperature)
                    add_scaled(grad_queries[q][i], share, other)
                    add_scaled(grad_documents[n][j], share, token)

    if normalize:
        grad_queries = through_norms(queries, grad_queries, query_mask)
        grad_documents = through_norms(documents, grad_documents, document_mask)
    scores = [[pair.score for pair in row] for row in pairs]
    return Gradients(scores, grad_queries, grad_documents)


def through_norms(
    side: Sequence[Tokens], grads: list[list[list[float]]], masks: Sequence[Mask] | None
) -> list[list[list[float]]]:
    """Gradients with respect to tokens from those with respect to tokens of unit length.

    What is masked has none, whatever its values.
    """
    return [
        [
            unit_backward(token, grad) if masks is None or masks[b][i] else grad
            for i, (token, grad) in enumerate(zip(tokens, own, strict=True))
        ]
        for b, (tokens, own) in enumerate(zip(side, grads, strict=True))
    ]


def score_pair(
    query: Tokens,
    own: list[int],
    document: Tokens,
    theirs: list[int],
    normalize: bool,
    temperature: float | None,
) -> Pair:
    """The tokens `own` of a query with the tokens `theirs` of a document."""
    argmax = [NO_TOKEN] * len(query)
    token_scores = [0.0] * len(query)
    for i in own if theirs else []:
        token = as_scored(query[i], normalize)
        similarities = [dot(token, as_scored(document[j], normalize)) for j in theirs]
        place = first_largest(similarities)
        argmax[i] = theirs[place]
        token_scores[i] = similarities[place]
        if temperature and math.isfinite(similarities[place]):
            largest = similarities[place]
            total = math.fsum(math.exp((s - largest) / temperature) for s in similarities)
            token_scores[i] = largest + temperature * math.log(total)
    return Pair(sum(token_scores), argmax, token_scores)


def tokens_there(tokens: Tokens, mask: Mask | None, zero_rows: ZeroRows) -> list[int]:
    """The indices of a matrix's tokens."""
    return [
        i
        for i, token in enumerate(tokens)
        if (mask is None or mask[i]) and (zero_rows == "score" or any(x != 0 for x in token))
    ]


def as_scored(token: Vector, normalize: bool) -> Vector:
    return unit(token) if normalize else token


def first_largest(values: Vector) -> int:
    """The index of the first NaN, or else of the first of the largest."""
    for i, value in enumerate(values):
        if math.isnan(value):
            return i
    return max(range(len(values)), key=lambda i: values[i])
