"""Triplet losses: of given triplets, and of the hardest ones in a batch.

The definitions are in `reference/triplet.py`; the kernels and their story are in
`kernels/pairwise/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _pairwise
from simtile._tensors import is_tensor

if TYPE_CHECKING:
    import torch

METRICS = ("euclidean", "squared_euclidean", "cosine", "manhattan")


def triplet_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    *,
    margin: float = 1.0,
    metric: Literal["euclidean", "squared_euclidean", "cosine", "manhattan"] = "euclidean",
    normalize: bool = False,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Any:
    r"""Triplet loss of torch tensors (differentiable) or NumPy arrays, in O(N D).

    .. math:: \ell_i = \max(0, d(a_i, p_i) - d(a_i, n_i) + \text{margin})

    (Schroff et al. 2015, arXiv:1503.03832, eq. 3, which squares the distances).

    Parameters
    ----------
    anchor, positive, negative : Tensor or array [N, D]
        float32, float64, bfloat16 or float16; all tensors or all arrays. Computed in float64 if
        one is, else in float32.
    margin : float
        By how much the negative should be further away than the positive.
    metric : str
        "euclidean", "squared_euclidean", "cosine" (1 - cos) or "manhattan". The Euclidean distance
        is exact: no epsilon is added, and its gradient for equal vectors is 0.
    normalize : bool
        Divide every vector by max(‖x‖, 1e-12) first; "cosine" always does.
    reduction : "mean", "sum" or "none"
        Over the N losses.

    Returns
    -------
    Tensor or NumPy number, or [N] for "none"

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are no triplets.

    Examples
    --------
    >>> import torch, simtile
    >>> anchor = torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> positive, negative = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    >>> loss = simtile.triplet_loss(anchor, positive, negative, margin=1.0, metric="cosine")
    >>> round(loss.item(), 4)
    0.2929
    >>> loss.backward()
    """
    _inputs.check_choice("metric", metric, METRICS)
    _inputs.check_choice("reduction", reduction, _inputs.REDUCTIONS)
    margin = _pairwise.check_number("margin", margin)
    normalize = _inputs.check_flag("normalize", normalize) or metric == "cosine"
    if is_tensor(anchor):
        from simtile.ops.triplet import triplet_tensors

        return triplet_tensors(anchor, positive, negative, margin, metric, normalize, reduction)
    (a, p, n), number = _pairwise.wide_arrays(
        {"anchor": anchor, "positive": positive, "negative": negative}
    )
    # NaN in, NaN out; what only fits float64 is infinite in float32.
    with np.errstate(over="ignore", invalid="ignore"):
        if normalize:
            from simtile.reference.pairwise_numpy import unit

            a, p, n = unit(a), unit(p), unit(n)
        raw = _distance(a, p, metric) - _distance(a, n, metric) + margin
        losses = np.where(raw < 0, 0.0, raw)
        if reduction == "none":
            return losses.astype(number)
        return number(losses.mean() if reduction == "mean" else losses.sum())


def _distance(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], metric: str
) -> npt.NDArray[np.float64]:
    if metric == "cosine":
        terms = x * y
    else:
        terms = np.abs(x - y) if metric == "manhattan" else np.square(x - y)
    total: npt.NDArray[np.float64] = terms.sum(axis=1)
    if metric == "cosine":
        return 1.0 - total
    return np.sqrt(total) if metric == "euclidean" else total


def batch_hard_triplet_loss(
    embeddings: Any,
    labels: torch.Tensor | Sequence[int] | npt.ArrayLike,
    *,
    margin: float = 1.0,
    metric: Literal["euclidean", "squared_euclidean", "cosine"] = "euclidean",
    normalize: bool = False,
    backend: Literal["auto", "cpu", "triton", "reference"] = "auto",
    threads: int | None = None,
) -> Any:
    r"""Triplet loss of the hardest triplets of a batch, in O(N D) memory.

    .. math:: \ell_i = \max(0, \max_{j \ne i, y_j = y_i} d(x_i, x_j)
        - \min_{y_j \ne y_i} d(x_i, x_j) + \text{margin})

    (Hermans et al. 2017, arXiv:1703.07737, eq. 5), averaged over the rows that have both another
    row with their label and a row with a different one; 0 if there is none. All N² distances are
    compared in tiles and never stored; the gradient goes through the chosen pairs only.

    Parameters
    ----------
    embeddings : Tensor or array [N, D]
        float32, float64, bfloat16 or float16. Tensors are differentiable and may be on a GPU
        (without float64). Autocast changes nothing.
    labels : integers [N]
        Rows with equal labels are each other's positives.
    margin : float
        By how much the negative should be further away than the positive.
    metric : str
        "euclidean", "squared_euclidean" or "cosine" (1 - cos). The gradient of the Euclidean
        distance of equal rows is 0.
    normalize : bool
        Divide every row by max(‖x‖, 1e-12) first; "cosine" always does.
    backend : str
        "auto" takes "cpu" on the CPU and "triton" on a GPU; a named one never falls back.
        "reference" is plain Python lists.
    threads : int, optional
        Threads for this call on the CPU.

    Returns
    -------
    Tensor, scalar; or a NumPy number for arrays
        float64 if the embeddings are, else float32.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type, shape, element type or value; there are no rows.
    RuntimeError
        The named backend is not available; the gradient is differentiated.

    Notes
    -----
    Equal distances: the lowest row is chosen. Rows are compared in the arithmetic of a matrix
    product, so that of two distances that differ by its rounding, about 1e-7 (|x|² + |y|²) of a
    squared distance, either may count as the harder; the distances of the chosen rows are then
    computed anew. A row with a NaN or an infinity makes the loss NaN. The same inputs give the same
    bits for any number of threads.

    sentence_transformers' loss of this name also counts rows that lack a positive or a negative;
    ``simtile.integrations.sentence_transformers_triplet`` does as it does.

    Examples
    --------
    >>> import torch, simtile
    >>> embeddings = torch.tensor([[0.0, 1], [0, 2], [5, 1], [5, 3]], requires_grad=True)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> loss = simtile.batch_hard_triplet_loss(embeddings, labels, margin=5.0)
    >>> round(loss.item(), 4)
    1.4505
    >>> loss.backward()
    """
    _inputs.check_choice("metric", metric, _pairwise.BATCH_HARD_METRICS)
    margin = _pairwise.check_number("margin", margin)
    thread_count = _inputs.check_threads(threads)
    normalize = _inputs.check_flag("normalize", normalize)
    if is_tensor(embeddings):
        from simtile.ops.pairwise import batch_hard_triplet_tensors

        return batch_hard_triplet_tensors(
            embeddings, labels, margin, metric, normalize, True, backend, thread_count
        )
    chosen = _inputs.check_array_backend(backend, "simtile.batch_hard_triplet_loss")
    x, dtype = _inputs.float_array("embeddings", embeddings)
    _pairwise.check_matrix("embeddings", x.shape, 1)
    label_array = _inputs.int_array("labels", labels)
    _pairwise.check_labels(label_array.shape, x.shape[0])
    loss, _ = _pairwise.batch_hard(
        _pairwise.as_kernel(x, dtype),
        dtype,
        label_array,
        margin,
        metric,
        normalize,
        True,
        False,
        chosen,
        thread_count,
    )
    return _pairwise.as_number(loss, dtype)
