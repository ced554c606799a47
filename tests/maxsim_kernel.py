"""A case of `maxsim_cases` as `_core.maxsim` and `_core.maxsim_backward` take it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from simtile import _core
from simtile.reference import maxsim_numpy as oracle

STORED = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
STORED["bfloat16"] = ml_dtypes.bfloat16
EMPTY_SCORE = -3.0
POISON = 0x5A5A
TEMPERATURES = (None, 0.01, 1.0, 50.0)
LAYOUTS = ("contiguous", "padded rows", "gaps")


class Runs:
    """One side: the rows as one matrix, where each run starts and ends, and the values.

    `padded rows` are further apart than their length; `gaps` has a row of NaN around each run.
    """

    def __init__(self, side, masks, dtype, dim, layout):
        gap = int(layout == "gaps")
        lengths = np.array([len(x) for x in side], np.int64)
        self.ends = np.cumsum(lengths + gap, dtype=np.int64)
        self.starts = self.ends - lengths
        total = int((lengths + gap).sum()) + gap
        wider = np.full((total, dim + 3 * (layout == "padded rows")), np.nan, dtype)
        self.rows = wider[:, :dim]
        self.mask = None if masks is None else np.ones(total, bool)
        for i, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            with np.errstate(all="ignore"):
                self.rows[start:end] = side[i]
            if masks is not None:
                self.mask[start:end] = masks[i]
        self.values = self.split(self.rows.astype(np.float64))
        if dtype == ml_dtypes.bfloat16:
            self.rows = self.rows.view(np.uint16)

    def split(self, rows):
        return [rows[s:e] for s, e in zip(self.starts, self.ends, strict=True)]

    @property
    def arguments(self):
        return self.rows, self.starts, self.ends, self.mask


class Call:
    """A case for one element type, and what comes out."""

    def __init__(self, case, dtype, layout="contiguous"):
        self.case, self.dtype = case, dtype
        self.compute = np.float64 if dtype == "float64" else np.float32
        query_mask, document_mask = case.mask_arrays
        dim = next((x.shape[1] for side in case.inputs for x in side), case.dim)
        self.queries = Runs(case["queries"], query_mask, self.compute, dim, layout)
        self.documents = Runs(case["documents"], document_mask, STORED[dtype], dim, layout)
        self.wide = (self.queries.values, self.documents.values)

    @property
    def options(self):
        """`normalize`, `pad_zero_rows`, `length_normalize`."""
        options = self.case.options
        return (
            options.get("normalize", False),
            options.get("zero_rows") == "pad",
            options.get("length_normalize", False),
        )

    @property
    def temperature(self):
        return self.case.options.get("temperature") or 0.0

    def run(self, candidates=None, threads=1, rows=True):
        """Scores [Q, C], and of every row its match and similarity, [Q] of [C, Lq]."""
        lengths = self.queries.ends - self.queries.starts
        count = len(self.wide[1]) if candidates is None else candidates.shape[1]
        scores = np.full((len(lengths), count), POISON, self.compute)
        size = int(lengths.sum()) * count
        argmax = np.full(size, POISON, np.int32) if rows else None
        values = np.full(size, POISON, self.compute) if rows else None
        _core.maxsim(
            self.dtype,
            *self.queries.arguments,
            *self.documents.arguments,
            *self.options,
            EMPTY_SCORE,
            self.temperature,
            candidates,
            scores,
            argmax,
            values,
            threads,
        )
        if not rows:
            return scores, None, None
        before = np.cumsum(lengths) - lengths
        return scores, *(
            [
                x[count * b : count * (b + n)].reshape(count, n)
                for b, n in zip(before, lengths, strict=True)
            ]
            for x in (argmax, values)
        )

    def backward(self, grad_scores, result, candidates=None, threads=1):
        """Gradients by all rows of both matrices; `result` is what `run` returned."""
        _, argmax, values = result
        grads = [
            np.full(side.rows.shape, np.nan, self.compute)
            for side in (self.queries, self.documents)
        ]
        _core.maxsim_backward(
            self.dtype,
            *self.queries.arguments,
            *self.documents.arguments,
            *self.options,
            self.temperature,
            candidates,
            grad_scores.astype(self.compute),
            np.concatenate([*(x.reshape(-1) for x in argmax), np.zeros(0, np.int32)]),
            np.concatenate([*(x.reshape(-1) for x in values), np.zeros(0, self.compute)]),
            *grads,
            threads,
        )
        return grads

    def oracle(self):
        return oracle.maxsim(
            *self.wide, *self.case.mask_arrays, empty_score=EMPTY_SCORE, **self.case.options
        )
