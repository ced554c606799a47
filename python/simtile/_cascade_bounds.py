"""What a stage of a cascade says about the last one's scores: bounds by angles and distances.

A stage sees a document as x̂ᵢ, the last one as x̂. With ∠ the angle between two vectors, a query q
and the greatest difference of the two forms over all documents,

    δᵢ = max ∠(x̂ᵢ, x̂)        ∠(q, x̂) ≥ ∠(q, x̂ᵢ) − δᵢ
    ρᵢ = max ‖x̂ᵢ − x̂‖        q·x̂ ≤ q·x̂ᵢ + ‖q‖ρᵢ        ‖q − x̂‖ ≥ ‖q − x̂ᵢ‖ − ρᵢ

by the triangle inequality. Bits are vectors of ±1, whose Hamming distance h is an angle of
arccos(1 − 2h/D); a query that is compared as bits is another ∠(q, sign q) away. Cosines and bits
use the first line, "dot" and "l2" of other codes the second. A document that is zero in the last
stage has no angle, and a cosine of exactly 0 there.

Norms and residuals are computed in double from what the codes stand for. Where that is not what
kernels compute, because a factor they read is beyond the range of float32, nothing is said
(`Form.known`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._encoding import BLOCK_ELEMENTS, FLOATS, Encoding, widened
from simtile._search_operands import Documents
from simtile._snapshot import Snapshot
from simtile.quantized import PER_VECTOR, unpack

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

# Scores are rounded to float32 once; what is near a bound by as much counts as above it.
ROUNDING = 2.0**-20
SMALLEST = 2.0**-149  # float32 cannot tell apart what differs by less
LARGEST = float(np.finfo(np.float32).max)
# A float query against codes is rounded to 15 bits and a sign, by half of max|w| / 32639 at most.
QUERY_STEPS = 2 * 32639
# Norms of codes whose inverse, or square, has all its digits in float32.
INVERTIBLE = (2.0**-120, 2.0**120)
MOST_SQUARED = 2.0**60


@dataclass(frozen=True)
class Form:
    """How far one stage's form of the documents is from the last one's, over all of them."""

    angle: float  # δ, radians; π where a form is zero and the last one is not
    residual: float  # ρ
    least_norm: float  # where neither this form nor the last one is zero; inf for no such
    most_norm: float
    zeros: bool  # whether one is zero
    known: bool  # whether its scores are what real numbers would give, but for rounding


def measure(encodings: Sequence[Encoding], snapshot: Snapshot) -> list[Form]:
    """The forms of all stages; reads every document of a snapshot."""
    count = len(encodings)
    least_cosine, residual, most = np.ones(count), np.zeros(count), np.zeros(count)
    least, least_of_all = np.full((2, count), math.inf)
    zeros = np.zeros(count, bool)
    rows = max(1, BLOCK_ELEMENTS // encodings[0].dim)
    for part in snapshot.parts():
        for start in range(0, len(part.ids), rows):
            block = {name: x[start : start + rows] for name, x in part.columns.items()}
            last = floats(encodings[-1], block)
            last_norms = np.linalg.norm(last, axis=1)
            for i, encoding in enumerate(encodings):
                form = floats(encoding, block) if i < count - 1 else last
                norms = np.linalg.norm(form, axis=1)
                own = np.where(norms == 0, math.inf, norms)
                zeros[i] |= bool((norms == 0).any())
                least_of_all[i] = np.minimum(least_of_all[i], own.min())
                least[i] = np.minimum(least[i], np.where(last_norms == 0, math.inf, own).min())
                most[i] = np.maximum(most[i], norms.max())
                if form is last:
                    continue
                residual[i] = np.maximum(residual[i], np.linalg.norm(form - last, axis=1).max())
                both = norms * last_norms
                cosine = np.einsum("nd,nd->n", form, last) / np.where(both == 0, 1, both)
                cosine = np.where(both == 0, -1.0, cosine)
                cosine = np.where(last_norms == 0, 1.0, cosine)
                least_cosine[i] = np.minimum(least_cosine[i], cosine.min())
    angles = np.arccos(np.clip(least_cosine - ROUNDING, -1, 1))
    angles[-1] = 0
    return [
        Form(
            float(angles[i]),
            float(residual[i]),
            float(least[i]),
            float(most[i]),
            bool(zeros[i]),
            _known(encoding, float(least_of_all[i]), float(most[i])),
        )
        for i, encoding in enumerate(encodings)
    ]


def _known(encoding: Encoding, least: float, most: float) -> bool:
    if encoding.metric == "hamming":
        return True
    if encoding.dtype not in FLOATS and encoding.metric == "cosine":
        return (most == 0 or least >= INVERTIBLE[0]) and most <= INVERTIBLE[1]
    if encoding.dtype not in FLOATS and encoding.metric == "l2":
        return most <= MOST_SQUARED
    return math.isfinite(most)  # not where a damaged file has NaN


def floats(encoding: Encoding, columns: Any) -> Doubles:
    """What a stage's columns stand for, float64 [n, D]."""
    documents: Documents = encoding.documents(columns)
    if encoding.dtype in FLOATS:
        rows = widened(documents.rows) if encoding.dtype == "bfloat16" else documents.rows
        return np.asarray(rows, np.float64)
    codes: Doubles = unpack(documents.rows, encoding.dtype, encoding.dim).astype(np.float64)
    if encoding.dtype == "binary":
        return 2 * codes - 1
    if encoding.dtype in PER_VECTOR:
        scales: Doubles = columns[f"{encoding.prefix}scales"].astype(np.float64)
        return codes * scales[:, None]
    scale: Doubles = documents.scale.astype(np.float64)
    offset: Doubles = documents.offset.astype(np.float64)
    return codes * scale + offset


