"""What the tests of search share: masks, and how results are compared."""

from __future__ import annotations

import numpy as np


def draw_mask(rng, kind, queries, documents):
    if kind == "absent":
        return None
    if kind == "all":
        return np.ones(documents, bool)
    if kind == "nothing":
        return np.zeros(documents, bool)
    if kind in ("some", "few"):
        return rng.random(documents) < (0.5 if kind == "some" else 0.02)
    mask = rng.random((queries, documents + 5)) < 0.3
    return mask[:, :documents] if kind == "per query, padded" else mask[:, 5:].copy()


def check(result, expected):
    """Equal to the last bit; in no float score is the sign of a zero left to chance."""
    for name, ours, theirs in zip(("scores", "ids"), result, expected, strict=True):
        assert ours.dtype == theirs.dtype, (name, ours.dtype, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        if ours.dtype == np.float32:
            np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs), err_msg=name)
