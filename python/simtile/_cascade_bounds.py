"""What a stage of a cascade says about the last one's scores: bounds by angles and distances.

A stage sees a document as x̂ᵢ, the last one as x̂. With ∠ the angle between two vectors, a query q
and the greatest difference of the two forms over all documents,

    δᵢ = max ∠(x̂ᵢ, x̂)        ∠(q, x̂) ≥ ∠(q, x̂ᵢ) − δᵢ
    ρᵢ = max ‖x̂ᵢ − x̂‖        q·x̂ ≤ q·x̂ᵢ + ‖q‖ρᵢ        ‖q − x̂‖ ≥ ‖q − x̂ᵢ‖ − ρᵢ

by the triangle inequality. Bits are vectors of ±1, whose Hamming distance h is an angle of
arccos(1 − 2h/D); a query that is compared as bits is another ∠(q, sign q) away. Cosines and bits
use the first line, "dot" and "l2" of other codes the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._encoding import FLOATS, Encoding, widened
from simtile._search_call import Documents
from simtile._snapshot import Snapshot
from simtile.quantized import PER_VECTOR, Quantized

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

# Scores are rounded to float32 once; what is near a bound by as much counts as above it.
ROUNDING = 2.0**-20
# A float query against codes is rounded to 15 bits and a sign, by half of max|w| / 32639 at most.
QUERY_STEPS = 2 * 32639


@dataclass(frozen=True)
class Form:
    """How far one stage's form of the documents is from the last one's, over all of them."""

    angle: float  # δ, radians; π where a form is zero and has none
    residual: float  # ρ
    least_norm: float  # of this form
    most_norm: float


def measure(encodings: Sequence[Encoding], snapshot: Snapshot) -> list[Form]:
    """The forms of all stages; reads every document of a snapshot."""
    least_cosine = np.ones(len(encodings))
    residual, most = np.zeros(len(encodings)), np.zeros(len(encodings))
    least = np.full(len(encodings), math.inf)
    for part in snapshot.parts():
        last = floats(encodings[-1], part.columns)
        last_norms = np.linalg.norm(last, axis=1)
        for i, encoding in enumerate(encodings):
            form = floats(encoding, part.columns)
            norms = np.linalg.norm(form, axis=1)
            least[i], most[i] = min(least[i], norms.min()), max(most[i], norms.max())
            residual[i] = max(residual[i], np.linalg.norm(form - last, axis=1).max())
            both = norms * last_norms
            cosine = np.einsum("nd,nd->n", form, last) / np.where(both > 0, both, 1)
            least_cosine[i] = min(least_cosine[i], np.where(both > 0, cosine, -1.0).min())
    angles = np.arccos(np.clip(least_cosine - ROUNDING, -1, 1))
    angles[-1] = residual[-1] = 0
    return [
        Form(*(float(x) for x in row)) for row in zip(angles, residual, least, most, strict=True)
    ]


def floats(encoding: Encoding, columns: Any) -> Doubles:
    """What a stage's columns stand for, float64 [n, D]."""
    documents: Documents = encoding.documents(columns)
    if encoding.dtype in FLOATS:
        rows = widened(documents.rows) if encoding.dtype == "bfloat16" else documents.rows
        return rows.astype(np.float64)
    scale: Any = documents.scale
    if encoding.dtype in PER_VECTOR:
        scale = columns[f"{encoding.prefix}scales"]
    kind: Any = encoding.dtype
    codes = Quantized(documents.rows, scale, documents.offset, encoding.dim, kind)
    return np.asarray(codes.dequantize(), np.float64)


