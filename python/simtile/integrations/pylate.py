"""PyLate's scores, with the same arguments and results.

``from simtile.integrations import pylate as scores`` in place of ``from pylate import scores``: the
functions and classes serve as ``score_metric`` of its losses. The results are those of PyLate's own
torch code: a mask multiplies similarities, so a masked token of a document has similarity 0, and
scores have the type of the inputs. Similarities of bfloat16 and float16 are not rounded before they
are added up. ``docs/late-interaction.md`` has every difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import simtile
from simtile.integrations._late_interaction import (
    Tensor,
    as_zero_rows,
    check_shape,
    lengths_of,
    own_documents,
    to_mask,
    to_matrices,
    to_tensor,
    torch,
    weighted,
    weights_of,
)
from simtile.integrations._sides import weighted_queries

__all__ = [
    "ColBERTScores",
    "XTRKDScores",
    "XTRScores",
    "colbert_kd_scores",
    "colbert_scores",
    "colbert_scores_pairwise",
    "xtr_kd_scores",
    "xtr_scores",
]

BACKENDS = ("auto", "cpu", "triton", "cuda", "reference")


def colbert_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    backend: str | None = None,
) -> Tensor:
    """Every query with every document.

    Parameters
    ----------
    queries_embeddings : floats [Q, L, D]
    documents_embeddings : floats [N, Ld, D]
    queries_mask, documents_mask : [Q, L] and [N, Ld], optional
        Multiply similarities: those of a masked token are 0.
    backend : str, optional
        As in :func:`simtile.maxsim`; PyLate's "torch", "flash" and "lik" are refused.

    Returns
    -------
    [Q, N], of the inputs' type

    Raises
    ------
    ValueError
        Shapes that do not fit; documents without rows, which have no maximum; another backend.
    """
    queries, query_mask, dtype = _queries(queries_embeddings, queries_mask)
    documents, document_mask, other = _documents(documents_embeddings, documents_mask, "N")
    scores: Tensor = simtile.maxsim(
        queries, documents, query_mask, document_mask, backend=_backend(backend)
    )
    return scores.to(torch.promote_types(dtype, other))


def colbert_scores_pairwise(
    queries_embeddings: Any, documents_embeddings: Any, backend: str | None = None
) -> Tensor:
    """Each query with the document of its place.

    Parameters
    ----------
    queries_embeddings, documents_embeddings : lists of floats [L, D], or floats [B, L, D]
    backend : str, optional
        As for :func:`colbert_scores`.

    Returns
    -------
    [B], of the inputs' type

    Raises
    ------
    ValueError
        As for :func:`colbert_scores`; not as many documents as queries, of which the original
        leaves out the rest.
    """
    queries = to_matrices("queries_embeddings", queries_embeddings)
    documents = to_matrices("documents_embeddings", documents_embeddings)
    if len(queries) != len(documents):
        raise ValueError(
            f"documents_embeddings: found {len(documents)}, expected one for each of the "
            f"{len(queries)} queries"
        )
    if not len(queries):
        raise ValueError("queries_embeddings: found none, expected at least one")
    for i, length in enumerate(lengths_of(documents)):
        if not length:
            raise ValueError(f"documents_embeddings[{i}]: found no rows, which have no maximum")
    scores: Tensor = simtile.maxsim_pairwise(queries, documents, backend=_backend(backend))
    return scores.to(torch.promote_types(queries[0].dtype, documents[0].dtype))


def colbert_kd_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    backend: str | None = None,
) -> Tensor:
    """Each query with its own documents, for distillation.

    Parameters
    ----------
    queries_embeddings : floats [B, L, D]
    documents_embeddings : floats [B, N, Ld, D]
    queries_mask, documents_mask : [B, L] and [B, N, Ld], optional
    backend : str, optional
        These as for :func:`colbert_scores`.

    Returns
    -------
    [B, N], of the inputs' type

    Raises
    ------
    ValueError
        As for :func:`colbert_scores`.
    """
    queries, query_mask, dtype = _queries(queries_embeddings, queries_mask)
    documents, mask, other = _documents(documents_embeddings, documents_mask, "B", "N")
    if len(queries) != len(documents):
        raise ValueError(
            f"documents_embeddings: found {list(documents.shape)}, expected a group of documents "
            f"for each of the {len(queries)} queries"
        )
    ids = own_documents(documents)
    scores: Tensor = simtile.maxsim_packed(
        queries,
        documents.flatten(0, 2),
        torch.arange(ids.numel() + 1) * documents.shape[2],
        query_mask,
        None if mask is None else mask.flatten(),
        ids=ids,
        backend=_backend(backend),
    )
    return scores.to(torch.promote_types(dtype, other))


class ColBERTScores:
    """Every query [Q, L, D] with the documents [B, N, Ld, D] of all: scores [Q, B · N].

    Document n of query j is column j · N + n. Arguments as for :func:`colbert_kd_scores`.
    """

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Any = None,
        documents_mask: Any = None,
        backend: str | None = None,
    ) -> Tensor:
        documents = _to_tensor("documents_embeddings", documents_embeddings)
        check_shape("documents_embeddings", documents, "B", "N", "Ld", "D")
        mask = to_mask("documents_mask", documents_mask, *documents.shape[:3])
        return colbert_scores(
            queries_embeddings,
            documents.flatten(0, 1),
            queries_mask,
            None if mask is None else mask.flatten(0, 1),
            backend,
        )


class XTRScores:
    """Every query with the documents of all, by the tokens that a search over all would find.

    What the tokens of a query found is divided by the number of positive maxima, at least 1e-3; a
    negative maximum counts as 0, unless all rows of the document were found.

    Parameters
    ----------
    k : int
        How many tokens of all documents a token of a query finds; the original raises if there
        are fewer.
    document_chunk_size : int, optional
        No effect: similarities are never stored.
    """

    def __init__(self, k: int = 256, document_chunk_size: int | None = None) -> None:
        self.k = k
        self.document_chunk_size = document_chunk_size

    def compile(self, *arguments: Any, **options: Any) -> None:
        """No effect: there is nothing that torch could compile."""

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Any = None,
        documents_mask: Any = None,
    ) -> Tensor:
        """Scores float32 [Q, B · N] of queries [Q, L, D] with documents [B, N, Ld, D].

        Masks [Q, L] and [B, N, Ld]: 0 or False is no token; other values of a query's multiply.
        Document n of query j is column j · N + n.
        """
        documents = _to_tensor("documents_embeddings", documents_embeddings)
        check_shape("documents_embeddings", documents, "B", "N", "Ld", "D")
        mask = to_mask("documents_mask", documents_mask, *documents.shape[:3])
        queries = _to_tensor("queries_embeddings", queries_embeddings)
        side = weighted_queries("queries_embeddings", queries, queries_mask, "queries_mask")
        scores: Tensor = simtile.xtr_scores(
            side.matrices,
            documents.flatten(0, 1),
            side.mask,
            None if mask is None else mask.bool().flatten(0, 1),
            top_k=self.k,
            divisor="positive",
        )
        return scores.float()


class XTRKDScores(XTRScores):
    """:class:`XTRScores` of each query with its own documents: float32 [Q, N]."""

    def __call__(
        self,
        queries_embeddings: Any,
        documents_embeddings: Any,
        queries_mask: Any = None,
        documents_mask: Any = None,
    ) -> Tensor:
        documents = _to_tensor("documents_embeddings", documents_embeddings)
        scores = super().__call__(queries_embeddings, documents, queries_mask, documents_mask)
        if len(scores) != len(documents):
            raise ValueError(
                f"documents_embeddings: found {list(documents.shape)}, expected a group of "
                f"documents for each of the {len(scores)} queries"
            )
        return scores.gather(1, own_documents(documents))


xtr_scores = XTRScores()
xtr_kd_scores = XTRKDScores()


def _to_tensor(name: str, x: Any) -> Tensor:
    """A list of arrays becomes float32, whatever they are."""
    of_arrays = isinstance(x, list) and x and isinstance(x[0], np.ndarray)
    return to_tensor(name, np.asarray(x, np.float32) if of_arrays else x)


def _backend(backend: str | None) -> Any:
    if backend in ("torch", "flash", "lik"):
        raise ValueError(
            f"backend: found {backend!r}, which is PyLate's own; expected one of "
            f"{', '.join(map(repr, BACKENDS))}, or None"
        )
    return backend or "auto"


def _queries(x: Any, mask: Any) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Queries, their mask, and the type they had."""
    queries = _to_tensor("queries_embeddings", x)
    check_shape("queries_embeddings", queries, "Q", "L", "D")
    given = to_mask("queries_mask", mask, *queries.shape[:2])
    if given is None:
        return queries, None, queries.dtype
    weights = weights_of(given)
    if weights is not None:
        return weighted(queries, weights), None, queries.dtype
    return queries, given.bool(), queries.dtype


def _documents(x: Any, mask: Any, *axes: str) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Documents whose masked rows count as zeros, their mask, and the type they had."""
    documents = _to_tensor("documents_embeddings", x)
    check_shape("documents_embeddings", documents, *axes, "Ld", "D")
    if not documents.shape[-2]:
        raise ValueError(
            f"documents_embeddings: found {list(documents.shape)}, which have no rows and so no "
            "maximum"
        )
    given = to_mask("documents_mask", mask, *documents.shape[:-1])
    if given is None:
        return documents, None, documents.dtype
    weights = weights_of(given)
    if weights is not None:
        return weighted(documents, weights), None, documents.dtype
    zeroed, there = as_zero_rows(documents, given.bool().to(documents.device))
    return zeroed, there, documents.dtype
