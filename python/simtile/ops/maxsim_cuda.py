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
from simtile.ops._tensors import address

FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
KINDS = {**FLOATS, torch.int8: "int8", torch.int16: "int16", torch.uint8: "uint8"}


class Runs(NamedTuple):
    """Queries or documents as runs of rows of one matrix."""

    rows: Tensor  # [T, D], each row without gaps
    starts: Tensor  # int64 [B] of the device
    ends: Tensor
    mask: Tensor | None  # bool [T]


class Pairs(NamedTuple):
    """What is scored with what, as the kernels take it."""

    names: tuple[str, str]
    left: Runs
    right: Runs
    dim: int
    rows_before: Tensor  # int64 [Q] rows of the queries before each, padding among them
    more: dict[str, Any]  # further arguments of `_cuda.MaxsimArgs`, tensors among them


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
    found = _outputs(
        queries.batch,
        documents.batch if candidates is None else int(candidates.shape[1]),
        lambda count: detail_shape(queries, count),
        queries.x.device,
        argmax=argmax,
        token_scores=token_scores,
    )
    _run(pairs(queries, documents, options), candidates, found)
    return found


def pairs(queries: Given, documents: Given, options: Options) -> Pairs:
    """Of floats; raises as `forward` does."""
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
    rows_before = left.starts
    if queries.width is not None:
        rows_before = _multiples(queries.width, queries.batch, left.starts.device)
    return Pairs((queries.name, documents.name), left, right, queries.dim, rows_before, more)


class WholeQueries(NamedTuple):
    """Queries' tokens as whole numbers, as `_core.maxsim_codes` takes them, on the device."""

    rows: Tensor  # int16 or int8 [T, D]
    units: Tensor  # float32 [T]
    terms: Tensor | None  # float32 [T]
    starts: Tensor  # int64 [Q]
    ends: Tensor
    mask: Tensor | None  # bool [T]
    longest: int  # the most rows of a query


class Residuals(NamedTuple):
    """What residuals stand for besides their codes, on the device but for the weights."""

    centroid_ids: Tensor  # int32 [T], below K
    centroids: Tensor  # float32 [K, D]
    query_values: Tensor  # float32 [T of queries, D], what centroids are multiplied with
    weights: list[int]  # [2^bits] whole numbers of 15 bits and a sign


