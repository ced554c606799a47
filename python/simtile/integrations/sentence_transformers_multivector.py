"""sentence-transformers' scores of multi-vector models, with the same arguments and results.

``from simtile.integrations.sentence_transformers_multivector import maxsim`` (or `colbert_scores`,
`xtr_scores`, …) in place of the import from ``sentence_transformers.util`` or
``sentence_transformers.multi_vector_encoder.scoring``. The functions are differentiable, and serve
as ``similarity_fct`` of the losses of multi-vector models.

As in the original, scores are float32; a document without a token scores -1e9; masked tokens take
no part; without a mask the rows of zeros of a padded batch are no tokens, those of a list are.
Similarities of bfloat16 and float16 are not rounded to these types here.
``docs/late-interaction.md`` has every difference.
"""

from __future__ import annotations

from typing import Any

import simtile
from simtile.integrations._late_interaction import (
    Tensor,
    check_shape,
    device_of,
    own_documents,
    to_mask,
    to_tensor,
    torch,
)
from simtile.integrations._sentence_transformers_xtr import (
    XTRKDScores,
    XTRScores,
    xtr_kd_scores,
    xtr_scores,
    xtr_scores_pairwise,
)
from simtile.integrations._sides import (
    EMPTY_DOCUMENT,
    Side,
    as_scored,
    documents_of,
    parts_of,
    queries_of,
)

__all__ = [
    "XTRKDScores",
    "XTRScores",
    "colbert_kd_scores",
    "colbert_scores",
    "colbert_scores_pairwise",
    "maxsim",
    "maxsim_pairwise",
    "mean_colbert_kd_scores",
    "mean_colbert_scores",
    "mean_colbert_scores_pairwise",
    "mean_maxsim",
    "mean_maxsim_pairwise",
    "xtr_kd_scores",
    "xtr_scores",
    "xtr_scores_pairwise",
]


