"""Calls of MaxSim with codes for tests, and what they must give to the last bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

import simtile
from simtile import Quantized, ResidualCodec, ResidualTokens
from simtile.quantized import unpack
from simtile.reference import maxsim_codes as reference

KINDS = ("int8", "uint8", "int8_vector", "binary", "residual1", "residual2", "residual4")
LENGTHS = (0, 1, 2, 7, 17, 33)
DIMS = (1, 3, 7, 16, 33, 64, 111, 128, 130)
VALUES = ("random", "few", "zeros", "special", "huge", "tiny")


@dataclass(frozen=True)
class Case:
    kind: str
    dim: int
    query_lengths: tuple[int, ...]
    document_lengths: tuple[int, ...]
    values: str = "random"
    coded_queries: bool = False
    masks: bool = False
    normalize: bool = False
    length_normalize: bool = False
    zero_rows: str = "score"
    seed: int = 0

    def build(self):
        return Call(self)


cases = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    dim=st.sampled_from(DIMS),
    query_lengths=st.lists(st.sampled_from(LENGTHS), max_size=3).map(tuple),
    document_lengths=st.lists(st.sampled_from(LENGTHS), max_size=4).map(tuple),
    values=st.sampled_from(VALUES),
    coded_queries=st.booleans(),
    masks=st.booleans(),
    normalize=st.booleans(),
    length_normalize=st.booleans(),
    zero_rows=st.sampled_from(["score", "pad"]),
    seed=st.integers(0, 99),
)


def draw_tokens(rng, kind, dim, count, few):
    """Codes of `count` tokens; `few`: that are equal in part."""
    if kind.startswith("residual"):
        bits = int(kind[-1])
        steps = 1 << bits
        codec = ResidualCodec(
            rng.normal(size=(5, dim)),
            np.sort(rng.normal(size=steps)) / 4,
            np.sort(rng.normal(size=steps - 1)) / 4,
            bits,
        )
        codes = rng.integers(0, steps, (count, dim), dtype=np.uint8)
        ids = rng.integers(0, 5, count)
        if few and count:
            chosen = rng.integers(min(count, 2), size=count)
            codes, ids = codes[chosen], ids[chosen]
        stored = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
        return ResidualTokens(codec, ids, np.packbits(stored.reshape(count, dim * bits), axis=1))
    low, high = {"uint8": (0, 256), "binary": (0, 2)}.get(kind, (-128, 128))
    codes = rng.integers(low, high, (count, dim))
    if few and count:
        codes = codes[rng.integers(min(count, 2), size=count)]
    if kind == "binary":
        return Quantized(np.packbits(codes, axis=1), None, None, dim, kind)
    codes = codes.astype(np.uint8 if kind == "uint8" else np.int8)
    if kind == "int8_vector":
        codes[rng.random(count) < 0.2] = 0
        scale = rng.uniform(0.001, 0.01, count) * (rng.random(count) < 0.9)
        return Quantized(codes, scale, None, dim, kind)
    return Quantized(codes, rng.uniform(0.001, 0.01, dim), rng.normal(size=dim) / 4, dim, kind)


class Call:
    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(case.seed)
        few = case.values == "few"
        self.offsets = np.cumsum([0, *case.document_lengths])
        self.tokens = draw_tokens(rng, case.kind, case.dim, int(self.offsets[-1]), few)
        scale = {"huge": 1e30, "tiny": 1e-30}.get(case.values, 1.0)
        self.floats = [
            (rng.normal(size=(n, case.dim)) * scale).astype(np.float32) for n in case.query_lengths
        ]
        for x in self.floats:
            if case.values == "zeros":
                x[rng.random(len(x)) < 0.5] = 0
            if case.values == "special":
                chosen = rng.random(len(x)) < 0.3
                x[chosen, rng.integers(case.dim)] = rng.choice([np.nan, np.inf, -np.inf])
        self.coded = case.coded_queries and case.values not in ("special", "huge", "tiny")
        self.queries = self.floats
        if self.coded:
            self.queries = [simtile.quantize(x, "int8_vector") for x in self.floats]
        self.query_mask = self.document_mask = None
        if case.masks:
            self.query_mask = [rng.random(n) < 0.7 for n in case.query_lengths]
            self.document_mask = rng.random(self.offsets[-1]) < 0.7

    @property
    def options(self):
        case = self.case
        return {
            "normalize": case.normalize,
            "length_normalize": case.length_normalize,
            "zero_rows": case.zero_rows,
            "empty_score": 0.25,
        }

    def run(self, **more):
        return simtile.maxsim_packed(
            self.queries,
            self.tokens,
            self.offsets,
            self.query_mask,
            self.document_mask,
            **self.options,
            **more,
        )

    def expected(self):
        """Pairs [Q][N] by the definition."""
        there = np.ones(self.offsets[-1], bool)
        if self.document_mask is not None:
            there &= self.document_mask
        if self.case.zero_rows == "pad":
            there &= nonzero(self.tokens)
        rows = []
        for q, query in enumerate(self.queries):
            values, steps = (query.codes, query.scale) if self.coded else (query, None)
            own = np.ones(len(values), bool)
            if self.query_mask is not None:
                own &= self.query_mask[q]
            if self.case.zero_rows == "pad":
                own &= (values != 0).any(1)
            table, units = similarities(values, steps, self.tokens, self.case.normalize)
            rows.append(
                [
                    self._pair(table[:, a:b], units, own, there[a:b])
                    for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)
                ]
            )
        return rows

    def _pair(self, table, units, own, there):
        found = reference.pair(table[own][:, there].tolist(), units[own].tolist())
        if self.case.length_normalize:
            total = sum(found.token_scores)
            found = found._replace(score=np.float32(total / max(own.sum(), 1)))
        if not there.any():
            found = found._replace(score=0.25)
        argmax, values = np.full(len(own), -1), np.zeros(len(own), np.float32)
        if there.any():
            argmax[own] = np.flatnonzero(there)[found.argmax]
            values[own] = found.token_scores
        return found.score, argmax, values


def nonzero(tokens):
    if isinstance(tokens, ResidualTokens) or tokens.kind == "binary":
        return True
    return (tokens.dequantize() != 0).any(1)


def similarities(values, steps, tokens, normalize):
    """float32 [query tokens, document tokens] by `reference.maxsim_codes`, and their units."""
    out = np.empty((len(values), len(tokens)), np.float32)
    units = np.ones(len(values), np.float32)
    with np.errstate(all="ignore"):
        for i, row in enumerate(values):
            step = None if steps is None else steps[i]
            out[i], units[i] = similarities_of(row, step, tokens, normalize)
    return out, units


def similarities_of(row, step, tokens, normalize):
    whole = row.tolist()  # codes, or floats
    scale = 1.0 if step is None else float(step)
    if normalize:
        total = 0.0
        for x in whole:
            total += x * x
        norm = math.sqrt(total) if math.isfinite(total) else total
        if step is None:
            whole = [x / max(norm, 1e-12) if norm == norm else math.nan for x in whole]
        else:
            scale = float(np.float32(scale / max(norm * scale, 1e-12)))
    floats = [x * scale for x in whole] if step is not None else whole
    if isinstance(tokens, ResidualTokens):
        return residuals(floats, tokens)
    codes = unpack(tokens.codes, tokens.kind, tokens.dim).astype(np.int64)
    factor = np.float32(1)
    if tokens.kind == "int8_vector":
        factor = tokens.scale
    if normalize and tokens.kind != "binary":
        factor = np.minimum(tokens.inverse_norms, np.float32(factor * np.float32(1e12)))
    if step is not None and tokens.kind == "int8_vector":
        folded = reference.Folded(whole, scale, 0.0)
    elif step is not None and tokens.kind == "binary":
        root = math.sqrt(tokens.dim) if normalize else 1.0
        folded = reference.Folded(whole, 2 * scale / root, -sum(whole) / 2)
    elif tokens.kind == "binary":
        folded = reference.fold_for_bits(floats, normalize=normalize)
    elif tokens.kind == "int8_vector":
        folded = reference.fold(floats, 128)
    else:
        largest = {"int8": 128, "uint8": 255}[tokens.kind]
        own = tokens.scale.tolist(), tokens.offset.tolist()
        folded = reference.fold(floats, largest, scale=own[0], offset=own[1])
    dots = (codes @ np.array(folded.whole, np.int64)).astype(np.float32)
    return (dots + np.float32(folded.term)) * factor, folded.unit


def residuals(floats, tokens):
    codec = tokens.codec
    folded = reference.fold(floats, 128)
    weights = codec.whole_weights.astype(np.int64)[tokens.codes()]
    low = (weights + 128) % 256 - 128
    whole = np.array(folded.whole, np.int64)
    high_dots, low_dots = (part @ whole for part in ((weights - low) // 256, low))
    dots = high_dots.astype(np.float32) * np.float32(256) + low_dots.astype(np.float32)
    products = np.zeros(len(codec.centroids), np.float32)
    for q, column in zip(np.float32(floats), codec.centroids.T, strict=True):
        products = products + q * column
    weight = np.float32(folded.unit * codec.weight_unit)
    sums = dots * weight + products[tokens.centroid_ids]
    return sums * tokens.inverse_norms, 1.0
