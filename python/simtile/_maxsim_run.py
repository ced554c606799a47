"""MaxSim of arrays whose shapes have been checked; the torch operator calls this as well.

With candidates [Q, C] query q is scored with documents candidates[q], else with all of them. What
each row of a query matched, and its similarity to it, are of shape [Q, C, Lq] where queries are a
batch; where they are of different lengths, the [C, L_q] of one query after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _core, _maxsim_sides, _tensors
from simtile._maxsim_inputs import Given, Int64s
from simtile._maxsim_sides import Side

Array = npt.NDArray[Any]


class Options(NamedTuple):
    normalize: bool = False
    pad_zero_rows: bool = False
    length_normalize: bool = False
    empty_score: float = 0.0
    temperature: float = 0.0  # 0: the maximum itself


class Found(NamedTuple):
    scores: Any  # [Q, C]
    argmax: Any  # int32, or None
    token_scores: Any


def forward(
    queries: Given,
    documents: Given,
    candidates: Int64s | None,
    options: Options,
    *,
    argmax: bool = False,
    token_scores: bool = False,
    backend: str = "cpu",
    threads: int = 0,
) -> Found:
    """Scores in float64 if an input is float64, else in float32."""
    if backend == "reference":
        documents = documents.together()
    left, right = _maxsim_sides.pair_of_sides(queries, documents)
    count = check_candidates(candidates, len(right))
    compute = left.rows.array.dtype
    rows = detail_shape(queries, count)
    found = Found(
        np.empty((len(left), count), compute),
        np.empty(rows, np.int32) if argmax else None,
        np.empty(rows, compute) if token_scores else None,
    )
    if backend == "reference":
        _reference(queries, documents, candidates, options, found)
        return found
    score(left, right, candidates, options, found, threads)
    return found


def score(
    left: Side, right: Side, candidates: Int64s | None, options: Options, found: Found, threads: int
) -> None:
    """Fill the arrays of `found`."""
    arguments: list[Any] = [
        right.rows.kind,
        *left.arguments,
        *right.arguments,
        options.normalize,
        options.pad_zero_rows,
        options.length_normalize,
        options.empty_score,
        options.temperature,
        candidates,
        found.scores,
        *(None if x is None else x.reshape(-1) for x in found[1:]),
        threads,
    ]
    _core.maxsim(*arguments)


def search(
    queries: Given,
    documents: Given,
    candidates: Int64s | None,
    options: Options,
    allowed: npt.NDArray[np.bool_] | None,
    k: int,
    threads: int,
) -> tuple[Array, Array] | None:
    """The k best of what `forward` would score, without scores of the others.

    None where an input is float64: the kernel orders float32.
    """
    left, right = _maxsim_sides.pair_of_sides(queries, documents)
    if right.rows.kind == "float64":
        return None
    check_candidates(candidates, len(right))
    return best(left, right, candidates, options, allowed, k, threads)


def best(
    left: Side,
    right: Side,
    candidates: Int64s | None,
    options: Options,
    allowed: npt.NDArray[np.bool_] | None,
    k: int,
    threads: int,
) -> tuple[Array, Array]:
    """The k best of what `score` would score of documents that are not float64.

    Returns
    -------
    scores : float32 [Q, k]
        Best first, -inf where there are no more. A NaN is not found.
    documents : int64 [Q, k]
        Of equal scores the lowest first, and each once; -1 where there are no more.
    """
    scores = np.empty((len(left), k), np.float32)
    ids = np.empty(scores.shape, np.int64)
    arguments: list[Any] = [
        right.rows.kind,
        *left.arguments,
        *right.arguments,
        options.normalize,
        options.pad_zero_rows,
        options.length_normalize,
        options.empty_score,
        options.temperature,
        k,
        None if allowed is None else np.ascontiguousarray(allowed),
        candidates,
        scores,
        ids,
        threads,
    ]
    _core.maxsim_topk(*arguments)
    return scores, ids


def backward(
    queries: Given,
    documents: Given,
    candidates: Int64s | None,
    options: Options,
    grad_scores: Array,
    argmax: Array,
    token_scores: Array | None,
    need_grad: Sequence[bool],
    *,
    backend: str = "cpu",
    threads: int = 0,
) -> tuple[Array | None, Array | None]:
    """The gradients of Σ grad_scores · scores, of the inputs' shapes, those that are needed.

    `argmax` is what `forward` found, and so are `token_scores`, which a smooth maximum needs.
    """
    left, right = _maxsim_sides.pair_of_sides(queries, documents, dense=True)
    compute = left.rows.array.dtype
    smooth = token_scores is not None and options.temperature > 0
    grads = tuple(
        np.empty(tuple(side.x.shape), compute) if need else None
        for side, need in zip((queries, documents), need_grad, strict=True)
    )
    if backend == "reference":
        _reference_backward(queries, documents, candidates, options, grad_scores, grads)
        return grads  # type: ignore[return-value]
    arguments: list[Any] = [
        right.rows.kind,
        *left.arguments,
        *right.arguments,
        options.normalize,
        options.pad_zero_rows,
        options.length_normalize,
        options.temperature,
        candidates,
        np.ascontiguousarray(grad_scores, compute),
        np.ascontiguousarray(argmax).reshape(-1),
        np.ascontiguousarray(token_scores).reshape(-1) if smooth else None,
        *(None if x is None else x.reshape(-1, queries.dim) for x in grads),
        threads,
    ]
    _core.maxsim_backward(*arguments)
    return grads  # type: ignore[return-value]


def detail_shape(queries: Given, candidates: int) -> tuple[int, ...]:
    """Of argmax and token scores."""
    if queries.width is not None:
        return (queries.batch, candidates, queries.width)
    return (int(queries.x.shape[0]) * candidates,)


def split(queries: Given, candidates: int, found: Any) -> Any:
    """Details of queries of different lengths as a list of [C, L_q]."""
    if queries.offsets is None:
        return found
    bounds = queries.offsets.tolist()
    return [
        found[candidates * start : candidates * end].reshape(candidates, end - start)
        for start, end in pairwise(bounds)
    ]


def check_candidates(candidates: Int64s | None, documents: int) -> int:
    if candidates is None:
        return documents
    beyond = (candidates >= documents) | (candidates < -1)
    if beyond.any():
        q, c = (int(i) for i in np.argwhere(beyond)[0])
        raise ValueError(
            f"ids: found {candidates[q, c]} at [{q}, {c}], expected -1 to {documents - 1} because "
            f"there are {documents} documents"
        )
    return int(candidates.shape[1])


def _reference(
    queries: Given,
    documents: Given,
    candidates: Int64s | None,
    options: Options,
    found: Found,
) -> None:
    """`_core.maxsim` by its definition, in lists."""
    from simtile.reference import maxsim

    count = found.scores.shape[1]
    details = [None if x is None else split(queries, count, x) for x in found[1:]]
    matrices = lists(queries, documents)
    pairs = maxsim.maxsim(*matrices, empty_score=options.empty_score, **reference_options(options))
    for q, row in enumerate(pairs):
        length = len(matrices[0][q])
        nothing = maxsim.Pair(options.empty_score, [maxsim.NO_TOKEN] * length, [0.0] * length)
        for c, n in enumerate(range(count) if candidates is None else candidates[q].tolist()):
            pair = nothing if n < 0 else row[n]
            found.scores[q, c] = pair.score
            for into, own in zip(details, (pair.argmax, pair.token_scores), strict=True):
                if into is not None:
                    into[q][c] = own


def _reference_backward(
    queries: Given,
    documents: Given,
    candidates: Int64s | None,
    options: Options,
    grad_scores: Array,
    grads: tuple[Array | None, ...],
) -> None:
    """`_core.maxsim_backward` by its definition, in lists."""
    from simtile.reference import maxsim

    weights = grad_scores.astype(np.float64)
    if candidates is not None:
        q, c = np.nonzero(candidates >= 0)
        weights = np.zeros((queries.batch, documents.batch))
        np.add.at(weights, (q, candidates[q, c]), grad_scores[q, c])
    left, right, *masks = lists(queries, documents)
    result = maxsim.maxsim_grad(left, right, weights.tolist(), *masks, **reference_options(options))
    for side, grad, own in zip(
        (queries, documents), grads, (result.queries, result.documents), strict=True
    ):
        if grad is not None and grad.size:
            rows = [row for matrix in own for row in matrix]
            grad.reshape(-1, side.dim)[...] = rows


def lists(queries: Given, documents: Given) -> tuple[Any, Any, Any, Any]:
    """Queries, documents and their masks as the definition takes them."""
    masks = [
        None if side.mask is None else _tensors.as_array(side.mask) for side in (queries, documents)
    ]
    values = [
        _maxsim_sides.widen(*_maxsim_sides.elements(side), "float64")
        for side in (queries, documents)
    ]
    return (
        _by_matrix(queries, values[0]),
        _by_matrix(documents, values[1]),
        None if masks[0] is None else _by_matrix(queries, masks[0]),
        None if masks[1] is None else _by_matrix(documents, masks[1]),
    )


def _by_matrix(side: Given, x: Array) -> Any:
    if side.offsets is None:
        return x.tolist()
    bounds = side.offsets.tolist()
    return [x[start:end].tolist() for start, end in pairwise(bounds)]


def reference_options(options: Options) -> dict[str, Any]:
    return {
        "normalize": options.normalize,
        "zero_rows": "pad" if options.pad_zero_rows else "score",
        "length_normalize": options.length_normalize,
        "temperature": options.temperature or None,
    }
