"""Arguments of `_core.topk` and its siblings for tests: drawn as shapes, layouts and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from topk_cases import draw_mask

from simtile import quantized
from simtile.reference import topk as lists
from simtile.reference import topk_numpy as oracle

FLOATS = lists.FLOATS
CODES = ("int8", "uint8", "int4", "int8_vector", "int4_vector", "bits")
METRICS = ("cosine", "dot", "l2")
KINDS = (*FLOATS, *CODES, "packed")
# What an index has: a scale for each dimension, or one for each vector.
STORED = {"int8_vector": "int8", "int4_vector": "int4"}
BITS = {"int8": 8, "uint8": 8, "int4": 4, "bits": 1, "packed": 1}

QUERIES = (0, 1, 2, 7, 9, 17)
DOCUMENTS = (0, 1, 7, 33, 64, 111, 989)
DIMS = (1, 3, 7, 8, 31, 32, 33, 64, 65, 111, 200, 384)
K = (1, 2, 10, 33, 100, 1025)
LAYOUTS = ("contiguous", "padded rows", "odd base", "broadcast")
VALUES = (
    "random",
    "copies",
    "near",
    "few",
    "equal",
    "zeros",
    "special",
    "huge",
    "tiny",
    "integers",
)
ALLOW = ("absent", "absent", "all", "nothing", "some", "few", "per query", "per query, padded")


@dataclass(frozen=True)
class Case:
    """One call. Data comes from the seed, so that a failure shrinks to small shapes."""

    kind: str  # of KINDS
    metric: str
    queries: int
    documents: int
    dim: int
    k: int = 10
    layout: str = "contiguous"
    values: str = "random"
    allow: str = "absent"
    rank: bool = False
    candidates: int | None = None  # for each query
    integer_queries: bool = False
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        q, n, d = self.queries, self.documents, self.dim
        a = dict.fromkeys(("scale", "offset", "factor", "addend", "query_scale", "rank"))
        self.arrays.update(a)
        a = self.arrays
        if self.stored in FLOATS:
            compute = np.float64 if self.stored == "float64" else np.float32
            a["queries"] = draw_floats(rng, q, d, compute, self.values)
            dtype = ml_dtypes.bfloat16 if self.stored == "bfloat16" else self.stored
            documents = draw_floats(rng, n, d, dtype, self.values)
            a["documents"] = documents.view(np.uint16) if self.stored == "bfloat16" else documents
        else:
            a["documents"] = draw_codes(rng, n, d, self.stored, self.values)
            if self.stored == "packed":
                a["queries"] = draw_codes(rng, q, d, "packed", self.values)
            elif self.integer_queries:
                a["queries"] = draw_codes(rng, q, d, "int8", self.values)
                a["query_scale"] = draw_scale(rng, q, self.values)
            else:
                a["queries"] = draw_floats(rng, q, d, np.float32, self.values)
        a["documents"] = lay_out(a["documents"], self.layout)
        if self.stored not in FLOATS:
            self._draw_scales(rng)
        if self.values == "copies" and n and not self.integer_queries:
            a["queries"] = self._copies()
        a["queries"] = lay_out(a["queries"], self.layout)
        a["allow"] = draw_mask(rng, self.allow, q, n)
        if self.rank:
            a["rank"] = rng.permutation(n).astype(np.uint32)
        a["candidates"] = None
        if self.candidates is not None:
            drawn = rng.integers(-1, max(n, 1), size=(q, self.candidates))
            a["candidates"] = drawn if n else np.full_like(drawn, -1)

    def _copies(self):
        """Queries that are documents: l2 is about 0 from both sides before it is rounded."""
        a = self.arrays
        rows = np.arange(self.queries) % self.documents
        if self.stored == "packed":
            return a["documents"][rows]
        x = oracle.wide(self.stored, a["documents"][rows], self.dim)
        if self.stored == "bits":
            x = 2 * x - 1
        elif a["scale"] is not None:
            x = x * a["scale"] + a["offset"]
        elif self.kind in STORED:
            x = x * a["own_scale"][rows, None]
        return x.astype(a["queries"].dtype)

    def _draw_scales(self, rng):
        """As the Python layer derives them from codes."""
        a, n, d = self.arrays, self.documents, self.dim
        own = None
        if self.kind in STORED:
            own = a["own_scale"] = draw_scale(rng, n, self.values)
        elif self.stored in ("int8", "uint8", "int4"):
            a["scale"] = np.abs(rng.normal(size=d)).astype(np.float32) / 100
            a["offset"] = rng.normal(size=d).astype(np.float32) / 10
            if self.values == "integers":
                a["scale"][:], a["offset"][:] = 1, 0
            if self.values in ("huge", "tiny"):
                a["scale"] *= np.float32(1e30 if self.values == "huge" else 1e-30)
        if self.stored in ("packed", "bits") or self.metric == "dot":
            a["factor"] = own
            return
        norms = np.empty(n, np.float32)
        inverse = self.metric == "cosine"
        arguments = (self.stored, a["documents"], d, a["scale"], a["offset"], inverse, 1, norms)
        oracle.code_norms(*arguments)
        if inverse:
            a["factor"] = norms
        else:
            a["factor"] = own
            with np.errstate(all="ignore"):
                squared = 1.0 if own is None else own.astype(np.float64) ** 2
                a["addend"] = (norms * squared).astype(np.float32)

    def __getitem__(self, name):
        return self.arrays[name]

    def __setitem__(self, name, value):
        self.arrays[name] = value

    @property
    def stored(self):
        return STORED.get(self.kind, self.kind)

    @property
    def score_dtype(self):
        return np.int32 if self.metric == "hamming" else np.float32

    @property
    def operands(self):
        names = ("scale", "offset", "factor", "addend", "query_scale")
        return (
            self.stored,
            self.metric,
            self["queries"],
            self["documents"],
            self.dim,
            *(self[name] for name in names),
        )

    def poisoned(self, shape):
        return np.full(shape, 0x5A5A5A5A, np.int32).view(self.score_dtype)

    def topk(self, module, threads=1):
        """`module.topk` on outputs full of what is no result."""
        shape = (self.queries, self.k)
        scores, ids = self.poisoned(shape), np.full(shape, -0x5A5A, np.int64)
        masks = (self[name] for name in ("allow", "rank", "candidates"))
        module.topk(*self.operands, self.k, *masks, threads, scores, ids)
        return scores, ids

    def range_search(self, module, threshold, threads=1):
        masks = (self[name] for name in ("allow", "rank"))
        return module.range_search(*self.operands, threshold, *masks, threads)

    def score_rows(self, module, threads=1):
        candidates = self["candidates"]
        scores = self.poisoned(candidates.shape)
        module.score_rows(*self.operands, candidates, threads, scores)
        return scores

    def code_norms(self, module, inverse, threads=1):
        out = np.full(self.documents, np.nan, np.float32)
        a = self.arrays
        arguments = (self.stored, a["documents"], self.dim, a["scale"], a["offset"])
        module.code_norms(*arguments, inverse, threads, out)
        return out


def draw_floats(rng, rows, dim, dtype, values):
    x = rng.normal(size=(rows, dim))
    if values == "integers":
        x = np.rint(3 * x)
    if values in ("few", "equal") and rows:
        x = x[rng.integers(min(rows, 1 if values == "equal" else 3), size=rows)]
    if values == "near" and rows:  # scores that differ in their last places
        x[:] = x[0]
        x[np.arange(rows), rng.integers(dim, size=rows)] *= 1 + rng.choice([-1e-7, 1e-7], rows)
    if values == "zeros":
        x[rng.random(rows) < 0.5] = 0
        x[rng.random(x.shape) < 0.1] *= -0.0
    if values in ("huge", "tiny"):
        x *= 10.0 ** (rng.choice([36, 37, 38] if values == "huge" else [-38, -44], (rows, 1)))
    if values == "special":
        chosen = rng.random(rows) < 0.3
        x[chosen, rng.integers(dim)] = rng.choice([np.nan, np.inf, -np.inf], size=chosen.sum())
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def draw_scale(rng, rows, values):
    scale = np.abs(rng.normal(size=rows)) / 100
    if values == "integers":
        scale[:] = 1
    if values == "zeros":
        scale[rng.random(rows) < 0.3] = 0
    if values in ("huge", "tiny"):
        scale *= 1e36 if values == "huge" else 1e-36
    if values == "special":
        scale[rng.random(rows) < 0.3] = np.nan
    return scale.astype(np.float32)


def draw_codes(rng, rows, dim, kind, values):
    width = -(-dim * BITS[kind] // 8)
    codes = rng.integers(256, size=(rows, width), dtype=np.uint8)
    if values in ("huge", "special"):
        codes = rng.choice(np.uint8([0x80, 0x7F, 0xFF, 0x88]), size=codes.shape)
    if values == "near" and rows:
        codes[:] = codes[0]
        codes[np.arange(rows), rng.integers(width, size=rows)] ^= 1
    if values == "zeros":
        codes[rng.random(rows) < 0.5] = 0
    if values in ("few", "equal") and rows:
        codes = codes[rng.integers(min(rows, 1 if values == "equal" else 3), size=rows)]
    spare = width * 8 - dim * BITS[kind]  # bits of the last byte that are no code's
    if spare:
        codes[:, -1] &= (1 << 4) - 1 if kind == "int4" else 256 - (1 << spare)
    return codes.view(np.int8) if kind == "int8" else codes


def lay_out(rows, layout):
    """The same rows at other addresses and strides, with bytes in between that would be seen."""
    n, width = rows.shape[0], rows.shape[1] * rows.itemsize
    if layout == "broadcast" and n:
        return np.broadcast_to(rows[:1], rows.shape)
    gap = 3 * rows.itemsize if layout == "padded rows" else 0
    offset = rows.itemsize if layout == "odd base" else 0
    pitch = width + gap
    raw = np.full(n * pitch + offset + 64, 0x5A, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    # The last row ends where its own bytes do: what is read beyond it is not this array's.
    block = raw[start : start + n * pitch].reshape(n, pitch)[:, :width].view(rows.dtype)
    block[...] = rows
    return block


@st.composite
def cases(draw, kinds=KINDS, documents=DOCUMENTS, queries=QUERIES, dims=DIMS, ks=K, **fixed):
    kind = draw(st.sampled_from(kinds))
    n = draw(st.sampled_from(documents))
    wider = BITS.get(STORED.get(kind, kind), 32) < 8 and draw(st.booleans())
    drawn = {
        "kind": kind,
        "metric": "hamming" if kind == "packed" else draw(st.sampled_from(METRICS)),
        "queries": draw(st.sampled_from(queries)),
        "documents": n,
        "dim": draw(st.sampled_from(dims)) * (8 if wider else 1),
        "k": max(1, draw(st.sampled_from((*ks, n, n + 5)))),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "values": draw(st.sampled_from(VALUES)),
        "allow": draw(st.sampled_from(ALLOW)),
        "rank": draw(st.booleans()),
        "candidates": draw(st.sampled_from((None, None, 0, 1, 40))),
        "integer_queries": kind in STORED and draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    return Case(**{**drawn, **fixed})


def as_given(case, tensors=False):
    """Queries and documents as a user has them."""
    import torch

    a = case.arrays

    def convert(x):
        if case.stored == "bfloat16" and x is a["documents"]:
            x = x.view(ml_dtypes.bfloat16)
        if not tensors:
            return x
        if x.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(x if x.flags.writeable else x.copy())

    queries, documents = convert(a["queries"]), convert(a["documents"])
    kind = "binary" if case.kind == "bits" else case.kind
    if kind in quantized.KINDS:
        scale, offset = a["scale"], a["offset"]
        if kind in quantized.PER_VECTOR:
            scale = case["own_scale"]
        documents = quantized.Quantized(documents, scale, offset, case.dim, kind)
    if case.integer_queries:
        queries = quantized.Quantized(queries, a["query_scale"], None, case.dim, "int8_vector")
    return queries, documents


def without_nan(case, found):
    """Queries with NaN find nothing."""
    q = case["queries"] if case["query_scale"] is None else case["query_scale"][:, None]
    wrong = np.isnan(q).any(1)
    scores, ids = (x.copy() for x in found)
    scores[wrong], ids[wrong] = oracle.worst(case.metric), -1
    return scores, ids


class Lists:
    """The lists of `reference/topk.py` behind the arguments of `_core`."""

    @staticmethod
    def rows(kind, x, dim):
        if kind == "bits":
            return [lists.unpack_bits(row, dim) for row in x.tolist()]
        if kind == "int4":
            return [lists.unpack_int4(row, dim) for row in x.tolist()]
        if kind == "bfloat16":
            return x.view(ml_dtypes.bfloat16).astype(np.float64).tolist()
        return x.tolist()

    @classmethod
    def operands(cls, kind, metric, queries, documents, dim, *scales):
        names = ("scale", "offset", "factor", "addend", "query_scale")
        options = {
            name: None if x is None else x.tolist() for name, x in zip(names, scales, strict=True)
        }
        return (kind, metric, queries.tolist(), cls.rows(kind, documents, dim)), options

    @classmethod
    def topk(cls, *arguments):
        *operands, k, allow, rank, candidates, _, scores, ids = arguments
        positional, options = cls.operands(*operands)
        masks = {"allow": allow, "rank": rank, "candidates": candidates}
        options.update({n: None if x is None else x.tolist() for n, x in masks.items()})
        found = lists.topk(*positional, k, **options)
        scores[...] = np.array(found[0]).reshape(scores.shape)
        ids[...] = np.array(found[1]).reshape(ids.shape)

    @classmethod
    def range_search(cls, *arguments):
        *operands, threshold, allow, rank, _ = arguments
        (kind, metric, queries, documents), options = cls.operands(*operands)
        query_scale = options.pop("query_scale")
        offsets, scores, ids = [0], [], []
        for i, query in enumerate(queries):
            own = None if query_scale is None else query_scale[i]
            scored = lists.scores(kind, metric, query, documents, **options, query_scale=own)
            rows = lists.allowed(None if allow is None else allow.tolist(), i, len(documents))
            ranks = None if rank is None else rank.tolist()
            hits = lists.within(metric, scored, rows, threshold, ranks)
            scores += [score for score, _ in hits]
            ids += [id for _, id in hits]
            offsets.append(len(ids))
        dtype = np.int32 if metric == "hamming" else np.float32
        return np.array(offsets), np.array(scores, dtype), np.array(ids, np.int64)

    @classmethod
    def code_norms(cls, kind, documents, dim, scale, offset, inverse, _, out):
        scale, offset = (None if x is None else x.tolist() for x in (scale, offset))
        for j, codes in enumerate(cls.rows(kind, documents, dim)):
            out[j] = lists.code_norm(kind, codes, scale, offset, inverse=inverse)
