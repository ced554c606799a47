"""The losses as torch modules."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from simtile import _inputs
from simtile._cached import CachedLoss as CachedLoss
from simtile.info_nce import info_nce
from simtile.ops._backends import check_available

# Arguments of info_nce that belong to a batch; all others can be given to the module.
_PER_BATCH = ("queries", "documents", "negatives", "targets", "query_ids", "document_ids")
_OPTIONS = set(inspect.signature(info_nce).parameters) - {*_PER_BATCH, "temperature"}


class InfoNCE(torch.nn.Module):
    """:func:`simtile.info_nce` as a module.

    Parameters
    ----------
    temperature : float
        Divides the similarities. With ``learnable_temperature`` the value to start from.
    learnable_temperature : bool
        Train the temperature. The parameter is ``log_temperature``, its logarithm, so that it stays
        above 0 whatever the optimiser does; exclude it from weight decay, which would pull the
        temperature towards 1.
    **same
        The options of :func:`simtile.info_nce`: ``normalize``, ``negatives_scope``, ``reduction``,
        ``backend``, ``threads``, … What belongs to a batch goes to :meth:`forward`.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        A value that :func:`simtile.info_nce` refuses, or an option that it does not have.

    Examples
    --------
    >>> loss_fn = simtile.nn.InfoNCE(temperature=0.05)
    >>> loss = loss_fn(query_embeddings, document_embeddings)
    """

    log_temperature: torch.nn.Parameter | None

    def __init__(
        self, temperature: float = 0.05, learnable_temperature: bool = False, **same: Any
    ) -> None:
        super().__init__()
        for name in same:
            if name in _PER_BATCH:
                raise TypeError(f"{name}: belongs to a batch; pass it when calling the module")
            if name not in _OPTIONS:
                raise TypeError(f"{name}: not an option of simtile.info_nce")
        self._initial_temperature = _inputs.check_temperature(temperature)
        self._options = same
        self._check_options()
        if learnable_temperature:
            self.log_temperature = torch.nn.Parameter(
                torch.tensor(math.log(self._initial_temperature), dtype=torch.float32)
            )
        else:
            self.register_parameter("log_temperature", None)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use: a float, or a differentiable tensor if it is learnable."""
        if self.log_temperature is None:
            return self._initial_temperature
        return self.log_temperature.exp()

    def forward(
        self,
        queries: Tensor,
        documents: Tensor,
        negatives: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        query_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch: [N, D], [M, D] and [N, K, D] as in :func:`simtile.info_nce`."""
        return info_nce(
            queries,
            documents,
            negatives,
            temperature=self.temperature,
            targets=targets,
            query_ids=query_ids,
            document_ids=document_ids,
            **self._options,
        )

    def extra_repr(self) -> str:
        if self.log_temperature is None:
            described = [f"temperature={self._initial_temperature:.6g}"]
        else:
            temperature = self.log_temperature.detach().exp().item()
            described = [f"temperature={temperature:.6g}", "learnable_temperature=True"]
        described += [f"{name}={value!r}" for name, value in self._options.items()]
        return ", ".join(described)

    def _check_options(self) -> None:
        """Fail where the module is made, not at its first batch."""
        options = dict(self._options)
        dims = options.get("matryoshka_dims")
        one = torch.zeros(1, max(1, max(dims, default=1)) if isinstance(dims, (tuple, list)) else 1)
        if options.get("backend") in ("triton", "cuda"):
            # Not run here, on a tensor of the CPU.
            check_available(options.pop("backend"))
        info_nce(one, one, temperature=1.0, **options)
