"""XTR scores in plain Python: MaxSim over the tokens that a token search would find.

Each token of a query finds the `top_k` tokens of all documents together that are most similar to
it. A document scores by those of its tokens that were found:

    score = 1/Z Σ_i max_j found_ij (q_i · d_j)

over the tokens that are there, 0 for the maximum of none, with Z the number of the query's tokens
that found one of the document's: Lee et al., "Rethinking the Role of Token Retrieval in
Multi-Vector Retrieval", 2023, arXiv:2304.01982, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from simtile.reference.info_nce import Vector, add_scaled, dot
from simtile.reference.maxsim import (
    NO_TOKEN,
    Gradients,
    Mask,
    Pair,
    Tokens,
    ZeroRows,
    as_scored,
    through_norms,
    tokens_there,
)

Divisor = Literal["found", "positive"]

FEWEST_POSITIVE = 1e-3  # what a sum is divided by where no maximum is positive


def xtr_scores(
    queries: Sequence[Tokens],
    documents: Sequence[Tokens],
    query_mask: Sequence[Mask] | None = None,
    document_mask: Sequence[Mask] | None = None,
    *,
    top_k: int = 256,
    normalize: bool = False,
    divisor: Divisor = "found",
    empty_score: float = 0.0,
    zero_rows: ZeroRows = "score",
) -> list[list[Pair]]:
    """Every query with every document.

    Parameters
    ----------
    queries : [Q][Lq][D]
    documents : [N][Ld][D]
    query_mask, document_mask, normalize, empty_score, zero_rows
        As in `simtile.reference.maxsim.maxsim`.
    top_k : int
        How many tokens a token of a query finds; of equal similarities the first ones.
    divisor : "found" or "positive"
        Z as above, at least 1; or the number of maxima that are positive, at least 1e-3. With
        "positive" a negative maximum counts as 0, unless all rows of the document were found.

    Returns
    -------
    [Q][N] pairs. `argmax` is -1 where nothing was found or the maximum counts as 0. Where a token
    of the query or of the document has a NaN or an infinity, the score is NaN and nothing matches.
    """
    there = [
        tokens_there(document, document_mask[n] if document_mask else None, zero_rows)
        for n, document in enumerate(documents)
    ]
    rows = sum(len(document) for document in documents)
    results = []
    for q, query in enumerate(queries):
        own = tokens_there(query, query_mask[q] if query_mask else None, zero_rows)
        found = {
            i: best_tokens(query[i], documents, there, top_k, normalize)
            for i in own
            if is_finite(query[i])
        }
        row = []
        for n, document in enumerate(documents):
            argmax = [NO_TOKEN] * len(query)
            maxima = [0.0] * len(query)
            sources = 0
            broken = not all(is_finite(query[i]) for i in own)
            broken = broken or not all(is_finite(document[j]) for j in there[n])
            for i in [] if broken else own:
                mine = [(s, j) for s, m, j in found[i] if m == n]
                if not mine:
                    continue
                sources += 1
                all_found = top_k >= rows or len(mine) == len(document)
                if divisor == "positive" and mine[0][0] < 0 and not all_found:
                    continue
                maxima[i], argmax[i] = mine[0]
            positive = sum(maximum > 0 for maximum in maxima)
            z = max(sources, 1) if divisor == "found" else max(positive, FEWEST_POSITIVE)
            score = math.nan if broken else sum(maxima) / z
            if not there[n]:
                score = empty_score
            elif not own:
                score = 0.0
            row.append(Pair(score, argmax, maxima))
        results.append(row)
    return results


def xtr_scores_grad(
    queries: Sequence[Tokens],
    documents: Sequence[Tokens],
    grad_scores: Sequence[Vector],
    query_mask: Sequence[Mask] | None = None,
    document_mask: Sequence[Mask] | None = None,
    *,
    top_k: int = 256,
    normalize: bool = False,
    divisor: Divisor = "found",
    zero_rows: ZeroRows = "score",
) -> Gradients:
    """The scores, and the gradients of Σ grad_scores[q][n] · scores[q][n].

    A maximum passes its gradient to its token; which tokens are found and Z are constants.
    """
    pairs = xtr_scores(
        queries,
        documents,
        query_mask,
        document_mask,
        top_k=top_k,
        normalize=normalize,
        divisor=divisor,
        zero_rows=zero_rows,
    )
    grad_queries = [[[0.0] * len(token) for token in query] for query in queries]
    grad_documents = [[[0.0] * len(token) for token in document] for document in documents]
    for q, row in enumerate(pairs):
        for n, pair in enumerate(row):
            matched = [(i, j) for i, j in enumerate(pair.argmax) if j != NO_TOKEN]
            total = sum(pair.token_scores)
            if divisor == "found":
                z: float = max(len(matched), 1)
            else:
                z = max(sum(x > 0 for x in pair.token_scores), FEWEST_POSITIVE)
            assert math.isnan(pair.score) or not matched or math.isclose(pair.score, total / z)
            for i, j in matched:
                share = grad_scores[q][n] / z
                add_scaled(grad_queries[q][i], share, as_scored(documents[n][j], normalize))
                add_scaled(grad_documents[n][j], share, as_scored(queries[q][i], normalize))
    if normalize:
        grad_queries = through_norms(queries, grad_queries, query_mask)
        grad_documents = through_norms(documents, grad_documents, document_mask)
    return Gradients([[pair.score for pair in row] for row in pairs], grad_queries, grad_documents)


def best_tokens(
    token: Vector,
    documents: Sequence[Tokens],
    there: Sequence[Sequence[int]],
    top_k: int,
    normalize: bool,
) -> list[tuple[float, int, int]]:
    """(similarity, document, row) of the tokens found, best first, of equals the first."""
    scored = as_scored(token, normalize)
    similarities = [
        (dot(scored, as_scored(document[j], normalize)), n, j)
        for n, document in enumerate(documents)
        for j in there[n]
        if is_finite(document[j])
    ]
    return sorted(similarities, key=lambda s: (-s[0], s[1], s[2]))[:top_k]


def is_finite(token: Vector) -> bool:
    return all(math.isfinite(x) for x in token)
