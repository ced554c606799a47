"""Mined negatives as the columns of sentence-transformers' formats, and what it prints of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._mining import Mined
from simtile._mining_inputs import Ragged

Array = npt.NDArray[Any]
Columns = dict[str, list[Any]]


class Rows:
    """Texts and what was mined for them.

    Parameters
    ----------
    queries, corpus : lists of texts
    positives : Ragged
        Documents of each query.
    mined : Mined
        With the scores of the positives.
    """

    def __init__(
        self, queries: list[str], corpus: list[str], positives: Ragged, mined: Mined
    ) -> None:
        self.queries, self.corpus, self.positives, self.mined = queries, corpus, positives, mined
        self.found = mined.indices >= 0  # [N, k]
        self.owners = positives.owners()  # the query of each pair
        assert mined.positive_scores is not None
        self.positive_scores = mined.positive_scores

    def columns(self, form: str, anchor: str, positive: str, scores: bool) -> Columns:
        """The columns of a format, texts and labels or scores."""
        if form == "triplet":
            return self._triplets(anchor, positive, scores)
        if form == "n-tuple":
            return self._tuples(anchor, positive, scores)
        if form == "labeled-pair":
            return self._labeled_pairs(anchor, positive, scores)
        return self._labeled_lists(anchor, positive, scores)

    def kept_pairs(self, form: str) -> tuple[Array, Array]:
        """The pair and the rank of every negative that is given out for it."""
        found = self.found[self.owners]
        if form == "n-tuple":
            found = found & found.all(axis=1, keepdims=True)
        pairs, ranks = np.nonzero(found)
        return pairs, ranks

    def _texts(self, texts: list[str], numbers: Array) -> list[str]:
        return [texts[i] for i in numbers.tolist()]

    def _triplets(self, anchor: str, positive: str, scores: bool) -> Columns:
        pairs, ranks = self.kept_pairs("triplet")
        owners = self.owners[pairs]
        columns: Columns = {
            anchor: self._texts(self.queries, owners),
            positive: self._texts(self.corpus, self.positives.rows[pairs]),
            "negative": self._texts(self.corpus, self.mined.indices[owners, ranks]),
        }
        if scores:
            both = self.positive_scores[pairs], self.mined.scores[owners, ranks]
            columns["scores"] = np.stack(both, axis=1).tolist()
        return columns

    def _tuples(self, anchor: str, positive: str, scores: bool) -> Columns:
        pairs = np.flatnonzero(self.found[self.owners].all(axis=1))
        owners = self.owners[pairs]
        columns: Columns = {
            anchor: self._texts(self.queries, owners),
            positive: self._texts(self.corpus, self.positives.rows[pairs]),
        }
        for rank in range(self.found.shape[1]):
            columns[f"negative_{rank + 1}"] = self._texts(
                self.corpus, self.mined.indices[owners, rank]
            )
        if scores:
            own = self.positive_scores[pairs, None]
            columns["scores"] = np.concatenate([own, self.mined.scores[owners]], axis=1).tolist()
        return columns

    def _labeled_pairs(self, anchor: str, positive: str, scores: bool) -> Columns:
        """A query's positives, then its negatives."""
        queries, ranks = np.nonzero(self.found)
        owners = np.concatenate([self.owners, queries])
        order = np.argsort(owners, kind="stable")
        documents = np.concatenate([self.positives.rows, self.mined.indices[queries, ranks]])
        columns: Columns = {
            anchor: self._texts(self.queries, owners[order]),
            positive: self._texts(self.corpus, documents[order]),
        }
        if scores:
            values = np.concatenate([self.positive_scores, self.mined.scores[queries, ranks]])
            columns["score"] = values[order].tolist()
        else:
            columns["label"] = (order < len(self.owners)).astype(int).tolist()
        return columns

    def _labeled_lists(self, anchor: str, positive: str, scores: bool) -> Columns:
        columns: Columns = {anchor: [], positive: [], "scores" if scores else "labels": []}
        for pair, query in enumerate(self.owners.tolist()):
            ranks = np.flatnonzero(self.found[query])
            if not len(ranks):
                continue
            documents = [int(self.positives.rows[pair]), *self.mined.indices[query, ranks].tolist()]
            columns[anchor].append(self.queries[query])
            columns[positive].append([self.corpus[i] for i in documents])
            if scores:
                own = [float(self.positive_scores[pair]), *self.mined.scores[query, ranks].tolist()]
                columns["scores"].append(own)
            else:
                columns["labels"].append([1] + [0] * len(ranks))
        return columns


def report(rows: Rows, limits: Mapping[str, float | None], count: int, form: str) -> None:
    """Print how the scores of positives and negatives are distributed, and what was refused."""
    pairs, ranks = rows.kept_pairs(form)
    negative = rows.mined.scores[rows.owners[pairs], ranks].astype(np.float64)
    positive = rows.positive_scores.astype(np.float64)
    difference = positive[pairs] - negative
    print(f"{'Metric':<8}{'Positive':>14}{'Negative':>14}{'Difference':>14}")
    print(f"{'Count':<8}{len(positive):>14,}{len(negative):>14,}")
    measures: dict[str, Any] = {"Mean": np.mean, "Median": np.median, "Std": _spread, "Min": np.min}
    measures |= {f"{p}%": _percentile(p) for p in (25, 50, 75)} | {"Max": np.max}
    for name, measure in measures.items():
        values = [
            f"{measure(x):>14.4f}" if len(x) else f"{'-':>14}"
            for x in (positive, negative, difference)
        ]
        print(f"{name:<8}{''.join(values)}")
    looked_at = max(1, rows.mined.candidates)
    for name, removed in rows.mined.refused.items():
        if removed:
            print(
                f"Refused {removed:,} of {looked_at:,} candidates ({removed / looked_at:.2%}) by "
                f"{name}={limits[name]}."
            )
    possible = {
        "triplet": rows.found.shape[1] * len(rows.owners),
        "labeled-pair": rows.found.size + len(rows.owners),
    }.get(form, len(rows.owners))
    if count < possible:
        print(
            f"{possible - count:,} of {possible:,} rows ({(possible - count) / possible:.2%}) have "
            "too few negatives; a larger range_max or wider limits may find more."
        )


def _spread(x: Array) -> Any:
    return np.std(x, ddof=1) if len(x) > 1 else np.float64(np.nan)


def _percentile(p: int) -> Any:
    return lambda x: np.percentile(x, p)
