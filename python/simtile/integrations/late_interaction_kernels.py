"""late-interaction-kernels' functions, with the same arguments and results, on the CPU as well.

``from simtile.integrations import late_interaction_kernels as lik`` in place of ``import
late_interaction_kernels as lik``. As there, scores are float32 (float64 for float64), masked tokens
take no part, a document without a token scores 0, and `MaxSimScorer` and `retrieve` normalise.
Other than there, float32 is not rounded to float16 on a GPU, and offsets are 64-bit.
``docs/late-interaction.md`` has every difference, and what is not here.
"""

from __future__ import annotations

from typing import Any

import simtile
from simtile.integrations._late_interaction import (
    Tensor,
    check_shape,
    own_documents,
    to_tensor,
    torch,
)
from simtile.integrations._late_interaction_inputs import (
    check_backward,
    indices,
    sequence_lengths,
    split,
    to_bool_mask,
)

__all__ = [
    "MaxSimScorer",
    "maxsim",
    "maxsim_padded",
    "maxsim_pairs",
    "maxsim_varlen",
    "retrieve",
    "score_pairs_packed",
]


def maxsim(
    Q: Any,
    D: Any,
    q_mask: Any = None,
    d_mask: Any = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
) -> Tensor:
    """Every query with every document, or each with its own.

    Parameters
    ----------
    Q : floats [Q, L, D], or [L, D] for one
    D : floats [N, Ld, D], or [Ld, D] for one, or [Q, K, Ld, D] for K of each query's own
    q_mask, d_mask : of the shape of `Q` and `D` without the last axis, optional
        False or 0: no token.
    normalize : bool
        Divide every token by its length.
    backward : "auto", "unified" or "lowmem", optional
        No effect: gradients have no atomics, and are added up in float32.

    Returns
    -------
    [Q, N], or [Q, K]; without the axis of what is one

    Raises
    ------
    ValueError
        Shapes that do not fit; another `backward`.
    """
    check_backward(backward)
    queries, documents = to_tensor("Q", Q), to_tensor("D", D)
    query_mask = to_bool_mask("q_mask", q_mask, queries)
    document_mask = to_bool_mask("d_mask", d_mask, documents)
    if documents.ndim == 4:
        return _own(queries, documents, query_mask, document_mask, normalize)
    one_query, one_document = queries.ndim == 2, documents.ndim == 2
    scores: Tensor = simtile.maxsim(
        queries[None] if one_query else queries,
        documents[None] if one_document else documents,
        query_mask[None] if one_query and query_mask is not None else query_mask,
        document_mask[None] if one_document and document_mask is not None else document_mask,
        normalize=normalize,
    )
    if one_document:
        scores = scores[:, 0]
    return scores[0] if one_query else scores


def maxsim_pairs(
    Q: Any,
    D: Any,
    q_mask: Any = None,
    d_mask: Any = None,
    *,
    normalize: bool = False,
    backward: str | None = None,
) -> Tensor:
    """Each query [B, L, D] with the document [B, Ld, D] of its place: scores [B].

    Parameters and errors are those of :func:`maxsim`.
    """
    check_backward(backward)
    queries, documents = to_tensor("Q", Q), to_tensor("D", D)
    check_shape("Q", queries, "B", "L", "D")
    check_shape("D", documents, "B", "Ld", "D")
    scores: Tensor = simtile.maxsim_pairwise(
        queries,
        documents,
        to_bool_mask("q_mask", q_mask, queries),
        to_bool_mask("d_mask", d_mask, documents),
        normalize=normalize,
    )
    return scores


def maxsim_varlen(
    Q_packed: Any,
    D_packed: Any,
    cu_seqlens_q: Any,
    cu_seqlens_d: Any,
    max_seqlen_q: int | None = None,
    max_seqlen_d: int | None = None,
) -> Tensor:
    """Every query with every document, their tokens stored one after the other.

    Parameters
    ----------
    Q_packed, D_packed : floats [T, D]
    cu_seqlens_q, cu_seqlens_d : int [Q + 1] and [N + 1]
        Query i is ``Q_packed[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]``.
    max_seqlen_q, max_seqlen_d : int, optional
        The longest; they are not needed here, and checked.

    Returns
    -------
    float32 [Q, N]

    Raises
    ------
    ValueError
        Offsets that are not ascending from 0 to T; a sequence longer than it may be.
    """
    queries = split("Q_packed", Q_packed, cu_seqlens_q, "cu_seqlens_q", max_seqlen_q)
    documents = to_tensor("D_packed", D_packed)
    sequence_lengths("D_packed", documents, cu_seqlens_d, "cu_seqlens_d", max_seqlen_d)
    scores: Tensor = simtile.maxsim_packed(queries, documents, cu_seqlens_d)
    return scores.float()


