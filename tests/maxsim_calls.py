"""The public forms of a case of `maxsim_cases`, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tolerances import ROUNDOFF, ROUNDOFFS

from simtile.reference import maxsim_numpy as oracle

STORED = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
FORMS = ("list", "padded", "wider", "strided")


def rounded(matrices, dtype):
    with np.errstate(all="ignore"):
        return [x.astype(STORED[dtype]) for x in matrices]


def padded(matrices, masks, dim, form):
    """A batch [B, L, D] and its mask; what pads it is NaN."""
    width = max([len(x) for x in matrices], default=0) + (2 if form == "wider" else 0)
    dtype = matrices[0].dtype if matrices else np.float32
    batch = np.full((len(matrices), width, dim), np.nan, dtype)
    mask = np.zeros((len(matrices), width), bool)
    for i, x in enumerate(matrices):
        batch[i, : len(x)] = x
        mask[i, : len(x)] = True if masks is None else masks[i]
    if form == "wider" and width:  # rows of a wider batch, which lie further apart
        wider = np.full((len(matrices), width + 3, dim), np.nan, dtype)
        wider[:, 1 : 1 + width] = batch
        batch = wider[:, 1 : 1 + width]
    if form == "strided":  # its last axis is not contiguous
        batch = np.repeat(batch, 2, axis=2)[:, :, ::2]
    return batch, mask


class Form:
    """One case as the arguments of `simtile.maxsim`."""

    def __init__(self, case, query_form="list", document_form="list", dtypes=("float32",) * 2):
        self.case = case
        sides = [rounded(x, t) for x, t in zip(case.inputs, dtypes, strict=True)]
        self.wide = [[x.astype(np.float64) for x in side] for side in sides]
        arguments = []
        for side, masks, form in zip(
            sides, case.mask_arrays, (query_form, document_form), strict=True
        ):
            pair = (side, masks) if form == "list" else padded(side, masks, case.dim, form)
            arguments.append(pair)
        (self.queries, self.query_mask), (self.documents, self.document_mask) = arguments
        self.padded = query_form != "list"
        wide = any(x.dtype == np.float64 for side in sides for x in side)  # of a list of none: no
        self.compute = "float64" if wide else "float32"
        self.options = dict(case.options)

    @property
    def arguments(self):
        return self.queries, self.documents, self.query_mask, self.document_mask

    def oracle(self, **options):
        return oracle.maxsim(*self.wide, *self.case.mask_arrays, **{**self.options, **options})


def check(form, result, expected, documents, none=-np.inf):
    """`documents[q][c]`: which one a score is of, or -1 for `none`."""
    scores, argmax, values = result
    assert scores.dtype == form.compute
    roundoff = ROUNDOFFS["maxsim.scores"] * ROUNDOFF[form.compute]
    temperature = form.options.get("temperature") or 0.0
    exact = form.case.values in ("few", "integers") and not form.options.get("normalize")
    for q, row in enumerate(documents):
        length = len(form.wide[0][q])
        for c, n in enumerate(row):
            matched, terms = argmax[q][c], values[q][c]
            assert (matched[length:] == -1).all()
            assert (terms[length:] == 0).all()
            matched, terms = matched[:length], terms[:length]
            if n < 0:
                assert scores[q, c] == none
                assert (matched == -1).all()
                continue
            # The logarithm's roundings are relative to the temperature.
            bound = roundoff * (expected.scale[q, n] + length * temperature)
            near(scores[q, c], expected.scores[q, n], bound)
            near(terms, expected.token_scores[q][n], bound)
            np.testing.assert_array_equal(matched < 0, expected.argmax[q][n] < 0)
            if exact:
                np.testing.assert_array_equal(matched, expected.argmax[q][n])


def near(ours, theirs, bound):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    if np.isfinite(bound):
        difference = np.abs(ours[finite] - theirs[finite])
        assert (difference <= bound + 1e-37).all(), (ours, theirs, bound)
