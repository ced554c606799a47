"""backend="reference" of InfoNCE: the definition in plain Python behind the kernel's signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._contrast import DIRECTIONS, SCOPES

Array = npt.NDArray[Any]


def launch_reference(
    queries: Array,
    documents: Array,
    negatives: Array | None,
    dtype: str,
    temperature: float,
    normalize: bool,
    targets: Array | None,
    query_ids: Array | None,
    document_ids: Array | None,
    directions: int,
    per_direction: bool,
    scope: int,
    harden_others: float,
    harden_own: float,
    margin: float | None,
    guide_margin: float,
    guide_relative: bool,
    widths: Sequence[int],
    shares: Sequence[float],
    guide_queries: Array | None,
    guide_documents: Array | None,
    guide_negatives: Array | None,
    weight: float,
    row_weights: npt.NDArray[np.float64] | None,
    losses: npt.NDArray[np.float64],
    grad_queries: Array | None,
    grad_documents: Array | None,
    grad_negatives: Array | None,
    threads: int,
    tally: npt.NDArray[np.float64] | None,
) -> float:
    """`_core.info_nce` in plain Python: the same arguments, one thread, float64 throughout."""
    from simtile.reference import contrastive, contrastive_statistics
    from simtile.reference.contrastive_options import Options

    def lists(x: Array | None) -> Any:
        if x is not None and dtype == "bfloat16":  # the upper half of a float32's bits
            x = (x.astype(np.uint32) << 16).view(np.float32)
        return None if x is None else x.tolist()

    n = len(queries)
    others, own = harden_others > 0.0, harden_own > 0.0
    hardness = {
        (False, False): None,
        (True, False): "in_batch_negatives",
        (False, True): "hard_negatives",
        (True, True): "all_negatives",
    }[others, own]
    guide = [lists(x) for x in (guide_queries, guide_documents, guide_negatives) if x is not None]
    given: dict[str, Any] = {
        "temperature": temperature,
        "normalize": normalize,
        "targets": None if targets is None else targets.tolist(),
        "directions": [name for name, bit in DIRECTIONS.items() if directions & bit],
        "partition": "per_direction" if per_direction else "joint",
        "negatives_scope": list(SCOPES)[scope],
        "query_ids": None if query_ids is None else query_ids.tolist(),
        "document_ids": None if document_ids is None else document_ids.tolist(),
        "guide": guide or None,
        "guide_margin": guide_margin,
        "guide_margin_strategy": "relative" if guide_relative else "absolute",
        "false_negative_margin": margin,
        "hardness": hardness,
        "hardness_strength": max(harden_others, harden_own),
        "matryoshka_dims": widths or None,
        "matryoshka_weights": shares or None,
    }
    options = Options(**given)
    result = contrastive.info_nce_grad(
        lists(queries),
        lists(documents),
        lists(negatives),
        options,
        row_weights=[weight] * n if row_weights is None else (weight * row_weights).tolist(),
    )
    losses[:] = result.losses
    for grad, values in (
        (grad_queries, result.queries),
        (grad_documents, result.documents),
        (grad_negatives, result.negatives),
    ):
        if grad is not None:
            grad[:] = values
    if tally is not None:
        vectors = (lists(queries), lists(documents), lists(negatives))
        tally[:] = contrastive_statistics.tally(*vectors, options)
    return result.temperature
