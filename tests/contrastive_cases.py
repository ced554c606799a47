"""Inputs of the contrastive losses for tests: every option, every pair of options, any tuple."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from simtile.reference import contrastive
from simtile.reference.contrastive_options import FROM_QUERIES, WITH_POSITIVE, Options

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SUBSETS = tuple(
    subset
    for size in range(1, 5)
    for subset in itertools.combinations(DIRECTIONS, size)
    if set(subset) & set(WITH_POSITIVE)
)

# What may be drawn for every option; the first is the default.
LEVELS: dict[str, tuple[Any, ...]] = {
    "directions": SUBSETS,
    "partition": ("joint", "per_direction"),
    "negatives_per_query": (None, 0, 1, 3),
    "negatives_scope": ("all", "queries", "own"),
    "bank": (0, 1, 5),  # documents that are nobody's
    "targets": (False, True),
    "ids": (False, True),
    "guide": (None, ("absolute", 0.0), ("absolute", 0.1), ("absolute", -0.2), ("relative", 0.3)),
    "false_negative_margin": (None, 0.0, 0.2, -0.3),
    "hardness": (None, "in_batch_negatives", "hard_negatives", "all_negatives"),
    "matryoshka": (None, "dims", "dims and weights"),
    "normalize": (True, False),
    "bias": (0.0, -1.5),
    "temperature": (0.05, 0.3, 2.0),
    "row_weights": (False, True),
}
# What the sigmoid loss has of them.
SIGLIP_LEVELS = {
    name: values
    for name, values in LEVELS.items()
    if name not in ("directions", "partition", "hardness")
}
# The options that exclude each other are among these.
CONSTRAINED = ("directions", "partition", "targets", "hardness")
DEFAULTS = {name: levels[0] for name, levels in LEVELS.items()}


def valid(options: dict[str, Any]) -> bool:
    """Whether options go together, said once more: `check_options` must agree."""
    directions = set(options["directions"])
    return (
        (options["partition"] == "joint" or directions <= set(WITH_POSITIVE))
        and (not options["targets"] or directions <= set(FROM_QUERIES))
        and (options["hardness"] is None or "query_to_doc" in directions)
    )


def pairs_of(options):
    return {frozenset(pair) for pair in itertools.combinations(options.items(), 2)}


def possible_pairs(levels=LEVELS, is_valid=valid, constrained=CONSTRAINED):
    """Every pair of values of two options for which the others can be chosen."""
    names = [name for name in constrained if name in levels]
    rest = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(levels[name] for name in names))
    ]
    default = {name: values[0] for name, values in levels.items()}
    return {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(levels, 2)
        for x in levels[a]
        for y in levels[b]
        if any(is_valid({**default, **others, a: x, b: y}) for others in rest)
    }


def pairwise(levels=LEVELS, is_valid=valid, constrained=CONSTRAINED, tries=40):
    """Option tuples in which every possible pair occurs; the same on every call."""
    rng = np.random.default_rng(0)
    missing = possible_pairs(levels, is_valid, constrained)
    in_order = sorted(missing, key=lambda pair: sorted(map(repr, pair)))
    chosen = []
    while missing:
        # Around one pair that is missing, the tuple that has most of the others.
        wanted = dict(next(pair for pair in in_order if pair in missing))
        candidates = []
        while len(candidates) < tries:
            drawn = {name: v[int(rng.integers(len(v)))] for name, v in levels.items()} | wanted
            if is_valid(drawn):
                candidates.append(drawn)
        best = max(candidates, key=lambda options: len(pairs_of(options) & missing))
        missing -= pairs_of(best)
        chosen.append(best)
    return chosen


def option_tuples(levels=LEVELS, is_valid=valid):
    """Any option tuple, for hypothesis."""
    return st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in levels.items()}
    ).filter(is_valid)


@dataclass(frozen=True)
class Case:
    """One call in float64. Data comes from the seed, so that a failure shrinks to small shapes."""

    queries: int = 5  # N
    dimensions: int = 6  # D
    guide_dimensions: int = 4  # G
    drawn: dict[str, Any] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        n, d, g, k = (
            self.queries,
            self.dimensions,
            self.guide_dimensions,
            self["negatives_per_query"],
        )
        m = n + self["bank"]
        targets = rng.integers(m, size=n)
        row_weights = rng.normal(size=n)
        ids = rng.integers(-2, 3, size=(2, max(n, m)))
        own = targets if self["targets"] else np.arange(n)
        queries = rng.normal(size=(n, d + g))
        documents = rng.normal(size=(m, d + g))
        negatives = rng.normal(size=(n, k or 0, d + g))
        # Positives near their queries and hard negatives not so far, as in training.
        documents[own] += queries
        negatives += 0.5 * queries[:, None]
        if "duplicates" in self.special:  # exact ties with positives, also across the blocks
            documents[rng.integers(m, size=m // 2)] = documents[own[0]]
            queries[rng.integers(n, size=n // 2)] = documents[own[0]]
            negatives[: n // 2] = documents[own[0]]
        if "zero rows" in self.special:
            queries[int(rng.integers(n))] = 0.0
            documents[int(rng.integers(m))] = 0.0
        scale = 1.0 / np.sqrt(d)  # logits stay in range without normalisation too
        vectors = {"queries": queries, "documents": documents, "negatives": negatives}
        for name, values in vectors.items():
            self.arrays[name] = np.ascontiguousarray(values[..., :d]) * scale
            self.arrays[f"guide_{name}"] = np.ascontiguousarray(values[..., d:])
        if k is None:
            self.arrays["negatives"] = None
        self.arrays["targets"] = targets if self["targets"] else None
        self.arrays["own"] = own
        self.arrays["query_ids"] = ids[0, :n] if self["ids"] else None
        self.arrays["document_ids"] = ids[1, :m] if self["ids"] else None
        self.arrays["row_weights"] = row_weights if self["row_weights"] else None
        widths = rng.permutation(d)[: 1 + d // 2] + 1
        self.arrays["dims"] = None if self["matryoshka"] is None else widths
        self.arrays["weights"] = (
            rng.uniform(0.1, 2.0, size=len(widths))
            if self["matryoshka"] == "dims and weights"
            else None
        )

    def __getitem__(self, name):
        if name in self.arrays:
            return self.arrays[name]
        return self.drawn.get(name, DEFAULTS[name])

    @property
    def inputs(self):
        return [self["queries"], self["documents"], self["negatives"]]

    @property
    def guide(self):
        if self["guide"] is None:
            return None
        names = ["queries", "documents", "negatives"][: 2 + (self["negatives"] is not None)]
        return tuple(self[f"guide_{name}"] for name in names)

    @property
    def options(self):
        """For the references; arrays as lists where they stay small."""
        strategy, margin = self["guide"] or ("absolute", 0.0)
        return Options(
            temperature=self["temperature"],
            bias=self["bias"],
            normalize=self["normalize"],
            targets=as_list(self["targets"]),
            directions=self["directions"],
            partition=self["partition"],
            negatives_scope=self["negatives_scope"],
            query_ids=as_list(self["query_ids"]),
            document_ids=as_list(self["document_ids"]),
            guide=None if self.guide is None else tuple(map(as_list, self.guide)),
            guide_margin=margin,
            guide_margin_strategy=strategy,
            false_negative_margin=self["false_negative_margin"],
            hardness=self["hardness"],
            hardness_strength=0.0 if self["hardness"] is None else 3.0,
            matryoshka_dims=as_list(self["dims"]),
            matryoshka_weights=as_list(self["weights"]),
        )


def as_list(x):
    return None if x is None else x.tolist()


def lists_of(case):
    return [None if x is None else x.tolist() for x in case.inputs]


def run_lists(case, sigmoid=False):
    run = contrastive.siglip_loss_grad if sigmoid else contrastive.info_nce_grad
    weights = None if case["row_weights"] is None else case["row_weights"].tolist()
    result = run(*lists_of(case), case.options, weights)
    if case["negatives"] is not None:  # [N][0] has lost its dimensions
        shape = case["negatives"].shape
        return result._replace(negatives=np.reshape(result.negatives, shape))
    return result


@st.composite
def cases(draw, options, sizes=range(1, 7), special=("duplicates", "zero rows")):
    return Case(
        queries=draw(st.sampled_from(sizes)),
        dimensions=draw(st.sampled_from([1, 2, 7, 16])),
        guide_dimensions=draw(st.sampled_from([2, 5])),
        drawn=draw(options),
        special=tuple(sorted(draw(st.sets(st.sampled_from(special))))) if special else (),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