class Bounds:
    """Bounds of one stage for some queries [Q], floats [Q, D]."""

    def __init__(
        self, encoding: Encoding, form: Form, last: Encoding, last_form: Form, queries: Array
    ) -> None:
        self.encoding, self.form, self.last_form = encoding, form, last_form
        self.metric = last.metric
        self.known = form.known and last_form.known
        queries = queries.astype(np.float64)
        self.norms: Doubles = np.linalg.norm(queries, axis=1)
        self.angle: Doubles = np.full(len(queries), form.angle)
        if encoding.metric == "hamming":
            signs = np.abs(queries).sum(1) / np.where(self.norms > 0, self.norms, 1)
            own = signs / math.sqrt(encoding.dim)
            self.angle += np.arccos(np.clip(own - ROUNDING, -1, 1))
        self.own_error = _rounding(encoding, form, queries, self.norms)
        self.last_error = _rounding(last, last_form, queries, self.norms)

    @property
    def by_angle(self) -> bool:
        return self.metric == "cosine" or self.encoding.metric == "hamming"

    def excludes(self, excluded: Doubles, worst: Doubles) -> npt.NDArray[np.bool_]:
        """Whether no document that is not better than `excluded` here reaches `worst` at last."""
        best = self.better_than(excluded)
        if self.metric == "l2":
            return best > worst
        return (best < worst) & (best < LARGEST)  # beyond it scores are infinite, and may be equal

    def better_than(self, excluded: Doubles) -> Doubles:
        """The best last-stage score that a document can have whose score here is `excluded`.

        Infinite where nothing can be said.
        """
        if not self.known:
            return np.full(len(excluded), 0.0 if self.metric == "l2" else math.inf)
        error = self.own_error + self.last_error
        if not self.by_angle:  # a score of infinity is one of at least LARGEST
            if self.metric == "dot":
                return np.maximum(excluded, -LARGEST) + self.norms * self.form.residual + error
            distance = np.sqrt(np.minimum(excluded, LARGEST)) - self.form.residual
            return np.maximum(0, np.maximum(0, distance) ** 2 - error)
        cosine = np.cos(np.maximum(0, self._angle_of(excluded) - self.angle))
        if self.metric == "cosine":
            best = cosine + self.last_error
            return np.maximum(best, 0) if self.last_form.zeros else best
        most, least = self.last_form.most_norm, self._least_norm
        if self.metric == "dot":
            return self.norms * np.where(cosine > 0, most, least) * cosine + error
        nearest = np.clip(self.norms * cosine, least, most)
        squared = self.norms**2 + nearest**2 - 2 * self.norms * nearest * cosine
        return np.maximum(0, squared - error)

    def needed(self, score: Doubles) -> Doubles:
        """What a document's score here must reach so that it may reach `score` in the last stage.

        A largest value for Hamming distances and "l2", else a least one; infinite where nothing
        can be said.
        """
        largest = self.encoding.metric in ("hamming", "l2")
        if not self.known:
            return np.full(len(score), math.inf if largest else -math.inf)
        error = self.own_error + self.last_error
        if not self.by_angle:
            if self.metric == "dot":
                return score - self.norms * self.form.residual - error
            return (np.sqrt(score + error) + self.form.residual) ** 2 * (1 + ROUNDING)
        if self.metric == "cosine":
            cosine = score - self.last_error
            if self.last_form.zeros:  # which have 0 whatever their score is here
                cosine = np.where(score > 0, cosine, -1.0)
        elif self.metric == "dot":
            reach = self.norms * self.last_form.most_norm
            positive = (score > error) & (reach > 0)
            cosine = np.where(positive, (score - error) / np.where(reach > 0, reach, 1), -1.0)
        else:
            cosine = np.full(len(score), -1.0)
        angle = np.arccos(np.clip(cosine, -1, 1)) + self.angle
        if largest:
            distance = np.floor(self.encoding.dim * (1 - np.cos(np.minimum(angle, math.pi))) / 2)
            return np.where(angle < math.pi, distance + 1, math.inf)
        own = np.cos(np.minimum(angle, math.pi)) - self.own_error
        return np.where(angle < math.pi, own, -math.inf)

    @property
    def _least_norm(self) -> float:
        return 0.0 if self.last_form.zeros else self.last_form.least_norm

    def _angle_of(self, scores: Doubles) -> Doubles:
        if self.encoding.metric == "hamming":
            cosine = 1 - 2 * scores / self.encoding.dim
        else:
            cosine = scores + self.own_error
        angles: Doubles = np.arccos(np.clip(cosine, -1, 1))
        return angles


