"""sentence-transformers' XTR scores; public in `sentence_transformers_multivector`."""

from __future__ import annotations

from typing import Any

import simtile
from simtile.integrations._late_interaction import (
    Tensor,
    check_shape,
    nonzero_rows,
    own_documents,
    to_mask,
    to_tensor,
)
from simtile.integrations._sides import EMPTY_DOCUMENT, queries_of


def xtr_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> Tensor:
    """Every query with the documents of all, by the tokens that a search over all would find.

    Parameters
    ----------
    queries_embeddings : floats [Q, L, D]
    documents_embeddings : floats [B, N, L, D]
        N documents for each of B queries; all their tokens compete.
    queries_mask, documents_mask : [Q, L] and [B, N, L], optional
        0 or False: no token. Without a mask, rows of zeros are no tokens.
    top_k : int
        How many tokens of all documents a token of a query finds.
    chunk_elements : int, optional
        No effect: similarities are never stored.

    Returns
    -------
    float32 [Q, B · N]
        The sum of what the tokens of a query found of the document, divided by the number of
        them that found any. Document n of query j is column j · N + n.

    Raises
    ------
    ValueError
        Shapes that do not fit; a top_k below 1; a negative weight in `queries_mask`.
    """
    if isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"top_k: found {top_k!r}, expected an int of at least 1")
    queries = queries_of(
        "queries_embeddings",
        to_tensor("queries_embeddings", queries_embeddings),
        queries_mask,
        "queries_mask",
    )
    groups = to_tensor("documents_embeddings", documents_embeddings)
    check_shape("documents_embeddings", groups, "B", "N", "L", "D")
    mask = to_mask("documents_mask", documents_mask, *groups.shape[:3])
    mask = nonzero_rows(groups) if mask is None else mask.bool()
    queries = queries.to(groups.device)
    scores: Tensor = simtile.xtr_scores(
        queries.matrices,
        groups.flatten(0, 1),
        queries.masks,
        mask.to(groups.device).flatten(0, 1),
        top_k=top_k,
        empty_score=EMPTY_DOCUMENT,
    )
    return scores.float()


def xtr_kd_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> Tensor:
    """:func:`xtr_scores` of each query with its own documents: float32 [Q, N]."""
    groups = to_tensor("documents_embeddings", documents_embeddings)
    scores = xtr_scores(queries_embeddings, groups, queries_mask, documents_mask, top_k)
    if len(scores) != len(groups):
        raise ValueError(
            f"documents_embeddings: found {list(groups.shape)}, expected a group of documents for "
            f"each of the {len(scores)} queries"
        )
    return scores.gather(1, own_documents(groups))


def xtr_scores_pairwise(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    top_k: int = 256,
    chunk_elements: int | None = None,
) -> Tensor:
    """:func:`xtr_scores` of each query with the document [L, D] of its place: float32 [B].

    All documents compete, so a pair's score depends on the others.
    """
    documents = to_tensor("documents_embeddings", documents_embeddings)
    if documents.ndim == 3:
        documents = documents[:, None]
        mask = to_mask("documents_mask", documents_mask, documents.shape[0], documents.shape[2])
        documents_mask = None if mask is None else mask[:, None]
    return xtr_kd_scores(queries_embeddings, documents, queries_mask, documents_mask, top_k)[:, 0]


class XTRScores:
    """:func:`xtr_scores` with its options, as a ``similarity_fct``."""

    def __init__(self, top_k: int = 256, *, chunk_elements: int | None = None) -> None:
        self.top_k = top_k
        self.chunk_elements = chunk_elements

    def get_config_dict(self) -> dict[str, int | None]:
        return {"top_k": self.top_k, "chunk_elements": self.chunk_elements}

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Any = None,
        documents_mask: Any = None,
    ) -> Tensor:
        return xtr_scores(
            queries_embeddings, documents_embeddings, queries_mask, documents_mask, self.top_k
        )


class XTRKDScores(XTRScores):
    """:func:`xtr_kd_scores` with its options, as a ``similarity_fct``."""

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Any = None,
        documents_mask: Any = None,
    ) -> Tensor:
        return xtr_kd_scores(
            queries_embeddings, documents_embeddings, queries_mask, documents_mask, self.top_k
        )
