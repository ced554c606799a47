"""Search on a GPU beside NumPy: scores are defined to the last bit, so all is compared exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from simtile.doctor.device import TorchDevice
from simtile.doctor.results import Comparison
from simtile.ops import topk
from simtile.reference import topk_numpy

Array = npt.NDArray[Any]

METRICS = {
    "packed": "hamming",
    "bits": "cosine",
    "int4": "l2",
    "int8": "cosine",
    "uint8": "dot",
    "float32": "cosine",
    "float16": "dot",
    "bfloat16": "l2",
}
FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes
KINDS = tuple(METRICS)
PER_BYTE = {"packed": 8, "bits": 8, "int4": 2}
OPERANDS = ("queries", "documents", "scale", "offset", "factor", "addend", "query_scale")
MASKS = ("allow", "rank", "candidates")
# Products of a folded query's planes for one of the formula: its integers have two bytes.
PLANES = {kind: 2 if kind in ("bits", "int4", "int8", "uint8") else 1 for kind in KINDS}


@dataclass(frozen=True)
class Case:
    """The sizes of one call and what it has besides; the metric is the kind's."""

    queries: int
    documents: int
    dim: int
    k: int
    allow: bool = False
    few: bool = False  # few different documents, so that most scores are ties
    rank: bool = False
    candidates: int | None = None
    integer: bool = False  # int8 queries with a scale each, for kinds without offset
    seed: int = 0

    def __str__(self) -> str:
        options = [name for name in ("allow", "few", "rank", "integer") if getattr(self, name)]
        if self.candidates is not None:
            options.append(f"{self.candidates} candidates")
        sizes = f"{self.queries} x {self.documents} x {self.dim}, k = {self.k}"
        return ", ".join([sizes, *options])


SMALL = (
    Case(1, 1, 1, 1),
    Case(2, 7, 31, 10, seed=1),
    Case(9, 989, 384, 33, few=True, rank=True, seed=2),
    Case(17, 3001, 1000, 100, allow=True, seed=3),
    Case(7, 6500, 96, 1025, few=True, seed=4),
    Case(3, 6500, 128, 20, candidates=300, allow=True, seed=5),
    Case(12, 989, 256, 20, integer=True, seed=6),
)
LARGE = (
    Case(3, 50_021, 768, 10, seed=5),
    Case(40, 50_021, 384, 64, allow=True, seed=6),
    Case(2, 200_003, 256, 20_000, seed=7),
)