def maxsim(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> Tensor:
    """``sentence_transformers.util.maxsim``: every query with every document.

    Parameters
    ----------
    a, b : floats [B, L, D], or a list of [L, D], or a single [L, D]
        Queries and documents, tensors or arrays; integers become float32.
    a_mask, b_mask : [B, L] or a list of [L], optional
        0 or False: no token. Other values of `a_mask` multiply what the token scores. Without a
        mask, rows of zeros of a batch are no tokens.
    chunk_elements : int, optional
        Of the documents that are moved to `device` at a time; without `device` no effect, because
        similarities are never stored.
    length_normalize : bool
        Divide by the number of the query's tokens, -1e9 included.
    device : optional
        Where scores are computed.

    Returns
    -------
    float32 [Q, N], on the documents' device, or else the queries'

    Raises
    ------
    ValueError
        Shapes that do not fit, a negative weight in `a_mask`, or a mask with tokens beyond the end
        of a document of a list.
    TypeError
        A mask that is none; a sparse tensor.
    """
    queries = queries_of("a", a, a_mask, "a_mask")
    documents = documents_of("b", b, b_mask, "b_mask")
    return _all(queries, documents, _place(a, b), chunk_elements, length_normalize, device)


def maxsim_pairwise(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
    device: str | torch.device | None = None,
) -> Tensor:
    """``sentence_transformers.util.maxsim_pairwise``: each query with the document of its place.

    Parameters, errors and the rest as for :func:`maxsim`; as many documents as queries.

    Returns
    -------
    float32 [B]
    """
    queries = queries_of("a", a, a_mask, "a_mask")
    documents = documents_of("b", b, b_mask, "b_mask")
    if len(queries) != len(documents):
        raise ValueError(
            f"b: found {len(documents)} documents, expected one for each of the {len(queries)} "
            "queries of a"
        )
    return _pairs(queries, documents, _place(a, b), chunk_elements, length_normalize, device)


def mean_maxsim(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: str | torch.device | None = None,
) -> Tensor:
    """:func:`maxsim`, divided by the number of the query's tokens."""
    return maxsim(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def mean_maxsim_pairwise(
    a: Any,
    b: Any,
    a_mask: Any = None,
    b_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
    device: str | torch.device | None = None,
) -> Tensor:
    """:func:`maxsim_pairwise`, divided by the number of the query's tokens."""
    return maxsim_pairwise(a, b, a_mask, b_mask, chunk_elements, length_normalize, device)


def colbert_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """Every query with the documents of all, for losses with negatives from the batch.

    Parameters
    ----------
    queries_embeddings : floats [Q, L, D]
    documents_embeddings : floats [B, N, L, D]
        N documents for each of B queries.
    queries_mask, documents_mask : [Q, L] and [B, N, L], optional
        As for :func:`maxsim`.
    chunk_elements : int, optional
        No effect.
    length_normalize : bool

    Returns
    -------
    float32 [Q, B · N]
        Document n of query j is column j · N + n.
    """
    groups, mask = _grouped(documents_embeddings, documents_mask)
    queries = _stacked_queries(queries_embeddings, queries_mask)
    documents = Side(groups.flatten(0, 1), None if mask is None else mask.flatten(0, 1))
    return _all(queries, documents, groups.device, None, length_normalize, None)


def colbert_scores_pairwise(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """:func:`maxsim_pairwise` under the names that losses use."""
    queries = queries_of("queries_embeddings", queries_embeddings, queries_mask, "queries_mask")
    documents = documents_of(
        "documents_embeddings", documents_embeddings, documents_mask, "documents_mask"
    )
    if len(queries) != len(documents):
        raise ValueError(
            f"documents_embeddings: found {len(documents)}, expected one for each of the "
            f"{len(queries)} queries"
        )
    place = _place(queries_embeddings, documents_embeddings)
    return _pairs(queries, documents, place, None, length_normalize, None)


def colbert_kd_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = False,
) -> Tensor:
    """Each query with its own documents, for distillation.

    Parameters
    ----------
    queries_embeddings : floats [B, L, D]
    documents_embeddings : floats [B, N, L, D]
    queries_mask, documents_mask : [B, L] and [B, N, L], optional
        As for :func:`maxsim`.
    chunk_elements : int, optional
        No effect.
    length_normalize : bool

    Returns
    -------
    float32 [B, N]
    """
    groups, mask = _grouped(documents_embeddings, documents_mask)
    queries = _stacked_queries(queries_embeddings, queries_mask).to(groups.device)
    if len(queries) != len(groups):
        raise ValueError(
            f"documents_embeddings: found {list(groups.shape)}, expected a group of documents for "
            f"each of the {len(queries)} queries"
        )
    if not groups.shape[0] * groups.shape[1]:
        return groups.new_zeros(groups.shape[:2], dtype=torch.float32)
    documents, zero_rows = as_scored(Side(groups, mask), queries)
    scores = simtile.maxsim_packed(
        queries.matrices,
        groups.flatten(0, 2),
        torch.arange(groups.shape[0] * groups.shape[1] + 1) * groups.shape[2],
        queries.masks,
        None if documents.mask is None else documents.mask.flatten(),
        ids=own_documents(groups),
        empty_score=EMPTY_DOCUMENT,
        zero_rows=zero_rows,
    ).float()
    return queries.mean(scores) if length_normalize else scores


def mean_colbert_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """:func:`colbert_scores`, divided by the number of the query's tokens."""
    return colbert_scores(
        queries_embeddings,
        documents_embeddings,
        queries_mask,
        documents_mask,
        length_normalize=length_normalize,
    )


def mean_colbert_scores_pairwise(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """:func:`colbert_scores_pairwise`, divided by the number of the query's tokens."""
    return colbert_scores_pairwise(
        queries_embeddings,
        documents_embeddings,
        queries_mask,
        documents_mask,
        length_normalize=length_normalize,
    )


def mean_colbert_kd_scores(
    queries_embeddings: Any,
    documents_embeddings: Any,
    queries_mask: Any = None,
    documents_mask: Any = None,
    chunk_elements: int | None = None,
    length_normalize: bool = True,
) -> Tensor:
    """:func:`colbert_kd_scores`, divided by the number of the query's tokens."""
    return colbert_kd_scores(
        queries_embeddings,
        documents_embeddings,
        queries_mask,
        documents_mask,
        length_normalize=length_normalize,
    )


def _all(
    queries: Side,
    documents: Side,
    place: torch.device,
    chunk_elements: int | None,
    length_normalize: bool,
    device: str | torch.device | None,
) -> Tensor:
    if not len(queries) or not len(documents):
        return torch.zeros(len(queries), len(documents), device=place)
    queries = queries.to(torch.device(device or place))
    scored = []
    for part in parts_of(documents, device, chunk_elements):
        there, zero_rows = as_scored(part.to(torch.device(device or place)), queries)
        scores = simtile.maxsim(
            queries.matrices,
            there.matrices,
            queries.masks,
            there.masks,
            empty_score=EMPTY_DOCUMENT,
            zero_rows=zero_rows,
        )
        scored.append(scores.to(place, torch.float32))
    scores = torch.cat(scored, dim=1)
    return queries.mean(scores) if length_normalize else scores


def _pairs(
    queries: Side,
    documents: Side,
    place: torch.device,
    chunk_elements: int | None,
    length_normalize: bool,
    device: str | torch.device | None,
) -> Tensor:
    if not len(queries):
        return torch.zeros(0, device=place)
    scored: list[Tensor] = []
    start = 0
    for part in parts_of(documents, device, chunk_elements):
        own = queries[start : start + len(part)].to(torch.device(device or place))
        there, zero_rows = as_scored(part.to(torch.device(device or place)), own)
        scores = simtile.maxsim_pairwise(
            own.matrices,
            there.matrices,
            own.masks,
            there.masks,
            empty_score=EMPTY_DOCUMENT,
            zero_rows=zero_rows,
        )
        scored.append(scores.to(place, torch.float32))
        start += len(part)
    scores = torch.cat(scored)
    return queries.mean(scores) if length_normalize else scores


def _stacked_queries(x: Any, mask: Any) -> Side:
    stacked = to_tensor("queries_embeddings", x)
    return queries_of("queries_embeddings", stacked, mask, "queries_mask")


def _grouped(documents_embeddings: Any, documents_mask: Any) -> tuple[Tensor, Tensor | None]:
    documents = to_tensor("documents_embeddings", documents_embeddings)
    check_shape("documents_embeddings", documents, "B", "N", "L", "D")
    mask = to_mask("documents_mask", documents_mask, *documents.shape[:3])
    return documents, None if mask is None else mask.bool()


def _place(a: Any, b: Any) -> torch.device:
    """Where the scores belong."""
    return device_of(b) or device_of(a) or torch.device("cpu")
