"""Similarity of sentence pairs against people's judgement; scipy computes the correlations."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _pairwise
from simtile.integrations._embeddings import to_numpy
from simtile.metrics._optional import optional

Array = npt.NDArray[Any]


class Correlation(NamedTuple):
    """Of ranks (Spearman's rho) and of values (Pearson's r).

    Examples
    --------
    >>> import simtile
    >>> simtile.metrics.Correlation(spearman=1.0, pearson=0.9).pearson
    0.9
    """

    spearman: float
    pearson: float


def correlation(scores: Any, gold: Any) -> Correlation:
    """Spearman's and Pearson's correlation of scores with what was expected.

    Parameters
    ----------
    scores, gold : [N], array, Tensor or list of numbers
        N ≥ 2, finite, not all equal.

    Returns
    -------
    Correlation(spearman, pearson)
        scipy's ``spearmanr`` and ``pearsonr``.

    Raises
    ------
    ValueError
        An argument has a wrong shape, NaN or an infinity, or only one value.
    ModuleNotFoundError
        scipy is not installed.

    Examples
    --------
    >>> import simtile
    >>> found = simtile.metrics.correlation([0.1, 0.4, 0.8], [1, 2, 5])
    >>> round(found.spearman, 6), round(found.pearson, 4)
    (1.0, 0.9803)
    """
    a, b = _numbers("scores", scores), _numbers("gold", gold)
    if len(a) != len(b):
        raise ValueError(f"gold: found [{len(b)}], expected [{len(a)}] because scores are")
    stats = optional("scipy.stats", "scipy", "correlation")
    return Correlation(
        float(stats.spearmanr(a, b).statistic), float(stats.pearsonr(a, b).statistic)
    )


def similarity_correlation(
    x: Any, y: Any, gold: Any, *, metric: Literal["cosine", "dot", "l2"] = "cosine"
) -> Correlation:
    """How well the similarity of pairs of embeddings agrees with people's judgement of the pairs.

    Parameters
    ----------
    x, y : floats [N, D], array or Tensor
        Row i of one is compared with row i of the other, in float64.
    gold : [N]
        What was judged, more for more similar.
    metric : "cosine", "dot" or "l2"
        "l2" is the distance, with a minus. The cosine with a row of zeros is 0.

    Returns
    -------
    Correlation(spearman, pearson)

    Raises
    ------
    ValueError, TypeError, ModuleNotFoundError
        As :func:`correlation`; x or y has a wrong shape or type.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> y = np.array([[1.0, 0.1], [1.0, 1.0], [0.0, 1.0]])
    >>> round(simtile.metrics.similarity_correlation(x, y, [5.0, 3.5, 0.5]).spearman, 6)
    1.0
    """
    _inputs.check_choice("metric", metric, ("cosine", "dot", "l2"))
    a, b = (_matrix(name, v) for name, v in (("x", x), ("y", y)))
    if a.shape != b.shape:
        raise ValueError(f"y: found shape {list(b.shape)}, expected {list(a.shape)} as x")
    if metric == "l2":
        scores = -np.sqrt(np.square(a - b).sum(axis=1))
    else:
        scores = (a * b).sum(axis=1)
        if metric == "cosine":
            norms = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
            scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
    return correlation(scores, gold)


def _matrix(name: str, x: Any) -> Array:
    array = to_numpy(name, x)
    _pairwise.check_matrix(name, array.shape, 2)
    if array.dtype.kind not in "fV":
        raise TypeError(f"{name}: found {array.dtype} {list(array.shape)}, expected floats")
    return array.astype(np.float64)


def _numbers(name: str, x: Any) -> Array:
    array = to_numpy(name, x)
    if array.dtype.kind not in "iuf" or array.ndim != 1 or len(array) < 2:
        raise ValueError(
            f"{name}: found {array.dtype} {list(array.shape)}, expected numbers [N] with N at "
            "least 2"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found NaN or an infinity, expected finite numbers")
    if (array == array[0]).all():
        raise ValueError(
            f"{name}: found {array[0]:g} {len(array)} times, expected different numbers: a "
            "correlation with a constant is not defined"
        )
    return array