class Bounds:
    """Bounds of one stage for some queries [Q], float64 [Q, D]."""

    def __init__(
        self, encoding: Encoding, form: Form, last: Encoding, last_form: Form, queries: Doubles
    ) -> None:
        self.encoding, self.form, self.last_form = encoding, form, last_form
        self.metric = last.metric
        self.norms: Doubles = np.linalg.norm(queries, axis=1)
        self.angle: Doubles = np.full(len(queries), form.angle)
        if encoding.metric == "hamming":
            signs = np.abs(queries).sum(1) / np.where(self.norms > 0, self.norms, 1)
            own = signs / math.sqrt(encoding.dim)
            self.angle += np.arccos(np.clip(own - ROUNDING, -1, 1))
        self.error: Doubles = _rounding(encoding, form, queries) + _rounding(
            last, last_form, queries
        )

    @property
    def by_angle(self) -> bool:
        return self.metric == "cosine" or self.encoding.metric == "hamming"

    def better_than(self, excluded: Doubles) -> Doubles:
        """The best last-stage score that a document can have whose score here is `excluded`."""
        if not self.by_angle:
            if self.metric == "dot":
                return excluded + self.norms * self.form.residual + self.error
            distance = np.maximum(0, np.sqrt(excluded) - self.form.residual)
            return np.maximum(0, distance**2 - self.error)
        cosine = np.cos(np.maximum(0, self._angle_of(excluded) - self.angle))
        if self.metric == "cosine":
            return cosine + ROUNDING + self._cosine_error
        most, least = self.last_form.most_norm, self.last_form.least_norm
        if self.metric == "dot":
            return self.norms * np.where(cosine > 0, most, least) * cosine + self.error
        nearest = np.clip(self.norms * cosine, least, most)
        squared = self.norms**2 + nearest**2 - 2 * self.norms * nearest * cosine
        return np.maximum(0, squared - self.error)

    def needed(self, score: Doubles) -> Doubles:
        """What a document's score here must reach so that it may reach `score` in the last stage.

        A largest value for Hamming distances and "l2", else a least one; infinite where nothing
        can be said.
        """
        if not self.by_angle:
            if self.metric == "dot":
                return score - self.norms * self.form.residual - self.error
            return (np.sqrt(score + self.error) + self.form.residual) ** 2 * (1 + ROUNDING)
        if self.metric == "cosine":
            cosine = score - ROUNDING - self._cosine_error
        elif self.metric == "dot":
            reach = self.norms * self.last_form.most_norm
            positive = (score > self.error) & (reach > 0)
            cosine = np.where(positive, (score - self.error) / np.where(reach > 0, reach, 1), -1.0)
        else:
            cosine = np.full(len(score), -1.0)
        angle = np.arccos(np.clip(cosine, -1, 1)) + self.angle
        if self.encoding.metric == "hamming":
            distance = np.floor(self.encoding.dim * (1 - np.cos(np.minimum(angle, math.pi))) / 2)
            return np.where(angle < math.pi, distance + 1, math.inf)
        own = np.cos(np.minimum(angle, math.pi)) - self._cosine_error - ROUNDING
        return np.where(angle < math.pi, own, -math.inf)

    def _angle_of(self, scores: Doubles) -> Doubles:
        if self.encoding.metric == "hamming":
            cosine = 1 - 2 * scores / self.encoding.dim
        else:
            cosine = scores + self._cosine_error
        angles: Doubles = np.arccos(np.clip(cosine, -1, 1))
        return angles

    @property
    def _cosine_error(self) -> Doubles:
        norm = min(self.form.least_norm, self.last_form.least_norm)
        size = self.norms * norm
        errors: Doubles = np.where(size > 0, self.error / np.where(size > 0, size, 1), 2.0)
        return errors


def _rounding(encoding: Encoding, form: Form, queries: Doubles) -> Doubles:
    """How far a stage's dot products, or squared distances, may be from exact ones."""
    norms: Doubles = np.linalg.norm(queries, axis=1)
    error: Doubles = ROUNDING * norms * form.most_norm
    if encoding.metric == "l2":
        error = 2 * error + ROUNDING * (norms**2 + form.most_norm**2)
    if encoding.metric == "hamming" or encoding.dtype in FLOATS:
        return error
    largest_code = 8 if encoding.dtype in ("int4", "int4_vector") else 255
    weights = queries if encoding.scale is None else queries * encoding.scale.astype(np.float64)
    step = np.abs(weights).max(axis=1, initial=0) / QUERY_STEPS
    if encoding.scale is None:  # codes times their scale have an L1 norm of at most √D ‖x̂‖
        codes = math.sqrt(encoding.dim) * form.most_norm
    else:
        codes = largest_code * encoding.dim
    error += (2 if encoding.metric == "l2" else 1) * step * codes
    return error