def score_pairs_packed(
    Q_packed: Any,
    D_packed: Any,
    cu_seqlens_q: Any,
    cu_seqlens_d: Any,
    pair_q_idx: Any,
    pair_d_idx: Any,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_d: int | None = None,
) -> Tensor:
    """The pairs of queries and documents that are asked for, from packed tokens.

    Parameters
    ----------
    Q_packed, D_packed, cu_seqlens_q, cu_seqlens_d, max_seqlen_q, max_seqlen_d
        As for :func:`maxsim_varlen`.
    pair_q_idx, pair_d_idx : int [P]
        Which query and which document.

    Returns
    -------
    float32 [P]

    Raises
    ------
    ValueError
        As for :func:`maxsim_varlen`; numbers of queries or documents that there are not.
    """
    queries = split("Q_packed", Q_packed, cu_seqlens_q, "cu_seqlens_q", max_seqlen_q)
    documents = to_tensor("D_packed", D_packed)
    lengths = sequence_lengths("D_packed", documents, cu_seqlens_d, "cu_seqlens_d", max_seqlen_d)
    place = documents.device
    of_query = indices("pair_q_idx", pair_q_idx, len(queries)).to(place)
    of_document = indices("pair_d_idx", pair_d_idx, len(lengths)).to(place)
    if of_query.shape != of_document.shape:
        raise ValueError(
            f"pair_d_idx: found {list(of_document.shape)}, expected {list(of_query.shape)} as of "
            "pair_q_idx"
        )
    if not len(of_query):
        return torch.zeros(0, device=place)
    # The documents of each query stand in a row of their own, as long as the longest.
    order = of_query.argsort(stable=True)
    counts = of_query.bincount(minlength=len(queries))
    column = torch.arange(len(order), device=place)
    column -= (counts.cumsum(0) - counts)[of_query[order]]
    ids = of_document.new_full((len(queries), int(counts.max())), -1)
    ids[of_query[order], column] = of_document[order]
    scores: Tensor = simtile.maxsim_packed(queries, documents, cu_seqlens_d, ids=ids)
    place_of = torch.empty_like(order)
    place_of[order] = column
    return scores[of_query, place_of].float()


def maxsim_padded(
    queries: Any,
    documents: Any,
    query_lengths: Any,
    doc_lengths: Any,
    *,
    validate: bool = False,
) -> Tensor:
    """Each query with its own documents, with lengths for masks.

    Parameters
    ----------
    queries : floats [B, L, D]
    documents : floats [B, C, Ld, D]
    query_lengths, doc_lengths : int [B] and [B, C]
        What lies beyond them is no token.
    validate : bool
        Raise if a length is 0, negative or larger than there are rows.

    Returns
    -------
    float32 [B, C]

    Raises
    ------
    ValueError
        Shapes that do not fit; with `validate`, such a length.
    """
    own, others = to_tensor("queries", queries), to_tensor("documents", documents)
    check_shape("queries", own, "B", "L", "D")
    check_shape("documents", others, "B", "C", "Ld", "D")
    masks = []
    for name, x, lengths in (
        ("query_lengths", own, torch.as_tensor(query_lengths)),
        ("doc_lengths", others, torch.as_tensor(doc_lengths)),
    ):
        rows = x.shape[-2]
        if lengths.shape != x.shape[:-2]:
            raise ValueError(f"{name}: found {list(lengths.shape)}, expected {list(x.shape[:-2])}")
        if validate and bool(((lengths < 1) | (lengths > rows)).any()):
            raise ValueError(f"{name}: found a length that is not from 1 to {rows}")
        places = torch.arange(rows, device=x.device)
        masks.append(places < lengths.to(x.device)[..., None])
    query_mask, document_mask = masks
    return _own(own, others, query_mask, document_mask, False).float()


