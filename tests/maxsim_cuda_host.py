"""Calls of MaxSim's CUDA dispatch and kernels: compiled for the CPU, and on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from maxsim_kernel import EMPTY_SCORE, POISON, STORED

from simtile.reference import maxsim_numpy as oracle

SHARED_BYTES = 99 << 10


def packed(side, dtype, layout):
    """All rows as one matrix of the kernel's, where each run starts and ends, and the values."""
    lengths = np.array([len(x) for x in side], np.int64)
    ends = np.cumsum(lengths, dtype=np.int64)
    dim = side[0].shape[1] if side else 1
    with np.errstate(all="ignore"):
        rows = np.concatenate([*side, np.zeros((0, dim))]).astype(STORED[dtype])
    values = [rows[e - n : e].astype(np.float64) for e, n in zip(ends, lengths, strict=True)]
    if layout == "padded rows":
        wider = np.full((len(rows), dim + 3), 7, rows.dtype)
        wider[:, :dim] = rows
        rows = wider[:, :dim]
    return rows, ends - lengths, ends, values


def flat(masks):
    return None if masks is None else np.concatenate([*masks, np.zeros(0, bool)])


@dataclass
class Host:
    """Dispatch and kernels on the CPU."""

    module: Any
    order: int = 0
    multiprocessors: int = 2
    shared_bytes: int = SHARED_BYTES
    most_maxima_bytes: int = 64 << 20
    most_product_bytes: int = 32 << 20
    most_query_bytes: int = 256 << 20  # of a search

    def given(self, given):
        """The arguments of `_cuda.MaxsimArgs`, arrays as addresses, and the device."""
        limits = ("most_maxima_bytes", "most_product_bytes", "most_query_bytes")
        names = ("multiprocessors", "shared_bytes", *limits)
        device = {name: getattr(self, name) for name in names}
        return {**{name: address(x) for name, x in given.items()}, **device}

    def run(self, given):
        call = self.given(given)  # of arrays that `given` keeps
        self.on_workspace(self.module.run, call, self.module.workspace_bytes(call))

    def search(self, given):
        """`_cuda.maxsim_topk`, with the arguments of `search_arguments`."""
        call = self.given(given)
        self.on_workspace(self.module.search, call, self.module.search_workspace_bytes(call))

    def on_workspace(self, run, call, size):
        """On a workspace full of what is no result; what follows it must stay."""
        memory = np.full(size + 512, 0x5A, np.uint8)
        start = -memory.ctypes.data % 256
        run(call, memory.ctypes.data + start, self.order)
        assert (memory[start + size :] == 0x5A).all(), "written past the workspace"


class Device:
    """The current CUDA device, by `simtile._cuda`."""

    def run(self, given):
        import torch

        from simtile import _gpu

        cuda = _gpu.cuda_module()
        memory = {name: uploaded(x) for name, x in given.items() if isinstance(x, np.ndarray)}
        addresses = {name: x.data_ptr() for name, x in memory.items()}
        nothing = {name: 0 for name, x in given.items() if x is None}
        args = cuda.MaxsimArgs(**{**given, **nothing, **addresses})
        needed = cuda.maxsim_workspace_bytes(args, device=0)
        workspace = torch.full((needed,), 0x5A, dtype=torch.uint8, device="cuda")
        cuda.maxsim(
            args,
            device=0,
            stream=torch.cuda.current_stream().cuda_stream,
            workspace=workspace.data_ptr(),
            workspace_bytes=needed,
        )
        for name in ("scores", "argmax", "token_scores"):
            if given[name] is not None and given[name].size:
                given[name].view(np.uint8).reshape(-1)[:] = memory[name].cpu().numpy()

    def search(self, given):
        import torch

        from simtile import _gpu

        cuda = _gpu.cuda_module()
        memory = {name: uploaded(x) for name, x in given.items() if isinstance(x, np.ndarray)}
        plain = {name: 0 if x is None else x for name, x in given.items()}
        plain |= {name: x.data_ptr() for name, x in memory.items()}
        best = {name: plain.pop(name) for name in ("k", "allow", "allow_stride")}
        out = {name: plain.pop(f"best_{name}") for name in ("scores", "ids")}
        args = cuda.MaxsimTopkArgs(pairs=cuda.MaxsimArgs(**plain), **best, **out)
        needed = cuda.maxsim_topk_workspace_bytes(args, device=0)
        workspace = torch.full((needed,), 0x5A, dtype=torch.uint8, device="cuda")
        cuda.maxsim_topk(
            args,
            device=0,
            stream=torch.cuda.current_stream().cuda_stream,
            workspace=workspace.data_ptr(),
            workspace_bytes=needed,
        )
        for name in ("best_scores", "best_ids"):
            if given[name].size:
                given[name].view(np.uint8).reshape(-1)[:] = memory[name].cpu().numpy()


