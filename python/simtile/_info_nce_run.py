"""A run of InfoNCE's kernel on NumPy arrays that have been checked: widths, ids, results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _inputs
from simtile._contrast import Contrast
from simtile._info_nce_reference import launch_reference
from simtile._statistics import Tally

Array = npt.NDArray[Any]


class Result(NamedTuple):
    """What one run of the kernel gives; gradients that were not asked for are None."""

    losses: npt.NDArray[np.float64]  # [N]
    grad_queries: Array | None  # [N, D]
    grad_documents: Array | None  # [M, D]
    grad_negatives: Array | None  # [N, K, D]
    grad_temperature: float
    tally: npt.NDArray[np.float64]  # what ContrastiveStatistics adds up; empty without statistics


def run(
    queries: Array,
    documents: Array,
    negatives: Array | None,
    dtype: str,
    temperature: float,
    normalize: bool,
    targets: Array | None,
    query_ids: Array | None,
    document_ids: Array | None,
    guide: Sequence[Array],
    contrast: Contrast,
    weight: float,
    row_weights: npt.NDArray[np.float64] | None,
    need_grad: Sequence[bool],
    statistics: bool,
    backend: str,
    threads: int,
) -> Result:
    """Run the kernel on arrays of one element type whose shapes have been checked.

    `dtype` names the element type, bfloat16 being uint16 arrays of its bits. The gradients are
    those of Σ_i weight · row_weights[i] · losses[i], for the inputs that `need_grad` says: queries,
    documents, negatives.
    """
    n, dimensions = queries.shape
    if contrast.widths and backend == "cpu":
        has_negatives = negatives is not None and negatives.shape[1] > 0
        passes = contrast.passes(has_negatives, len(guide) > 0)
        if passes != [(dimensions, 1.0, contrast)]:

            def run_prefixes(width: int, share: float, options: Contrast) -> Result:
                return run(
                    queries[:, :width],
                    documents[:, :width],
                    None if negatives is None else negatives[..., :width],
                    dtype,
                    temperature,
                    normalize,
                    targets,
                    query_ids,
                    document_ids,
                    guide,
                    options,
                    share * weight,
                    row_weights,
                    need_grad,
                    statistics and width == passes[-1][0],
                    backend,
                    threads,
                )

            return _sum_of_passes(run_prefixes, passes, dimensions)
    if targets is not None:
        _inputs.check_targets(targets, documents.shape[0])
    if query_ids is not None or document_ids is not None:
        query_ids, document_ids = _inputs.complete_ids(query_ids, document_ids, targets, n)

    number = np.float64 if dtype == "float64" else np.float32
    grad_queries = np.empty(queries.shape, number) if need_grad[0] else None
    grad_documents = np.empty(documents.shape, number) if need_grad[1] else None
    grad_negatives = None
    guides = [_inputs.kernel_rows(x) for x in guide] + [None] * (3 - len(guide))
    if negatives is not None:
        if need_grad[2]:
            grad_negatives = np.empty(negatives.shape, number)
        negatives = _inputs.kernel_rows(negatives) if negatives.shape[1] else None
    if negatives is None:
        guides[2] = None
    losses = np.empty(n)
    tally = np.empty(len(Tally._fields) if statistics else 0)
    launch: Callable[..., float] = _core.info_nce if backend == "cpu" else launch_reference
    grad_temperature = launch(
        _inputs.kernel_rows(queries),
        _inputs.kernel_rows(documents),
        negatives,
        dtype,
        temperature,
        normalize,
        targets,
        query_ids,
        document_ids,
        *contrast,
        *guides,
        weight,
        row_weights,
        losses,
        grad_queries,
        grad_documents,
        None if negatives is None else grad_negatives,
        threads,
        tally if statistics else None,
    )
    return Result(losses, grad_queries, grad_documents, grad_negatives, grad_temperature, tally)


def _sum_of_passes(
    run_prefixes: Callable[[int, float, Contrast], Result],
    passes: Sequence[tuple[int, float, Contrast]],
    dimensions: int,
) -> Result:
    """The results of prefixes, added up in the memory of the whole vectors."""
    losses: npt.NDArray[np.float64] | None = None
    grads: list[Array | None] = [None] * 3
    grad_temperature = 0.0
    for width, share, options in passes:
        result = run_prefixes(width, share, options)
        losses = share * result.losses + (0.0 if losses is None else losses)
        grad_temperature += result.grad_temperature
        for i, grad in enumerate(result[1:4]):
            if grad is None:
                continue
            total = grads[i]
            if total is None:
                total = grads[i] = np.zeros((*grad.shape[:-1], dimensions), grad.dtype)
            total[..., :width] += grad
    assert losses is not None
    return Result(losses, grads[0], grads[1], grads[2], grad_temperature, result.tally)


def reduce_losses(losses: npt.NDArray[np.float64], reduction: str) -> float:
    total = float(np.add.reduce(losses))
    return total / losses.shape[0] if reduction == "mean" else total
