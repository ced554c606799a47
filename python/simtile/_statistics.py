"""What a contrastive loss sees, to watch during training."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Tally(NamedTuple):
    """Sums, which add up over batches; `Tally` of kernels/info_nce/args.hpp, in its order."""

    pairs: float
    positive_similarity: float
    negative_similarity: float  # of negatives in the loss
    negatives_kept: float
    negatives_there: float  # with those that are left out
    pairs_ahead: float
    pairs_compared: float  # pairs times log-sum-exps


class ContrastiveStatistics:
    """What the contrastive losses of one or more batches saw, to watch during training.

    Pass one as ``statistics`` to :func:`simtile.info_nce`: each call adds what it saw, gathered
    with the similarities that it computes anyway; a mean is over all calls since :meth:`reset`.
    Similarities are those of the vectors, without temperature and hardness; with Matryoshka those
    of the widest prefix. A mean over nothing is NaN.

    Nothing waits for a GPU until a number is read.

    Examples
    --------
    >>> import numpy as np
    >>> import simtile
    >>> seen = simtile.ContrastiveStatistics()
    >>> _ = simtile.info_nce_grad(np.eye(3), np.eye(3), statistics=seen)
    >>> seen
    ContrastiveStatistics(positive_similarity=1, negative_similarity=0, accuracy=1, masked=0)
    """

    def __init__(self) -> None:
        self._sums: Any = None  # float64 [7], an array or a tensor where the batches are

    def add(self, sums: Any) -> None:
        """Add the sums of one run, float64 [7] in the order of ``Tally``."""
        if self._sums is None:
            self._sums = sums
        elif isinstance(sums, np.ndarray) or isinstance(self._sums, np.ndarray):
            self._sums = _as_array(self._sums) + _as_array(sums)
        else:
            self._sums = self._sums.to(sums.device) + sums

    def reset(self) -> None:
        """Begin again, e.g. when the numbers have been logged."""
        self._sums = None

    @property
    def tally(self) -> Tally:
        """The sums, for those who add them up over processes."""
        if self._sums is None:
            return Tally(*[0.0] * len(Tally._fields))
        return Tally(*_as_array(self._sums).tolist())

    @property
    def positive_similarity(self) -> float:
        """Mean over the pairs."""
        return _ratio(self.tally.positive_similarity, self.tally.pairs)

    @property
    def negative_similarity(self) -> float:
        """Mean over the negatives in the loss, each as often as it is compared."""
        return _ratio(self.tally.negative_similarity, self.tally.negatives_kept)

    @property
    def accuracy(self) -> float:
        """How often a pair is more similar than every one of its negatives; a tie is a miss.

        With ``partition="per_direction"`` each direction counts. Negatives that only
        ``false_negative_margin`` leaves out take part: the model's own similarity cannot excuse it.
        """
        return _ratio(self.tally.pairs_ahead, self.tally.pairs_compared)

    @property
    def masked(self) -> float:
        """Share of the negatives that ids, the guide or the margin leave out of the loss."""
        there, kept = self.tally.negatives_there, self.tally.negatives_kept
        return _ratio(there - kept, there)

    def as_dict(self) -> dict[str, float]:
        """The four numbers by name, for a logger."""
        names = ("positive_similarity", "negative_similarity", "accuracy", "masked")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self.as_dict().items())
        return f"ContrastiveStatistics({numbers})"


def check_statistics(statistics: object) -> None:
    if not isinstance(statistics, ContrastiveStatistics):
        raise TypeError(
            f"statistics: found {type(statistics).__name__}, expected "
            "simtile.ContrastiveStatistics()"
        )


def _as_array(sums: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return sums if isinstance(sums, np.ndarray) else sums.numpy(force=True)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
