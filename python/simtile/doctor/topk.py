"""Top-k on a GPU beside NumPy: integers, so everything is compared exactly."""

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

KINDS = ("hamming", "int8")


@dataclass(frozen=True)
class Case:
    """The sizes of one call: ``width`` counts bytes of bits, or int8 dimensions."""

    queries: int
    documents: int
    width: int
    k: int
    scaled: bool = False  # int8 with float32 scales
    allow: bool = False
    few: bool = False  # few different documents, so that most scores are ties
    seed: int = 0

    def __str__(self) -> str:
        options = [name for name in ("scaled", "allow", "few") if getattr(self, name)]
        sizes = f"{self.queries} x {self.documents} x {self.width}, k = {self.k}"
        return ", ".join([sizes, *options])


SMALL = (
    Case(1, 1, 1, 1),
    Case(2, 7, 3, 10, seed=1),
    Case(9, 989, 48, 33, few=True, seed=2),
    Case(17, 3001, 130, 100, allow=True, seed=3),
    Case(7, 1500, 96, 1025, few=True, seed=4),
)
LARGE = (Case(3, 50_021, 128, 10, seed=5), Case(40, 50_021, 96, 64, allow=True, seed=6))


def make_inputs(case: Case, kind: str) -> dict[str, Array]:
    """Queries, documents, and scales and a mask where the case has them."""
    rng = np.random.default_rng(case.seed)
    low, high = (0, 256) if kind == "hamming" else (-128, 128)
    dtype = np.uint8 if kind == "hamming" else np.int8
    shape = (case.documents, case.width)
    inputs: dict[str, Array] = {
        "queries": rng.integers(low, high, (case.queries, case.width), dtype),
        "documents": rng.integers(low, high, shape, dtype),
    }
    if case.few:
        inputs["documents"] = inputs["documents"][rng.integers(0, 5, case.documents)]
    if case.scaled:
        inputs["query_scale"] = rng.uniform(0.5, 2.0, case.queries).astype(np.float32)
        inputs["document_scale"] = rng.uniform(0.5, 2.0, case.documents).astype(np.float32)
    if case.allow:
        inputs["allow"] = rng.random(case.documents) < 0.5
    return inputs


def exact(case: Case, kind: str, inputs: dict[str, Array]) -> tuple[Array, Array]:
    """Scores [Q, k] and ids [Q, k] by the NumPy reference, which sorts every score."""
    return _call(topk_numpy, kind, inputs, case.k)


def _call(module: Any, kind: str, inputs: dict[str, Any], k: int) -> tuple[Any, Any]:
    function = module.hamming_topk if kind == "hamming" else module.int8_topk
    options = {name: x for name, x in inputs.items() if name not in ("queries", "documents")}
    scores, ids = function(inputs["queries"], inputs["documents"], k, **options)
    return scores, ids


def run(kind: str, inputs: dict[str, Any], k: int) -> tuple[Any, Any]:
    """Scores and ids by the kernel, of arrays that are on the device."""
    return _call(topk, kind, inputs, k)


def values(device: TorchDevice, kind: str, case: Case) -> Iterator[Comparison]:
    """Elements of scores and ids that are not NumPy's, in two runs."""
    inputs = make_inputs(case, kind)
    expected = exact(case, kind, inputs)
    uploaded = {name: device.upload(x) for name, x in inputs.items()}
    for turn in ("", ", again"):
        device.poison()
        found = run(kind, uploaded, case.k)
        for name, right, tensor in zip(("scores", "ids"), expected, found, strict=True):
            ours = device.download(tensor)
            if ours.shape != right.shape or ours.dtype != right.dtype:
                raise RuntimeError(
                    f"{name}: {ours.dtype} {ours.shape}, expected {right.dtype} {right.shape}"
                )
            yield Comparison(f"{name} that differ{turn}", int((ours != right).sum()), 0)


def beyond_31_bits(
    device: TorchDevice, kind: str, count: int = 2**31 // 128 + 5
) -> Iterator[Comparison]:
    """Documents of more than 2^31 bytes, the best of them the last but one."""
    torch.cuda.empty_cache()
    width = 128
    low, high, dtype = (0, 256, torch.uint8) if kind == "hamming" else (-64, 64, torch.int8)
    documents = torch.randint(low, high, (count, width), dtype=dtype, device=device.device)
    query = torch.randint(low, high, (1, width), dtype=dtype, device=device.device)
    if kind == "int8":
        query = torch.where(query < 0, -64, 63).to(torch.int8)  # a product no other can reach
    documents[count - 2] = query[0]
    inputs = {"queries": query, "documents": documents}
    scores, ids = (device.download(x)[0, 0] for x in run(kind, inputs, 1))
    best = 0 if kind == "hamming" else int((query[0].to(torch.int64) ** 2).sum())
    yield Comparison("id, distance from the planted one", abs(int(ids) - (count - 2)), 0)
    yield Comparison("score", abs(int(scores) - best), 0)
