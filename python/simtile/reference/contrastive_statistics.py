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


def statistics(
    queries: Sequence[Vector],
    documents: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]] | None = None,
    options: Options | None = None,
) -> Statistics:
    """The statistics of `info_nce`, and with the options of `siglip_loss` of that."""
    options = options or Options()
    dimensions = len(queries[0])
    check_options(options, len(queries), len(documents), dimensions, negatives is not None)
    widest = max(width for width, _ in options.widths(dimensions))
    batch = make_batch(queries, documents, negatives, options, widest)

    positives: list[float] = []
    kept: list[float] = []
    beaten: list[float] = []  # 1 for a pair that beats its negatives
    masked: list[float] = []  # 1 for a negative that is left out
    for i in range(len(queries)):
        pair = make_pair(batch, i)
        similarity = pair.positive.similarity()
        positives.append(similarity)
        for group in options.groups():
            beats = True
            for direction in group:
                for c in possible_negatives(batch, pair, direction):
                    known, looks = known_false(pair, c), looks_false(pair, c)
                    masked.append(float(known or looks))
                    if not known:
                        beats = beats and similarity > c.similarity()
                    if not known and not looks:
                        kept.append(c.similarity())
            beaten.append(float(beats))
    return Statistics(mean(positives), mean(kept), mean(beaten), mean(masked))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
