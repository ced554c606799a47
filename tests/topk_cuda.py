"""The CUDA search behind the functions of `simtile._core`: on the CPU, or on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CODES = ("packed", "bits", "int4", "int4_vector", "int8", "int8_vector", "uint8")
KINDS = (*CODES, "float32", "float16", "bfloat16")
OPERANDS = ("kind", "metric", "queries", "documents", "dim")
SCALES = ("scale", "offset", "factor", "addend", "query_scale")


@dataclass
class Host:
    """Dispatch and kernels on the CPU."""

    module: Any
    order: int = 0
    multiprocessors: int = 3

    def given(self, operands, **more):
        names = (*OPERANDS, *SCALES)
        given = dict(zip(names, operands, strict=True))
        return {**given, "multiprocessors": self.multiprocessors, **more}

    def topk(self, *arguments, **more):
        *operands, k, allow, rank, candidates, _, scores, ids = arguments
        masks = {"allow": allow, "rank": rank, "candidates": candidates}
        self.run(self.given(operands, k=k, **masks, scores=scores, ids=ids, **more))

    def score_rows(self, *arguments):
        *operands, candidates, _, scores = arguments
        given = self.given(operands, candidates=candidates, scores=scores)
        self.run(given, scores_only=True)

    def run(self, given, scores_only=False):
        """On a workspace full of what is no result; what follows it must stay."""
        size = self.module.workspace_bytes(given, scores_only)
        memory = np.zeros(size + 512, np.uint8)  # zeros are keys that would all be found
        start = -memory.ctypes.data % 256
        memory[start + size :] = 0x5A
        self.module.run(given, memory[start : start + size], scores_only, self.order)
        assert (memory[start + size :] == 0x5A).all(), "written past the workspace"

    def merge(self, metric, first, second, k):
        scores = np.full((len(first[0]), k), 0x5A5A5A5A, np.int32).view(first[0].dtype)
        ids = np.full(scores.shape, -0x5A5A, np.int64)
        lists = {"scores0": first[0], "ids0": first[1], "scores1": second[0], "ids1": second[1]}
        given = {"metric": metric, "k": k, **lists, "scores": scores, "ids": ids}
        self.module.merge(given, self.order)
        return scores, ids

    def scan_kernel(self, case):
        return self.module.scan_kernel(self.given(case.operands, k=case.k, **masks(case)))


class Device:
    """`simtile.ops.topk` on the current CUDA device, through tensors of torch."""

    def topk(self, *arguments, **more):
        from simtile.ops import topk

        *operands, k, allow, rank, candidates, _, scores, ids = arguments
        out = (poisoned(scores), poisoned(ids))
        moved = [x if isinstance(x, (str, int)) else to_device(x) for x in operands]
        topk.search(*moved, k, *map(to_device, (allow, rank, candidates)), out=out, **more)
        scores[...], ids[...] = (x.cpu().numpy() for x in out)

    def score_rows(self, *arguments):
        from simtile.ops import topk

        *operands, candidates, _, scores = arguments
        out = poisoned(scores)
        moved = [x if isinstance(x, (str, int)) else to_device(x) for x in operands]
        topk.score_rows(*moved, to_device(candidates), out=out)
        scores[...] = out.cpu().numpy()

    def merge(self, metric, first, second, k):
        from simtile.ops import topk

        lists = ([to_device(x) for x in pair] for pair in (first, second))
        return [x.cpu().numpy() for x in topk.merge(metric, *lists, k)]


def masks(case):
    return {name: case[name] for name in ("allow", "rank", "candidates")}


def poisoned(x):
    import torch

    return torch.full(x.shape, 77, dtype=getattr(torch, str(x.dtype)), device="cuda")


def to_device(x, device="cuda"):
    """A tensor with the strides and the misalignment of the array."""
    import torch

    if x is None:
        return None
    if x.ndim == 2 and len(x) > 1 and x.strides[0] == 0:
        return to_device(x[:1], device).expand(x.shape)
    # Copied as signed integers of the same size: of the unsigned ones torch knows little.
    stored = np.dtype(f"i{x.itemsize}")
    signed, dtype = (getattr(torch, str(of)) for of in (stored, x.dtype))
    if x.size == 0:
        return torch.full(x.shape, 0, dtype=signed, device=device).view(dtype)
    offset = x.ctypes.data % 64
    span = sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) + x.itemsize
    memory = torch.full((offset + span,), 0x5A, dtype=torch.uint8, device=device)[offset:]
    strides = [stride // x.itemsize for stride in x.strides]
    tensor = memory.view(signed).as_strided(x.shape, strides)
    tensor.copy_(torch.from_numpy(np.array(x, order="C").view(stored)))
    return tensor.view(dtype)
