"""The losses as torch modules."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import torch
from torch import Tensor

from simtile import _inputs
from simtile._cached import CachedLoss as CachedLoss
from simtile._pairwise import check_number
from simtile.info_nce import info_nce
from simtile.ops._backends import check_available
from simtile.siglip import siglip_loss

__all__ = ["CLIPLoss", "CachedLoss", "InfoNCE", "SigLIPLoss"]

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
    >>> import torch, simtile
    >>> loss_fn = simtile.nn.InfoNCE(temperature=0.05, learnable_temperature=True)
    >>> loss = loss_fn(torch.randn(8, 16), torch.randn(8, 16))
    >>> loss.backward()
    >>> [name for name, _ in loss_fn.named_parameters()]
    ['log_temperature']
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


class CLIPLoss(InfoNCE):
    """CLIP's loss: :func:`simtile.info_nce` from queries to documents and back, and their mean.

    Radford et al. 2021, arXiv:2103.00020, fig. 3; open_clip's ClipLoss, whose ``logit_scale``
    parameter is minus ``log_temperature``.

    Parameters
    ----------
    temperature : float
        Divides the similarities, or with ``learnable_temperature`` the value to start from.
    learnable_temperature : bool
        Train ``log_temperature``, the logarithm of the temperature; exclude it from weight decay.
    largest_scale : float
        A learnable temperature is kept from falling below the inverse of this, as the paper does
        for stability.
    **same
        Other options of :func:`simtile.info_nce`, without directions and partition.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        A value that :func:`simtile.info_nce` refuses, or an option that it does not have.

    Examples
    --------
    >>> import torch, simtile
    >>> images, texts = torch.eye(4), torch.eye(4)
    >>> round(simtile.nn.CLIPLoss(temperature=0.5)(images, texts).item(), 4)
    0.3408
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = True,
        *,
        largest_scale: float = 100.0,
        **same: Any,
    ) -> None:
        for name in ("directions", "partition"):
            if name in same:
                raise TypeError(f"{name}: CLIPLoss has its own; use simtile.nn.InfoNCE")
        fixed = {
            "directions": ("query_to_doc", "doc_to_query"),
            "partition": "per_direction",
        }
        super().__init__(temperature, learnable_temperature, **fixed, **same)
        self._largest_scale = check_number("largest_scale", largest_scale, positive=True)

    def forward(self, queries: Tensor, documents: Tensor, *rest: Any, **batch: Any) -> Tensor:
        """The loss of a batch: [N, D], [M, D] and what :meth:`InfoNCE.forward` takes."""
        if self.log_temperature is not None:
            with torch.no_grad():
                self.log_temperature.clamp_(min=-math.log(self._largest_scale))
        return super().forward(queries, documents, *rest, **batch)


class SigLIPLoss(torch.nn.Module):
    """:func:`simtile.siglip_loss` as a module, with its temperature and bias.

    open_clip's SigLipLoss, whose ``logit_scale`` parameter is minus ``log_temperature``.

    Parameters
    ----------
    temperature, bias : float
        What Zhai et al. start from. The parameters are ``log_temperature``, the logarithm of the
        temperature, so that it stays above 0, and ``bias``; exclude both from weight decay.
    learnable_temperature, learnable_bias : bool
        Train them.
    normalize, reduction, backend, threads
        As in :func:`simtile.siglip_loss`.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        A value that :func:`simtile.siglip_loss` refuses.

    Examples
    --------
    >>> import torch, simtile
    >>> loss_fn = simtile.nn.SigLIPLoss()
    >>> loss_fn(torch.eye(4), torch.eye(4)).backward()
    >>> sorted(name for name, _ in loss_fn.named_parameters())
    ['bias', 'log_temperature']
    """

    log_temperature: Tensor
    bias: Tensor

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        *,
        learnable_temperature: bool = True,
        learnable_bias: bool = True,
        normalize: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        backend: Literal["auto", "cpu", "triton", "reference"] = "auto",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if backend == "triton":
            check_available(backend)
        else:  # fail where the module is made, not at its first batch
            one = torch.zeros(1, 1)
            siglip_loss(one, one, reduction=reduction, backend=backend, threads=threads)
        start = (
            ("log_temperature", learnable_temperature, _inputs.check_temperature(temperature)),
            ("bias", learnable_bias, check_number("bias", bias)),
        )
        for name, learnable, value in start:
            number = math.log(value) if name == "log_temperature" else value
            tensor = torch.tensor(number, dtype=torch.float32)
            if learnable:
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self._options: dict[str, Any] = {
            "normalize": normalize,
            "reduction": reduction,
            "backend": backend,
            "threads": threads,
        }

    @property
    def temperature(self) -> Tensor:
        """The temperature in use, differentiable if it is learnable."""
        return self.log_temperature.exp()

    def forward(self, queries: Tensor, documents: Tensor) -> Tensor:
        """The loss of a batch, [N, D] and [M, D] as in :func:`simtile.siglip_loss`."""
        return siglip_loss(  # type: ignore[no-any-return]
            queries, documents, temperature=self.temperature, bias=self.bias, **self._options
        )

    def extra_repr(self) -> str:
        temperature, bias = self.temperature.item(), self.bias.item()
        described = [f"temperature={temperature:.6g}", f"bias={bias:.6g}"]
        described += [f"{name}={value!r}" for name, value in self._options.items()]
        return ", ".join(described)