def uploaded(x):
    """The bytes from an array's first element to its last, strides and all."""
    import torch

    span = sum((n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)) + x.itemsize
    if x.size == 0:
        return torch.empty((16,), dtype=torch.uint8, device="cuda")
    flat = np.lib.stride_tricks.as_strided(x.view(np.uint8), (span,), (1,))
    return torch.from_numpy(flat.copy()).cuda()


def search(host, given, k, candidates=None, allow=None):
    """The k best, float32 and int64 [Q, k]; `given` are arguments of `_cuda.MaxsimArgs`."""
    shape = (given["queries_count"], k)
    scores, ids = np.full(shape, POISON, np.float32), np.full(shape, POISON, np.int64)
    count = given["documents_count"] if candidates is None else candidates.shape[1]
    host.search(
        {
            **given,
            **dict.fromkeys(("scores", "argmax", "token_scores", "rows_before")),
            "candidates": candidates,
            "candidate_count": count,
            "k": k,
            "allow": allow,
            "allow_stride": 0 if allow is None or allow.ndim == 1 else allow.strides[0],
            "best_scores": scores,
            "best_ids": ids,
        }
    )
    return scores, ids


def address(x):
    if x is None:
        return 0
    return x.ctypes.data if isinstance(x, np.ndarray) else x


class Call:
    """A case as the kernels take it, and what comes out."""

    compute = np.float32  # of scores

    def __init__(self, case, dtype, layout="contiguous", query_dtype="float32"):
        self.case, self.dtype = case, dtype
        self.queries, wide_queries = self.side(case["queries"], query_dtype, layout)
        self.documents, wide_documents = self.side(case["documents"], dtype, layout)
        if not case["queries"] or not case["documents"]:
            for side in (self.queries, self.documents):
                side[1] = np.zeros((len(side[1]), case.dim), side[1].dtype)
        self.wide = (wide_queries, wide_documents)

    @staticmethod
    def side(tokens, dtype, layout):
        *runs, wide = packed(tokens, dtype, layout)
        return [dtype, *runs], wide

    def run(self, host, candidates=None, rows=True):
        """Scores [Q, C], and of every row its match and similarity, [Q] of [C, Lq]."""
        starts, ends = self.queries[2:4]
        count = len(self.case["documents"]) if candidates is None else candidates.shape[1]
        scores = np.full((len(starts), count), POISON, np.float32)
        size = len(self.queries[1]) * count
        argmax = np.full(size, POISON, np.int32) if rows else None
        values = np.full(size, POISON, np.float32) if rows else None
        host.run(self.arguments(candidates, scores, argmax, values))
        if not rows:
            return scores, None, None
        by_query = [
            [
                x[count * s : count * e].reshape(count, e - s)
                for s, e in zip(starts, ends, strict=True)
            ]
            for x in (argmax, values)
        ]
        return scores, *by_query

    def arguments(self, candidates, scores, argmax=None, values=None):
        """Of `_cuda.MaxsimArgs`."""
        options = self.case.options
        starts, ends = self.queries[2:4]
        masks = [flat(own) for own in self.case.mask_arrays]
        return {
            **self.side_arguments("queries", self.queries, masks[0]),
            **self.side_arguments("documents", self.documents, masks[1]),
            "dimensions": self.queries[1].shape[1],
            "longest_query": max(ends - starts, default=0),
            "units": None,
            "terms": None,
            "factors": None,
            "normalize": options.get("normalize", False),
            "pad_zero_rows": options.get("zero_rows") == "pad",
            "length_normalize": options.get("length_normalize", False),
            "empty_score": EMPTY_SCORE,
            "candidates": candidates,
            "candidate_count": scores.shape[1],
            "scores": scores,
            "argmax": argmax,
            "token_scores": values,
            "rows_before": starts,
        }

    @staticmethod
    def side_arguments(name, side, mask):
        kind, rows, starts, ends = side
        parts = {
            "kind": kind,
            "count": len(starts),
            "data": rows,
            "stride": rows.strides[0],
            "starts": starts,
            "ends": ends,
            "mask": mask,
        }
        return {f"{name}_{part}": value for part, value in parts.items()}

    def oracle(self):
        return oracle.maxsim(
            *self.wide, *self.case.mask_arrays, empty_score=EMPTY_SCORE, **self.case.options
        )
