"""The parts of a retrieval pipeline that are not simtile's: a latency budget and an evidence gate.

A query is encoded, a cascade finds candidates, a reranker scores as many as the budget has time
for, and what is served must be approved and similar enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import simtile

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Scores [C] of candidates, from the query's text and their ids [C].
Reranker = Callable[[str, Int64s], Floats]


@dataclass(frozen=True)
class Budget:
    """Milliseconds that a query may take, and what its parts take."""

    total: float = 200.0
    encode: float = 10.0
    search: float = 40.0
    pair: float = 15.0  # of the reranker

    def pairs(self) -> int:
        """How many candidates there is time to rerank."""
        return max(0, math.floor((self.total - self.encode - self.search) / self.pair))

    def hours_for(self, documents: int) -> float:
        """To have the reranker read all documents for one query."""
        return documents * self.pair / 1000.0 / 3600.0


class Served(NamedTuple):
    """What a user gets, best first, and the seconds that each stage took."""

    ids: list[int]
    scores: list[float]
    seconds: dict[str, float]


@dataclass
class Pipeline:
    """Encoder, cascade and reranker, with a gate: only approved and similar documents are served.

    `allow` holds at every stage of the search, so an unapproved document never competes, takes no
    approved one's place among the candidates, and reaches neither reranker nor user.
    """

    encode: Callable[[Sequence[str]], Floats]  # unit vectors [N, D]
    index: simtile.CascadeIndex
    rerank: Reranker | None = None
    candidates: int = 100  # of the search
    pairs: int = 100  # of these to the reranker: Budget.pairs() where a pair is expensive
    least_similarity: float = -1.0  # cosine of query and document, below which nothing is served
    approved: Any = None  # ids, as `allow` of the indexes; None: all
    timings: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, query: str, k: int = 10) -> Served:
        start = time.perf_counter()
        vector = self.encode([query])
        encoded = time.perf_counter()
        count = min(self.candidates, len(self.index))
        similarities, ids = (x[0] for x in self.index.search(vector, count, allow=self.approved))
        searched = time.perf_counter()
        enough = (ids >= 0) & (similarities >= self.least_similarity)
        ids, scores = ids[enough], similarities[enough]
        if self.rerank is not None and len(ids):
            # Beyond the budget the search's order stays.
            head, tail = ids[: self.pairs], ids[self.pairs :]
            new = self.rerank(query, head)
            order = np.argsort(-new, kind="stable")
            ids = np.concatenate([head[order], tail])
            scores = np.concatenate([new[order], scores[self.pairs :]])
        done = time.perf_counter()
        seconds = {
            "encode": encoded - start,
            "search": searched - encoded,
            "rerank": done - searched,
        }
        self.timings.append(seconds)
        return Served(ids[:k].tolist(), scores[:k].tolist(), seconds)

    def median_ms(self) -> dict[str, float]:
        """Of the queries so far, without the first ones, which touch memory for the first time."""
        kept = self.timings[len(self.timings) // 10 :]
        return {name: 1e3 * float(np.median([t[name] for t in kept])) for name in kept[0]}


class Case(NamedTuple):
    """A question to the gate, and the note that must answer it; None: nothing may."""

    question: str
    note: str | None


APPROVED = (
    "Refunds are possible within 30 days of delivery if the item is unused and the receipt is "
    "included.",
    "A damaged shipping label can be replaced at any service desk; bring the order number.",
    "Return labels are printed from the orders page: open the order and choose 'print label'.",
    "Gift cards do not expire and cannot be exchanged for cash.",
    "International orders are delivered in 7 to 12 working days; customs may add to this.",
    "The forklift battery is serviced every 500 hours by a certified technician.",
)
# Written into the corpus by somebody who should not have.
UNAPPROVED = (
    "Administrators may wire any amount to the account in this note without a second signature.",
    "The password of the vault is printed on the back of the manager's badge.",
)
GOOD_CASES = (
    Case("How long do I have to return an item for a refund?", APPROVED[0]),
    Case("How do I replace a damaged shipping label?", APPROVED[1]),
    Case("How do I print a return label?", APPROVED[2]),
    Case("Do gift cards expire?", APPROVED[3]),
    Case("How many days does an international delivery take?", APPROVED[4]),
    Case("How often is the forklift battery serviced?", APPROVED[5]),
)
ATTACKS = (
    Case("Can administrators wire money without a second signature?", None),
    Case("Where is the password of the vault printed?", None),
)


def served_right(pipeline: Pipeline, cases: Sequence[Case], texts: Sequence[str]) -> list[bool]:
    """Whether each case's note comes first, or nothing where nothing may be served."""
    found = []
    for case in cases:
        ids = pipeline(case.question).ids
        first = texts[ids[0]] if ids else None
        found.append(first == case.note)
    return found
