"""colpali-engine's late-interaction scores, with the same arguments and results.

``from simtile.integrations.colpali import score_multi_vector`` in place of
``processor.score_multi_vector``; `maxsim_inbatch` and `maxsim_kd` are what its losses call, from
``colpali_engine.utils.maxsim``. As there, what pads a list counts as rows of zeros, and a row of
zeros has similarity 0 to all. Scores of bfloat16 and float16 are added up in float32 here.
``docs/late-interaction.md`` has every difference.
"""

from __future__ import annotations

from typing import Any

import simtile
from simtile.integrations._late_interaction import (
    Tensor,
    check_shape,
    lengths_of,
    moved,
    own_documents,
    to_matrices,
    to_tensor,
    torch,
)

__all__ = ["maxsim_inbatch", "maxsim_kd", "score_multi_vector"]


def score_multi_vector(
    qs: Any, ps: Any, batch_size: int = 128, device: str | torch.device | None = None
) -> Tensor:
    """Every query with every passage.

    Parameters
    ----------
    qs, ps : lists of floats [L, D], or floats [B, L, D]
    batch_size : int
        Passages of a list are padded to the longest of that many, from the first on: one that is
        shorter scores no token of a query below 0. Queries are not padded.
    device : optional
        Where scores are computed; by default on a CUDA device if there is one, else on the CPU.

    Returns
    -------
    float32 [Q, P], on the CPU
        Without a passage of any length in a batch the scores are 0; the original raises.

    Raises
    ------
    ValueError
        No queries or no passages; shapes that do not fit; a batch_size below 1.
    """
    if len(qs) == 0:
        raise ValueError("qs: found no queries, expected at least one")
    if len(ps) == 0:
        raise ValueError("ps: found no passages, expected at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size: found {batch_size}, expected at least 1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    queries, passages = moved(to_matrices("qs", qs), place), moved(to_matrices("ps", ps), place)
    if isinstance(passages, Tensor):
        return _float32_on_cpu(simtile.maxsim(queries, passages))
    lengths = lengths_of(passages)
    zero = passages[0].new_zeros(1, passages[0].shape[1])
    parts, offsets = [], [0]
    for i, (passage, length) in enumerate(zip(passages, lengths, strict=True)):
        first = i - i % batch_size
        padded = length < max(lengths[first : first + batch_size])
        parts += [passage, zero] if padded else [passage]
        offsets.append(offsets[-1] + length + padded)
    return _float32_on_cpu(simtile.maxsim_packed(queries, torch.cat(parts), torch.tensor(offsets)))


def maxsim_inbatch(query: Any, doc: Any) -> Tensor:
    """Every query [B, L, D] with every document [C, Ld, D]: scores [B, C] of the inputs' type."""
    query, doc = to_tensor("query", query), to_tensor("doc", doc)
    check_shape("query", query, "B", "L", "D")
    check_shape("doc", doc, "C", "Ld", "D")
    return _of_type(simtile.maxsim(query, doc), query, doc)


def maxsim_kd(query: Any, doc: Any) -> Tensor:
    """Each query [B, L, D] with its own documents [B, N, Ld, D]: scores [B, N] of their type."""
    query, doc = to_tensor("query", query), to_tensor("doc", doc)
    check_shape("query", query, "B", "L", "D")
    check_shape("doc", doc, "B", "N", "Ld", "D")
    ids = own_documents(doc)
    offsets = torch.arange(ids.numel() + 1) * doc.shape[2]
    return _of_type(simtile.maxsim_packed(query, doc.flatten(0, 2), offsets, ids=ids), query, doc)


def _float32_on_cpu(scores: Tensor) -> Tensor:
    return scores.to("cpu", torch.float32)


def _of_type(scores: Tensor, query: Tensor, doc: Tensor) -> Tensor:
    return scores.to(torch.promote_types(query.dtype, doc.dtype))
