"""MaxSim on tensors of a GPU by the CUDA kernels: `kernels/maxsim/cuda.cuh` through `_cuda`.

For scores without gradients: documents of any lengths, candidates, what each row matched. Nothing
here waits for the device or reads from it; a call can be captured in a CUDA graph unless offsets
have to be copied to the device. A candidate that is no document is none, as one below 0 is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from simtile import _device, _gpu
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options, detail_shape

KINDS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Runs(NamedTuple):
    """Queries or documents as runs of rows of one matrix."""

    rows: Tensor  # [T, D], each row without gaps
    starts: Tensor  # int64 [B] of the device
    ends: Tensor
    mask: Tensor | None  # bool [T]


def forward(
    queries: Given,
    documents: Given,
    candidates: Tensor | None,
    options: Options,
    *,
    argmax: bool = False,
    token_scores: bool = False,
) -> Found:
    """Scores float32 [Q, C] on the current stream of the queries' device.

    Shapes and devices have been checked.

    Raises
    ------
    ValueError
        An input is not float32, float16 or bfloat16, or not on a CUDA device; `options` has a
        temperature.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    if options.temperature:
        raise ValueError(
            f"temperature: found {options.temperature} with backend 'cuda', expected None: its "
            "kernels have the maximum only; use 'triton' (or 'auto')"
        )
    for side in (queries, documents):
        if side.x.dtype not in KINDS:
            raise ValueError(
                f"{side.name}: found {side.x.dtype} on {side.x.device}, expected float32, float16 "
                "or bfloat16 because backend is 'cuda'; use x.float(), or x.cpu()"
            )
    device, stream = queries.x.device, _device.call_stream(queries.x)
    left, right = runs(queries), runs(documents)
    views = {
        side.name: _device.view(side.name, own.rows, stream)
        for side, own in ((queries, left), (documents, right))
    }
    index = _device.check_same_device(views)
    count = documents.batch if candidates is None else int(candidates.shape[1])
    if candidates is not None:
        candidates = candidates.to(device).to(torch.int64).contiguous()
    shape = detail_shape(queries, count)
    found = Found(
        torch.empty((queries.batch, count), dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device) if argmax else None,
        torch.empty(shape, dtype=torch.float32, device=device) if token_scores else None,
    )
    if queries.batch == 0 or count == 0:
        return found
    # Rows of the queries before each, padding among them.
    rows_before = (
        left.starts if queries.width is None else _multiples(queries.width, queries.batch, device)
    )
    cuda = _gpu.cuda_module()
    arguments = cuda.MaxsimArgs(
        **_side("queries", queries, left),
        **_side("documents", documents, right),
        dimensions=queries.dim,
        longest_query=longest(queries),
        units=0,
        terms=0,
        factors=0,
        normalize=options.normalize,
        pad_zero_rows=options.pad_zero_rows,
        length_normalize=options.length_normalize,
        empty_score=options.empty_score,
        candidates=_address(candidates),
        candidate_count=count,
        scores=found.scores.data_ptr(),
        argmax=_address(found.argmax),
        token_scores=_address(found.token_scores),
        rows_before=rows_before.data_ptr() if argmax or token_scores else 0,
    )
    needed = cuda.maxsim_workspace_bytes(arguments, device=index)
    workspace = torch.empty((needed,), dtype=torch.uint8, device=device)
    # Copies made here may be freed as soon as this returns: torch gives their memory to nothing
    # that runs before the kernels, which are on the same stream.
    cuda.maxsim(
        arguments,
        device=index,
        stream=stream,
        workspace=workspace.data_ptr(),
        workspace_bytes=needed,
    )
    return found


def runs(given: Given) -> Runs:
    """Without a copy where rows lie at one distance from each other."""
    x: Tensor = given.x.detach()
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        x = x.contiguous()
    mask: Tensor | None = given.mask
    if given.offsets is not None:
        if x.shape[0] > 1 and x.stride(0) < x.shape[1]:
            x = x.contiguous()  # broadcast or backwards
        offsets = torch.as_tensor(given.offsets).to(torch.int64).to(x.device)
        return Runs(x, offsets[:-1], offsets[1:], None if mask is None else mask.contiguous())
    batch, width, dim = x.shape
    row = x.stride(1) if width > 1 else dim
    step = x.stride(0) if batch > 1 else width * row
    dense = row >= dim and step == width * row
    if not dense and (mask is not None or row < dim or step < width * row or step % row):
        x = x.contiguous()
        row, step = dim, width * dim
    starts = _multiples(step // row, batch, x.device)
    total = (batch - 1) * (step // row) + width if batch and width else 0
    rows = x.as_strided((total, dim), (row, 1))
    return Runs(rows, starts, starts + width, None if mask is None else mask.reshape(-1))


def _multiples(step: int, count: int, device: torch.device) -> Tensor:
    """0, step, 2 step, …, made on the device."""
    out = torch.empty((count,), dtype=torch.int64, device=device)
    torch.arange(0, count, out=out)
    return out * step


def longest(queries: Given) -> int:
    """The most rows of a query, on the host."""
    if queries.width is not None:
        return queries.width
    offsets = torch.as_tensor(queries.offsets)
    return int((offsets[1:] - offsets[:-1]).max()) if len(offsets) > 1 else 0


def _side(name: str, given: Given, own: Runs) -> dict[str, Any]:
    parts = {
        "kind": KINDS[own.rows.dtype],
        "count": given.batch,
        "data": own.rows.data_ptr(),
        "stride": own.rows.stride(0) * own.rows.element_size(),
        "starts": own.starts.data_ptr(),
        "ends": own.ends.data_ptr(),
        "mask": _address(own.mask),
    }
    return {f"{name}_{part}": value for part, value in parts.items()}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
