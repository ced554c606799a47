"""maxsim-cpu's two functions, with the same arguments and results.

``from simtile.integrations import maxsim_cpu`` in place of ``import maxsim_cpu``. As there, inputs
are float32 arrays, scores are float32 [N], and a document without a token scores -inf, unless the
query has none either. Other than there, arrays need not be contiguous, and NaN in is NaN out.
``docs/late-interaction.md`` has every difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import simtile

__all__ = ["maxsim_scores", "maxsim_scores_variable"]

Scores = npt.NDArray[np.float32]


def maxsim_scores(query: Any, docs: Any) -> Scores:
    """One query with documents of one length.

    Parameters
    ----------
    query : float32 [L, D]
    docs : float32 [N, Ld, D]

    Returns
    -------
    float32 [N]

    Raises
    ------
    TypeError
        What is no array of float32 with these axes.
    ValueError
        Different D.
    """
    return _score(_checked("query", query, "L", "D"), _checked("docs", docs, "N", "Ld", "D"))


def maxsim_scores_variable(query: Any, docs: Any) -> Scores:
    """One query with documents of any lengths.

    Parameters
    ----------
    query : float32 [L, D]
    docs : list of float32 [L_n, D], or float32 [N, Ld, D]

    Returns
    -------
    float32 [N]

    Raises
    ------
    TypeError
        What is no array of float32 with these axes.
    ValueError
        Different D.
    """
    checked = _checked("query", query, "L", "D")
    if isinstance(docs, np.ndarray):
        return _score(checked, _checked("docs", docs, "N", "Ld", "D"))
    if not isinstance(docs, Sequence) or isinstance(docs, (str, bytes)):
        raise TypeError(f"docs: found {type(docs).__name__}, expected a list of arrays [L, D]")
    return _score(checked, [_checked(f"docs[{i}]", x, "L", "D") for i, x in enumerate(docs)])


def _score(query: Scores, docs: Scores | list[Scores]) -> Scores:
    if not len(docs):
        return np.zeros(0, np.float32)
    empty_score = -np.inf if len(query) else 0.0
    scores: Scores = simtile.maxsim(query[None], docs, empty_score=empty_score)[0]
    return scores


def _checked(name: str, x: Any, *axes: str) -> Scores:
    if isinstance(x, np.ndarray) and x.dtype == np.float32 and x.ndim == len(axes):
        return x
    expected = f"expected a float32 array [{', '.join(axes)}]"
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: found {type(x).__name__}, {expected}")
    hint = "" if x.dtype == np.float32 else "; simtile.maxsim takes other types"
    raise TypeError(f"{name}: found {x.dtype} {list(x.shape)}, {expected}{hint}")