CODES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bits": torch.uint8,
    "residual1": torch.uint8,
    "residual2": torch.uint8,
    "residual4": torch.uint8,
}


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
    residuals: Residuals | None = None,
    length_normalize: bool = False,
    empty_score: float = 0.0,
    argmax: bool = False,
    token_scores: bool = False,
) -> Found:
    """Scores float32 [Q, C] of documents that are stored as codes of ``kind``.

    Parameters
    ----------
    queries : WholeQueries
    kind : "int8", "uint8", "bits", "residual1", "residual2" or "residual4"
    codes : Tensor [T, W]
        int8 or uint8 [T, D], or uint8 [T, ⌈D/8⌉] bits, the highest of a byte first, or
        [T, ⌈D · bits / 8⌉] as `ResidualTokens` has them.
    dim : int
        D.
    offsets : int64 Tensor [N + 1]
        Document n is ``codes[offsets[n] : offsets[n + 1]]``.
    document_mask : bool Tensor [T], optional
    factors : float32 Tensor [T], optional
        The similarity of a query's token z and a document's is units · ((z · code + terms) ·
        factors): the product is exact, every other operation rounds to float32. Of residuals it
        is units · ((terms · weights[code] · z + q · centroid) · factors).
    candidates : int64 Tensor [Q, C], optional
    residuals : Residuals
        Of residuals, whose queries are int16.

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
    own = pairs_of_codes(
        queries,
        kind,
        codes,
        dim,
        offsets,
        document_mask,
        factors,
        residuals=residuals,
        length_normalize=length_normalize,
        empty_score=empty_score,
    )
    found = _outputs(
        len(queries.starts),
        len(offsets) - 1 if candidates is None else int(candidates.shape[1]),
        lambda count: (queries.rows.shape[0] * count,),
        codes.device,
        argmax=argmax,
        token_scores=token_scores,
    )
    _run(own, candidates, found)
    return found


def pairs_of_codes(
    queries: WholeQueries,
    kind: str,
    codes: Tensor,
    dim: int,
    offsets: Tensor,
    document_mask: Tensor | None,
    factors: Tensor | None,
    *,
    residuals: Residuals | None = None,
    length_normalize: bool = False,
    empty_score: float = 0.0,
) -> Pairs:
    """As `forward_codes` says."""
    if kind not in CODES or codes.dtype != CODES[kind]:
        raise ValueError(
            f"tokens: found codes of kind {kind!r} as {codes.dtype}, expected int8 as torch.int8, "
            "or uint8, bits or residuals as torch.uint8, because backend is 'cuda'; use x.cpu()"
        )
    if codes.shape[1] > 1 and codes.stride(1) != 1:
        codes = codes.contiguous()
    offsets = offsets.to(torch.int64).to(codes.device)
    left = Runs(queries.rows.contiguous(), queries.starts, queries.ends, queries.mask)
    right = Runs(codes, offsets[:-1], offsets[1:], document_mask)
    more: dict[str, Any] = {
        "documents_kind": kind,
        "units": queries.units,
        "terms": queries.terms,
        "factors": factors,
        "longest_query": queries.longest,
        "length_normalize": length_normalize,
        "empty_score": empty_score,
    }
    if residuals is not None:
        more["centroid_ids"] = residuals.centroid_ids
        more["centroid_count"] = len(residuals.centroids)
        more["centroids"] = residuals.centroids
        more["query_values"] = residuals.query_values
        more["weights"] = residuals.weights
    return Pairs(("queries", "tokens"), left, right, dim, queries.starts, more)


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


def _run(own: Pairs, candidates: Tensor | None, found: Found) -> None:
    """Queue the kernels."""
    index, stream = where(own)
    if found.scores.numel() == 0:
        return
    device = own.left.rows.device
    given = arguments(own, candidates, found.scores.shape[1])
    given |= {
        "scores": found.scores,
        "argmax": found.argmax,
        "token_scores": found.token_scores,
        "rows_before": None if found.argmax is found.token_scores is None else own.rows_before,
    }
    cuda = _gpu.cuda_module()
    args = cuda.MaxsimArgs(**addresses(given))
    needed = cuda.maxsim_workspace_bytes(args, device=index)
    workspace = torch.empty((needed,), dtype=torch.uint8, device=device)
    # Copies made here may be freed as soon as this returns: torch gives their memory to nothing
    # that runs before the kernels, which are on the same stream.
    cuda.maxsim(
        args,
        device=index,
        stream=stream,
        workspace=workspace.data_ptr(),
        workspace_bytes=needed,
    )


def where(own: Pairs) -> tuple[int, int]:
    """The device that both sides are on, and the stream that kernels are queued on."""
    stream = _device.call_stream(own.left.rows)
    rows = zip(own.names, (own.left.rows, own.right.rows), strict=True)
    views = {name: _device.view(name, x, stream) for name, x in rows}
    return _device.check_same_device(views), stream


def arguments(own: Pairs, candidates: Tensor | None, count: int) -> dict[str, Any]:
    """Of `_cuda.MaxsimArgs`, all but the outputs; tensors are kept until kernels are queued."""
    if candidates is not None:
        candidates = candidates.to(own.left.rows.device).to(torch.int64).contiguous()
    return {
        **_side("queries", own.left),
        **_side("documents", own.right),
        "dimensions": own.dim,
        "units": None,
        "terms": None,
        "factors": None,
        "normalize": False,
        "pad_zero_rows": False,
        "candidates": candidates,
        "candidate_count": count,
        **own.more,
    }


def addresses(given: dict[str, Any]) -> dict[str, Any]:
    """Tensors, and None, as addresses."""
    return {
        name: address(x) if x is None or isinstance(x, Tensor) else x for name, x in given.items()
    }


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