class MaxSimScorer(torch.nn.Module):
    """:func:`maxsim` as a module.

    Parameters
    ----------
    normalize : bool
    backward : str
        As for :func:`maxsim`.
    mask_pad_token : int, optional
        What :meth:`forward_with_ids` masks.

    Raises
    ------
    ValueError
        Another `backward`.
    """

    def __init__(
        self,
        *,
        normalize: bool = True,
        backward: str = "auto",
        mask_pad_token: int | None = None,
    ) -> None:
        super().__init__()
        check_backward(backward)
        self.normalize = normalize
        self.backward = backward
        self.mask_pad_token = mask_pad_token

    def extra_repr(self) -> str:
        return (
            f"normalize={self.normalize}, backward={self.backward!r}, "
            f"mask_pad_token={self.mask_pad_token!r}"
        )

    def forward(self, Q: Any, D: Any, q_mask: Any = None, d_mask: Any = None) -> Tensor:
        return maxsim(Q, D, q_mask, d_mask, normalize=self.normalize)

    def score(self, Q: Any, D: Any, q_mask: Any = None, d_mask: Any = None) -> Tensor:
        """As a call, without gradients."""
        with torch.no_grad():
            return self(Q, D, q_mask, d_mask)  # type: ignore[no-any-return]

    def retrieve(
        self,
        Q: Any,
        D: Any,
        top_k: int,
        q_mask: Any = None,
        d_mask: Any = None,
        *,
        chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:func:`retrieve`, normalised as this module does."""
        return retrieve(Q, D, top_k, q_mask, d_mask, normalize=self.normalize, chunk=chunk)

    def forward_with_ids(self, Q: Any, D: Any, q_ids: Any, d_ids: Any) -> Tensor:
        """As a call, with tokens masked whose id is `mask_pad_token`."""
        if self.mask_pad_token is None:
            raise ValueError("mask_pad_token: found None, expected the id of what pads: pass it")
        mask = (q_ids != self.mask_pad_token, d_ids != self.mask_pad_token)
        return self(Q, D, *mask)  # type: ignore[no-any-return]


def retrieve(
    Q: Any,
    D: Any,
    top_k: int,
    q_mask: Any = None,
    d_mask: Any = None,
    *,
    normalize: bool = True,
    chunk: int | None = None,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[Tensor, Tensor]:
    """The documents with the best scores, without gradients.

    Parameters
    ----------
    Q : floats [Q, L, D], or [L, D] for one
    D : floats [N, Ld, D], or [Ld, D] for one
    top_k : int
    q_mask, d_mask : optional
    normalize : bool
        These as for :func:`maxsim`.
    chunk : int, optional
        No effect.
    largest : bool
        With False the lowest scores, lowest first.
    sorted : bool
        No effect: results are always sorted.

    Returns
    -------
    scores, indices : [Q, k], or [k] for one query
        k is top_k, or N if that is less. Of equal scores the lowest index comes first, where the
        original leaves it open.

    Raises
    ------
    ValueError
        A top_k below 1; shapes that do not fit.
    """
    if top_k < 1:
        raise ValueError(f"top_k: found {top_k}, expected at least 1")
    queries, documents = to_tensor("Q", Q).detach(), to_tensor("D", D).detach()
    query_mask = to_bool_mask("q_mask", q_mask, queries)
    document_mask = to_bool_mask("d_mask", d_mask, documents)
    one = queries.ndim == 2
    if one:
        queries = queries[None]
        query_mask = None if query_mask is None else query_mask[None]
    if documents.ndim == 2:
        documents = documents[None]
        document_mask = None if document_mask is None else document_mask[None]
    count = min(top_k, len(documents))
    if largest and count:
        scores, ids = simtile.maxsim_packed(
            queries,
            documents.flatten(0, 1),
            torch.arange(len(documents) + 1) * documents.shape[1],
            query_mask,
            None if document_mask is None else document_mask.flatten(),
            k=count,
            normalize=normalize,
        )
    else:
        every = simtile.maxsim(queries, documents, query_mask, document_mask, normalize=normalize)
        scores, ids = every.sort(dim=1, stable=True)
        scores, ids = scores[:, :count], ids[:, :count]
    return (scores[0], ids[0]) if one else (scores, ids)


def _own(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    normalize: bool,
) -> Tensor:
    """Each query [B, L, D] with its own documents [B, K, Ld, D]: scores [B, K]."""
    check_shape("Q", queries, "B", "L", "D")
    if len(queries) != len(documents):
        raise ValueError(
            f"D: found {list(documents.shape)}, expected documents for each of the "
            f"{len(queries)} queries"
        )
    ids = own_documents(documents)
    scores: Tensor = simtile.maxsim_packed(
        queries,
        documents.flatten(0, 2),
        torch.arange(ids.numel() + 1) * documents.shape[2],
        query_mask,
        None if document_mask is None else document_mask.flatten(),
        ids=ids,
        normalize=normalize,
    )
    return scores
