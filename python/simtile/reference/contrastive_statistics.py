"""What a contrastive loss sees, in four numbers to watch during training; plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from simtile.reference.contrastive_candidates import (
    known_false,
    looks_false,
    make_batch,
    make_pair,
    possible_negatives,
)
from simtile.reference.contrastive_options import Options, Vector, check_options


class Statistics(NamedTuple):
    """Of similarities as they are: before temperature, bias and hardness.

    With Matryoshka of the widest width, which is what is searched without truncation. A mean over
    nothing is NaN.

    positive_similarity
        Mean over the pairs.
    negative_similarity
        Mean over all negatives in the loss, of all pairs and directions; what is left out does not
        count. A vector counts as often as it is compared.
    accuracy
        How often a pair beats its negatives: share of (pair, log-sum-exp), which is pairs for
        "joint" and pairs in each direction for "per_direction", in which the pair's similarity is
        greater than that of every negative. A tie is a miss. What `false_negative_margin` leaves
        out counts here: the model's own similarity cannot excuse the model. What ids or the guide
        leave out does not.
    masked
        Share of the negatives that ids, the guide or the margin leave out. What is no candidate to
        begin with (an anchor itself, its own document, hard negatives outside their scope) counts
        neither as left out nor as there.
    """

    positive_similarity: float
    negative_similarity: float
    accuracy: float
    masked: float


class Tally(NamedTuple):
    """The sums that statistics are made of; those of several batches add up."""

    pairs: float
    positive_similarity: float
    negative_similarity: float  # of negatives in the loss
    negatives_kept: float
    negatives_there: float  # with those that are left out
    pairs_ahead: float
    pairs_compared: float

    def means(self) -> Statistics:
        return Statistics(
            ratio(self.positive_similarity, self.pairs),
            ratio(self.negative_similarity, self.negatives_kept),
            ratio(self.pairs_ahead, self.pairs_compared),
            ratio(self.negatives_there - self.negatives_kept, self.negatives_there),
        )


def statistics(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
) -> Statistics:
    """The statistics of `info_nce`, and with the options of `siglip_loss` of that."""
    return tally(queries, documents, negatives, options).means()


def tally(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
) -> Tally:
    options = options or Options()
    dimensions = len(queries[0])
    check_options(options, len(queries), len(documents), dimensions, negatives is not None)
    widest = max(width for width, _ in options.widths(dimensions))
    batch = make_batch(queries, documents, negatives, options, widest)

    positives: list[float] = []
    kept: list[float] = []
    ahead: list[bool] = []  # whether a pair beats its negatives
    there = 0
    for i in range(len(queries)):
        pair = make_pair(batch, i)
        similarity = pair.positive.similarity()
        positives.append(similarity)
        for group in options.groups():
            beats = True
            for direction in group:
                for c in possible_negatives(batch, pair, direction):
                    known, looks = known_false(pair, c), looks_false(pair, c)
                    there += 1
                    if not known:
                        beats = beats and similarity > c.similarity()
                    if not known and not looks:
                        kept.append(c.similarity())
            ahead.append(beats)
    return Tally(
        len(queries),
        math.fsum(positives),
        math.fsum(kept),
        len(kept),
        there,
        sum(ahead),
        len(ahead),
    )


def ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
