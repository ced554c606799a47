"""What sentence-transformers' contrastive losses make of embeddings, by `simtile.info_nce`.

`loss` is always an object of the original's: its attributes are the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.util import all_gather_with_grad, cos_sim
from torch import Tensor

import simtile
from simtile._contrast import DIRECTIONS
from simtile.integrations import _gathered

# Of a loss inside of MatryoshkaLoss while it is called: (dims, weights).
WIDTHS = "_simtile_widths"


def columns(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries, their documents, and hard negatives [N, K, D] from columns of embeddings."""
    if len(embeddings) < 2:
        raise ValueError(f"embeddings: found {len(embeddings)} columns, expected at least 2")
    queries, documents, *others = embeddings
    return queries, documents, torch.stack(others, dim=1) if others else None


def ranking_loss(loss: Any, embeddings: Sequence[Tensor]) -> Tensor:
    """Of MultipleNegativesRankingLoss and its relatives."""
    hardened = loss.hardness_mode is not None and loss.hardness_strength > 0.0
    options = {
        "temperature": 1.0 / loss.scale,
        "normalize": loss.similarity_fct is cos_sim,
        "directions": [name for name in DIRECTIONS if name in loss.directions],
        "partition": loss.partition_mode,
        "hardness": loss.hardness_mode if hardened else None,
        "hardness_strength": loss.hardness_strength if hardened else 0.0,
    }
    if loss.gather_across_devices and _is_shared(embeddings):
        return _gathered_ranking_loss(loss, *columns(embeddings), options)
    return _info_nce(loss, *columns(embeddings), **options)


def _gathered_ranking_loss(
    loss: Any, queries: Tensor, documents: Tensor, negatives: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """This rank's pairs against everybody's queries and documents.

    Pairs of this rank come first; what belongs to others follows as documents that are nobody's,
    which are candidates and never anchors.
    """
    directions = set(options["directions"])
    all_documents = _gathered.gather(documents)
    bank = [_gathered.own_first(all_documents)]
    if negatives is not None:
        all_negatives = _gathered.gather(negatives)
        bank.append(_gathered.of_others(all_negatives).flatten(0, 1))
    if not directions & {"query_to_query", "doc_to_query"}:
        return _info_nce(loss, queries, torch.cat(bank), negatives, **options)
    all_queries = _gathered.gather(queries)
    if options["partition"] == "per_direction":
        # Their negatives are of one direction each; hardness is of the first.
        options["partition"], options["directions"] = "joint", ["query_to_doc"]
        there = _info_nce(loss, queries, torch.cat(bank), negatives, **options)
        options["hardness"], options["hardness_strength"] = None, 0.0
        back = _info_nce(loss, documents, _gathered.own_first(all_queries), None, **options)
        return (there + back) / 2
    hardens_others = options["hardness"] in ("in_batch_negatives", "all_negatives")
    from_documents = directions & {"doc_to_query", "doc_to_doc"}
    if "query_to_query" in directions and len(from_documents) != 1 and not hardens_others:
        # Whoever is compared with others' documents is with their queries too.
        bank.append(_gathered.of_others(all_queries))
        return _info_nce(loss, queries, torch.cat(bank), negatives, **options)
    # The losses of all ranks' pairs, of which this rank keeps its own.
    losses = _info_nce(
        loss,
        all_queries,
        all_documents,
        None if negatives is None else all_negatives,
        reduction="none",
        **options,
    )
    return losses[_gathered.own_rows(losses)].mean()


def gist_loss(loss: Any, embeddings: Sequence[Tensor], guide: Sequence[Tensor]) -> Tensor:
    """Of GISTEmbedLoss and CachedGISTEmbedLoss."""
    directions = ["query_to_doc"]
    directions += ["query_to_query"] if loss.contrast_anchors else []
    directions += ["doc_to_doc"] if loss.contrast_positives else []
    vectors, guides = columns(embeddings), columns(guide)
    if loss.gather_across_devices and _is_shared(embeddings):
        # As in the original, queries are not compared with other ranks' queries.
        vectors, guides = _gathered_candidates(*vectors), _gathered_candidates(*guides)
    return _info_nce(
        loss,
        *vectors,
        temperature=loss.temperature,
        directions=directions,
        # A document is compared with other queries' documents, not with their hard negatives.
        negatives_scope="queries",
        guide=[x for x in guides if x is not None],
        guide_margin=loss.margin,
        guide_margin_strategy=loss.margin_strategy,
    )


def _gathered_candidates(
    queries: Tensor, documents: Tensor, negatives: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if negatives is not None:
        # Every query's candidates, so it does not matter whose they are: [N, ranks K, D].
        negatives = _gathered.gather(negatives).reshape(len(queries), -1, negatives.shape[-1])
    return queries, _gathered.own_first(_gathered.gather(documents)), negatives


def _is_shared(embeddings: Sequence[Tensor]) -> bool:
    """Whether there are other ranks; all have as many rows."""
    if _gathered.ranks() == 1:
        all_gather_with_grad(embeddings[0])  # the original's warning where nothing is initialised
        return False
    _gathered.check_equal_rows("gather_across_devices", embeddings[0])
    return True


def _info_nce(
    loss: Any, queries: Tensor, documents: Tensor, negatives: Tensor | None, **options: Any
) -> Tensor:
    widths = getattr(loss, WIDTHS, None)
    if widths is None:
        return simtile.info_nce(queries, documents, negatives, **options)
    dims, weights = widths
    return _over_widths(dims, weights, queries, documents, negatives, **options)


def _over_widths(
    dims: Sequence[int],
    weights: Sequence[float],
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    **options: Any,
) -> Tensor:
    """Σ_k weights[k] · loss of the first dims[k] dimensions, which are normalised."""
    by_width: dict[int, float] = {}  # the original takes a width twice
    for dim, weight in zip(dims, weights, strict=True):
        by_width[dim] = by_width.get(dim, 0.0) + weight
    # The original normalises what it cuts off, for any similarity.
    options["normalize"] = True
    average = simtile.info_nce(
        queries,
        documents,
        negatives,
        matryoshka_dims=list(by_width),
        matryoshka_weights=list(by_width.values()),
        **options,
    )
    return sum(by_width.values()) * average
