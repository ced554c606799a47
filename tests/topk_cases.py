"""Inputs of the two top-k searches for tests: drawn by hypothesis as shapes, layouts and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from simtile.reference import topk as lists
from simtile.reference import topk_numpy as oracle

QUERIES = (1, 2, 7, 8, 9, 17)
DOCUMENTS = (0, 1, 7, 31, 33, 111, 989, 3000)
K = (1, 2, 10, 33, 64, 100, 1025)
LAYOUTS = ("contiguous", "padded rows", "aligned rows", "odd base", "word base")
VALUES = ("random", "few", "equal", "extreme")
SCALES = ("none", "document", "query", "both", "special")
ALLOW = ("absent", "all", "nothing", "some", "few", "per query", "per query, padded")


@dataclass(frozen=True)
class Case:
    """One call. Data comes from the seed, so that a failure shrinks to small shapes."""

    metric: str  # "hamming" or "int8"
    queries: int  # Q
    documents: int  # N
    width: int  # bytes of a row
    k: int
    layout: str = "contiguous"
    values: str = "random"
    scales: str = "none"
    allow: str = "absent"
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        q, n = self.queries, self.documents
        for name, rows in (("queries", q), ("documents", n)):
            codes = draw_codes(rng, rows, self.width, self.values)
            if self.metric == "int8":
                codes = codes.view(np.int8)
            self.arrays[name] = lay_out(codes, self.layout)
        self.arrays["query_scale"] = self.arrays["document_scale"] = None
        if self.scales in ("query", "both", "special"):
            self.arrays["query_scale"] = rng.normal(size=q).astype(np.float32)
        if self.scales in ("document", "both", "special"):
            self.arrays["document_scale"] = rng.normal(size=n).astype(np.float32)
        if self.scales == "special":
            special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 1e-45, 1])
            self.arrays["document_scale"] = rng.choice(special, size=n)
        self.arrays["allow"] = draw_mask(rng, self.allow, q, n)

    def __getitem__(self, name):
        return self.arrays[name]

    @property
    def options(self):
        """Keyword arguments of the references."""
        if self.metric == "hamming":
            return {"allow": self["allow"]}
        return {name: self[name] for name in ("query_scale", "document_scale", "allow")}

    @property
    def score_dtype(self):
        return np.float32 if self.scales != "none" else np.int32


def draw_codes(rng, rows, width, values):
    if values == "extreme":
        return rng.choice(np.uint8([0x80, 0x7F, 0x80]), size=(rows, width))
    codes = rng.integers(256, size=(rows, width), dtype=np.uint8)
    if values == "random" or rows == 0:
        return codes
    distinct = 1 if values == "equal" else 3
    return codes[rng.integers(min(rows, distinct), size=rows)]


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


def lay_out(codes, layout):
    """The same codes at other addresses and strides, with bytes in between that would be seen."""
    rows, width = codes.shape
    gap = {"padded rows": 3, "aligned rows": -width % 16 + 16}.get(layout, 0)
    offset = {"odd base": 1, "word base": 4}.get(layout, 0)
    pitch = width + gap
    raw = np.full(rows * pitch + offset + 64, 0x5A, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    # The last row ends where its own bytes do: what is read beyond it is not this array's.
    block = raw[start : start + rows * pitch].reshape(rows, pitch)[:, :width].view(codes.dtype)
    block[...] = codes
    return block


@st.composite
def cases(draw, metric, documents=DOCUMENTS, queries=QUERIES, widths=None, ks=K):
    n = draw(st.sampled_from(documents))
    odd = st.integers(1, 130)
    wide = st.sampled_from((384, 768, 1024) if metric == "int8" else (48, 96, 128, 256))
    return Case(
        metric=metric,
        queries=draw(st.sampled_from(queries)),
        documents=n,
        width=draw(st.one_of(odd, wide) if widths is None else st.sampled_from(widths)),
        k=max(1, draw(st.sampled_from((*ks, n, n + 5)))),
        layout=draw(st.sampled_from(LAYOUTS)),
        values=draw(st.sampled_from(VALUES)),
        scales=draw(st.sampled_from(SCALES)) if metric == "int8" else "none",
        allow=draw(st.sampled_from(ALLOW)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def run_oracle(case):
    search = getattr(oracle, f"{case.metric}_topk")
    return search(case["queries"], case["documents"], case.k, **case.options)


def run_lists(case):
    search = getattr(lists, f"{case.metric}_topk")
    options = {k: None if v is None else v.tolist() for k, v in case.options.items()}
    scores, ids = search(case["queries"].tolist(), case["documents"].tolist(), case.k, **options)
    shape = (case.queries, case.k)
    return (
        np.array(scores, case.score_dtype).reshape(shape),
        np.array(ids, np.int64).reshape(shape),
    )


def run_host(module, case, order=0, multiprocessors=3):
    """The kernels on the CPU, on outputs and a workspace full of what is no result."""
    inputs = (
        case.metric,
        case["queries"],
        case["documents"],
        case.k,
        case["query_scale"],
        case["document_scale"],
        case["allow"],
        multiprocessors,
    )
    scores = np.full((case.queries, case.k), 0x5A5A5A5A, np.int32).view(case.score_dtype)
    ids = np.full((case.queries, case.k), -0x5A5A, np.int64)
    # Zeros are keys that would all be found. What follows the workspace must stay.
    size = module.workspace_bytes(*inputs)
    memory = np.zeros(size + 512, np.uint8)
    start = -memory.ctypes.data % 256
    memory[start + size :] = 0x5A
    module.run(*inputs, scores, ids, memory[start : start + size], order)
    assert (memory[start + size :] == 0x5A).all(), "written past the workspace"
    return scores, ids


def run_device(case):
    """The kernels on the current CUDA device, through the operations that torch users call."""
    import torch

    from simtile.ops import topk

    def moved(x):
        if x is None:
            return None
        span = (len(x) - 1) * x.strides[0] + x[0].nbytes if len(x) else 0
        offset = x.ctypes.data % 64
        memory = torch.zeros(span + offset, dtype=torch.uint8, device="cuda")[offset:]
        dtype = getattr(torch, str(x.dtype))
        strides = [stride // x.itemsize for stride in x.strides]
        view = memory.view(dtype).as_strided(x.shape, strides)
        return view.copy_(torch.from_numpy(np.ascontiguousarray(x)))

    search = getattr(topk, f"{case.metric}_topk")
    options = {name: moved(x) for name, x in case.options.items()}
    shape = (case.queries, case.k)
    dtype = torch.float32 if case.score_dtype == np.float32 else torch.int32
    out = (
        torch.full(shape, 77, dtype=dtype, device="cuda"),
        torch.full(shape, -77, dtype=torch.int64, device="cuda"),
    )
    scores, ids = search(
        moved(case["queries"]), moved(case["documents"]), case.k, out=out, **options
    )
    return scores.cpu().numpy(), ids.cpu().numpy()


def check(result, expected):
    """Equal to the last bit; in no float score is the sign of a zero left to chance."""
    for name, ours, theirs in zip(("scores", "ids"), result, expected, strict=True):
        assert ours.dtype == theirs.dtype, (name, ours.dtype, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        if ours.dtype == np.float32:
            np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs), err_msg=name)