def width_of(kind: str, dim: int) -> int:
    """Bytes of a row."""
    return FLOATS[kind] * dim if kind in FLOATS else -(-dim // PER_BYTE.get(kind, 1))


def make_inputs(case: Case, kind: str) -> dict[str, Array]:
    """The arrays of a call, by name; those that it does not have are left out."""
    rng = np.random.default_rng(case.seed)
    inputs = _floats(rng, case, kind) if kind in FLOATS else _codes(rng, case, kind)
    n = case.documents
    if case.allow:
        inputs["allow"] = rng.random(n) < 0.5
    if case.rank:
        inputs["rank"] = rng.permutation(n).astype(np.uint32)
    if case.candidates is not None:
        inputs["candidates"] = rng.integers(-1, n, (case.queries, case.candidates))
    return inputs


def _floats(rng: np.random.Generator, case: Case, kind: str) -> dict[str, Array]:
    documents = rng.normal(size=(case.documents, case.dim)).astype(np.float32)
    if case.few:
        documents = documents[rng.integers(0, 5, case.documents)]
    if kind == "bfloat16":
        stored: Array = (documents.view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = documents.astype(kind)
    queries = rng.normal(size=(case.queries, case.dim)).astype(np.float32)
    return {"documents": stored, "queries": queries}


def _codes(rng: np.random.Generator, case: Case, kind: str) -> dict[str, Array]:
    n, dim, width = case.documents, case.dim, width_of(kind, case.dim)
    codes = rng.integers(0, 256, (n, width), np.uint8)
    if case.few:
        codes = codes[rng.integers(0, 5, n)]
    if kind in ("packed", "bits") and dim % 8:
        codes[:, -1] &= 256 - (1 << (8 - dim % 8))
    if kind == "int4" and dim % 2:
        codes[:, -1] &= 15
    inputs: dict[str, Array] = {"documents": codes.view(np.int8) if kind == "int8" else codes}
    if kind == "packed":
        inputs["queries"] = codes[rng.integers(0, n, case.queries)] ^ np.uint8(128)
    elif case.integer and kind in ("int4", "int8"):
        inputs["queries"] = rng.integers(-128, 128, (case.queries, dim), np.int8)
        inputs["query_scale"] = rng.uniform(0.5, 2.0, case.queries).astype(np.float32)
    else:
        inputs["queries"] = rng.normal(size=(case.queries, dim)).astype(np.float32)
    if kind in ("int4", "int8", "uint8") and "query_scale" not in inputs:
        inputs["scale"] = rng.uniform(0.001, 0.02, dim).astype(np.float32)
        inputs["offset"] = rng.normal(size=dim).astype(np.float32) / 100
    if kind in ("int4", "int8"):
        norms = np.empty(n, np.float32)
        inverse = METRICS[kind] == "cosine"
        scales = (inputs.get("scale"), inputs.get("offset"))
        topk_numpy.code_norms(kind, inputs["documents"], dim, *scales, inverse, 1, norms)
        inputs["factor" if inverse else "addend"] = norms
    return inputs


def arguments(kind: str, dim: int, k: int, inputs: dict[str, Any]) -> list[Any]:
    """Those of `simtile.ops.topk.search`, in its order."""
    given = [inputs.get(name) for name in (*OPERANDS, *MASKS)]
    return [kind, METRICS[kind], *given[:2], dim, *given[2:7], k, *given[7:]]


def exact(case: Case, kind: str, inputs: dict[str, Array]) -> tuple[Array, Array]:
    """Scores [Q, k] and ids [Q, k] by the NumPy reference, which sorts every score."""
    shape = (case.queries, case.k)
    dtype = np.int32 if kind == "packed" else np.float32
    scores, ids = np.empty(shape, dtype), np.empty(shape, np.int64)
    given = [*arguments(kind, case.dim, case.k, inputs), 1, scores, ids]
    topk_numpy.topk(*given)
    return scores, ids


def run(kind: str, dim: int, k: int, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Scores and ids by the kernel, of arrays that are on the device."""
    return topk.search(*arguments(kind, dim, k, inputs))


def values(device: TorchDevice, kind: str, case: Case) -> Iterator[Comparison]:
    """Elements of scores and ids that are not NumPy's, in two runs."""
    inputs = make_inputs(case, kind)
    expected = exact(case, kind, inputs)
    uploaded = {name: device.upload(x) for name, x in inputs.items()}
    for turn in ("", ", again"):
        device.poison()
        found = run(kind, case.dim, case.k, uploaded)
        for name, right, tensor in zip(("scores", "ids"), expected, found, strict=True):
            ours = device.download(tensor)
            if ours.shape != right.shape or ours.dtype != right.dtype:
                raise RuntimeError(
                    f"{name}: {ours.dtype} {ours.shape}, expected {right.dtype} {right.shape}"
                )
            yield Comparison(f"{name} that differ{turn}", int((ours != right).sum()), 0)


BEYOND = ("packed", "int8")


def beyond_31_bits(
    device: TorchDevice, kind: str, count: int = 2**31 // 128 + 5
) -> Iterator[Comparison]:
    """Documents of more than 2^31 bytes, the best of them the last but one."""
    torch.cuda.empty_cache()
    packed = kind == "packed"
    low, high, dtype = (0, 256, torch.uint8) if packed else (-64, 64, torch.int8)
    documents = torch.randint(low, high, (count, 128), dtype=dtype, device=device.device)
    query = torch.randint(low, high, (1, 128), dtype=dtype, device=device.device)
    if not packed:
        query = torch.where(query < 0, -64, 63).to(torch.int8)  # a product no other can reach
    documents[count - 2] = query[0]
    inputs = {"queries": query, "documents": documents}
    if not packed:
        inputs["query_scale"] = torch.ones(1, device=device.device)
        # A metric whose documents need nothing of their own.
        found = topk.search("int8", "dot", *arguments(kind, 128, 1, inputs)[2:])
    else:
        found = run(kind, 1024, 1, inputs)
    scores, ids = (device.download(x)[0, 0] for x in found)
    best = 0 if packed else int((query[0].to(torch.int64) ** 2).sum())
    yield Comparison("id, distance from the planted one", abs(int(ids) - (count - 2)), 0)
    yield Comparison("score", abs(float(scores) - best), 0)


def timed_inputs(device: TorchDevice, kind: str, queries: int, count: int, dim: int) -> Any:
    """Random documents, and queries that are folded without scales."""
    if kind in FLOATS:
        made = torch.empty((count, dim), dtype=getattr(torch, kind), device=device.device).normal_()
        queries_made = torch.empty((queries, dim), device=device.device).normal_()
        return {"documents": made, "queries": queries_made}
    shape = (count, width_of(kind, dim))
    low, dtype = (-128, torch.int8) if kind == "int8" else (0, torch.uint8)
    inputs = {"documents": torch.randint(low, low + 256, shape, dtype=dtype, device=device.device)}
    if kind == "packed":
        inputs["queries"] = inputs["documents"][:queries].clone()
    else:
        inputs["queries"] = torch.empty((queries, dim), device=device.device).normal_()
    return inputs
