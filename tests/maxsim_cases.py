"""Calls of MaxSim for tests: drawn as lengths, masks, values and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

VALUES = ("random", "few", "zeros", "apart", "integers", "special")
MASKS = ("absent", "all", "holes", "prefix", "nothing")
LENGTHS = (0, 1, 2, 3, 7, 16, 33)
DIMS = (1, 3, 7, 16, 33)


@dataclass(frozen=True)
class Case:
    """One call. Data comes from the seed, so that a failure shrinks to small shapes."""

    query_lengths: tuple[int, ...]
    document_lengths: tuple[int, ...]
    dim: int
    values: str = "random"
    masks: tuple[str, str] = ("absent", "absent")  # of queries, of documents
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        lengths = (self.query_lengths, self.document_lengths)
        sides = [[draw_tokens(rng, n, self.dim, self.values) for n in own] for own in lengths]
        if self.values == "apart":  # every similarity is negative
            sides = [[np.abs(x) + 0.1 for x in sides[0]], [-np.abs(x) - 0.1 for x in sides[1]]]
        masks = [draw_masks(rng, own, kind) for own, kind in zip(lengths, self.masks, strict=True)]
        names = ("queries", "documents", "query_mask", "document_mask")
        self.arrays.update(zip(names, (*sides, *masks), strict=True))
        shape = (len(self.query_lengths), len(self.document_lengths))
        self.arrays["grad_scores"] = rng.normal(size=shape)

    def __getitem__(self, name):
        return self.arrays[name]

    @property
    def inputs(self):
        return tuple(self[name] for name in ("queries", "documents"))

    @property
    def mask_arrays(self):
        return tuple(self[name] for name in ("query_mask", "document_mask"))


def draw_tokens(rng, rows, dim, values):
    x = rng.normal(size=(rows, dim))
    if values == "integers":
        x = np.rint(2 * x)
    if values == "few" and rows:  # equal tokens: ties in the maximum
        x = np.rint(2 * x)[rng.integers(min(rows, 2), size=rows)]
    if values == "zeros":
        x[rng.random(rows) < 0.4] = 0
        x[rng.random(x.shape) < 0.1] *= -0.0
    if values == "special":
        chosen = rng.random(rows) < 0.2
        x[chosen, rng.integers(dim)] = rng.choice([np.nan, np.inf, -np.inf], size=chosen.sum())
    return x


def draw_masks(rng, lengths, kind):
    if kind == "absent":
        return None
    masks = []
    for length in lengths:
        mask = np.ones(length, bool)
        if kind == "holes":
            mask = rng.random(length) < 0.6
        if kind == "prefix":
            mask[rng.integers(length + 1) :] = False
        if kind == "nothing":
            mask[:] = False
        masks.append(mask)
    return masks


@st.composite
def cases(draw, most=3, values=VALUES, temperatures=(None,)):
    lengths = st.lists(st.sampled_from(LENGTHS), max_size=most).map(tuple)
    options = {
        "normalize": draw(st.booleans()),
        "length_normalize": draw(st.booleans()),
        "zero_rows": draw(st.sampled_from(["score", "pad"])),
        "temperature": draw(st.sampled_from(temperatures)),
    }
    return Case(
        draw(lengths),
        draw(lengths),
        draw(st.sampled_from(DIMS)),
        draw(st.sampled_from(values)),
        (draw(st.sampled_from(MASKS)), draw(st.sampled_from(MASKS))),
        options,
        draw(st.integers(0, 99)),
    )
