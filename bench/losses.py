"""Losses of pairs and triplets, and batches: `python bench/losses.py [--quick] [--only NAME]`.

What no other script times: the sigmoid loss beside torch's formula and, where it is installed,
open_clip's; given triplets and alignment beside torch's formulas; anisotropy beside the matrix of
all cosines; false negatives of a batch beside a matrix of equal ids; batches without equal ids
beside sentence-transformers' sampler. Values and gradients are compared first; nothing is timed
unless they agree. Results of a complete run go to bench/results/<machine>/.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _beside
import _common
import numpy as np
import tables
import torch
import torch.nn.functional as F
from _beside import SIMTILE
from _common import GateFailed, Json, Run, Target
from torch import Tensor

import simtile

CLOSE = 2e-5  # of ours from float64, loss and gradients, relative to the largest
TEMPERATURE, BIAS = 0.1, -10.0
MARGIN = 20.0  # at which every triplet of random vectors has a gradient

Result = tuple[Json, list[Target]]
Loss = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(loss: Loss, inputs: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Forward and backward: the loss and the gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def call() -> list[Tensor]:
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return call


def compare(run: Run, losses: Mapping[str, Loss], inputs: list[Tensor], rounds: int) -> Json:
    """Errors from the last one's formula in float64, ours refused above CLOSE; then times."""
    exact = step(list(losses.values())[-1], [x.double() for x in inputs])()
    calls = {who: step(loss, inputs) for who, loss in losses.items()}
    errors = {who: worst(call(), exact) for who, call in calls.items()}
    if not errors[SIMTILE] <= CLOSE:
        raise GateFailed(f"simtile's error is {errors[SIMTILE]:.2g}, allowed {CLOSE:.2g}")
    what = "float32, forward and backward"
    n, dim = inputs[0].shape
    return _beside.beside(run, calls, rounds, errors, what=what, n=n, dim=dim)


def worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(found, exact, strict=True)
    )


def sigmoid_formula(queries: Tensor, documents: Tensor) -> Tensor:
    """arXiv:2303.15343, equation 1."""
    logits = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T / TEMPERATURE + BIAS
    signs = 2 * torch.eye(len(queries), dtype=queries.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(queries)


def open_clip_loss() -> Loss | None:
    """Its file of losses alone: the package needs torchvision and timm."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location(
        "open_clip_loss", Path(package.origin).with_name("loss.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.SigLipLoss()

    def call(queries: Tensor, documents: Tensor) -> Tensor:
        unit = [F.normalize(x, dim=1) for x in (queries, documents)]
        value: Tensor = loss(*unit, 1 / TEMPERATURE, BIAS)
        return value

    return call


def siglip(run: Run) -> Result:
    n, dim = run.size(4099, 515), run.size(771, 389)
    queries = normal(n, dim)
    documents = 0.5 * queries + normal(n, dim, seed=1)
    losses: dict[str, Loss] = {
        SIMTILE: lambda *x: simtile.siglip_loss(
            *x, temperature=TEMPERATURE, bias=BIAS, threads=run.threads
        )
    }
    if (peer := open_clip_loss()) is not None:
        losses["open_clip"] = peer
    losses["torch"] = sigmoid_formula
    return compare(run, losses, [queries, documents], 7), []


def triplet(run: Run) -> Result:
    n, dim = run.size(30_011, 1_003), 389
    inputs = [normal(n, dim, seed=seed) for seed in range(3)]
    inputs[1] += inputs[0]

    def theirs(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(anchor, positive, negative, margin=MARGIN, eps=0.0)

    losses: dict[str, Loss] = {
        SIMTILE: lambda *x: simtile.triplet_loss(*x, margin=MARGIN),
        "torch": theirs,
    }
    return compare(run, losses, inputs, 7), []


def alignment(run: Run) -> Result:
    n, dim = run.size(30_011, 1_003), 389
    x = normal(n, dim)
    y = x + normal(n, dim, seed=1)

    def theirs(a: Tensor, b: Tensor) -> Tensor:
        return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).norm(dim=1).square().mean()

    return compare(run, {SIMTILE: simtile.alignment, "torch": theirs}, [x, y], 7), []


def anisotropy(run: Run) -> Result:
    n, dim = run.size(8_191, 513), 389
    x = normal(n, dim) + 1.0  # a common direction

    def theirs(a: Tensor) -> Tensor:
        unit = F.normalize(a, dim=1)
        cosines = unit @ unit.T
        return (cosines.sum() - cosines.trace()) / (n * (n - 1))

    return compare(run, {SIMTILE: simtile.anisotropy, "torch": theirs}, [x], 5), []


def audit_batch(run: Run) -> Result:
    n = run.size(4_099, 515)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 2 * n, n))

    def ours() -> Any:
        return simtile.audit_batch(ids).pairs

    def theirs() -> Any:
        return (ids[:, None] == ids[None]).triu(1).nonzero().numpy()

    if not np.array_equal(ours(), theirs()):
        raise GateFailed("audit_batch: other pairs than those of equal ids")
    calls = {SIMTILE: ours, "torch, all pairs": theirs}
    return _beside.beside(run, calls, 9, {}, n=n, pairs=len(ours())), []


def distinct_ids(run: Run) -> Result:
    """An epoch. Each id is the text of a row, so that both keep the same rows apart."""
    from datasets import Dataset
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    n, batch = run.size(20_011, 1_003), 257
    ids = np.random.default_rng(0).integers(0, n // 3, n)
    ours = simtile.DistinctIdsBatchSampler(ids, batch)
    dataset = Dataset.from_dict({"text": [str(own) for own in ids]})
    theirs = NoDuplicatesBatchSampler(
        dataset, batch_size=batch, drop_last=False, generator=torch.Generator(), seed=0
    )
    calls: dict[str, Callable[[], Any]] = {
        SIMTILE: lambda: list(ours),
        "sentence-transformers": lambda: list(theirs),
    }
    for who, call in calls.items():
        batches = call()
        rows = np.sort(np.concatenate(batches))
        if not np.array_equal(rows, np.arange(n)):
            raise GateFailed(f"distinct ids, {who}: not every row once")
        if any(len(set(ids[rows])) < len(rows) for rows in batches):
            raise GateFailed(f"distinct ids, {who}: an id twice in a batch")
    return _beside.beside(run, calls, 5, {}, n=n, batch=batch, ids=len(set(ids))), []


ENTRIES = {
    "siglip": siglip,
    "triplet": triplet,
    "alignment": alignment,
    "anisotropy": anisotropy,
    "audit_batch": audit_batch,
    "distinct_ids": distinct_ids,
}


def main() -> int:
    arguments = _common.parser("Benchmark other losses, and batches.", ENTRIES).parse_args()
    torch.set_num_threads(arguments.threads)
    _common.limit_blas(arguments.threads)
    return _common.run_entries(
        "losses", ENTRIES, arguments, _common.machine(), _beside.markdown, tables.targets
    )


if __name__ == "__main__":
    sys.exit(main())
