"""The same loss and gradients, by simtile and by what people use today; and how wrong each is.

Every contender takes queries and documents [N, D], normalises them, and leaves the gradients of the
mean InfoNCE loss with respect to both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

import simtile
from simtile.reference import info_nce_numpy

TEMPERATURE = 0.05
SIMTILE = "simtile"
EAGER = "torch eager"
COMPILED = "torch.compile"
CHUNKED = "F.linear_cross_entropy"
NUMPY = "NumPy"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Array = npt.NDArray[Any]
Loss = Callable[[Tensor, Tensor], Tensor]


def embeddings(n: int, dim: int, dtype: str = "float32", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and documents [n, dim] that resemble trained ones: cosine about 0.45 for pairs."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.empty(n, dim).normal_(generator=generator)
    documents = torch.empty(n, dim).normal_(generator=generator)
    documents.add_(queries, alpha=0.5)
    return tuple(x.to(DTYPES[dtype]).requires_grad_() for x in (queries, documents))  # type: ignore[return-value]


def eager_loss(queries: Tensor, documents: Tensor, reduction: str = "mean") -> Tensor:
    """F.normalize + matmul + F.cross_entropy: what a training loop says."""
    logits = F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T / TEMPERATURE
    targets = torch.arange(queries.shape[0], device=queries.device)
    return F.cross_entropy(logits, targets, reduction=reduction)


def chunked_loss(queries: Tensor, documents: Tensor) -> Tensor:
    """torch's own loss that never stores the logits (torch 2.13 and later)."""
    return F.linear_cross_entropy(
        F.normalize(queries, dim=-1) / TEMPERATURE,
        F.normalize(documents, dim=-1),
        torch.arange(queries.shape[0]),
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def simtile_loss(threads: int) -> Loss:
    def loss(queries: Tensor, documents: Tensor) -> Tensor:
        return simtile.info_nce(queries, documents, temperature=TEMPERATURE, threads=threads)

    return loss


def losses(threads: int, wanted: tuple[str, ...]) -> dict[str, Loss]:
    """The torch contenders that this machine has, by name."""
    found: dict[str, Loss] = {}
    if SIMTILE in wanted:
        found[SIMTILE] = simtile_loss(threads)
    if EAGER in wanted:
        found[EAGER] = eager_loss
    if COMPILED in wanted and shutil.which("g++"):  # inductor writes C++
        found[COMPILED] = torch.compile(eager_loss, dynamic=False)
    if CHUNKED in wanted and hasattr(F, "linear_cross_entropy"):
        found[CHUNKED] = chunked_loss
    return found


def step(loss: Loss, queries: Tensor, documents: Tensor) -> Callable[[], Tensor]:
    """One forward and backward, as in a training loop after zero_grad(set_to_none=True)."""

    def run() -> Tensor:
        queries.grad = documents.grad = None
        value = loss(queries, documents)
        value.backward()
        return value

    return run


def numpy_step(queries: Array, documents: Array) -> tuple[float, Array, Array]:
    """Plain NumPy in the element type of the inputs: loss and both gradients."""
    n = len(queries)
    rows = np.arange(n)
    norm_q = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    norm_d = np.maximum(np.linalg.norm(documents, axis=1, keepdims=True), 1e-12)
    unit_q, unit_d = queries / norm_q, documents / norm_d
    logits = unit_q @ unit_d.T
    logits /= TEMPERATURE
    logits -= logits.max(axis=1, keepdims=True)
    positive = logits[rows, rows].copy()
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - positive))
    logits /= sums
    logits[rows, rows] -= 1
    logits /= n * TEMPERATURE
    grad_q, grad_d = logits @ unit_d, logits.T @ unit_q
    grad_q -= unit_q * np.sum(unit_q * grad_q, axis=1, keepdims=True)
    grad_d -= unit_d * np.sum(unit_d * grad_d, axis=1, keepdims=True)
    return loss, grad_q / norm_q, grad_d / norm_d


@dataclass(frozen=True)
class Errors:
    """Root mean square differences from the float64 oracle, relative to its root mean square."""

    losses: float  # of the N single losses
    grad_queries: float
    grad_documents: float

    def json(self) -> dict[str, float]:
        return dict(self.__dict__)


def relative_error(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


def oracle(queries: Tensor, documents: Tensor) -> info_nce_numpy.Oracle:
    """Loss rows and gradients of the mean in float64, of the values as they are stored."""
    exact = [x.detach().to(torch.float64).numpy() for x in (queries, documents)]
    n = len(exact[0])
    return info_nce_numpy.info_nce_grad(
        *exact, temperature=TEMPERATURE, row_weights=np.full(n, 1 / n)
    )


def torch_errors(
    name: str, queries: Tensor, documents: Tensor, exact: info_nce_numpy.Oracle, threads: int
) -> Errors:
    """Of simtile or of eager torch."""
    if name == SIMTILE:
        loss = simtile_loss(threads)
        with torch.no_grad():
            rows = simtile.info_nce(
                queries, documents, temperature=TEMPERATURE, reduction="none", threads=threads
            )
    else:
        loss = eager_loss
        with torch.no_grad():
            rows = eager_loss(queries, documents, reduction="none")
    step(loss, queries, documents)()
    grads = [x.grad for x in (queries, documents)]
    assert grads[0] is not None
    assert grads[1] is not None
    return Errors(
        relative_error(rows.double().numpy(), exact.losses),
        relative_error(grads[0].double().numpy(), exact.queries),
        relative_error(grads[1].double().numpy(), exact.documents),
    )


def sampled_error(queries: Tensor, documents: Tensor, threads: int, count: int = 64) -> float:
    """The largest relative error in `count` rows of the gradients that .grad holds and of the loss.

    For sizes whose matrix does not fit: a sampled query's row of similarities is computed in
    float64; a sampled document's column too, with the losses that simtile gives to normalise it,
    which the sampled rows have checked.
    """
    n = len(queries)
    picked = np.linspace(0, n - 1, count).astype(np.int64)
    with torch.no_grad():
        rows = simtile.info_nce(
            queries, documents, temperature=TEMPERATURE, reduction="none", threads=threads
        )
    q, d = (x.detach().double() for x in (queries, documents))
    unit_q, unit_d = F.normalize(q, dim=-1), F.normalize(d, dim=-1)
    positive = (unit_q * unit_d).sum(1) / TEMPERATURE
    at = torch.from_numpy(picked)
    here = torch.arange(count)

    logits = unit_q[at] @ unit_d.T / TEMPERATURE  # [count, N]
    exact_rows = torch.logsumexp(logits, dim=1) - positive[at]
    by_row = torch.softmax(logits, dim=1)
    by_row[here, at] -= 1
    by_column = torch.exp(unit_q @ unit_d[at].T / TEMPERATURE - (positive + rows.double())[:, None])
    by_column[at, here] -= 1  # [N, count]

    def projected(unit: Tensor, raw: Tensor, grad: Tensor) -> Tensor:
        grad = grad - unit * (unit * grad).sum(1, keepdim=True)
        return grad / raw.norm(dim=1, keepdim=True) / (n * TEMPERATURE)

    assert queries.grad is not None
    assert documents.grad is not None
    pairs = [
        (rows[at].double(), exact_rows),
        (queries.grad[at].double(), projected(unit_q[at], q[at], by_row @ unit_d)),
        (documents.grad[at].double(), projected(unit_d[at], d[at], by_column.T @ unit_q)),
    ]
    return max(relative_error(found.numpy(), exact.numpy()) for found, exact in pairs)
