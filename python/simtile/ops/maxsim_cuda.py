"""MaxSim on tensors of a GPU by the CUDA kernels: `kernels/maxsim/cuda.cuh` through `_cuda`.

For scores without gradients: documents of any lengths, candidates, what each row matched, codes.
Nothing here waits for the device or reads from it; a call can be captured in a CUDA graph unless
offsets have to be copied to the device. A candidate that is no document is none, as one below 0 is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simtile import _device, _gpu
from simtile._maxsim_inputs import Given
from simtile._maxsim_run import Found, Options, detail_shape

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
KINDS = {**FLOATS, torch.int8: "int8", torch.int16: "int16", torch.uint8: "uint8"}


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
        if side.x.dtype not in FLOATS:
            raise ValueError(
                f"{side.name}: found {side.x.dtype} on {side.x.device}, expected float32, float16 "
                "or bfloat16 because backend is 'cuda'; use x.float(), or x.cpu()"
            )
    left, right = runs(queries), runs(documents)
    more = {
        "longest_query": longest(queries),
        "normalize": options.normalize,
        "pad_zero_rows": options.pad_zero_rows,
        "length_normalize": options.length_normalize,
        "empty_score": options.empty_score,
    }
    # Rows of the queries before each, padding among them.
    rows_before = left.starts
    if queries.width is not None:
        rows_before = _multiples(queries.width, queries.batch, left.starts.device)
    found = _outputs(
        queries.batch,
        documents.batch if candidates is None else int(candidates.shape[1]),
        lambda count: detail_shape(queries, count),
        queries.x.device,
        argmax=argmax,
        token_scores=token_scores,
    )
    names = (queries.name, documents.name)
    _run(names, left, right, queries.dim, candidates, found, rows_before, more)
    return found


class WholeQueries(NamedTuple):
    """Queries' tokens as whole numbers, as `_core.maxsim_codes` takes them, on the device."""

    rows: Tensor  # int16 or int8 [T, D]
    units: Tensor  # float32 [T]
    terms: Tensor | None  # float32 [T]
    starts: Tensor  # int64 [Q]
    ends: Tensor
    mask: Tensor | None  # bool [T]
    longest: int  # the most rows of a query


def forward_codes(
    queries: WholeQueries,
    kind: str,
    codes: Tensor,
    dim: int,
    offsets: Tensor,
    document_mask: Tensor | None,
    factors: Tensor | None,
    candidates: Tensor | None,
    *,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    argmax: bool = False,
    token_scores: bool = False,
) -> Found:
    """Scores float32 [Q, C] of documents that are stored as codes of ``kind``.

    Parameters
    ----------
    queries : WholeQueries
    kind : "int8", "uint8" or "bits"
    codes : Tensor [T, W]
        int8 or uint8 [T, D], or uint8 [T, ⌈D/8⌉] bits, the highest of a byte first.
    dim : int
        D.
    offsets : int64 Tensor [N + 1]
        Document n is ``codes[offsets[n] : offsets[n + 1]]``.
    document_mask : bool Tensor [T], optional
    factors : float32 Tensor [T], optional
        The similarity of a query's token z and a document's is units · ((z · code + terms) ·
        factors): the product is exact, every other operation rounds to float32.
    candidates : int64 Tensor [Q, C], optional

    Returns
    -------
    Found
        Details lie one query after the other, [C, L_q] each.

    Raises
    ------
    ValueError
        A tensor is not on a CUDA device, or of another type than `kind` says.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    expected = {"int8": torch.int8, "uint8": torch.uint8, "bits": torch.uint8}
    if kind not in expected or codes.dtype != expected[kind]:
        raise ValueError(
            f"tokens: found codes of kind {kind!r} as {codes.dtype}, expected int8 as torch.int8, "
            "or uint8 or bits as torch.uint8, because backend is 'cuda'; use x.cpu()"
        )
    if codes.shape[1] > 1 and codes.stride(1) != 1:
        codes = codes.contiguous()
    offsets = offsets.to(torch.int64).to(codes.device)
    left = Runs(queries.rows.contiguous(), queries.starts, queries.ends, queries.mask)
    right = Runs(codes, offsets[:-1], offsets[1:], document_mask)
    more = {
        "documents_kind": kind,
        "units": queries.units,
        "terms": queries.terms,
        "factors": factors,
        "longest_query": queries.longest,
        "length_normalize": length_normalize,
        "empty_score": empty_score,
    }
    found = _outputs(
        len(queries.starts),
        len(offsets) - 1 if candidates is None else int(candidates.shape[1]),
        lambda count: (queries.rows.shape[0] * count,),
        codes.device,
        argmax=argmax,
        token_scores=token_scores,
    )
    _run(("queries", "tokens"), left, right, dim, candidates, found, queries.starts, more)
    return found


def _outputs(
    queries: int,
    count: int,
    shape_of: Callable[[int], tuple[int, ...]],
    device: torch.device,
    *,
    argmax: bool,
    token_scores: bool,
) -> Found:
    shape = shape_of(count)
    return Found(
        torch.empty((queries, count), dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device) if argmax else None,
        torch.empty(shape, dtype=torch.float32, device=device) if token_scores else None,
    )


def _run(
    names: tuple[str, str],
    left: Runs,
    right: Runs,
    dim: int,
    candidates: Tensor | None,
    found: Found,
    rows_before: Tensor,
    more: dict[str, Any],
) -> None:
    """Queue the kernels; `more` are further arguments of `_cuda.MaxsimArgs`, tensors among them."""
    stream = _device.call_stream(left.rows)
    rows = zip(names, (left.rows, right.rows), strict=True)
    index = _device.check_same_device({name: _device.view(name, x, stream) for name, x in rows})
    if found.scores.numel() == 0:
        return
    device = left.rows.device
    if candidates is not None:
        candidates = candidates.to(device).to(torch.int64).contiguous()
    # The names of what is kept until the kernels are queued.
    given: dict[str, Any] = {
        **_side("queries", left),
        **_side("documents", right),
        "dimensions": dim,
        "units": None,
        "terms": None,
        "factors": None,
        "normalize": False,
        "pad_zero_rows": False,
        "candidates": candidates,
        "candidate_count": found.scores.shape[1],
        "scores": found.scores,
        "argmax": found.argmax,
        "token_scores": found.token_scores,
        "rows_before": None if found.argmax is found.token_scores is None else rows_before,
        **more,
    }
    cuda = _gpu.cuda_module()
    plain = {
        name: _address(x) if x is None or isinstance(x, Tensor) else x for name, x in given.items()
    }
    arguments = cuda.MaxsimArgs(**plain)
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


def _side(name: str, own: Runs) -> dict[str, Any]:
    parts = {
        "kind": KINDS[own.rows.dtype],
        "count": len(own.starts),
        "data": own.rows,
        "stride": own.rows.stride(0) * own.rows.element_size(),
        "starts": own.starts,
        "ends": own.ends,
        "mask": own.mask,
    }
    return {f"{name}_{part}": value for part, value in parts.items()}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
