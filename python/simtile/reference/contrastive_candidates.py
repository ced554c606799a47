"""With what each pair is compared: the candidates of every direction, and which are left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from simtile.reference.contrastive_options import Direction, Options, Vector
from simtile.reference.info_nce import add_scaled, dot, unit, unit_backward


class Item(NamedTuple):
    """A query, a document or a hard negative."""

    raw: Vector  # as given, cut to the width
    vector: Vector  # of length 1 if the options say so
    grad: list[float]  # the gradient with respect to `vector`, summed up here
    id: int | None
    guide: Vector | None  # of length 1


class Batch(NamedTuple):
    """The inputs of one width."""

    queries: list[Item]
    documents: list[Item]
    negatives: list[list[Item]]
    options: Options


class Candidate(NamedTuple):
    """What an anchor is compared with."""

    anchor: Item
    item: Item
    hardened: bool = False  # whether hardness adds to the logit

    def similarity(self) -> float:
        return dot(self.anchor.vector, self.item.vector)

    def guide_similarity(self) -> float:
        assert self.anchor.guide is not None
        assert self.item.guide is not None
        return dot(self.anchor.guide, self.item.guide)

    def same_id(self) -> bool:
        return self.anchor.id is not None and self.anchor.id == self.item.id


def make_batch(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None,
    options: Options,
    width: int,
) -> Batch:
    def item(vector: Vector, id: int | None, guide: Vector | None) -> Item:
        raw = vector[:width]
        return Item(
            raw=raw,
            vector=unit(raw) if options.normalize else raw,
            grad=[0.0] * width,
            id=id,
            guide=None if guide is None else unit(guide),
        )

    def items(
        vectors: Sequence[Vector], ids: Sequence[int] | None, guides: Sequence[Vector] | None
    ) -> list[Item]:
        return [
            item(v, ids[j] if ids is not None else None, guides[j] if guides is not None else None)
            for j, v in enumerate(vectors)
        ]

    guide = options.guide
    return Batch(
        queries=items(queries, options.query_ids, guide[0] if guide else None),
        documents=items(documents, options.document_ids, guide[1] if guide else None),
        negatives=[
            items(own, None, guide[2][i] if guide else None)
            for i, own in enumerate(negatives or [])
        ],
        options=options,
    )


class Pair(NamedTuple):
    """A query, its document, and how similar to their anchor negatives may be."""

    row: int
    positive: Candidate  # the query as anchor, the document
    guide_threshold: float | None
    threshold: float | None  # of the model's own similarity


def make_pair(batch: Batch, i: int) -> Pair:
    options = batch.options
    target = i if options.targets is None else options.targets[i]
    positive = Candidate(batch.queries[i], batch.documents[target])
    guide_threshold = threshold = None
    if options.guide is not None:
        similarity = positive.guide_similarity()
        margin = options.guide_margin
        if options.guide_margin_strategy == "relative":
            margin *= abs(similarity)
        guide_threshold = similarity - margin
    if options.false_negative_margin is not None:
        threshold = positive.similarity() - options.false_negative_margin
    return Pair(i, positive, guide_threshold, threshold)


def possible_negatives(batch: Batch, pair: Pair, direction: Direction) -> Iterator[Candidate]:
    """The negatives of a pair in a direction, before ids, guide and margin."""
    query, document, _ = pair.positive
    scope, hardness = batch.options.negatives_scope, batch.options.hardness
    other_queries = (q for q in batch.queries if q is not query)
    other_documents = (d for d in batch.documents if d is not document)

    if direction == "query_to_doc":
        harden_others = hardness in ("in_batch_negatives", "all_negatives")
        harden_own = hardness in ("hard_negatives", "all_negatives")
        for d in other_documents:
            yield Candidate(query, d, harden_others)
        for j, own in enumerate(batch.negatives):
            if j == pair.row or scope != "own":
                for n in own:
                    yield Candidate(query, n, harden_own if j == pair.row else harden_others)
    elif direction == "query_to_query":
        for q in other_queries:
            yield Candidate(query, q)
    elif direction == "doc_to_query":
        for q in other_queries:
            yield Candidate(document, q)
    else:
        for d in other_documents:
            yield Candidate(document, d)
        if scope == "all":
            for j, own in enumerate(batch.negatives):
                if j != pair.row:
                    for n in own:
                        yield Candidate(document, n)


def known_false(pair: Pair, candidate: Candidate) -> bool:
    """Whether ids or the guide say that a candidate is no negative of the pair."""
    if candidate.same_id():
        return True
    return pair.guide_threshold is not None and candidate.guide_similarity() > pair.guide_threshold


def looks_false(pair: Pair, candidate: Candidate) -> bool:
    """Whether a candidate is too similar, compared with the pair itself, to be a negative."""
    return pair.threshold is not None and candidate.similarity() > pair.threshold


def negatives_of(batch: Batch, pair: Pair, direction: Direction) -> list[Candidate]:
    """The negatives of a pair in a direction."""
    return [
        c
        for c in possible_negatives(batch, pair, direction)
        if not known_false(pair, c) and not looks_false(pair, c)
    ]


def logit(options: Options, candidate: Candidate) -> float:
    similarity = candidate.similarity()
    value = similarity / options.temperature + options.bias
    if candidate.hardened:
        value += options.hardness_strength * similarity
    return value


def negative_logit(options: Options, pair: Pair, candidate: Candidate) -> float:
    """The same, or NaN where the guide cannot say whether it is a negative: NaN in, NaN out."""
    if pair.guide_threshold is not None and math.isnan(
        candidate.guide_similarity() - pair.guide_threshold
    ):
        return math.nan
    return logit(options, candidate)


def add_gradient(candidate: Candidate, step: float) -> None:
    """Add the gradients of step · similarity."""
    add_scaled(candidate.anchor.grad, step, candidate.item.vector)
    add_scaled(candidate.item.grad, step, candidate.anchor.vector)


def input_gradient(item: Item, options: Options) -> list[float]:
    """The gradient with respect to the vector as it was given."""
    return unit_backward(item.raw, item.grad) if options.normalize else item.grad
