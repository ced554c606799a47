"""Hard negatives from a matrix of scores: what `simtile.mine_hard_negatives` is tested against.

One query at a time, with every score at hand. Comparisons are made in float32, in which scores are
given, as sentence-transformers makes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def mine_hard_negatives(
    scores: Array,
    positives: Sequence[Sequence[int]],
    *,
    k: int,
    range_min: int = 0,
    range_max: int,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    sampling: str = "top",
    ids: Sequence[int] | None = None,
    distinct: bool = True,
    allow: Array | None = None,
    filter: Callable[[int, Array], Any] | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """The negatives of every query: rows int64 [N, k] and their scores, -1 and -inf for none.

    Parameters
    ----------
    scores : float32 [N, M]
        Larger is better; NaN is never found.
    positives : N lists of rows
    allow : bool [N, M], optional
    others
        As in `simtile.mine_hard_negatives`.
    """
    queries, documents = scores.shape
    names = list(range(documents)) if ids is None else list(ids)
    window = range_max + max((len(own) for own in positives), default=0)
    random_source = random.Random(seed)
    indices = np.full((queries, k), -1, np.int64)
    found_scores = np.full((queries, k), -np.inf, np.float32)
    for i in range(queries):
        own = {names[row] for row in positives[i]}
        ranked = [
            row
            for row in sorted(range(documents), key=lambda row: (-scores[i, row], row))
            if not np.isnan(scores[i, row]) and (allow is None or allow[i, row])
        ]
        # What is one document by its id takes one place: that of its best row.
        seen: set[Any] = set()
        candidates = []
        for row in ranked:
            name = names[row] if distinct or names[row] in own else (row,)
            if name not in seen:
                seen.add(name)
                candidates.append(row)
        candidates = [row for row in candidates[:window] if names[row] not in own]
        by_row = {row: scores[i, row] for row in candidates}
        positive_scores = [scores[i, row] for row in positives[i]]
        if filter is not None and candidates:
            answer = np.asarray(filter(i, np.array(candidates)))
            if answer.dtype == np.bool_:
                candidates = [row for row, kept in zip(candidates, answer, strict=True) if kept]
            else:
                by_row = dict(zip(candidates, answer.astype(np.float32), strict=True))
                candidates.sort(key=lambda row: (-by_row[row], row))
                if positives[i]:
                    again = np.asarray(filter(i, np.array(positives[i])))
                    positive_scores = list(again.astype(np.float32))
        kept = [
            row
            for row in candidates
            if _passes(
                by_row[row], positive_scores, max_score, min_score, absolute_margin, relative_margin
            )
        ]
        chosen = kept[range_min:range_max]
        if sampling == "random":
            places = sorted(random_source.sample(range(max(len(chosen), k)), k))
            chosen = [chosen[place] for place in places if place < len(chosen)]
        for place, row in enumerate(chosen[:k]):
            indices[i, place], found_scores[i, place] = row, by_row[row]
    return indices, found_scores


def _passes(
    score: np.float32,
    positive_scores: list[np.float32],
    max_score: float | None,
    min_score: float | None,
    absolute_margin: float | None,
    relative_margin: float | None,
) -> bool:
    """Whether a candidate is neither too near nor too far, by the worst positive's score."""
    if max_score is not None and score > np.float32(max_score):
        return False
    if min_score is not None and score < np.float32(min_score):
        return False
    if absolute_margin is None and relative_margin is None:
        return True
    worst = np.float32(min(positive_scores))
    if absolute_margin is not None and score + np.float32(absolute_margin) > worst:
        return False
    if relative_margin is None:
        return True
    return bool(score <= worst - abs(worst) * np.float32(relative_margin))