def _rounding(encoding: Encoding, form: Form, queries: Doubles, norms: Doubles) -> Doubles:
    """How far a stage's scores may be from exact ones, for each query."""
    if encoding.metric == "hamming":
        return np.zeros(len(queries))
    cosine = encoding.metric == "cosine"
    if cosine:
        error = np.full(len(queries), ROUNDING)
    else:
        error = ROUNDING * norms * form.most_norm + SMALLEST
    if encoding.metric == "l2":
        error = 2 * error + ROUNDING * (norms**2 + form.most_norm**2)
    if encoding.dtype not in FLOATS:
        # Codes times the rounding of their weights; `size`: the L1 norm of codes (times their
        # vector's scale, of which it is √D ‖x̂‖ at most), for cosines divided by ‖x̂‖.
        root = math.sqrt(encoding.dim)
        if encoding.scale is None:
            weights = queries
            size = root if cosine else root * form.most_norm
        else:
            weights = queries * encoding.scale.astype(np.float64)
            size = (8 if encoding.dtype == "int4" else 255) * encoding.dim
            if cosine:
                size = size / form.least_norm
        step = np.abs(weights).max(axis=1, initial=0) / QUERY_STEPS
        if cosine:
            step = step / np.where(norms > 0, norms, 1)
        error = error + (2 if encoding.metric == "l2" else 1) * step * size
    # A query of zeros has no angle: 4 is more than cosines differ by.
    return np.where(norms > 0, error, 4.0) if cosine else error
