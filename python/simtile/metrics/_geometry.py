"""How embeddings lie on the sphere, before and after something was done to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from simtile import _inputs
from simtile.uniformity import alignment, anisotropy, uniformity


class Geometry(NamedTuple):
    """Of one set of pairs: all three are less for better embeddings.

    Examples
    --------
    >>> import simtile
    >>> simtile.metrics.Geometry("before", alignment=1.0, uniformity=-0.1, anisotropy=0.9).name
    'before'
    """

    name: str
    alignment: float  # mean squared distance of positives
    uniformity: float  # logarithm of the mean Gaussian potential
    anisotropy: float  # mean cosine of different texts


def geometry(sets: Mapping[str, tuple[Any, Any]], *, threads: int | None = None) -> list[Geometry]:
    """Alignment, uniformity and anisotropy of several sets of pairs, such as before and after.

    Parameters
    ----------
    sets : {name: (x, y)}
        Row i of x, floats [N, D], and row i of y are a positive pair; both are arrays or both
        Tensors. N ≥ 2.
    threads : int, optional

    Returns
    -------
    list of Geometry
        In the order of the sets. Uniformity and anisotropy are the means of x's and y's, as Wang
        and Isola do it (2020, arXiv:2005.10242).

    Raises
    ------
    ValueError, TypeError
        As :func:`simtile.alignment` and :func:`simtile.uniformity`.

    Examples
    --------
    >>> import numpy as np, simtile
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((100, 16)).astype(np.float32)
    >>> narrow = x + 5  # as of a model that was not tuned: all texts in one direction
    >>> before, after = simtile.metrics.geometry(
    ...     {"before": (narrow, narrow[::-1]), "after": (x, x + 0.1 * x[::-1])}
    ... )
    >>> before.anisotropy > 0.9 > 0.1 > abs(after.anisotropy)
    True
    """
    _inputs.check_threads(threads)
    if not isinstance(sets, Mapping) or not sets:
        raise TypeError(
            f"sets: found {type(sets).__name__}, expected a dictionary of at least one "
            "{name: (x, y)}"
        )
    found = []
    for name, pair in sets.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"sets[{name!r}]: found {type(pair).__name__}, expected a pair (x, y) of matrices"
            )
        x, y = pair
        found.append(
            Geometry(
                str(name),
                float(alignment(x, y)),
                sum(float(uniformity(z, threads=threads)) for z in pair) / 2,
                sum(float(anisotropy(z)) for z in pair) / 2,
            )
        )
    return found
