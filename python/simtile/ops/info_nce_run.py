"""A run of InfoNCE on checked tensors: the CPU's kernel on their arrays, or a GPU's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtile import _inputs
from simtile._contrast import Contrast
from simtile._info_nce_run import run
from simtile.ops._backends import check_available
from simtile.ops._tensors import DTYPE_NAMES

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Outputs(NamedTuple):
    """What a run gives, with None for what is not needed."""

    losses: npt.NDArray[np.float64] | Tensor
    grads: Gradients
    tally: Tensor | None  # float64 [7]: what ContrastiveStatistics adds up


def run_tensors(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide_queries: Tensor | None,
    guide_documents: Tensor | None,
    guide_negatives: Tensor | None,
    normalize: bool,
    contrast: Sequence[float],
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    threads: int,
    weight: float,
    row_weights: Tensor | None,
    statistics: bool,
) -> Outputs:
    """The losses [N], and the gradients of Σ_i weight · row_weights[i] · losses[i]."""
    guides = (guide_queries, guide_documents, guide_negatives)
    if backend in ("triton", "cuda"):
        options = Contrast.from_numbers(contrast)

        def run_prefixes(width: int, share: float, one: Contrast) -> Outputs:
            return _run_on_gpu(
                queries[:, :width],
                documents[:, :width],
                None if negatives is None else negatives[..., :width],
                temperature,
                targets,
                query_ids,
                document_ids,
                [x for x in guides if x is not None],
                normalize,
                one,
                dtype,
                need_grad,
                backend,
                precision,
                share * weight,
                row_weights,
                # with Matryoshka of the widest
                statistics and (not options.widths or width == options.widths[-1]),
            )

        if options.widths:
            return _sum_of_widths(run_prefixes, options, queries.shape[1])
        return run_prefixes(queries.shape[1], 1.0, options)
    tau = temperature.item() if isinstance(temperature, Tensor) else temperature
    result = run(
        _floats(queries, dtype),
        _floats(documents, dtype),
        None if negatives is None else _floats(negatives, dtype),
        DTYPE_NAMES[dtype],
        _inputs.check_temperature(tau),
        normalize,
        None if targets is None else _inputs.int_array("targets", targets),
        None if query_ids is None else _inputs.int_array("query_ids", query_ids),
        None if document_ids is None else _inputs.int_array("document_ids", document_ids),
        [_floats(x, dtype) for x in guides if x is not None],
        Contrast.from_numbers(contrast),
        weight,
        None
        if row_weights is None
        else np.ascontiguousarray(row_weights.numpy(force=True), np.float64),
        need_grad,
        statistics,
        backend,
        threads,
    )
    grad_temperature = None
    if need_grad[3] and isinstance(temperature, Tensor):
        number = np.full(tuple(temperature.shape), result.grad_temperature)
        grad_temperature = torch.from_numpy(number)
    arrays = (result.grad_queries, result.grad_documents, result.grad_negatives)
    first, second, third = (None if x is None else torch.from_numpy(x) for x in arrays)
    return Outputs(
        result.losses,
        (first, second, third, grad_temperature),
        torch.from_numpy(result.tally) if statistics else None,
    )


def _sum_of_widths(
    run_prefixes: Callable[[int, float, Contrast], Outputs], contrast: Contrast, dimensions: int
) -> Outputs:
    """The results of a run for each width, added up in the memory of the whole vectors."""
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * 4
    for width, share, one in contrast.apart():
        losses, grads, tally = run_prefixes(width, share, one)
        assert isinstance(losses, Tensor)
        total = share * losses if total is None else total + share * losses
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            if i < 3:
                grad = torch.nn.functional.pad(grad, (0, dimensions - width))
            before = sums[i]
            sums[i] = grad if before is None else before + grad
    assert total is not None
    return Outputs(total, (sums[0], sums[1], sums[2], sums[3]), tally)


def _run_on_gpu(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    targets: Tensor | None,
    query_ids: Tensor | None,
    document_ids: Tensor | None,
    guide: Sequence[Tensor],
    normalize: bool,
    contrast: Contrast,
    dtype: torch.dtype,
    need_grad: Sequence[bool],
    backend: str,
    precision: str,
    weight: float,
    row_weights: Tensor | None,
    statistics: bool,
) -> Outputs:
    options: dict[str, Any] = {
        "dtype": dtype,
        "temperature": temperature,
        "normalize": normalize,
        "targets": targets,
        "query_ids": query_ids,
        "document_ids": document_ids,
    }
    is_plain = contrast.is_plain() and not guide and not statistics
    if is_plain:
        options["own_negatives"] = contrast.own_negatives
    else:
        options.update(contrast=contrast, guide=guide, statistics=statistics)
    check_available(backend)  # of a compiled call nobody has asked
    if backend == "cuda":
        if any(need_grad):
            raise RuntimeError(
                "backend: 'cuda' computes losses without gradients; use 'triton' (or 'auto'), or "
                "call it under torch.no_grad()"
            )
        from simtile.ops import info_nce_cuda

        losses = info_nce_cuda.info_nce_losses(queries, documents, negatives, **options)
        return Outputs(losses, (None, None, None, None), None)
    from simtile.ops import info_nce_triton, info_nce_triton_contrast

    run_on_triton = info_nce_triton.run if is_plain else info_nce_triton_contrast.run
    result = run_on_triton(
        queries,
        documents,
        negatives,
        **options,
        precision=precision,
        need_grad=need_grad,
        weight=weight,
        row_weights=row_weights,
    )
    grad_temperature = None
    if result.grad_temperature is not None and isinstance(temperature, Tensor):
        number = result.grad_temperature.reshape(temperature.shape)
        grad_temperature = number.to(temperature.device)
    grads = (result.grad_queries, result.grad_documents, result.grad_negatives)
    return Outputs(result.losses, (*grads, grad_temperature), result.tally)


def _floats(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """The elements as an array of the dtype; of bfloat16, which NumPy lacks, the bits."""
    if tensor.dtype != dtype:
        tensor = tensor.detach().to(dtype)
    if dtype == torch.bfloat16:
        tensor = tensor.detach().view(torch.uint16)
    array: npt.NDArray[Any] = tensor.numpy(force=True)
    return array
